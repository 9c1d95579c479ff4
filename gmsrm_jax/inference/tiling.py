"""Where the model looks in a photo of any size: square windows around the holes, each at a scale of its own.

The model was trained on square pictures of one size, S pixels, with holes of up to about half their width. So a hole
is seen through windows whose side is at least twice its thickness: at the photo's own resolution where S is enough,
reduced where the hole is larger. Long thin holes are covered by several windows whose fills are blended. (Ours.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

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


class Patch(NamedTuple):
  """One hole, or several near to each other, and the windows that see all of it together."""

  hole: UInt8[np.ndarray, "h w"]  # 1 where this patch is to be filled, over the rectangle at (top, left)
  top: int
  left: int
  windows: tuple[Window, ...]


def plan(mask: UInt8[np.ndarray, "h w"], size: int, strategy: str) -> Iterator[Patch]:
  """The patches that cover a photo's hole, each hole pixel exactly once.

  Args:
    mask: 1 in the hole.
    size: side the model was trained at.
    strategy: 'crop' as described above, 'resize' one window of the whole photo reduced to the model's size, 'full' the
      whole photo at its own size; 'auto' is 'full' for a photo no larger than `size` and 'crop' for others.
  """
  if not mask.any():
    return
  height, width = mask.shape
  if strategy == "full" or (strategy == "auto" and max(height, width) <= size):
    yield Patch(mask, 0, 0, (Window(0, 0, height, width, height, width),))
  elif strategy == "resize":
    scale = min(size / min(height, width), MAX_ASPECT * size / max(height, width))
    yield Patch(mask, 0, 0, (Window(0, 0, height, width, *_scaled(height, width, scale)),))
  else:
    yield from _crops(mask, size)


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
  return max(1, round(height * scale)), max(1, round(width * scale))


def _crops(mask: UInt8[np.ndarray, "h w"], size: int) -> Iterator[Patch]:
  """One patch per group of holes that lie within a margin of each other."""
  reach = max(1, int(size * MARGIN)) // 2 * 2 + 1
  near = cv2.dilate(mask, np.ones((reach, reach), np.uint8))
  count, labels, stats, _ = cv2.connectedComponentsWithStats(near, connectivity=8, ltype=cv2.CV_32S)
  depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3) if not mask.all() else None
  for label in range(1, count):
    left, top, columns, rows = (int(stats[label, i]) for i in range(4))
    inside = slice(top, top + rows), slice(left, left + columns)
    hole = ((labels[inside] == label) & (mask[inside] > 0)).astype(np.uint8)
    box = cv2.boundingRect(hole)
    hole = np.ascontiguousarray(hole[box[1] : box[1] + box[3], box[0] : box[0] + box[2]])
    top, left = top + box[1], left + box[0]
    thickness = max(mask.shape)
    if depth is not None:
      thickness = 2 * float((depth[top : top + box[3], left : left + box[2]] * hole).max())
    yield Patch(hole, top, left, _tile(mask.shape, (top, left, *hole.shape), hole, thickness, size))


def _tile(
  photo: tuple[int, ...], box: tuple[int, int, int, int], hole: UInt8[np.ndarray, "h w"], thickness: float, size: int
) -> tuple[Window, ...]:
  """Windows at one scale over a hole's bounding box; those that see nothing of the hole are left out."""
  side = round(max(size, thickness / HOLE_SHARE))
  # Where the photo ends before the window does, it is reduced no more than needed.
  reduction = max(1.0, min(side, max(photo)) / size)
  spans = []
  for start, length, limit in ((box[0], box[2], photo[0]), (box[1], box[3], photo[1])):
    extent = min(side, limit)
    inner = max(1, round(extent * (1 - 2 * MARGIN)))
    if length <= inner or extent == limit:
      starts = [start + (length - extent) // 2]
    else:
      steps = math.ceil((length - inner) / inner) + 1
      first, last = start - (extent - inner) // 2, start + length - extent + (extent - inner) // 2
      starts = [round(first + (last - first) * step / (steps - 1)) for step in range(steps)]
    clamped = (min(max(value, 0), limit - extent) for value in starts)
    spans.append([(value, extent) for value in dict.fromkeys(clamped)])
  windows = []
  for (top, height), (left, width) in itertools.product(*spans):
    rows = slice(max(top - box[0], 0), max(top - box[0] + height, 0))
    columns = slice(max(left - box[1], 0), max(left - box[1] + width, 0))
    if hole[rows, columns].any():
      windows.append(Window(top, left, height, width, *_scaled(height, width, 1 / reduction)))
  return tuple(windows)


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


def blend_weight(window: Window, photo: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
  """How much a window's fill counts at each of its pixels: less towards its sides, but not at the photo's own."""
  profiles = []
  for start, extent, limit in ((window.top, window.height, photo[0]), (window.left, window.width, photo[1])):
    ramp = max(1.0, 2 * MARGIN * extent)
    position = np.arange(extent) + 0.5
    profile = np.ones(extent)
    if start > 0:
      profile = np.minimum(profile, position / ramp)
    if start + extent < limit:
      profile = np.minimum(profile, (extent - position) / ramp)
    profiles.append(np.maximum(profile, 1e-3))
  return (profiles[0][:, None] * profiles[1][None, :]).astype(np.float32)


class Blend:
  """Adds up the fills that a patch's windows propose."""

  def __init__(self, patch: Patch, photo: tuple[int, ...]):
    self._patch, self._photo = patch, photo
    self._sum = np.zeros((*patch.hole.shape, 3), np.float32)
    self._weight = np.zeros((*patch.hole.shape, 1), np.float32)

  def add(self, window: Window, predicted: Float[np.ndarray, "r c 3"]) -> None:
    """Adds a window's fill in [-1, 1], given at the window's size."""
    if predicted.shape[:2] != (window.height, window.width):
      predicted = cv2.resize(predicted, (window.width, window.height), interpolation=cv2.INTER_CUBIC)
    ours, theirs = self._overlap(window)
    weight = blend_weight(window, self._photo)[theirs][..., None]
    self._sum[ours] += weight * predicted[theirs]
    self._weight[ours] += weight

  def _overlap(self, window: Window) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part that patch and window share, as an index into each."""
    ours, theirs = [], []
    for start, length, other, extent in (
      (self._patch.top, self._patch.hole.shape[0], window.top, window.height),
      (self._patch.left, self._patch.hole.shape[1], window.left, window.width),
    ):
      low, high = max(start, other), min(start + length, other + extent)
      ours.append(slice(low - start, high - start))
      theirs.append(slice(low - other, high - other))
    return (ours[0], ours[1]), (theirs[0], theirs[1])

  def paste(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes the blended fill into the image's hole, and nowhere else."""
    rows, columns = self._patch.hole.shape
    place = image[self._patch.top : self._patch.top + rows, self._patch.left : self._patch.left + columns]
    mean = self._sum / np.maximum(self._weight, 1e-12)
    pixels = np.clip(np.round((mean + 1.0) * 127.5), 0, 255).astype(np.uint8)
    hole = self._patch.hole > 0
    assert (self._weight[..., 0][hole] > 0).all(), "a hole pixel that no window sees"
    place[hole] = pixels[hole]


def padded_size(rows: int, columns: int, size: int, stride: int) -> tuple[int, int]:
  """The shape a view is padded to: few shapes, so that a folder of photos compiles few programs.

  A view of at most `size` takes `size`; a larger side the next of size · 1.25^n, rounded up to the stride.
  """

  def bucket(length: int) -> int:
    if length <= size:
      return size
    steps = math.ceil(math.log(length / size, 1.25) - 1e-9)
    return max(math.ceil(size * 1.25**steps / stride), math.ceil(length / stride)) * stride

  return bucket(rows), bucket(columns)
