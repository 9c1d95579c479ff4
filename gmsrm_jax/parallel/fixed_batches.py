"""Runs a function of images on all local devices, always in the same small pieces.

Rounding depends on the shape a program was compiled for and, on a CPU, on the place in the batch; a fill that is
rounded otherwise may differ by one level of uint8. So neither the caller's batches nor the number of devices decide the
shape: each device sees `chunk_size()` images at a time, as if it were alone. What fills the last piece up is cut off.
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


def chunk_size() -> int:
  """Images per device and call: on a CPU one keeps all cores busy, and then no image has another's place."""
  return 1 if jax.default_backend() == "cpu" else 8


def chunked(function: Callable[..., Any], params: Any = ()) -> ByImage:
  """`function(params, *arrays)` as a function of arrays alone; it must treat each image by itself."""
  mesh = sharding.local_mesh()
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  placed = jax.device_put(params, whole)
  # Left to the partitioner, a program that merges axes would gather the batch and do everything on every device.
  alone = sharding.on_each_device(lambda p, arrays: function(p, *arrays), mesh)
  program = jax.jit(alone, in_shardings=(whole, split), out_shardings=split)
  step = chunk_size() * mesh.size

  def run(*arrays: np.ndarray) -> Any:
    count = len(arrays[0])
    pieces, done = collections.deque(), []
    for start in range(0, count, step):
      rows = tuple(_padded(array[start : start + step], step) for array in arrays)
      # Placed by hand: as one of several processes JAX splits no NumPy array, even over this process's devices alone.
      pieces.append(program(placed, jax.device_put(rows, split)))
      if len(pieces) > 1:  # one at work, one on its way: more would only take memory
        done.append(jax.device_get(pieces.popleft()))
    done += jax.device_get(list(pieces))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *done)

  return run


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
  """Repeats the last row."""
  return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
