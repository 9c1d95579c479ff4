"""Irregular holes: pure functions of (rng, height, width, settings), uint8, 1 in the hole.

Every kind first draws the number of hole pixels it wants, uniform over the numbers its area range allows, then adds
strokes, boxes or shapes until the union holds that many (`strokes`, `shapes`). So no mask is thrown away, and every
area is exact to the pixel.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.config import MaskConfig
from gmsrm_jax.data.masks import hole_files, shapes, strokes
from gmsrm_jax.errors import require


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


@functools.lru_cache  # a folder is listed once
def _paths(kind: str, config: MaskConfig) -> tuple[Path, ...]:
  folder = config.objects_folder if kind == "objects" else config.occlusions_folder
  return hole_files.mask_paths(folder, f"mask.{kind}_folder")


def check_folders(config: MaskConfig) -> None:
  """Lists the folders of the kinds that draw from files.

  Raises:
    ConfigError: a kind has a weight, and its folder is missing or holds no image.
  """
  for kind in ("objects", "occlusions"):
    if config.weights[kind] > 0:
      _paths(kind, config)


def _draw(
  kind: str, rng: np.random.Generator, height: int, width: int, sizes: tuple[int, int], config: MaskConfig
) -> UInt8[np.ndarray, "{height} {width}"]:
  mask = np.zeros((height, width), np.uint8)
  target = int(rng.integers(sizes[0], sizes[1] + 1))
  match kind:
    # These three round to whole lines where the range allows it, and hit the target themselves where it does not.
    case "centre":
      strokes.add_centre(mask, target, sizes)
    case "half":
      shapes.add_half(rng, mask, target, sizes)
    case "outpaint":
      shapes.add_border(rng, mask, target, sizes)
    case "rectangles":
      strokes.add_rectangles(rng, mask, target)
    case "comodgan":
      shapes.add_comodgan(rng, mask, target)
    case "lines":
      shapes.add_lines(rng, mask, target)
    case "objects":
      shapes.add_objects(rng, mask, target, _paths(kind, config))
    case "occlusions":
      shapes.add_occlusions(rng, mask, target, _paths(kind, config))
    case _:
      strokes.add_strokes(rng, mask, strokes.BRUSHES[kind], target)
  if kind not in ("centre", "half", "outpaint"):
    strokes.grow(mask, target - cv2.countNonZero(mask))
  return mask


@functools.lru_cache
def _thresholds(config: MaskConfig) -> tuple[list[str], list[float]]:
  """The kinds that have a weight, and up to which share of the draws each is taken."""
  kinds = [kind for kind, weight in config.weights.items() if weight > 0]
  sums = np.cumsum([config.weights[kind] for kind in kinds])
  return kinds, (sums / sums[-1]).tolist()


def _pick_kind(rng: np.random.Generator, config: MaskConfig) -> str:
  kinds, thresholds = _thresholds(config)
  return kinds[bisect.bisect_right(thresholds, rng.random())]


def draw_kind(
  kind: str,
  rng: np.random.Generator,
  height: int,
  width: int,
  area: tuple[float, float],
  config: MaskConfig | None = None,
) -> UInt8[np.ndarray, "{height} {width}"]:
  """A hole of one of `MASK_KINDS` that covers a share of the image within [area[0], area[1]], at least one pixel.

  Of `config` only the folders are read, by the kinds that draw from files.

  Raises:
    ConfigError: no whole number of pixels lies in the range, or a folder cannot be read.
  """
  return _draw(kind, rng, height, width, _hole_sizes(height * width, area, above_low=False), config or MaskConfig())


def draw(
  rng: np.random.Generator, height: int, width: int, config: MaskConfig
) -> UInt8[np.ndarray, "{height} {width}"]:
  """A training hole: kind by the weights of `config`, area within its [area_min, area_max]."""
  return draw_kind(_pick_kind(rng, config), rng, height, width, (config.area_min, config.area_max), config)


def fixed_seed(name: str, bucket: tuple[float, float], seed: int) -> int:
  """The seed of the hole of a held-out image: 128 bits of a hash of (name, bucket, seed)."""
  low, high = (float(bound) for bound in bucket)
  digest = hashlib.sha256(f"{seed}\0{low!r}\0{high!r}\0{name}".encode("utf-8", "surrogateescape")).digest()
  return int.from_bytes(digest[:16], "big")


def evaluation_mask(
  name: str, bucket: tuple[float, float], seed: int, height: int, width: int, config: MaskConfig
) -> UInt8[np.ndarray, "{height} {width}"]:
  """The fixed hole of a held-out image: decided by (name, bucket, seed), its area within (bucket[0], bucket[1]].

  Raises:
    ConfigError: no whole number of pixels lies in the bucket.
  """
  low, high = (float(bound) for bound in bucket)
  sizes = _hole_sizes(height * width, (low, high), above_low=True)
  rng = np.random.default_rng(fixed_seed(name, bucket, seed))
  return _draw(_pick_kind(rng, config), rng, height, width, sizes, config)
