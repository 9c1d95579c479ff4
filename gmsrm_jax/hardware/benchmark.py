"""Measures the steps of both stages and the fill on the devices that are here.

Writes one JSON file, which `compare.py` lays beside those of other machines.
"""

from __future__ import annotations

import datetime
import gc
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gmsrm_jax import files, overrides
from gmsrm_jax.config import Config
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.hardware import compare, machine, measure
from gmsrm_jax.kernels import convolution
from gmsrm_jax.parallel import backend, sharding
from gmsrm_jax.training import loop
from gmsrm_jax.training.stages import planned_stages
from gmsrm_jax.training.state import compute_dtype


def benchmark(
  experiment: Config,
  assignments: Sequence[str],
  sizes: Sequence[str] | None = None,
  batches: Sequence[int] | None = None,
  output: str | None = None,
  seconds: float | None = None,
) -> None:
  """Measures, prints a table, and writes the JSON file anew after every row.

  Args:
    experiment: whose settings count.
    assignments: KEY=VALUE of settings to change.
    sizes: of the model; None leaves the choice to the back end, so that a CPU is done within five minutes.
    batches: images at once; None likewise.
    output: the JSON file; None is runs/benchmark_PLATFORM.json.
    seconds: how long to time each program, once it is compiled; None leaves it to the back end.

  Raises:
    ConfigError: a size or setting is unknown, or a batch does not fit the devices.
  """
  began, platform = time.perf_counter(), jax.default_backend()
  backend.use_compile_cache("off")  # what a cache hands out took no time to compile
  require(jax.process_count() == 1, "--mode=benchmark measures one host: start it on one that has its own devices")

  def configured(size: str, batch: int | None = None) -> Config:
    more = [] if batch is None else [f"run.batch_size={batch}"]
    return overrides.override(experiment, [*assignments, f"model.size={size}", *more])

  plan, left_out = make_plan(configured, sizes, batches)
  path = pathlib.Path(output or f"runs/benchmark_{platform}.json")
  require(not path.is_dir(), f"--output={path} is a folder: name a file, such as {path / 'benchmark.json'}")
  path.parent.mkdir(parents=True, exist_ok=True)
  base = configured(plan[0][1])
  loop.check_settings(base)
  convolution.use(base.run.convolution)
  seconds = seconds or (3.0 if platform == "cpu" else 5.0)
  document = {
    "format": compare.FORMAT,
    "version": compare.VERSION,
    "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": machine.describe_machine(),
    "settings": {**overrides.to_dict(base), "model": None},  # of each row
    "peak": machine.measure_peak(compute_dtype(base), seconds),
    "flops_from": measure.FLOPS_FROM,
    "left_out": left_out,
    "rows": [],
  }
  for program, size, batch in plan:
    row = measure_row(program, configured(size, None if program == "fill" else batch), batch, seconds)
    if row["status"] == "ok":
      row["utilisation"] = utilisation(row, document)
    document["rows"].append(row)
    document |= {"seconds": time.perf_counter() - began, "finished": len(document["rows"]) == len(plan)}
    files.write_json(path, document)
    outcome = f"{row['images_per_second']:.4g} images/s" if row["status"] == "ok" else row["status"]
    print(f"{compare.title(row)}: {outcome}", flush=True)
  print("\n".join(["", compare.table({"here": document}), *(f"left out: {text}" for text in left_out)]))
  print(f"\n{path}: lay it beside others with --mode=benchmark --compare {path} OTHER.json")


def make_plan(
  configured: Callable[..., Config], sizes: Sequence[str] | None, batches: Sequence[int] | None
) -> tuple[list[tuple[str, str, int]], list[str]]:
  """(program, size, batch) of every row, and what is left out, in words."""
  on_cpu, devices, left_out = jax.default_backend() == "cpu", jax.device_count(), []
  chosen = tuple(dict.fromkeys(sizes or (("small",) if on_cpu else ("small", "base"))))
  default = (1, 4 * -(-devices // 4)) if on_cpu else (1, 8 * devices, 32 * devices)
  counts = sorted(set(batches or default))
  fills = [("fill", size, batch) for size in chosen for batch in counts]
  steps = []
  for _, size, batch in fills:
    configured(size)  # what is wrong with any batch
    try:
      config = configured(size, batch)
      sharding.check_batch(config, sharding.make_mesh(config))
      steps += [(stage, size, batch) for stage in planned_stages(config)]
    except ConfigError as error:
      # One image alone is filled, but seldom trained on.
      require(batch == 1, f"--batches: {error}")
      left_out.append(f"training of {size} at batch 1: {error}")
  if sizes is None and on_cpu:
    fills.append(("fill", "base", 1))
  if sizes is None or batches is None:
    left_out.append("larger models and batches: ask with --sizes base large --batches 8 32")
  return [*fills, *steps], left_out


def measure_row(program: str, config: Config, batch: int, seconds: float) -> dict[str, Any]:
  """A row with its settings; where the memory does not suffice it says so, and nothing else."""
  fill = program == "fill"
  row = {"program": program, "size": config.model.size, "image_size": config.model.image_size, "batch": batch}
  row |= {"devices": 1, "accumulate": 1, "remat": "", "fsdp": 1}
  if not fill:
    run = overrides.to_dict(config.run)
    row |= {"devices": jax.device_count(), **{name: run[name] for name in ("accumulate", "remat", "fsdp")}}
  row |= {"dtype": jnp.dtype(compute_dtype(config)).name, "model": overrides.to_dict(config.model)}
  gc.collect()  # what the row before held on the devices
  try:
    measured = measure.measure_fill(config, batch, seconds) if fill else measure.measure_step(config, program, seconds)
    return {**row, "status": "ok", **measured}
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
      raise
  return {**row, "status": "out of memory"}


def utilisation(row: dict[str, Any], document: dict[str, Any]) -> dict[str, float | None]:
  """The shares of the published peak, None without one, and of the rate that was measured here."""
  peak, fill = document["peak"], row["program"] == "fill"
  # A fill has one device; simulated devices of a CPU share its cores.
  devices = document["machine"]["device_count"] if fill and document["machine"]["platform"] != "cpu" else 1
  rate = devices * row["flops"] / row["device_seconds" if fill else "seconds"]["median"]
  published = peak["published_flops"]
  return {"of_published": published and rate / published, "of_measured": rate / peak["measured_flops"]}
