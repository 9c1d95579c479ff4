"""Holes of other families than strokes and boxes, each with an exact number of pixels, in bounded time.

`add_*` draw into an empty mask: `target` pixels, or a little less, and the caller widens the hole by what is missing.
`sizes` are the smallest and largest number of pixels allowed, for shapes that round to whole lines.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from gmsrm_jax.data.masks import hole_files, strokes
from gmsrm_jax.errors import require

_CROPS = 8  # pieces of occlusion masks that are laid over each other at most
_LARGEST = 512  # longest side at which a file of objects or occlusions is kept, pixels


def add_comodgan(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], target: int) -> None:
  """Zigzag brush walks with boxes of up to half and up to all of the image's sides (CoModGAN, arXiv 2103.10428).

  Ours: how many there are follows from the area, not from a count, and a box takes at most 60 % of it.
  """
  height, width = mask.shape
  side, count = min(height, width), 0
  for _ in range(strokes.MAX_PARTS):
    thickness = max(1, round(min(rng.uniform(0.025, 0.1) * side, 0.45 * math.sqrt(target))))
    if target - count < thickness**2:
      return
    if rng.random() < 0.4:
      limit = 1.0 if rng.random() < 1 / 3 else 0.5
      rows, columns = rng.uniform(0, limit * height), rng.uniform(0, limit * width)
      pixels = min(rows * columns, 0.6 * target)
      box = strokes.random_box(rng, height, width, max(pixels, 1), (rows + 1) / (columns + 1))
      count = strokes.add_box(mask, box, target, count)
    else:
      steps = int(rng.integers(4, 19))
      # To and fro across an axis, as DeepFill v2 and CoModGAN have it.
      turns = np.pi * rng.uniform(48 / 180, 96 / 180, steps) * (-1.0) ** np.arange(steps)
      headings = turns + np.pi / 2 * rng.integers(4)
      radius = math.hypot(height, width) / 8
      lengths = np.clip(rng.normal(radius, radius / 2, steps), thickness / 2, 2 * radius)
      places = np.zeros((steps + 1, 2))
      places[1:, 0], places[1:, 1] = lengths * np.cos(headings), lengths * np.sin(headings)
      places = places.cumsum(axis=0) + rng.random(2) * (width, height)
      stroke = strokes.Stroke(strokes.folded(places.ravel(), height, width), lengths.tolist(), thickness)
      count = strokes.add_stroke(mask, stroke, target, count)


def add_half(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], target: int, sizes: tuple[int, int]) -> None:
  """All that lies on one side of a straight cut, in whole lines where the sizes allow it."""
  side = int(rng.integers(4))
  lines = mask.T if side % 2 else mask
  lines = lines[::-1] if side // 2 else lines
  length = lines.shape[1]
  whole = round(target / length) * length
  target = whole if sizes[0] <= whole <= sizes[1] else target
  lines[: target // length] = 1
  if target % length:
    lines[target // length, : target % length] = 1


def add_border(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], target: int, sizes: tuple[int, int]) -> None:
  """All but a window of about the image's shape at a random place.

  Where no window of whole lines fits the sizes, a part of the window's first line is hole too.
  """
  height, width = mask.shape
  kept = height * width - target
  mask[:] = 1
  if kept == 0:
    return
  wanted = math.sqrt(kept * height / width) * math.exp(rng.uniform(-0.25, 0.25))
  wanted = min(max(wanted, kept / width), height)
  rows = np.arange(max(1, math.ceil(0.7 * wanted)), min(height, math.floor(1.4 * wanted)) + 1)
  columns = np.clip(np.rint(kept / rows), 1, width).astype(np.int64)
  holes = height * width - rows * columns
  fits = np.flatnonzero((holes >= sizes[0]) & (holes <= sizes[1]))
  if len(fits):
    best = fits[np.argmin(np.abs(rows[fits] - wanted))]
    window_rows, window_columns = int(rows[best]), int(columns[best])
    target = int(holes[best])
  else:
    window_columns = min(max(math.ceil(kept / wanted), math.ceil(kept / height)), width)
    window_rows = math.ceil(kept / window_columns)
  top, left = int(rng.integers(height - window_rows + 1)), int(rng.integers(width - window_columns + 1))
  window = mask[top : top + window_rows, left : left + window_columns]
  window[:] = 0
  missing = target - (height * width - window.size)
  window[0, :missing] = 1


def add_lines(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], target: int) -> None:
  """Three to twelve parallel lines, or as many again across them, as wide as the area asks for."""
  height, width = mask.shape
  gap = min(height, width) / int(rng.integers(3, 13))
  angle = float(rng.choice((0.0, np.pi / 2, rng.uniform(0, np.pi))))
  rank = _line_distance(height, width, gap, angle, rng.uniform(0, gap))
  if rng.random() < 0.5:
    rank = np.minimum(rank, _line_distance(height, width, gap, angle + np.pi / 2, rng.uniform(0, gap)))
  # In 64ths of a pixel: equal on every machine, whatever the last bits of its sines.
  strokes.keep_nearest(mask, np.ones_like(mask), np.rint(64 * rank), target)


def _line_distance(height: int, width: int, gap: float, angle: float, start: float) -> Float[np.ndarray, "h w"]:
  """Pixels to the nearest of parallel lines across `angle`, `gap` apart."""
  y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
  across = (x * math.cos(angle) + y * math.sin(angle) + start) % gap
  return np.minimum(across, gap - across)


def _painted(path: Path) -> UInt8[np.ndarray, "h w"]:
  mask = hole_files.read_hole(path)
  require(bool(mask.any()), f"{path} is black everywhere, so it holds no shape: paint the shape white, or remove it")
  return mask


@functools.lru_cache(maxsize=256)
def _object(path: Path) -> UInt8[np.ndarray, "_ _"]:
  """The hole of a file, 255 in it, cut out and of moderate size."""
  mask = _painted(path)
  left, top, width, height = cv2.boundingRect(mask)
  shape = mask[top : top + height, left : left + width] * np.uint8(255)
  scale = _LARGEST / max(height, width)
  if scale >= 1:
    return shape
  return cv2.resize(shape, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


@functools.lru_cache(maxsize=256)
def _occlusion(path: Path) -> UInt8[np.ndarray, "_ _"]:
  """A file of raw occlusions, 255 in the hole, whole and of moderate size."""
  mask = _painted(path)
  scale = _LARGEST / max(mask.shape)
  if scale < 1:
    size = [max(1, round(side * scale)) for side in mask.shape]
    # By maxima, because a hair's breadth must not vanish.
    mask = cv2.dilate(mask, np.ones((math.ceil(1 / scale),) * 2, np.uint8))
    mask = hole_files.resize_mask(mask, *size)
  return mask * np.uint8(255)


def _placed(
  shape: UInt8[np.ndarray, "_ _"], point: tuple[float, float], place: tuple[float, float], turn: complex, size: tuple
) -> UInt8[np.ndarray, "h w"]:
  """The shape enlarged by |turn| and turned by its angle, so that its `point` (x, y) comes to lie at `place`."""
  a, b = turn.real, turn.imag
  matrix = np.array([[a, -b, 0.0], [b, a, 0.0]])
  matrix[:, 2] = place - matrix[:, :2] @ point
  drawn = cv2.warpAffine(shape, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR)
  return (drawn > hole_files.THRESHOLD).astype(np.uint8)


def _turn(rng: np.random.Generator) -> complex:
  angle = rng.uniform(-math.pi, math.pi)
  return complex(math.cos(angle), math.sin(angle))


def _pick(rng: np.random.Generator, paths: tuple[Path, ...]) -> Path:
  return paths[int(rng.integers(len(paths)))]


def add_objects(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], target: int, paths: tuple[Path, ...]) -> None:
  """Shapes of files, mirrored, scaled, turned and placed at random; the one that goes past is made smaller."""
  height, width = mask.shape
  count = 0
  for _ in range(strokes.MAX_PARTS):
    missing = target - count
    if missing < 0.03 * target:
      return
    shape = _object(_pick(rng, paths))
    shape = shape[:, ::-1] if rng.random() < 0.5 else shape
    point = ((shape.shape[1] - 1) / 2, (shape.shape[0] - 1) / 2)
    place = (rng.uniform(0, width - 1), rng.uniform(0, height - 1))
    turn = _turn(rng) * math.sqrt(rng.uniform(0.3, 1.2) * missing / max(cv2.countNonZero(shape), 1))
    whole = mask | _placed(shape, point, place, turn, mask.shape)
    if np.count_nonzero(whole) > target:
      small, large, whole = 0.0, 1.0, mask
      for _ in range(7):
        middle = (small + large) / 2
        tried = mask | _placed(shape, point, place, turn * middle, mask.shape)
        if np.count_nonzero(tried) > target:
          large = middle
        else:
          small, whole = middle, tried
    mask[:] = whole
    count = cv2.countNonZero(mask)


def add_occlusions(
  rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], target: int, paths: tuple[Path, ...]
) -> None:
  """Pieces of occlusion masks, mirrored, turned and cropped at random, until they make half of the area.

  They are meant to be dilated to the whole of it. Of a piece that alone goes past, what is nearest to a random pixel
  of its hole is kept.
  """
  height, width = mask.shape
  for _ in range(_CROPS):
    count = cv2.countNonZero(mask)
    if 2 * count >= target:
      return
    occlusion = _occlusion(_pick(rng, paths))
    occlusion = occlusion[:, ::-1] if rng.random() < 0.5 else occlusion
    # Around a pixel of the hole, so that no crop is empty.
    places = np.flatnonzero(occlusion)
    y, x = divmod(int(places[int(rng.integers(len(places)))]), occlusion.shape[1])
    column, row = int(rng.integers(width)), int(rng.integers(height))
    scale = min(height, width) / (rng.uniform(0.4, 1.0) * min(occlusion.shape))
    piece = _placed(occlusion, (x, y), (column, row), _turn(rng) * scale, mask.shape)
    piece[row, column] = 1
    rows, columns = np.arange(height) - row, np.arange(width) - column
    if np.count_nonzero(mask | piece) > target:
      strokes.keep_nearest(mask, piece, (rows * rows)[:, None] + columns * columns, target - count)
      return
    mask |= piece
