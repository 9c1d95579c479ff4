"""Holes made of brush strokes and boxes that end with an exact number of pixels.

Parts are added until the union holds the wanted number. Of the one that goes past, only what lies nearest to its start
(or its centre) is kept; what is too little for another one widens the hole all round. Nothing is drawn twice in vain,
and each function keeps the count, because counting and copying whole masks is what costs time here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int32, Real, UInt8

MAX_PARTS = 96  # strokes, boxes or shapes before the hole is grown to its size instead

_TURN = 2 * math.pi
_RING_RADIUS = 4  # pixels by which a hole is widened ring by ring; a full distance transform is slower up to here


class Brush(NamedTuple):
  """A family of strokes; lengths and widths are shares of the image's shorter side."""

  width: tuple[float, float]
  length: tuple[float, float]  # of one segment
  segments: tuple[int, int]
  bend: float  # range of the turn between two segments, radians, half of it to each side
  kink: float  # probability that a turn is uniform over the whole circle instead
  boxes: float  # probability that a box is drawn instead of a stroke


BRUSHES = {
  # DeepFill v2 (arXiv 1806.03589): a long walk of one wide brush that wanders about.
  "free_form": Brush((0.04, 0.13), (0.04, 0.14), (10, 28), 2.2, 0.12, 0.0),
  # LaMa (arXiv 2109.07161): few long segments with sharp turns; its wide masks also hold boxes.
  "thick": Brush((0.08, 0.22), (0.10, 0.40), (1, 5), 0.0, 1.0, 0.3),
  "medium": Brush((0.03, 0.10), (0.10, 0.30), (2, 7), 0.0, 1.0, 0.1),
  "thin": Brush((0.01, 0.028), (0.10, 0.45), (4, 14), 0.0, 1.0, 0.0),
}


# Every distinct disc of whole pixels, by growing radius: 1, sqrt 2, 2, sqrt 5, …
_OFFSETS = np.arange(-_RING_RADIUS, _RING_RADIUS + 1)
_SQUARES = _OFFSETS[:, None] ** 2 + _OFFSETS**2
_DISCS = [(square >= _SQUARES).astype(np.uint8) for square in np.unique(_SQUARES[_SQUARES <= _RING_RADIUS**2])[1:]]


def keep_nearest(
  mask: UInt8[np.ndarray, "h w"], shape: UInt8[np.ndarray, "h w"], rank: Real[np.ndarray, "h w"], missing: int
) -> None:
  """Adds to the mask the `missing` pixels of the shape that rank lowest among those not yet in it; equals by place.

  The shape is used up: it must be an array of its own.
  """
  if missing <= 0:
    return
  new = np.flatnonzero(shape > mask)
  if missing < len(new):
    ranks = rank.ravel()[new]
    bound = np.partition(ranks, missing - 1)[missing - 1]
    pixels = shape.ravel()
    pixels[new[ranks > bound]] = 0
    pixels[new[ranks == bound][missing - np.count_nonzero(ranks < bound) :]] = 0
  mask |= shape


def grow(mask: UInt8[np.ndarray, "h w"], missing: int) -> None:
  """Adds the `missing` pixels nearest to the hole."""
  if missing <= 0:
    return
  if not mask.any():
    mask[mask.shape[0] // 2, mask.shape[1] // 2] = 1
    missing -= 1
  target, inner = cv2.countNonZero(mask) + missing, mask
  # A hole that a few pixels all round cannot complete goes straight to the distances.
  if missing <= 4 * _RING_RADIUS * math.isqrt(target):
    for disc in _DISCS:
      outer = cv2.dilate(mask, disc)
      if cv2.countNonZero(outer) >= target:
        held = cv2.countNonZero(inner)
        ring = np.flatnonzero(outer > inner)
        outer.ravel()[ring[target - held :]] = 0
        mask[:] = outer
        return
      inner = outer
  distance = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  # Squares are whole numbers; OpenCV's roots of them differ in the last bit from call to call.
  keep_nearest(mask, np.ones_like(mask), np.rint(distance * distance), missing)


class Stroke(NamedTuple):
  """A stroke before it is painted."""

  corners: Int32[np.ndarray, "n 2"]  # x, y
  lengths: list[float]  # of its n - 1 segments, pixels, or an upper bound of each
  thickness: int  # pixels


def walk(rng: np.random.Generator, height: int, width: int, brush: Brush, thickness: int) -> Stroke:
  """A random stroke."""
  fewest, most = brush.segments
  side = min(height, width)
  shortest, extra = brush.length[0] * side, (brush.length[1] - brush.length[0]) * side
  least = thickness / 2  # a segment shorter than half the brush is wide would not show
  # A turn is a kink, anywhere, or a bend; one draw decides which and how far.
  kink, kinked, bend, middle = brush.kink, _TURN / brush.kink, brush.bend, (1 + brush.kink) / 2
  cos, sin = math.cos, math.sin
  # One call of the generator, then plain floats: for a dozen segments they are faster than arrays.
  count, first, x, y, *draws = rng.random(2 * most + 4).tolist()
  heading, x, y = _TURN * first, width * x, height * y
  places, lengths = [x, y], []
  for segment in range(0, 2 * (fewest + int(count * (most - fewest + 1))), 2):
    length = shortest + extra * draws[segment]
    if length < least:
      length = least
    x += length * cos(heading)
    y += length * sin(heading)
    places += (x, y)
    lengths.append(length)
    turn = draws[segment + 1]
    heading += kinked * turn if turn < kink else bend * (turn - middle)
  return Stroke(folded(np.array(places), height, width), lengths, thickness)


def folded(places: Float[np.ndarray, " m"], height: int, width: int) -> Int32[np.ndarray, "_ 2"]:
  """Corners from x0, y0, x1, y1, …: reflected at the image's borders until they lie inside, and rounded."""
  last = np.array((max(width - 1, 1), max(height - 1, 1)))
  corners = last - np.abs(places.reshape(-1, 2) % (2 * last) - last)
  return np.minimum(np.rint(corners), (width - 1, height - 1)).astype(np.int32)


def add_stroke(mask: UInt8[np.ndarray, "h w"], stroke: Stroke, target: int, count: int) -> int:
  """Paints the stroke, or as much of its beginning as brings the hole from `count` to `target` pixels.

  Returns:
    How many pixels the hole has now.
  """
  corners, lengths, thickness = stroke
  begin, last = 0, len(lengths)
  wide = thickness + 3  # more than OpenCV paints, rounding and round ends included
  while begin < last:
    # As many segments at once as cannot go past, even if no two of their pixels coincided.
    end, room = begin, target - count - wide * wide
    while end < last:
      room -= wide * (lengths[end] + 2)
      if room < 0:
        break
      end += 1
    if end > begin:
      cv2.polylines(mask, [corners[begin : end + 1]], False, 1, thickness)
      count = cv2.countNonZero(mask)
      begin = end
      continue
    # The next one may go past. Only the window around it can change.
    (x0, y0), (x1, y1) = corners[begin : begin + 2].tolist()
    reach = thickness // 2 + 2
    top, left = max(min(y0, y1) - reach, 0), max(min(x0, x1) - reach, 0)
    window = mask[top : max(y0, y1) + reach + 1, left : max(x0, x1) + reach + 1]
    longer = window.copy()
    cv2.line(longer, (x0 - left, y0 - top), (x1 - left, y1 - top), 1, thickness)
    # Seen from its start, so that what is kept of it goes on from the rest of the stroke.
    if abs(x1 - x0) > abs(y1 - y0):
      window, longer, x0, y0, x1, y1 = window.T, longer.T, y0, x0, y1, x1
    if y1 < y0:
      window, longer = window[::-1], longer[::-1]
    new = np.flatnonzero(longer > window)
    if len(new) > target - count:
      rows, columns = np.divmod(new[: target - count], window.shape[1])
      window[rows, columns] = 1
      return target
    window[:] = longer
    count += len(new)
    begin += 1
  return count


def add_box(mask: UInt8[np.ndarray, "h w"], box: tuple[int, int, int, int], target: int, count: int) -> int:
  """Fills the box (top, left, height, width), or a smaller one of its shape and centre that ends with `target` pixels.

  Returns:
    How many pixels the hole has now.
  """
  top, left, height, width = box
  window = mask[top : top + height, left : left + width]
  filled = count + window.size - int(np.count_nonzero(window))
  if filled <= target:
    window[:] = 1
    return filled
  rows = np.abs(np.arange(height) - (height - 1) / 2) / height
  columns = np.abs(np.arange(width) - (width - 1) / 2) / width
  keep_nearest(window, np.ones_like(window), np.maximum(rows[:, None], columns), target - count)
  return target


def random_box(
  rng: np.random.Generator, height: int, width: int, pixels: float, aspect: float
) -> tuple[int, int, int, int]:
  """(top, left, height, width) of a box of about `pixels` pixels at a random place; the image bounds its sides."""
  box_height = min(max(math.sqrt(pixels * aspect), pixels / width), height)
  rows = min(max(round(box_height), 1), height)
  columns = min(max(math.ceil(pixels / rows), 1), width)
  return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns


def add_strokes(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], brush: Brush, target: int) -> None:
  """Strokes, and boxes where the brush has them, up to `target` pixels or a little less."""
  height, width = mask.shape
  side, count = min(height, width), 0
  thinnest, widest = brush.width
  for number in range(MAX_PARTS):
    # The brush is thinner for small holes, so that they are strokes and not blobs, and swells when the strokes have
    # become many, so that large holes of a thin brush end soon.
    swell = 1.04 ** max(0, number - 8)
    drawn = thinnest + (widest - thinnest) * rng.random()
    thickness = max(1, round(min(drawn * side * swell, 0.45 * math.sqrt(target))))
    # What is left is too little for a stroke: a speck would look like an accident.
    if target - count < thickness**2:
      return
    if brush.boxes and rng.random() < brush.boxes:
      pixels = rng.uniform(0.3, 1.0) * min(0.5 * target, 0.1 * height * width)
      aspect = float(np.exp(rng.uniform(-0.7, 0.7)))
      count = add_box(mask, random_box(rng, height, width, pixels, aspect), target, count)
    else:
      count = add_stroke(mask, walk(rng, height, width, brush, thickness), target, count)


def add_rectangles(rng: np.random.Generator, mask: UInt8[np.ndarray, "h w"], target: int) -> None:
  """One to four boxes, and more where they overlap much, up to `target` pixels or a little less."""
  height, width = mask.shape
  boxes, count = int(rng.integers(1, 5)), 0
  for number in range(MAX_PARTS):
    missing = target - count
    if missing < 0.03 * target:
      return
    left = max(boxes - number, 1)
    # The last box is drawn too large and trimmed; an earlier one takes about its share of what is missing.
    pixels = missing * 1.05 if left == 1 else missing / left * rng.uniform(0.5, 1.4)
    box = random_box(rng, height, width, pixels, float(np.exp(rng.uniform(-0.7, 0.7))))
    count = add_box(mask, box, target, count)


def add_centre(mask: UInt8[np.ndarray, "h w"], target: int, sizes: tuple[int, int]) -> None:
  """A centred box of the image's shape: whole when one fits the allowed sizes, else with a part of its last ring."""
  height, width = mask.shape
  rows = min(max(round(math.sqrt(target * height / width)), 1), height)
  columns = min(max(round(rows * width / height), 1), width)
  if not sizes[0] <= rows * columns <= sizes[1]:
    rows, columns = height, width
  else:
    target = rows * columns
  add_box(mask, ((height - rows) // 2, (width - columns) // 2, rows, columns), target, 0)
