"""--mode=benchmark: how fast the steps of both stages, the fill and the input are on the devices that are here.

Writes one JSON file, which `compare.py` lays beside those of other back ends.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from gmsrm_jax import files, overrides
from gmsrm_jax.config import Config
from gmsrm_jax.errors import require
from gmsrm_jax.hardware import compare, machine, parts
from gmsrm_jax.hardware.measure_fill import measure_fill, random_params
from gmsrm_jax.hardware.measure_input import measure_input
from gmsrm_jax.hardware.measure_step import (
  initial_state,
  input_share,
  measure_parts,
  measure_step,
  synthetic_batch,
  to_host,
)
from gmsrm_jax.hardware.plan import Plan, make_plan
from gmsrm_jax.parallel import backend, sharding
from gmsrm_jax.pretrained import features
from gmsrm_jax.training import loop
from gmsrm_jax.training.state import STAGES, compute_dtype, has_memory_stage


class Pace(NamedTuple):
  """Seconds that a program is measured for, once it is compiled."""

  step: float
  part: float
  fill: float
  input: float


_ON_CPU, _ON_CHIP = Pace(3.0, 0.5, 1.0, 3.0), Pace(5.0, 1.0, 3.0, 10.0)


def benchmark(
  experiment: Config,
  assignments: Sequence[str],
  sizes: Sequence[str] | None = None,
  batches: Sequence[int] | None = None,
  output: str | None = None,
  pace: Pace | None = None,
) -> dict[str, Any]:
  """Measures, prints a table, and writes the JSON file, anew after every measurement.

  Args:
    experiment: whose settings count.
    assignments: KEY=VALUE of settings to change.
    sizes: of the model; None leaves the choice to the back end, so that a CPU is done within five minutes.
    batches: images at once; None likewise.
    output: the JSON file; None is runs/benchmark_PLATFORM.json.
    pace: how long to measure; None leaves it to the back end.

  Returns:
    What was written.

  Raises:
    ConfigError: a size or setting is unknown, or a batch does not fit the devices.
  """
  began = time.perf_counter()
  # What a cache hands out took no time to compile.
  backend.use_compile_cache("off")
  require(jax.process_count() == 1, "--mode=benchmark measures one host: start it on one that has its own devices")
  for assignment in assignments:
    for key, flag in (("model.size", "--sizes"), ("run.batch_size", "--batches")):
      require(not assignment.startswith(f"{key}="), f"--set {assignment} is not read by --mode=benchmark: use {flag}")

  def configured(size: str, batch: int | None = None) -> Config:
    more = [] if batch is None else [f"run.batch_size={batch}"]
    return overrides.override(experiment, [*assignments, f"model.size={size}", *more])

  plan = make_plan(configured, sizes, batches)
  path = pathlib.Path(output or f"runs/benchmark_{jax.default_backend()}.json")
  require(not path.is_dir(), f"--output={path} is a folder: name a file, such as {path / 'benchmark.json'}")
  path.parent.mkdir(parents=True, exist_ok=True)
  base = configured(plan.fills[0][0])
  loop.check_settings(base)
  pace = pace or (_ON_CPU if jax.default_backend() == "cpu" else _ON_CHIP)

  document: dict[str, Any] = {
    "format": compare.FORMAT,
    "version": compare.VERSION,
    "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "finished": False,
    "machine": machine.describe_machine(),
    "settings": {**overrides.to_dict(base), "model": None},  # of each row
    "left_out": plan.left_out,
    "rows": [],
  }
  stages = [stage for stage in STAGES if stage != "memory" or has_memory_stage(base)]
  with tqdm(total=2 + len(stages) * len(plan.steps) + len(plan.fills), unit="row", disable=None, leave=False) as bar:

    def say(text: str) -> None:
      document["seconds"] = time.perf_counter() - began
      files.write_json(path, document)
      bar.write(text)
      bar.update()

    bar.set_description("peak")
    peak = document["peak"] = machine.measure_peak(compute_dtype(base), pace.part)
    say(f"matrix products: {peak['measured_flops'] / 1e12:.3f} TFLOP/s")
    bar.set_description("input")
    # A folder that the user names is meant; that of the experiment may be elsewhere.
    insist = any(assignment.startswith("data.train=") for assignment in assignments)
    document["input"] = measure_input(base, seconds=pace.input, insist=insist)
    say(f"input: {document['input']['images_per_second']:.0f} images/s from {document['input']['source']}")
    for row in _rows(configured, plan, stages, document, pace, bar):
      document["rows"].append(row)
      say(compare.line(row))
  document["finished"] = True
  document["machine"]["load_average_after"] = machine.load_average()
  document["seconds"] = time.perf_counter() - began
  files.write_json(path, document)
  print("\n" + compare.describe(document))
  print(f"\n{path}: lay it beside others with --mode=benchmark --compare {path} OTHER.json")
  return document


def _rows(
  configured: Callable[..., Config], plan: Plan, stages: list[str], document: dict[str, Any], pace: Pace, bar: tqdm
) -> Any:
  """Every row, one after the other; what one of them held on the devices is gone before the next."""
  for size, batch in plan.fills:
    bar.set_description(f"fill {size} {batch}")
    largest = batch == max(b for s, b in plan.fills if s == size)
    config = configured(size)
    yield _row("fill", config, batch, 1, lambda c=config, b=batch, w=largest: _fill(c, b, document, pace, parts_too=w))
  for size, batch in plan.steps:
    largest = batch == max(b for s, b in plan.steps if s == size)
    config = configured(size, batch)
    memory: list[Any] = []
    for stage in stages:
      bar.set_description(f"{stage} {size} {batch}")
      yield _row(
        stage,
        config,
        batch,
        jax.device_count(),
        lambda c=config, s=stage, w=largest, m=memory: _step(c, s, m, document, pace, parts_too=w),
      )


def _row(program: str, config: Config, batch: int, devices: int, measured: Callable[[], dict[str, Any]]) -> Any:
  """A row with its settings; where the memory does not suffice it says so, and nothing else."""
  row = {
    "program": program,
    "size": config.model.size,
    "image_size": config.model.image_size,
    "batch": batch,
    "devices": devices,
    "dtype": jnp.dtype(compute_dtype(config)).name,
    "accumulate": config.run.accumulate if program != "fill" else 1,
    "remat": config.run.remat if program != "fill" else "",
    "fsdp": config.run.fsdp if program != "fill" else 1,
    "model": overrides.to_dict(config.model),
  }
  gc.collect()
  try:
    return {**row, "status": "ok", **measured()}
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if not isinstance(error, MemoryError) and not _ran_out(error):
      raise
  return {**row, "status": "out of memory"}


def _ran_out(error: Exception) -> bool:
  text = str(error)
  return "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()


def _step(
  config: Config, stage: str, memory: list[Any], document: dict[str, Any], pace: Pace, *, parts_too: bool
) -> dict[str, Any]:
  """A row's numbers of one stage; `memory` carries what stage 1 leaves to stage 2."""
  mesh = sharding.make_mesh(config)
  feature_params = {}
  if config.loss.features == "vgg16":
    feature_params = jax.device_put(features.load_vgg16(), sharding.replicated(mesh))
  if stage == "inpaint" and has_memory_stage(config) and not memory:
    memory.append(to_host(initial_state(config, "memory", mesh, None)[1]))  # stage 1 ran out of memory
  peak = document["peak"]
  row, state = measure_step(
    config,
    stage,
    mesh,
    feature_params=feature_params,
    memory_params=memory[0] if memory else None,
    peak=peak,
    seconds=pace.step,
  )
  if stage == "memory":
    memory.append(to_host(state))
  row["input_wait_share"] = input_share(row["images_per_second"], document["input"]["images_per_second"])
  row["input_seconds"] = config.run.batch_size / document["input"]["images_per_second"]
  if parts_too:
    run = dataclasses.replace(config.run, batch_size=config.run.batch_size // config.run.accumulate)
    batch = synthetic_batch(dataclasses.replace(config, run=run), mesh)
    row["parts"] = measure_parts(
      parts.step_parts(config, stage, state, batch, feature_params, mesh),
      row["seconds"]["median"],
      times=config.run.accumulate,
      peak=peak,
      seconds=pace.part,
    )
  return row


def _fill(config: Config, batch: int, document: dict[str, Any], pace: Pace, *, parts_too: bool) -> dict[str, Any]:
  """A row's numbers of a fill, on one device."""
  params = random_params(config)
  peak = {**document["peak"]}
  if document["machine"]["platform"] != "cpu":
    devices = document["machine"]["device_count"]
    peak |= {name: value / devices for name, value in peak.items() if name.endswith("_flops") and value}
  row = measure_fill(config, params, batch, peak=peak, seconds=pace.fill)
  if parts_too:
    size = config.model.image_size
    image, mask = jnp.zeros((batch, size, size, 3)), jnp.ones((batch, size, size, 1))
    row["parts"] = measure_parts(
      parts.fill_parts(config, params, image, mask),
      row["device_seconds"]["median"],
      times=1,
      peak=peak,
      seconds=pace.part,
    )
  return row
