"""Runs a function of images on all local devices, always in the same small pieces.

Rounding depends on the shape a program was compiled for, and a fill that is rounded otherwise may differ by one level
of uint8. So neither the caller's batches nor the number of devices decide the shape: each device sees CHUNK images at
a time. What fills the last piece up is cut off again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gmsrm_jax import sharding

CHUNK = 4
"""Images per device and call."""

ByImage = Callable[..., Any]
"""Takes NumPy arrays whose first axis is the images, and returns a tree of such arrays."""


def chunked(function: Callable[..., Any], params: Any = ()) -> ByImage:
  """`function(params, *arrays)` as a function of arrays alone; it must treat each image by itself."""
  mesh = sharding.local_mesh()
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  placed = jax.device_put(params, whole)
  program = jax.jit(lambda p, arrays: function(p, *arrays), in_shardings=(whole, split), out_shardings=split)
  step = CHUNK * mesh.size

  def run(*arrays: np.ndarray) -> Any:
    count = len(arrays[0])
    # All pieces are under way before the first is fetched.
    pieces = [
      program(placed, tuple(_padded(array[start : start + step], step) for array in arrays))
      for start in range(0, count, step)
    ]
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts])[:count], *pieces)

  return run


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
  """Repeats the last row."""
  return np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
