"""Detail for a fill from the known part of the same picture: what is finer than the network drew.

The network fixes layout and colours. Fine detail is copied from known places that look alike when both are blurred, by
few offsets, each for a whole stretch of the hole, so that neighbours come from neighbours. One coarse choice for all
fine detail is the idea of contextual residual aggregation (Yi et al. 2020), few offsets that of He & Sun 2012, the
choice by mean field under a Potts model that of Krähenbühl & Koltun 2011; that only missing detail is added is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

CELL = 4
"""Side of a cell of the grid on which offsets are chosen, pixels at the scale that the network saw."""
BAND = 3.0
"""Detail is what a Gaussian of this sigma takes away, pixels at that scale."""
BLOCK, MARGIN = 384, 128
"""Side of the parts of a hole that are worked on together, and the reach around them for sources, pixels there."""
THIN = 8.0
"""Parts of a hole that nowhere reach this depth are left alone, pixels there."""

_BLUR = 2.0  # sigma at which places are compared, pixels at that scale
_REACH = 2  # cells to each side of a place that are compared, too
_OFFSETS = 80  # at most so many are chosen among
_BEST = 3  # places that each cell of the hole votes for
_ROUNDS = 12  # of the mean field
_COHERENCE = 4.0  # weight of the neighbours' choice
_FEWEST = 16  # cells of sources, fewer have nothing to lend
_NEVER = np.float32(1e4)  # cost of a source that is not known

Place = tuple[slice, slice]


def add_detail(
  image: UInt8[np.ndarray, "h w 3"],
  mask: UInt8[np.ndarray, "h w"],
  hole: Bool[np.ndarray, "_ _"],
  place: Place,
  scale: float,
  strength: float,
) -> None:
  """Adds detail to a filled hole of a picture, in place; pixels outside it are not touched.

  Args:
    image: the picture with the fills of all its holes.
    mask: 1 in all holes of the picture; none of them lends anything.
    hole: what gets detail, of the pixels at `place`.
    place: the rectangle of the picture that `hole` is about.
    scale: pixels of the picture per pixel that the network saw, at least 1.
    strength: 1 adds what is missing, 0 nothing.
  """
  top, left = (span.start for span in place)
  # A thin hole has its rim everywhere, and the network draws it as sharp as that.
  depth = cv2.distanceTransform(np.pad(hole, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
  for rows, columns in _blocks(hole, round(BLOCK * scale)):
    own = hole[rows, columns]
    if strength <= 0 or depth[rows, columns].max() < THIN * scale:
      continue
    margin, (height, width) = round(MARGIN * scale), mask.shape
    y, x = top + rows.start, left + columns.start
    around = (
      slice(max(0, y - margin), min(height, y + own.shape[0] + margin)),
      slice(max(0, x - margin), min(width, x + own.shape[1] + margin)),
    )
    wanted = np.zeros(image[around].shape[:2], bool)
    inside = (slice(y - around[0].start, None), slice(x - around[1].start, None))
    wanted[inside][: own.shape[0], : own.shape[1]] = own
    detailed = _with_detail(image[around], mask[around], wanted, scale, strength)
    image[around][wanted] = detailed[wanted]


def _blocks(hole: Bool[np.ndarray, "h w"], side: int) -> Iterator[Place]:
  """Yields rectangles that cover the hole."""
  x, y, width, height = cv2.boundingRect(hole.astype(np.uint8))
  for top, left in itertools.product(range(y, y + height, side), range(x, x + width, side)):
    yield slice(top, min(top + side, y + height)), slice(left, min(left + side, x + width))


def _with_detail(
  image: UInt8[np.ndarray, "h w 3"],
  mask: UInt8[np.ndarray, "h w"],
  wanted: Bool[np.ndarray, "h w"],
  scale: float,
  strength: float,
) -> UInt8[np.ndarray, "h w 3"]:
  height, width = mask.shape
  grid = max(1, round(height / scale / CELL)), max(1, round(width / scale / CELL))
  seen = (grid[1] * CELL, grid[0] * CELL)  # as the network saw it, in whole cells; OpenCV wants the width first
  small = cv2.resize(image, seen, interpolation=cv2.INTER_AREA).astype(np.float32)
  unknown = cv2.resize((mask > 0).astype(np.float32), seen, interpolation=cv2.INTER_AREA) > 0
  # Near the hole what the blur takes away is partly the fill's.
  unknown = cv2.dilate(unknown.astype(np.uint8), np.ones((2 * round(BAND) + 1,) * 2, np.uint8))
  target = cv2.resize(wanted.astype(np.float32), seen, interpolation=cv2.INTER_AREA) > 0
  sources, targets = ~_any_in_cell(unknown > 0), _any_in_cell(target)
  if sources.sum() < _FEWEST:
    return image
  looks = _looks(small)
  offsets = _common_offsets(looks, sources, targets)
  chosen = _choose(looks, sources, targets, offsets)

  base = cv2.resize(cv2.GaussianBlur(small, (0, 0), BAND), (width, height), interpolation=cv2.INTER_LINEAR)
  detail = image.astype(np.float32) - base
  # Where no offset leads to a known place, the one that was chosen lends nothing.
  lent = _lend(np.where(mask[..., None] > 0, np.float32(0), detail), chosen, offsets)
  return np.clip(np.round(image + strength * _missing(detail, lent, wanted, seen) * lent), 0, 255).astype(np.uint8)


def _any_in_cell(pixels: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "r c"]:
  rows, columns = pixels.shape[0] // CELL, pixels.shape[1] // CELL
  return np.any(pixels.reshape(rows, CELL, columns, CELL), axis=(1, 3))


def _looks(small: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "r c d"]:
  """The blurred colours of each cell and of those around it."""
  blurred = cv2.GaussianBlur(small, (0, 0), _BLUR)[CELL // 2 :: CELL, CELL // 2 :: CELL]
  rows, columns = blurred.shape[:2]
  padded = np.pad(blurred, ((_REACH, _REACH), (_REACH, _REACH), (0, 0)), mode="symmetric")
  shifts = itertools.product(range(2 * _REACH + 1), repeat=2)
  return np.concatenate([padded[y : y + rows, x : x + columns] for y, x in shifts], axis=-1)


def _common_offsets(
  looks: Float[np.ndarray, "r c d"], sources: Bool[np.ndarray, "r c"], targets: Bool[np.ndarray, "r c"]
) -> Int[np.ndarray, "k 2"]:
  """The commonest offsets, in cells, from places of the hole to the known places that look most like them."""
  known, lookalike = np.argwhere(sources), looks[sources]
  norms, (rows, columns) = np.square(lookalike).sum(axis=1), sources.shape
  votes = np.zeros((2 * rows + 1, 2 * columns + 1), np.float32)
  cells, best, errors = np.argwhere(targets), [], []
  for start in range(0, len(cells), 512):  # a bounded piece of the matrix of all pairs
    part = looks[tuple(cells[start : start + 512].T)]
    distance = np.square(part).sum(axis=1)[:, None] + norms - 2.0 * part @ lookalike.T
    nearest = np.argpartition(distance, _BEST - 1, axis=1)[:, :_BEST]
    best.append(nearest)
    errors.append(np.take_along_axis(distance, nearest, axis=1) / looks.shape[-1])
  error = np.concatenate(errors)
  weights = np.exp(-error / (np.median(error.min(axis=1)) + 50.0))
  away = known[np.concatenate(best)] - cells[:, None] + (rows, columns)
  np.add.at(votes, (away[..., 0], away[..., 1]), weights)
  votes = cv2.GaussianBlur(votes, (0, 0), 1.0)
  peaks = []
  while len(peaks) < _OFFSETS and votes.max() > 1e-4:
    y, x = np.unravel_index(votes.argmax(), votes.shape)
    peaks.append((y - rows, x - columns))
    votes[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 0
  return np.array(peaks)


def _choose(
  looks: Float[np.ndarray, "r c d"],
  sources: Bool[np.ndarray, "r c"],
  targets: Bool[np.ndarray, "r c"],
  offsets: Int[np.ndarray, "k 2"],
) -> Int[np.ndarray, "r c"]:
  """The number of each target's offset: its place looks alike, and neighbours have it, too; -1 elsewhere."""
  cost = np.full((len(offsets), *targets.shape), _NEVER)
  for number, offset in enumerate(offsets):
    here, there = _overlap(targets.shape, offset)
    error = np.square(looks[here] - looks[there]).mean(axis=-1)
    cost[number][here] = np.where(sources[there], error, _NEVER)
  cost = np.minimum(cost / (np.median(cost.min(axis=0)[targets]) + 20.0), 50.0)
  x, y, width, height = cv2.boundingRect(targets.astype(np.uint8))
  box = (slice(y, y + height), slice(x, x + width))
  cost, inside = cost[:, *box], targets[box].astype(np.float32)
  neighbours = cv2.GaussianBlur(inside, (0, 0), 1.5) + 1e-6
  belief = _softmin(cost, 1.0)
  for step in range(_ROUNDS):
    shared = np.stack([cv2.GaussianBlur(one * inside, (0, 0), 1.5) for one in belief]) / neighbours
    belief = _softmin(cost - _COHERENCE * shared, max(0.15, 1.0 - step / _ROUNDS))
  chosen = np.full(targets.shape, -1)
  chosen[box] = np.where(targets[box], belief.argmax(axis=0), -1)
  return chosen


def _softmin(cost: Float[np.ndarray, "k r c"], temperature: float) -> Float[np.ndarray, "k r c"]:
  weights = np.exp((cost.min(axis=0) - cost) / np.float32(temperature))
  return weights / weights.sum(axis=0)


def _overlap(shape: tuple[int, ...], offset: Int[np.ndarray, 2]) -> tuple[Place, Place]:
  """The places of a grid that have one at this offset, and those places."""
  spans = [
    (slice(max(0, -step), min(size, size - step)), max(0, step)) for size, step in zip(shape, offset, strict=True)
  ]
  here = tuple(span if span.start < span.stop else slice(0, 0) for span, _ in spans)
  there = tuple(slice(first, first + span.stop - span.start) for span, (_, first) in zip(here, spans, strict=True))
  return (here[0], here[1]), (there[0], there[1])


def _lend(
  detail: Float[np.ndarray, "h w 3"], chosen: Int[np.ndarray, "r c"], offsets: Int[np.ndarray, "k 2"]
) -> Float[np.ndarray, "h w 3"]:
  """The detail at each pixel's chosen offset; where choices meet, theirs are blended over a cell."""
  size, pixels = detail.shape[:2], np.array(detail.shape[:2]) / chosen.shape
  total, weights = np.zeros_like(detail), np.zeros((*size, 1), np.float32)
  for number in np.unique(chosen[chosen >= 0]):
    weight = cv2.resize((chosen == number).astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    x, y, width, height = cv2.boundingRect((weight > 0).astype(np.uint8))
    step_y, step_x = np.rint(offsets[number] * pixels).astype(int).tolist()
    rows = slice(max(y, -step_y), min(y + height, size[0] - step_y))
    columns = slice(max(x, -step_x), min(x + width, size[1] - step_x))
    moved = detail[rows.start + step_y : rows.stop + step_y, columns.start + step_x : columns.stop + step_x]
    total[rows, columns] += weight[rows, columns, None] * moved
    weights[rows, columns] += weight[rows, columns, None]
  return total / np.maximum(weights, 1e-3)


def _missing(
  own: Float[np.ndarray, "h w 3"],
  lent: Float[np.ndarray, "h w 3"],
  wanted: Bool[np.ndarray, "h w"],
  seen: tuple[int, int],
) -> Float[np.ndarray, "h w 1"]:
  """The share of the lent detail that is added: all where the fill has none, nothing where it has twice as much."""
  inside = wanted.astype(np.float32)

  def power(detail: np.ndarray) -> np.ndarray:
    small = cv2.resize(np.square(detail).mean(axis=-1) * inside, seen, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), CELL)

  share = np.clip(1.0 - 0.5 * np.sqrt(power(own) / (power(lent) + 0.01)), 0.0, 1.0)
  return cv2.resize(share, inside.shape[::-1], interpolation=cv2.INTER_LINEAR)[..., None]
