"""Detail for a fill from the known part of the same picture: what is finer than a layout.

The network decides layout and colours. Near the rim what its fill lacks of finer detail, and deep in the hole all of
it, is copied from known places that look alike when both are blurred, by few offsets, each for a whole stretch of the
hole, so that neighbours come from neighbours. One coarse choice for all fine detail is the idea of contextual residual
aggregation (Yi et al. 2020); few offsets, of which those by which a picture repeats itself are likelier, are that of
He & Sun 2012; the choice by mean field under a Potts model is that of Krähenbühl & Koltun 2011. That the network's
layout is compared with its contrast raised, and that energy decides how much is copied, is ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

FINER = 3.0
"""A picture is looked at this many times as fine as the network saw it, at most at its own size."""
CELL = 4
"""Side of a cell of the grid on which offsets are chosen, pixels at that scale."""
BAND = 6.0
"""Detail is what a Gaussian of this sigma takes away, pixels at that scale."""
BLOCK, MARGIN = 384, 128
"""Side of the parts of a hole that are worked on together, and the reach around them for sources, pixels there."""
THIN = 8.0
"""Parts of a hole that nowhere reach this depth are left alone, pixels there."""
RIM = 12.0
"""Depth over which the network's fill, which knows best what goes on at the rim, goes over into what is copied."""

_BLUR = 2.0  # sigma at which places are compared, pixels at that scale
_REACH = 3  # cells to each side of a place that are compared, too
_TRUST = 0.25  # weight of a cell that was filled when places are compared
# The fill is a mean of what could be there: its structure (finer than this sigma) is fainter than a photograph's.
_LAYOUT, _CONTRAST = 8.0, 3.0
_AROUND = 6.0  # sigma of the neighbourhood whose mean energy tells how much detail a fill has, pixels at that scale
_REPEATS = 0.3  # weight of how common an offset is
_APART = 6  # cells that lie nearer than this do not count as a repetition
_SAMPLES = 1000  # at most about so many known cells tell how the picture repeats itself
_OFFSETS = 80  # at most so many are chosen among
_BEST = 3  # places that each cell votes for
_ROUNDS = 12  # of the mean field
_COHERENCE = 4.0  # weight of the neighbours' choice
_SHIFT = 3  # an offset is exact to the pixel after a search so far
_CLEAR = 3  # pixels next to a hole that lend nothing
_FEWEST = 16  # cells of sources, fewer have nothing to lend
_NEVER = np.float32(1e4)  # cost of a source that is not known

Place = tuple[slice, slice]


class Looks(NamedTuple):
  """Colours of each cell of the grid and of the k - 1 around it, which are compared, and how far to trust each."""

  colours: Float[np.ndarray, "r c k 3"]
  trust: Float[np.ndarray, "r c k"]  # mean 1 over k


def add_detail(
  image: UInt8[np.ndarray, "h w 3"],
  mask: UInt8[np.ndarray, "h w"],
  hole: Bool[np.ndarray, "_ _"],
  place: Place,
  scale: float,
  strength: float,
) -> None:
  """Replaces what is fine in a filled hole of a picture, in place; pixels outside it are not touched.

  Args:
    image: the picture with the fills of all its holes.
    mask: 1 in all holes of the picture; none of them lends anything.
    hole: what gets detail, of the pixels at `place`.
    place: the rectangle of the picture that `hole` is about.
    scale: pixels of the picture per pixel that is looked at, at least 1.
    strength: 1 replaces all, 0 nothing.
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
  seen = (grid[1] * CELL, grid[0] * CELL)  # at that scale, in whole cells; OpenCV wants the width first
  small = cv2.resize(image, seen, interpolation=cv2.INTER_AREA).astype(np.float32)
  share = cv2.resize((mask > 0).astype(np.float32), seen, interpolation=cv2.INTER_AREA)
  depth = cv2.distanceTransform((share > 0).astype(np.uint8), cv2.DIST_L2, 3)
  # Near the hole what the blur takes away is partly the fill's.
  known = cv2.dilate((share > 0).astype(np.uint8), np.ones((2 * _CLEAR + 1,) * 2, np.uint8)) == 0
  target = cv2.resize(wanted.astype(np.float32), seen, interpolation=cv2.INTER_AREA) > 0
  sources, targets = ~_any_in_cell(~known), _any_in_cell(target)
  if sources.sum() < _FEWEST:
    return image
  inside = np.minimum(depth / RIM, 1.0)[..., None]
  layout = cv2.GaussianBlur(small, (0, 0), _LAYOUT)
  clear = layout + (small - layout) * (1.0 + (_CONTRAST - 1.0) * inside)
  looks = _looks(clear, share)
  offsets, common = _common_offsets(looks, sources, targets)
  chosen = _choose(looks, sources, targets, offsets, common)
  steps = _to_the_pixel(clear, known, chosen, offsets)

  base = cv2.resize(cv2.GaussianBlur(small, (0, 0), BAND), (width, height), interpolation=cv2.INTER_LINEAR)
  detail = image.astype(np.float32) - base
  # Where no offset leads to a known place, the one that was chosen lends nothing.
  lent, covered = _lend(detail, mask == 0, chosen, steps)
  factors = np.dstack([inside, *_mixture(detail, lent, share, inside[..., 0])])
  rim, of_lent, of_own = np.split(cv2.resize(factors, (width, height)), 3, axis=2)
  mixed = of_lent * lent + of_own * detail
  return np.clip(np.round(image + strength * covered * rim * (mixed - detail)), 0, 255).astype(np.uint8)


def _mixture(
  own: Float[np.ndarray, "h w 3"],
  lent: Float[np.ndarray, "h w 3"],
  share: Float[np.ndarray, "y x"],
  inside: Float[np.ndarray, "y x"],
) -> tuple[Float[np.ndarray, "y x"], Float[np.ndarray, "y x"]]:
  """Returns the factors of lent and own detail; `inside` is 0 at the rim and 1 where all is to be copied.

  Copied is at least what the fill lacks in energy, and what it has too much of is taken away. The squares of both add
  up to one at most, because what is independent adds in squares.
  """

  def energy(detail: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "y x"]:
    squares = cv2.resize(np.square(detail).sum(axis=-1), share.shape[::-1], interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(squares * share, (0, 0), _AROUND) + 1e-3

  ratio = energy(own) / energy(lent)
  copied = np.clip(np.maximum(1.0 - ratio, inside), 0.0, 1.0)
  return np.sqrt(copied), np.sqrt((1.0 - copied) / np.maximum(ratio, 1.0))


def _any_in_cell(pixels: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "r c"]:
  rows, columns = pixels.shape[0] // CELL, pixels.shape[1] // CELL
  return np.any(pixels.reshape(rows, CELL, columns, CELL), axis=(1, 3))


def _looks(picture: Float[np.ndarray, "h w 3"], share: Float[np.ndarray, "h w"]) -> Looks:
  """Returns the looks of a picture's cells; `share` is the hole's share of each pixel."""
  blurred = cv2.GaussianBlur(picture, (0, 0), _BLUR)[CELL // 2 :: CELL, CELL // 2 :: CELL]
  filled = cv2.resize(share, blurred.shape[1::-1], interpolation=cv2.INTER_AREA)[..., None]
  trust = _with_neighbours(1.0 - (1.0 - _TRUST) * filled)[..., 0]
  return Looks(_with_neighbours(blurred), trust / trust.mean(axis=-1, keepdims=True))


def _with_neighbours(cells: Float[np.ndarray, "r c d"]) -> Float[np.ndarray, "r c k d"]:
  rows, columns = cells.shape[:2]
  padded = np.pad(cells, ((_REACH, _REACH), (_REACH, _REACH), (0, 0)), mode="symmetric")
  shifts = itertools.product(range(2 * _REACH + 1), repeat=2)
  return np.stack([padded[y : y + rows, x : x + columns] for y, x in shifts], axis=2)


def _common_offsets(
  looks: Looks, sources: Bool[np.ndarray, "r c"], targets: Bool[np.ndarray, "r c"]
) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
  """The commonest offsets, in cells, to known places that look most alike, and how common each is, at most 1.

  Half of the votes are of places of the hole, half of known places, which tell how the picture repeats itself.
  """
  known = np.argwhere(sources)
  votes = _votes(looks, sources, np.argwhere(targets), 0)
  repeats = _votes(looks, sources, known[:: max(1, len(known) // _SAMPLES)], _APART)
  votes += repeats * (votes.sum() / max(repeats.sum(), 1e-6))
  left, peaks, counts = votes.copy(), [], []
  while len(peaks) < _OFFSETS and left.max() > 1e-4:
    y, x = np.unravel_index(left.argmax(), left.shape)
    peaks.append((y - sources.shape[0], x - sources.shape[1]))
    counts.append(votes[y, x])
    left[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 0
  return np.array(peaks), np.array(counts) / max(counts)


def _votes(
  looks: Looks, sources: Bool[np.ndarray, "r c"], cells: Int[np.ndarray, "m 2"], apart: int
) -> Float[np.ndarray, "_ _"]:
  """For each offset, the votes of cells for the sources that look most like them and lie no nearer than `apart`."""
  known, lookalike = np.argwhere(sources), looks.colours[sources]
  norms, lookalike = np.square(lookalike).sum(axis=-1), lookalike.reshape(len(known), -1)
  (rows, columns), best, errors = sources.shape, [], []
  for start in range(0, len(cells), 512):  # a bounded piece of the matrix of all pairs
    part = cells[start : start + 512]
    colours, trust = looks.colours[tuple(part.T)], looks.trust[tuple(part.T)]
    weighted = (colours * trust[..., None]).reshape(len(part), -1)
    own = (np.square(colours).sum(axis=-1) * trust).sum(axis=-1)
    distance = own[:, None] + trust @ norms.T - 2.0 * weighted @ lookalike.T
    if apart:
      near = np.abs(known.T[:, None] - part.T[:, :, None]) < apart  # axis, cell, source
      distance[near[0] & near[1]] = np.inf
    nearest = np.argpartition(distance, _BEST - 1, axis=1)[:, :_BEST]
    best.append(nearest)
    errors.append(np.take_along_axis(distance, nearest, axis=1) / weighted.shape[1])
  error = np.concatenate(errors)
  least = error.min(axis=1)[np.isfinite(error.min(axis=1))]
  weights = np.exp(-error / (np.median(least) + 50.0)) if least.size else np.zeros_like(error)
  away = known[np.concatenate(best)] - cells[:, None] + (rows, columns)
  votes = np.zeros((2 * rows + 1, 2 * columns + 1), np.float32)
  np.add.at(votes, (away[..., 0], away[..., 1]), weights)
  return cv2.GaussianBlur(votes, (0, 0), 1.0)


def _choose(
  looks: Looks,
  sources: Bool[np.ndarray, "r c"],
  targets: Bool[np.ndarray, "r c"],
  offsets: Int[np.ndarray, "n 2"],
  common: Float[np.ndarray, " n"],
) -> Int[np.ndarray, "r c"]:
  """The number of each target's offset: its place looks alike, neighbours have it, too, it is common; -1 elsewhere."""
  cells, cost = np.argwhere(targets), np.full((len(offsets), *targets.shape), _NEVER)
  for number, offset in enumerate(offsets):
    there = cells + offset
    known = np.all((there >= 0) & (there < targets.shape), axis=1)
    known[known] = sources[tuple(there[known].T)]
    here, there = tuple(cells[known].T), tuple(there[known].T)
    error = np.square(looks.colours[here] - looks.colours[there]).sum(axis=-1)
    cost[number][here] = np.einsum("mk,mk->m", error, looks.trust[here]) / (3 * error.shape[1])
  cost = np.minimum(cost / (np.median(cost.min(axis=0)[targets]) + 20.0), 50.0)
  cost -= _REPEATS * np.log(common + 1e-3)[:, None, None].astype(np.float32)
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


def _to_the_pixel(
  picture: Float[np.ndarray, "h w 3"],
  known: Bool[np.ndarray, "h w"],
  chosen: Int[np.ndarray, "r c"],
  offsets: Int[np.ndarray, "n 2"],
) -> Float[np.ndarray, "n 2"]:
  """The offsets in cells, those that were chosen moved by pixels to where the picture fits best."""
  blurred, steps = cv2.GaussianBlur(picture, (0, 0), 0.5 * _BLUR), offsets * CELL
  numbers = np.kron(chosen, np.ones((CELL, CELL), int))
  for number in np.unique(chosen[chosen >= 0]):
    stretch = cv2.dilate((numbers == number).astype(np.uint8), np.ones((2 * CELL + 1,) * 2, np.uint8)) > 0
    x, y, width, height = cv2.boundingRect(stretch.astype(np.uint8))
    errors, fewest = {}, 0.8 * stretch.sum()
    for shift in itertools.product(range(-_SHIFT, _SHIFT + 1), repeat=2):
      here, there = _moved((y, x, height, width), steps[number] + shift, known.shape)
      both = stretch[here] & known[there]
      if (count := both.sum()) >= fewest:
        error = cv2.norm(blurred[here], blurred[there], cv2.NORM_L2SQR, both.astype(np.uint8))
        errors[shift] = error / (3 * count) + 0.01 * np.square(shift).sum()
    if errors:
      steps[number] += min(errors, key=errors.__getitem__)
  return steps / CELL


def _softmin(cost: Float[np.ndarray, "k r c"], temperature: float) -> Float[np.ndarray, "k r c"]:
  weights = np.exp((cost.min(axis=0) - cost) / np.float32(temperature))
  return weights / weights.sum(axis=0)


def _moved(box: tuple[int, int, int, int], step: Int[np.ndarray, 2], shape: tuple[int, ...]) -> tuple[Place, Place]:
  """The part of a box (top, left, height, width) that a step does not lead out of the picture, and where it leads."""
  here, there = [], []
  for first, length, move, size in zip(box[:2], box[2:], step.tolist(), shape, strict=False):
    start, stop = max(first, -move), min(first + length, size - move)
    here.append(slice(start, max(start, stop)))
    there.append(slice(start + move, max(start, stop) + move))
  return (here[0], here[1]), (there[0], there[1])


def _lend(
  detail: Float[np.ndarray, "h w 3"],
  known: Bool[np.ndarray, "h w"],
  chosen: Int[np.ndarray, "r c"],
  offsets: Float[np.ndarray, "n 2"],
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 1"]]:
  """The known detail at each pixel's chosen offset, and the share of it that is known.

  Where choices meet, theirs are blended over a cell.
  """
  size, pixels = detail.shape[:2], np.array(detail.shape[:2]) / chosen.shape
  total, weights = np.zeros_like(detail), np.zeros((*size, 1), np.float32)
  for number in np.unique(chosen[chosen >= 0]):
    weight = cv2.resize((chosen == number).astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    x, y, width, height = cv2.boundingRect((weight > 0).astype(np.uint8))
    here, there = _moved((y, x, height, width), np.rint(offsets[number] * pixels).astype(int), size)
    share = (weight[here] * known[there])[..., None]
    total[here] += share * detail[there]
    weights[here] += share
  return total / np.maximum(weights, 1e-3), np.minimum(weights, 1.0)
