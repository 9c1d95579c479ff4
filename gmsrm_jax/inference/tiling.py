"""Windows through which the model sees a photo of any size: squares around the holes, each at a scale of its own.

The model was trained on squares of S pixels with holes of up to about half their width. So it sees a hole through
windows whose side is at least twice the hole's thickness: at the photo's own resolution where S is enough, reduced
where the hole is larger. Several windows cover a long thin hole, and their fills are blended. (Ours.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from gmsrm_jax.arrays import image_to_uint8

HOLE_SHARE = 0.5
"""The thickness of a hole is at most this share of its window's side."""
MARGIN = 0.125
"""A window's outer part, as a share of its side, where its fill has least to go by and counts least."""
MAX_ASPECT = 4
"""Under 'resize' the model sees at most this many times its training side along the long side."""
MAX_POSITIONS = 4096
"""Positions of the bottleneck grid that 'full' may have: attention over them takes their square in memory."""


class Window(NamedTuple):
  """A rectangle of the photo, and the size it is seen at."""

  top: int
  left: int
  height: int
  width: int
  rows: int
  columns: int

  @property
  def place(self) -> tuple[slice, slice]:
    """The rectangle as an index."""
    return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

  @property
  def scale(self) -> float:
    """Pixels of the photo for one that is seen, at least 1."""
    return max(1.0, self.height / self.rows, self.width / self.columns)


class Patch(NamedTuple):
  """One hole, or several near to each other, and the windows that see all of it together."""

  hole: Bool[np.ndarray, "h w"]  # what is to be filled, of the pixels at `place`
  place: tuple[slice, slice]  # the rectangle around all windows
  windows: list[Window]  # of one size, seen at one size


def plan(mask: UInt8[np.ndarray, "h w"], size: int, strategy: str) -> Iterator[Patch]:
  """Covers a photo's hole with patches, each hole pixel exactly once.

  Args:
    mask: 1 in the hole.
    size: side the model was trained at.
    strategy: 'crop' as described above, 'resize' one window of the whole photo reduced to the model's size, 'full' the
      whole photo at its own size; 'auto' is 'full' for a photo no larger than `size` and 'crop' for others.
  """
  if not mask.any():
    return
  height, width = mask.shape
  if strategy == "auto":
    strategy = "full" if max(height, width) <= size else "crop"
  if strategy == "crop":
    yield from _crops(mask, size)
  else:
    scale = 1.0 if strategy == "full" else min(size / min(height, width), MAX_ASPECT * size / max(height, width))
    window = Window(0, 0, height, width, *_scaled(height, width, scale))
    yield Patch(mask > 0, window.place, [window])


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
  return max(1, round(height * scale)), max(1, round(width * scale))


def _crops(mask: UInt8[np.ndarray, "h w"], size: int) -> Iterator[Patch]:
  """Yields one patch per group of holes that lie within a margin of each other."""
  reach = max(1, int(size * MARGIN)) // 2 * 2 + 1
  near = cv2.dilate(mask, np.ones((reach, reach), np.uint8))
  count, labels, boxes, _ = cv2.connectedComponentsWithStats(near, connectivity=8, ltype=cv2.CV_32S)
  labels[mask == 0] = 0
  depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3) if not mask.all() else None
  for label in range(1, count):
    left, top, columns, rows = map(int, boxes[label, :4])
    area = slice(top, top + rows), slice(left, left + columns)
    hole = labels[area] == label
    thickness = max(mask.shape) if depth is None else 2 * float(depth[area][hole].max())
    side = round(max(size, thickness / HOLE_SHARE))
    height, width = min(side, mask.shape[0]), min(side, mask.shape[1])
    # Where the photo ends before the window does, it is reduced no more than needed.
    seen = _scaled(height, width, 1 / max(1.0, max(height, width) / size))
    x, y, columns, rows = cv2.boundingRect(hole.astype(np.uint8))
    tops = _starts(top + y, rows, height, mask.shape[0])
    lefts = _starts(left + x, columns, width, mask.shape[1])
    windows = [Window(*corner, height, width, *seen) for corner in itertools.product(tops, lefts)]
    windows = [window for window in windows if (labels[window.place] == label).any()]
    place = slice(tops[0], tops[-1] + height), slice(lefts[0], lefts[-1] + width)
    yield Patch(labels[place] == label, place, windows)


def _starts(start: int, length: int, side: int, limit: int) -> list[int]:
  """First pixels, along one axis of the photo, of windows whose inner parts together cover a hole's `length`."""
  inner = max(1, round(side * (1 - 2 * MARGIN)))
  if length <= inner or side == limit:
    starts = [start + (length - side) // 2]
  else:
    steps = math.ceil(length / inner) - 1
    margin = (side - inner) // 2
    first, last = start - margin, start + length - side + margin
    starts = [round(first + (last - first) * step / steps) for step in range(steps + 1)]
  return sorted({min(max(value, 0), limit - side) for value in starts})


def view(
  image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], window: Window
) -> tuple[UInt8[np.ndarray, "r c 3"], UInt8[np.ndarray, "r c"]]:
  """The photo and its hole through a window, at the window's size; no colour of the hole bleeds into known pixels."""
  image, mask = image[window.place], mask[window.place]
  if (window.rows, window.columns) == (window.height, window.width):
    return np.where(mask[..., None] > 0, np.uint8(0), image), mask
  method = cv2.INTER_AREA if window.rows < window.height else cv2.INTER_LINEAR
  known = (1 - mask).astype(np.float32)
  weight = cv2.resize(known, (window.columns, window.rows), interpolation=method)
  colour = cv2.resize(image * known[..., None], (window.columns, window.rows), interpolation=method)
  small = np.clip(np.round(colour / np.maximum(weight, 1e-6)[..., None]), 0, 255).astype(np.uint8)
  # A cell with any known pixel is known: its colour is theirs.
  return small, (weight < 1e-3).astype(np.uint8)


def paste(
  image: UInt8[np.ndarray, "h w 3"], patch: Patch, fills: Iterable[tuple[Window, Float[np.ndarray, "_ _ 3"]]]
) -> None:
  """Writes the weighted mean of the windows' fills, in [-1, 1], into the image in the patch's hole alone."""
  total = np.zeros((*patch.hole.shape, 3), np.float32)
  weights = np.zeros((*patch.hole.shape, 1), np.float32)
  for window, fill in fills:
    if fill.shape[:2] != (window.height, window.width):
      fill = cv2.resize(fill, (window.width, window.height), interpolation=cv2.INTER_CUBIC)
    rows = _weights(window.top, window.height, image.shape[0])
    columns = _weights(window.left, window.width, image.shape[1])
    weight = (rows[:, None] * columns).astype(np.float32)[..., None]
    top, left = (span.start for span in patch.place)
    inside = window._replace(top=window.top - top, left=window.left - left).place
    total[inside] += weight * fill
    weights[inside] += weight
  image[patch.place][patch.hole] = image_to_uint8(total / np.maximum(weights, 1e-12))[patch.hole]


def _weights(start: int, length: int, limit: int) -> Float[np.ndarray, " length"]:
  """Weights of a window's pixels along one axis: less towards its ends, but not at the photo's own."""
  ramp = max(1.0, 2 * MARGIN * length)
  position = np.arange(length) + 0.5
  before = np.where(start > 0, position, ramp)
  after = np.where(start + length < limit, length - position, ramp)
  return np.clip(np.minimum(before, after) / ramp, 1e-3, 1.0)


def padded_length(length: int, size: int, stride: int) -> int:
  """The length that a side of a view is padded to: one of few, so that a folder of photos compiles few programs.

  A side of at most `size` takes `size`; a larger one the next of size · 1.25^n, rounded up to the stride.
  """
  if length <= size:
    return size
  steps = math.ceil(math.log(length / size, 1.25) - 1e-9)
  return max(math.ceil(size * 1.25**steps / stride), math.ceil(length / stride)) * stride
