"""The speed of a training step: the very program that a run compiles, on a batch that lies on the devices."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gmsrm_jax.config import Config, RunConfig
from gmsrm_jax.data import pipeline
from gmsrm_jax.hardware import flops, machine, parts, timing
from gmsrm_jax.parallel import sharding
from gmsrm_jax.training import loop, steps
from gmsrm_jax.training.checkpoint import with_shardings
from gmsrm_jax.training.state import TrainState, init_state


def synthetic_batch(config: Config, mesh: Mesh) -> dict[str, jax.Array]:
  """A random batch on the devices."""
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, synthetic=True))
  rows = sharding.local_rows(config.run.batch_size, mesh)
  return sharding.global_batch(next(pipeline.training_iterator(config, "inpaint", rows)), mesh)


def initial_state(config: Config, stage: str, mesh: Mesh, memory_params: Any) -> tuple[TrainState, TrainState]:
  """The abstract state of a stage, and the fresh one."""
  target = with_shardings(config, stage, mesh)
  where = jax.tree.map(lambda leaf: leaf.sharding, target)
  init = jax.jit(functools.partial(init_state, config, stage), out_shardings=where)
  # Other random numbers than a run's, because they compile in a tenth of the time.
  return target, init(jax.random.key(config.run.seed, impl="unsafe_rbg"), memory_params)


def useful_flops(config: Config, stage: str, *arguments: Any) -> int:
  """Operations of a step; what `run.remat` has computed twice counts once."""
  run = dataclasses.replace(config.run, remat=RunConfig.remat)
  step = functools.partial(steps.STEPS[stage], config=dataclasses.replace(config, run=run))
  return flops.count(jax.jit(step).trace(*arguments).jaxpr)


def measure_step(
  config: Config,
  stage: str,
  mesh: Mesh,
  *,
  feature_params: Any,
  memory_params: Any,
  peak: dict[str, Any],
  seconds: float,
) -> tuple[dict[str, Any], TrainState]:
  """Compiles the step with the adversarial term, times it, and returns the row and the state it ended with."""
  before = machine.peak_bytes()
  target, state = initial_state(config, stage, mesh, memory_params)
  batch = synthetic_batch(config, mesh)
  step = loop.compile_step(config, stage, mesh, target)
  begin = time.perf_counter()
  program = step.trace(state, batch, feature_params)
  lowered = program.lower()
  traced = time.perf_counter()
  compiled = lowered.compile()
  done = time.perf_counter()

  def advance() -> TrainState:
    nonlocal state
    state, metrics = compiled(state, batch, feature_params)
    del metrics
    return state

  timed = timing.measure(advance, seconds=seconds)
  own = machine.own_peak(before)
  operations = flops.count(program.jaxpr)
  if config.run.remat:
    operations = useful_flops(config, stage, state, batch, feature_params)
  images = config.run.batch_size / timed.median
  return {
    "trace_seconds": traced - begin,
    "compile_seconds": done - traced,
    "seconds": dataclasses.asdict(timed),
    "images_per_second": images,
    "images_per_second_per_device": images / mesh.size,
    "flops": operations,
    "utilisation": machine.utilisation(operations / timed.median, peak),
    "memory": {**machine.memory_of(compiled), "peak_bytes": own},
  }, state


def measure_parts(
  found: dict[str, parts.Part], whole: float, *, times: int, peak: dict[str, Any], seconds: float
) -> list[dict[str, Any]]:
  """Each part's time, by itself, and its share of the whole; the last row is what is left over.

  Args:
    found: the parts.
    whole: seconds of the step or fill they are parts of.
    times: how often the step runs each (run.accumulate).
    peak: of `machine.measure_peak`.
    seconds: how long each is measured.
  """
  # Calls of a part do not wait for each other, as steps do: on a CPU's simulated devices, which share a few threads,
  # collectives of several at a time can wait for each other for ever.
  together = jax.default_backend() != "cpu" or jax.device_count() == 1
  rows = []
  for name, part in found.items():
    run = jax.jit(part.run)
    traced = run.trace(part.trained, part.fixed)
    operations = flops.count(traced.jaxpr)
    compiled = traced.lower().compile()
    timed = timing.measure(lambda c=compiled, p=part: c(p.trained, p.fixed), seconds=seconds, together=together)
    rows.append(
      {
        "part": name,
        "seconds": timed.median * times,
        "share": timed.median * times / whole,
        "flops": operations * times,
        "utilisation": machine.utilisation(operations / timed.median, peak),
      }
    )
  rest = whole - sum(row["seconds"] for row in rows)
  return [*rows, {"part": "rest", "seconds": rest, "share": rest / whole, "flops": None, "utilisation": None}]


def input_share(images_per_second: float, input_per_second: float) -> float:
  """The share of its time that a loop waits for its batches, if the input is made while the step runs."""
  return max(0.0, 1.0 - input_per_second / images_per_second)


def to_host(state: TrainState) -> Any:
  """Stage 1's averages, which stage 2 begins with, away from the devices."""
  return jax.tree.map(np.asarray, state.ema)
