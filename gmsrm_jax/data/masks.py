"""Irregular holes: pure functions of (rng, height, width), uint8, 1 in the hole.

Every kind first draws the number of hole pixels it wants, uniform over the numbers its area range allows, then adds
strokes or boxes until the union holds that many. Of the one that goes past, only what lies nearest to its start is
kept; what is too little for another one widens the hole all round. So no mask is thrown away, and every area is exact
to the pixel.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.config import MASK_KINDS, ConfigError, MaskConfig, require, suggest
from gmsrm_jax.data import strokes


@functools.lru_cache
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


def _draw(
  kind: str, rng: np.random.Generator, height: int, width: int, sizes: tuple[int, int]
) -> UInt8[np.ndarray, "{height} {width}"]:
  if kind not in MASK_KINDS:
    raise ConfigError(f"mask kind {kind!r} is unknown: {suggest(kind, MASK_KINDS)}choose from {', '.join(MASK_KINDS)}")
  mask = np.zeros((height, width), np.uint8)
  target = int(rng.integers(sizes[0], sizes[1] + 1))
  if kind == "centre":
    strokes.add_centre(mask, target, sizes)
    return mask
  if kind == "rectangles":
    count = strokes.add_rectangles(rng, mask, target)
  else:
    count = strokes.add_strokes(rng, mask, strokes.BRUSHES[kind], target)
  strokes.grow(mask, target - count)
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
