"""Irregular holes: pure functions of (rng, height, width), uint8, 1 in the hole.

Every kind first draws the number of hole pixels it wants, uniform over the numbers its area range allows, then adds
strokes or boxes until the union holds that many. Of the one that goes past, only what lies nearest to its start is
kept; what is too little for another one widens the hole all round. So no mask is thrown away, and every area is exact
to the pixel.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int32, UInt8

from gmsrm_jax.config import MASK_KINDS, ConfigError, MaskConfig, require, suggest

_MAX_PARTS = 96  # strokes or boxes before the hole is grown to its size instead


class _Brush(NamedTuple):
  """A family of strokes; lengths and widths are shares of the image's shorter side."""

  width: tuple[float, float]
  length: tuple[float, float]  # of one segment
  segments: tuple[int, int]
  bend: float  # standard deviation of the turn between two segments, radians
  kink: float  # probability that a turn is uniform over the whole circle instead
  boxes: float  # probability that a box is drawn instead of a stroke


_BRUSHES = {
  # DeepFill v2 (arXiv 1806.03589): a long walk of one wide brush that wanders about.
  "free_form": _Brush((0.04, 0.13), (0.04, 0.14), (6, 20), 0.55, 0.12, 0.0),
  # LaMa (arXiv 2109.07161): few long segments with sharp turns; its wide masks also hold boxes.
  "thick": _Brush((0.08, 0.22), (0.10, 0.40), (1, 5), 0.0, 1.0, 0.3),
  "medium": _Brush((0.03, 0.10), (0.10, 0.30), (2, 7), 0.0, 1.0, 0.1),
  "thin": _Brush((0.01, 0.028), (0.10, 0.45), (4, 14), 0.0, 1.0, 0.0),
}


def _hole_sizes(pixels: int, area: tuple[float, float], *, above_low: bool) -> tuple[int, int]:
  """The smallest and largest number of hole pixels, at least 1, whose share of `pixels` lies in the range.

  Raises:
    ConfigError: no whole number of pixels lies in the range.
  """
  low, high = area
  smallest = max(1, math.floor(low * pixels) - 1)
  # The shares themselves are compared, because 0.29 * 100 is below 29 in floating point while 29 / 100 is 0.29.
  while smallest / pixels < low or (above_low and smallest / pixels <= low):
    smallest += 1
  largest = min(pixels, math.floor(high * pixels) + 1)
  while largest / pixels > high:
    largest -= 1
  require(
    smallest <= largest,
    f"hole area {'(' if above_low else '['}{low}, {high}] holds no whole number of the image's {pixels} pixels: "
    "widen the range (mask.area_min, mask.area_max) or enlarge the image",
  )
  return smallest, largest


def _keep_nearest(
  mask: UInt8[np.ndarray, "h w"], part: UInt8[np.ndarray, "h w"], rank: Float[np.ndarray, "h w"], missing: int
) -> None:
  """Adds to the mask the `missing` pixels of the part that rank lowest among those not yet in it."""
  new = np.flatnonzero(part.ravel() > mask.ravel())
  order = np.argsort(rank.ravel()[new], kind="stable")
  mask.ravel()[new[order[:missing]]] = 1


def _grow(mask: UInt8[np.ndarray, "h w"], missing: int) -> None:
  """Adds the `missing` pixels nearest to the hole."""
  if not mask.any():
    mask[mask.shape[0] // 2, mask.shape[1] // 2] = 1
    missing -= 1
  distance = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  _keep_nearest(mask, np.ones_like(mask), distance, missing)


def _fold(position: Float[np.ndarray, " n"], size: int) -> Float[np.ndarray, " n"]:
  """Reflects coordinates at the image's borders until they lie inside."""
  last = max(size - 1, 1)
  return np.minimum(last - np.abs(position % (2 * last) - last), size - 1)


def _walk(rng: np.random.Generator, height: int, width: int, brush: _Brush, thickness: int) -> Int32[np.ndarray, "n 2"]:
  """Corners (x, y) of a random stroke."""
  side = min(height, width)
  steps = int(rng.integers(brush.segments[0], brush.segments[1] + 1))
  turns = np.where(
    rng.random(steps) < brush.kink, rng.uniform(-np.pi, np.pi, steps), rng.normal(0.0, brush.bend, steps)
  )
  turns[0] = rng.uniform(-np.pi, np.pi)
  angles = np.cumsum(turns)
  # A segment shorter than half the brush is wide would not show.
  lengths = np.maximum(rng.uniform(*brush.length, steps) * side, thickness / 2)
  x = np.concatenate([[0.0], np.cumsum(lengths * np.cos(angles))]) + rng.uniform(0, width)
  y = np.concatenate([[0.0], np.cumsum(lengths * np.sin(angles))]) + rng.uniform(0, height)
  return np.stack([_fold(x, width), _fold(y, height)], axis=-1).round().astype(np.int32)


def _add_stroke(mask: UInt8[np.ndarray, "h w"], corners: Int32[np.ndarray, "n 2"], thickness: int, target: int) -> None:
  """Paints the stroke, or as much of its beginning as brings the hole to `target` pixels."""
  whole = mask.copy()
  cv2.polylines(whole, [corners], False, 1, thickness)
  if cv2.countNonZero(whole) <= target:
    mask[:] = whole
    return
  for start, end in itertools.pairwise(corners):
    longer = mask.copy()
    cv2.line(longer, start.tolist(), end.tolist(), 1, thickness)
    if cv2.countNonZero(longer) > target:
      y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
      rank = (x - float(start[0])) ** 2 + (y - float(start[1])) ** 2
      _keep_nearest(mask, longer, rank, target - cv2.countNonZero(mask))
      return
    mask[:] = longer


def _add_box(mask: UInt8[np.ndarray, "h w"], top: int, left: int, height: int, width: int, target: int) -> None:
  """Fills the box, or a smaller one of its shape and centre that brings the hole to `target` pixels."""
  whole = mask.copy()
  whole[top : top + height, left : left + width] = 1
  if cv2.countNonZero(whole) <= target:
    mask[:] = whole
    return
  y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
  rank = np.maximum(np.abs(y - top - (height - 1) / 2) / height, np.abs(x - left - (width - 1) / 2) / width)
  _keep_nearest(mask, whole, rank, target - cv2.countNonZero(mask))


def _random_box(
  rng: np.random.Generator, height: int, width: int, pixels: float, aspect: float
) -> tuple[int, int, int, int]:
  """(top, left, height, width) of a box of about `pixels` pixels at a random place; the image bounds its sides."""
  box_height = min(max(math.sqrt(pixels * aspect), pixels / width), height)
  rows = min(max(round(box_height), 1), height)
  columns = min(max(math.ceil(pixels / rows), 1), width)
  return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns


def _strokes(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], brush: _Brush, target: int) -> None:
  height, width = mask.shape
  side = min(height, width)
  for part in range(_MAX_PARTS):
    # The brush is thinner for small holes, so that they are strokes and not blobs, and swells when the strokes have
    # become many, so that large holes of a thin brush end soon.
    swell = 1.04 ** max(0, part - 8)
    thickness = max(1, round(min(rng.uniform(*brush.width) * side * swell, 0.45 * math.sqrt(target))))
    # What is left is too little for a stroke: a speck would look like an accident.
    if target - cv2.countNonZero(mask) < thickness**2:
      return
    if rng.random() < brush.boxes:
      pixels = rng.uniform(0.3, 1.0) * min(0.5 * target, 0.1 * height * width)
      aspect = float(np.exp(rng.uniform(-0.7, 0.7)))
      _add_box(mask, *_random_box(rng, height, width, pixels, aspect), target)
    else:
      _add_stroke(mask, _walk(rng, height, width, brush, thickness), thickness, target)


def _rectangles(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], target: int) -> None:
  height, width = mask.shape
  boxes = int(rng.integers(1, 5))
  for part in range(_MAX_PARTS):
    missing = target - cv2.countNonZero(mask)
    if missing < 0.03 * target:
      return
    left = max(boxes - part, 1)
    # The last box is drawn too large and trimmed; an earlier one takes about its share of what is missing.
    pixels = missing * 1.05 if left == 1 else missing / left * rng.uniform(0.5, 1.4)
    _add_box(mask, *_random_box(rng, height, width, pixels, float(np.exp(rng.uniform(-0.7, 0.7)))), target)


def _centre(mask: UInt8[np.ndarray, "h w"], target: int, sizes: tuple[int, int]) -> None:
  """A centred box of the image's shape: whole when one fits the allowed sizes, else with a part of its last ring."""
  height, width = mask.shape
  rows = min(max(round(math.sqrt(target * height / width)), 1), height)
  columns = min(max(round(rows * width / height), 1), width)
  if not sizes[0] <= rows * columns <= sizes[1]:
    rows, columns = height, width
  else:
    target = rows * columns
  _add_box(mask, (height - rows) // 2, (width - columns) // 2, rows, columns, target)


def _draw(
  kind: str, rng: np.random.Generator, height: int, width: int, sizes: tuple[int, int]
) -> UInt8[np.ndarray, "{height} {width}"]:
  if kind not in MASK_KINDS:
    raise ConfigError(f"mask kind {kind!r} is unknown: {suggest(kind, MASK_KINDS)}choose from {', '.join(MASK_KINDS)}")
  mask = np.zeros((height, width), np.uint8)
  target = int(rng.integers(sizes[0], sizes[1] + 1))
  if kind == "centre":
    _centre(mask, target, sizes)
    return mask
  if kind == "rectangles":
    _rectangles(rng, mask, target)
  else:
    _strokes(rng, mask, _BRUSHES[kind], target)
  missing = target - cv2.countNonZero(mask)
  if missing > 0:
    _grow(mask, missing)
  return mask


def _pick_kind(rng: np.random.Generator, config: MaskConfig) -> str:
  weights = np.array(list(config.weights.values()))
  return str(rng.choice(list(config.weights), p=weights / weights.sum()))


def draw_kind(
  kind: str, rng: np.random.Generator, height: int, width: int, area: tuple[float, float]
) -> UInt8[np.ndarray, "{height} {width}"]:
  """A hole of one of `MASK_KINDS` that covers a share of the image within [area[0], area[1]], at least one pixel.

  Raises:
    ConfigError: the kind is unknown, or no whole number of pixels lies in the range.
  """
  return _draw(kind, rng, height, width, _hole_sizes(height * width, area, above_low=False))


def draw(
  rng: np.random.Generator, height: int, width: int, config: MaskConfig
) -> UInt8[np.ndarray, "{height} {width}"]:
  """A training hole: kind by the weights of `config`, area within its [area_min, area_max]."""
  return draw_kind(_pick_kind(rng, config), rng, height, width, (config.area_min, config.area_max))


def evaluation_mask(
  name: str, bucket: tuple[float, float], seed: int, height: int, width: int, config: MaskConfig
) -> UInt8[np.ndarray, "{height} {width}"]:
  """The fixed hole of a held-out image: decided by (name, bucket, seed), its area within (bucket[0], bucket[1]].

  Raises:
    ConfigError: no whole number of pixels lies in the bucket.
  """
  low, high = (float(bound) for bound in bucket)
  sizes = _hole_sizes(height * width, (low, high), above_low=True)
  digest = hashlib.sha256(f"{seed}\0{low!r}\0{high!r}\0{name}".encode("utf-8", "surrogateescape")).digest()
  rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
  return _draw(_pick_kind(rng, config), rng, height, width, sizes)
