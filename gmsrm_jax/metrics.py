"""Image metrics, one float32 value per image, and sums of them that merge and are divided last.

Images are in [-1, 1] and must have been rounded to uint8 first (`image_from_uint8(image_to_uint8(x))`): published
numbers are those of saved files. Every metric is stated in the range [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import dm_pix
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from gmsrm_jax.arrays import Image, Mask, PerImage

_SSIM_SIDE = 11  # pixels of the Gaussian window


def _unit_range(image: Image) -> Image:
  return (image.astype(jnp.float32) + 1.0) * 0.5


def _difference(a: Image, b: Image) -> Image:
  return (a.astype(jnp.float32) - b.astype(jnp.float32)) * 0.5


def _hole_mean(values: Image, mask: Mask) -> PerImage:
  mask = mask.astype(jnp.float32)
  pixels = jnp.maximum(jnp.sum(mask, axis=(1, 2, 3)), 1.0)
  return jnp.sum(values * mask, axis=(1, 2, 3)) / (values.shape[-1] * pixels)


def _decibels(squared_error: PerImage) -> PerImage:
  return -10.0 * jnp.log10(squared_error)  # log10(0) is -inf, so equal images get +inf


def l1(a: Image, b: Image) -> PerImage:
  """Mean absolute error, in [0, 1]."""
  return jnp.mean(jnp.abs(_difference(a, b)), axis=(1, 2, 3))


def l1_hole(a: Image, b: Image, mask: Mask) -> PerImage:
  """Mean absolute error over the hole alone, in [0, 1]; 0 without a hole."""
  return _hole_mean(jnp.abs(_difference(a, b)), mask)


def psnr(a: Image, b: Image) -> PerImage:
  """Peak signal-to-noise ratio in dB, over all pixels and channels; inf for equal images."""
  return jnp.asarray(dm_pix.psnr(_unit_range(a), _unit_range(b)))


def psnr_hole(a: Image, b: Image, mask: Mask) -> PerImage:
  """Peak signal-to-noise ratio in dB over the hole alone; inf when that is equal, or there is no hole."""
  return _decibels(_hole_mean(jnp.square(_difference(a, b)), mask))


def ssim(a: Image, b: Image) -> PerImage:
  """Structural similarity in [-1, 1], 1 for equal images (Wang et al. 2004, eq. 13).

  Gaussian window of 11 pixels, sigma 1.5, at every place where it fits ('valid'); data range 1, K1 = .01, K2 = .03;
  mean over places and the three channels. Same as scikit-image's with use_sample_covariance=False.
  """
  if min(a.shape[1:3]) < _SSIM_SIDE:
    raise ValueError(f"images of {a.shape[1]}x{a.shape[2]} pixels are smaller than SSIM's window of {_SSIM_SIDE}")
  return jnp.asarray(dm_pix.ssim(_unit_range(a), _unit_range(b), filter_size=_SSIM_SIDE))


@dataclasses.dataclass(frozen=True)
class Sums:
  """Sums and counts of per-image values by name, on the host in float64: how images are batched changes nothing.

  `Sums()` is the empty one. +inf (PSNR of equal images) is counted apart from the sum; NaN is not hidden.
  """

  total: Mapping[str, float] = dataclasses.field(default_factory=dict)
  count: Mapping[str, int] = dataclasses.field(default_factory=dict)
  infinite: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, values: Mapping[str, ArrayLike], *, valid: ArrayLike | None = None) -> Sums:
    """The sums of one batch; an example that is not `valid` (padding) counts zero, whatever its values."""
    total, count, infinite = {}, {}, {}
    for name, value in values.items():
      array = np.asarray(value, np.float64)
      if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}: give one value per image")
      if valid is not None:
        keep = np.asarray(valid, bool)
        if keep.shape != array.shape:
          raise ValueError(f"{name} has {len(array)} values, but valid has shape {keep.shape}")
        array = array[keep]
      above = np.isposinf(array)
      total[name] = float(np.sum(array[~above]))
      count[name] = int(np.sum(~above))
      infinite[name] = int(np.sum(above))
    return cls(total, count, infinite)

  def merge(self, other: Sums) -> Sums:
    """The sums of both; names may differ."""
    names = list(dict.fromkeys((*self.total, *other.total)))
    return Sums(
      {name: self.total.get(name, 0.0) + other.total.get(name, 0.0) for name in names},
      {name: self.count.get(name, 0) + other.count.get(name, 0) for name in names},
      {name: self.infinite.get(name, 0) + other.infinite.get(name, 0) for name in names},
    )

  def finalise(self) -> dict[str, float]:
    """The mean of each name over its images: for PSNR the mean of dB.

    Images at +inf are left out of the mean and reported as `NAME_infinite` where there are any; if all are, the mean is
    inf. Without any image it is NaN.
    """
    means = {}
    for name, total in self.total.items():
      count, infinite = self.count[name], self.infinite[name]
      means[name] = total / count if count else (math.inf if infinite else math.nan)
      if infinite:
        means[f"{name}_infinite"] = float(infinite)
    return means
