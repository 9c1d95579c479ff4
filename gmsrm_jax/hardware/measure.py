"""Measures one program at a time: a stage's step, or a fill."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gmsrm_jax.config import Config
from gmsrm_jax.data import pipeline
from gmsrm_jax.inference.inpainter import Inpainter, predict
from gmsrm_jax.parallel import sharding
from gmsrm_jax.pretrained import vgg16
from gmsrm_jax.training import loop, steps
from gmsrm_jax.training.stages import has_memory_stage, needs_vgg16
from gmsrm_jax.training.state import TrainState, init_state, release_params, with_shardings

MIN_REPEATS, MAX_REPEATS = 5, 50
_SHORTEST = 0.05  # seconds of a repeat: shorter calls are sent off together, so that the host waits only once

FLOPS_FROM = "XLA cost analysis of the unoptimised program"


def time_calls(call: Callable[[], Any], *, seconds: float, together: bool = True) -> dict[str, float]:
  """Seconds of one call: median, quartiles (q1, q3) and 95th percentile, over `repeats` of `calls` each.

  Two calls warm up and count nothing. Repeats go on until `seconds` are over, at least `MIN_REPEATS` and at most
  `MAX_REPEATS`; each ends when the device has done what it was told. With `together`, short calls are sent off several
  at a time, as a training loop does; otherwise each is waited for.
  """
  jax.block_until_ready(call())
  begin = time.perf_counter()
  jax.block_until_ready(call())
  once = time.perf_counter() - begin
  calls = max(1, min(100, math.ceil(_SHORTEST / max(once, 1e-6)))) if together else 1
  repeats: list[float] = []
  while len(repeats) < MIN_REPEATS or (sum(repeats) < seconds and len(repeats) < MAX_REPEATS):
    begin = time.perf_counter()
    result = None
    for _ in range(calls):
      result = call()
    jax.block_until_ready(result)
    repeats.append(time.perf_counter() - begin)
  quantiles = np.quantile(np.asarray(repeats) / calls, (0.5, 0.25, 0.75, 0.95)).tolist()
  return {**dict(zip(("median", "q1", "q3", "p95"), quantiles, strict=True)), "repeats": len(repeats), "calls": calls}


def lower_step(config: Config, stage: str, mesh: Mesh) -> jax.stages.Lowered:
  """The stage's whole step as training compiles it, for abstract arguments: shapes, types and where they live."""
  target = with_shardings(config, stage, mesh)
  size, split, whole = config.model.image_size, sharding.batch_sharding(mesh), sharding.replicated(mesh)
  batch = {
    name: jax.ShapeDtypeStruct((config.run.batch_size, size, size, channels), jnp.uint8, sharding=split)
    for name, channels in (("image", 3), ("mask", 1))
  }
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), _feature_params(config))
  phase = steps.Phase(adversarial=config.loss.adversarial > 0)
  return loop.compile_step(config, stage, mesh, target, phase).lower(target, batch, params)


def count_flops(config: Config, stage: str, images: int) -> float:
  """Operations of the step for so many images, counted before any compiler has changed it; nan where XLA cannot tell.

  On one device, and the batch in one part: XLA counts a loop's body once.
  """
  run = dataclasses.replace(config.run, batch_size=images + images % 2, fsdp=1, accumulate=1)
  config = dataclasses.replace(config, run=run)
  cost = lower_step(config, stage, sharding.make_mesh(config, jax.local_devices()[:1])).cost_analysis()
  return math.nan if cost is None else float(cost["flops"]) * images / run.batch_size


def _compile(lower: Callable[[], jax.stages.Lowered]) -> tuple[jax.stages.Lowered, jax.stages.Compiled, dict[str, Any]]:
  """A program, lowered and compiled, and the row of what that took and of what memory per device the compiler plans."""
  begin = time.perf_counter()
  lowered = lower()
  traced = time.perf_counter()
  compiled = lowered.compile()
  row: dict[str, Any] = {"trace_seconds": traced - begin, "compile_seconds": time.perf_counter() - traced}
  plan, planned = compiled.memory_analysis(), None
  if plan is not None:
    planned = plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes
    planned -= plan.alias_size_in_bytes
  return lowered, compiled, {**row, "memory": {"planned_bytes": planned}}


def measure_step(config: Config, stage: str, seconds: float) -> dict[str, Any]:
  """Compiles the stage's step with the adversarial term and times it on a random batch that lies on the devices."""
  mesh = sharding.make_mesh(config)
  _, compiled, row = _compile(lambda: lower_step(config, stage, mesh))
  state, batch, params = step_arguments(config, stage, mesh)

  def advance() -> TrainState:
    nonlocal state
    state, _ = compiled(state, batch, params)
    return state

  timed = time_calls(advance, seconds=seconds)
  images = config.run.batch_size / timed["median"]
  # What `run.remat` computes twice is useful once.
  once = dataclasses.replace(config, run=dataclasses.replace(config.run, remat=""))
  row |= {"seconds": timed, "images_per_second": images, "images_per_second_per_device": images / mesh.size}
  return {**row, "flops": count_flops(once, stage, config.run.batch_size)}


def _feature_params(config: Config) -> Any:
  return vgg16.load_vgg16() if needs_vgg16(config) else {}


def step_arguments(config: Config, stage: str, mesh: Mesh) -> tuple[TrainState, dict[str, jax.Array], Any]:
  """The state that a stage begins with, a random batch, and the feature network, on the devices.

  The memory of stage 2 is that of an untrained stage 1.
  """

  def init(key: jax.Array) -> TrainState:
    memory = init_state(config, "memory", key).ema if stage == "inpaint" and has_memory_stage(config) else None
    return init_state(config, stage, key, memory)

  where = jax.tree.map(lambda leaf: leaf.sharding, with_shardings(config, stage, mesh))
  # Other random numbers than a run's, because they compile in a tenth of the time.
  state = jax.jit(init, out_shardings=where)(jax.random.key(config.run.seed, impl="unsafe_rbg"))
  synthetic = dataclasses.replace(config, data=dataclasses.replace(config.data, synthetic=True))
  rows = sharding.local_rows(config.run.batch_size, mesh)
  batch = sharding.global_batch(next(pipeline.training_iterator(synthetic, "inpaint", rows)), mesh)
  return state, batch, jax.device_put(_feature_params(config), sharding.replicated(mesh))


def measure_fill(config: Config, batch: int, seconds: float) -> dict[str, Any]:
  """Compiles the fill of a batch at the model's own size for one device, and times it.

  `device` is the program alone; `call` is `Inpainter` on one picture of the host, each call waited for.
  """
  init = jax.jit(lambda key: release_params(init_state(config, "inpaint", key)))
  params = init(jax.random.key(config.run.seed, impl="unsafe_rbg"))
  size = config.model.image_size
  images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
  holes = np.zeros((batch, size, size, 1), np.uint8)
  holes[:, size // 4 : -(size // 4), size // 4 : -(size // 4)] = 1
  here = jax.device_put((images, holes, jax.random.key(0), jnp.float32(0)))
  lowered, compiled, row = _compile(lambda: predict.lower(config, params, *here))
  timed = time_calls(lambda: compiled(params, *here), seconds=seconds)
  called = None
  if batch == 1:
    fill = Inpainter(config, params)
    called = time_calls(lambda: fill(images[0], holes[0, ..., 0]), seconds=seconds, together=False)
  row |= {"device_seconds": timed, "call_seconds": called, "images_per_second": batch / timed["median"]}
  return {**row, "flops": (lowered.cost_analysis() or {}).get("flops", math.nan)}
