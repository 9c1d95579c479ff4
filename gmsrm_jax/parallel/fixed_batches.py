"""Runs a function of images on all local devices, always in batches of one size.

Rounding depends on the shape a program was compiled for and, on a CPU, on the place in the batch; a fill that is
rounded otherwise may differ by one level of uint8. So neither the caller's batches nor the number of devices decide the
shape: each device sees `images_per_device()` at a time, as if it were alone. What fills the last batch up is cut off.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gmsrm_jax.parallel import sharding

ByImage = Callable[..., Any]
"""Takes NumPy arrays whose first axis is the images, and returns a tree of such arrays."""


def images_per_device() -> int:
  """Returns 1 on a CPU, where one image keeps all cores busy and none has another's place; else 8."""
  return 1 if jax.default_backend() == "cpu" else 8


def in_fixed_batches(function: Callable[..., Any], params: Any = ()) -> ByImage:
  """Returns `function(params, *arrays)`, which must treat each image by itself, as a function of arrays alone."""
  mesh = sharding.local_mesh()
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  placed = jax.device_put(params, whole)
  # Left to the partitioner, a program that merges axes would gather the batch and do everything on every device.
  alone = sharding.on_each_device(lambda p, arrays: function(p, *arrays), mesh)
  program = jax.jit(alone, in_shardings=(whole, split), out_shardings=split)
  size = images_per_device() * mesh.size

  def run(*arrays: np.ndarray) -> Any:
    count = len(arrays[0])
    waiting, done = collections.deque(), []
    for start in range(0, count, size):
      batch = tuple(_filled_up(array[start : start + size], size) for array in arrays)
      # Placed by hand: as one of several processes JAX splits no NumPy array, even over this process's devices alone.
      waiting.append(program(placed, jax.device_put(batch, split)))
      if len(waiting) > 1:  # one at work, one on its way: more would only take memory
        done.append(jax.device_get(waiting.popleft()))
    done += jax.device_get(list(waiting))
    return jax.tree.map(lambda *batches: np.concatenate(batches)[:count], *done)

  return run


def _filled_up(images: np.ndarray, count: int) -> np.ndarray:
  """Repeats the last image until there are so many."""
  return np.concatenate([images, np.repeat(images[-1:], count - len(images), axis=0)])
