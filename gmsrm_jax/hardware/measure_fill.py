"""The speed of a fill: the program that `Inpainter` runs, by itself and as its user meets it."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmsrm_jax.config import Config
from gmsrm_jax.hardware import flops, machine, timing
from gmsrm_jax.inference.inpainter import Inpainter, predict
from gmsrm_jax.training.state import init_state, release_params


def random_params(config: Config) -> Any:
  """What a fresh model fills with, on one device."""
  init = jax.jit(lambda key: release_params(init_state(config, "inpaint", key)))
  # Other random numbers than a run's, because they compile in a tenth of the time.
  return init(jax.random.key(config.run.seed, impl="unsafe_rbg"))


def measure_fill(config: Config, params: Any, batch: int, *, peak: dict[str, Any], seconds: float) -> dict[str, Any]:
  """Compiles the fill of `batch` pictures of the model's own size for one device, and times it.

  `device` is the program alone; `copies` comes from arrays of the host and goes back to one; `call` is `Inpainter` on
  one picture, each call waited for.
  """
  before = machine.peak_bytes()
  size = config.model.image_size
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
  holes = np.zeros((batch, size, size, 1), np.uint8)
  holes[:, size // 4 : -(size // 4), size // 4 : -(size // 4)] = 1
  here = jax.device_put((images, holes, jax.random.key(0), jnp.float32(0)))
  begin = time.perf_counter()
  traced = predict.trace(config, params, *here)
  lowered = traced.lower()
  middle = time.perf_counter()
  compiled = lowered.compile()
  done = time.perf_counter()
  timed = timing.measure(lambda: compiled(params, *here), seconds=seconds)
  copied = timing.measure(
    lambda: np.asarray(compiled(params, images, holes, *here[2:])), seconds=seconds, together=False
  )
  operations = flops.count(traced.jaxpr)
  row = {
    "trace_seconds": middle - begin,
    "compile_seconds": done - middle,
    "device_seconds": dataclasses.asdict(timed),
    "copies_seconds": dataclasses.asdict(copied),
    "call_seconds": None,
    "images_per_second": batch / timed.median,
    "images_per_second_with_copies": batch / copied.median,
    "flops": operations,
    "utilisation": machine.utilisation(operations / timed.median, peak),
    "memory": {**machine.memory_of(compiled), "peak_bytes": machine.own_peak(before)},
  }
  if batch == 1:
    fill = Inpainter(config, params)
    row["call_seconds"] = dataclasses.asdict(
      timing.measure(lambda: fill(images[0], holes[0, ..., 0]), seconds=seconds, together=False)
    )
  return row
