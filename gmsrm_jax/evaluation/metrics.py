"""Image metrics, one float32 value per image, and their means.

Images are in [-1, 1] and must have been rounded to uint8 first (`image_from_uint8(image_to_uint8(x))`): published
numbers are those of saved files. Every metric is stated in the range [0, 1]. JAX's arrays are measured by JAX, NumPy's
by NumPy and OpenCV, which compile nothing for pictures of many sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from gmsrm_jax.arrays import masked_mean

Pixels = Float[Any, "b h w c"]  # of JAX or NumPy, in [-1, 1]; one channel where a protocol scores a grey picture
Image = Float[Any, "b h w 3"]
Mask = Float[Any, "b h w 1"]
PerImage = Float[Any, " b"]

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales, finest first (Wang, Simoncelli & Bovik 2003)."""

GAUSSIAN = np.exp(-(np.arange(-5.0, 6.0) ** 2) / (2 * 1.5**2))
"""SSIM's window of 11 pixels, sigma 1.5, before it is normalised (Wang et al. 2004)."""


def _namespace(x: Any) -> Any:
  """The module of functions of such arrays, jax.numpy or numpy."""
  return x.__array_namespace__()


def _unit_range(image: Pixels) -> Pixels:
  return (image.astype(np.float32) + 1.0) * 0.5


def _difference(a: Pixels, b: Pixels) -> Pixels:
  return (a.astype(np.float32) - b.astype(np.float32)) * 0.5


def l1(a: Pixels, b: Pixels) -> PerImage:
  """Mean absolute error, in [0, 1]."""
  return abs(_difference(a, b)).mean(axis=(1, 2, 3))


def l1_hole(a: Image, b: Image, mask: Mask) -> PerImage:
  """Mean absolute error over the hole alone, in [0, 1]; 0 without a hole."""
  return masked_mean(abs(_difference(a, b)), mask)


def mae_relative(a: Pixels, b: Pixels) -> PerImage:
  """EdgeConnect's "MAE": the sum of |a - b| over the sum of a + b of values in [0, 1]; 0 when both are black.

  Not a mean error: the same error counts for more in a darker picture.
  """
  total = (_unit_range(a) + _unit_range(b)).sum(axis=(1, 2, 3))
  return abs(_difference(a, b)).sum(axis=(1, 2, 3)) / total.clip(1e-12)


def boundary_error(a: Image, b: Image, mask: Mask) -> PerImage:
  """The seam: how far the steps across the hole's boundary are from the true ones; 0 without a boundary.

  Mean of |(a_p - a_q) - (b_p - b_q)| over the channels and all pairs of horizontal or vertical neighbours p, q of which
  one lies in the hole and the other does not, for values in [0, 1]. A constant added to the whole image costs
  nothing; where the known pixels are the true ones it is the error of the hole's outermost pixels. (Ours.)
  """
  difference, hole, xp = _difference(a, b), mask.astype(np.float32), _namespace(a)
  error, pairs = xp.zeros(a.shape[0], np.float32), xp.zeros(a.shape[0], np.float32)
  for axis in (1, 2):
    straddles = abs(xp.diff(hole, axis=axis))
    error += (abs(xp.diff(difference, axis=axis)) * straddles).sum(axis=(1, 2, 3))
    pairs += straddles.sum(axis=(1, 2, 3))
  return error / (a.shape[-1] * pairs.clip(1.0))


def detail(a: Image, b: Image, mask: Mask) -> PerImage:
  """The sharpness of the fill `a` beside the truth's, in dB: the ratio of their Laplacian energies over the hole.

  0 is as sharp as the truth or without a hole, below it is softer, above it rougher; -3 is half the energy. The energy
  is the mean square of the four-neighbour Laplacian of luma in levels of 0..255; 1 is added on both sides, so that a
  flat truth does not decide. (Ours.)
  """

  xp, weights = _namespace(a), np.array((0.299, 0.587, 0.114), np.float32).reshape(1, 1, 1, 3)

  def energy(image: Image) -> PerImage:
    luma = (image.astype(np.float32) * weights).sum(axis=-1) * 127.5
    x = xp.pad(luma, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    laplacian = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:] - 4.0 * luma
    return masked_mean(xp.square(laplacian), mask[..., 0])

  return 10.0 * xp.log10((energy(a) + 1.0) / (energy(b) + 1.0))


def psnr(a: Pixels, b: Pixels) -> PerImage:
  """Peak signal-to-noise ratio in dB, over all pixels and channels; inf for equal images."""
  error = _namespace(a).square(_unit_range(a) - _unit_range(b)).mean(axis=(1, 2, 3))
  with np.errstate(divide="ignore"):
    return -10.0 * _namespace(a).log(error) / np.float32(math.log(10.0))


def psnr_hole(a: Image, b: Image, mask: Mask) -> PerImage:
  """Peak signal-to-noise ratio in dB over the hole alone; inf when that is equal, or there is no hole."""
  error = masked_mean(_namespace(a).square(_difference(a, b)), mask)
  with np.errstate(divide="ignore"):
    return -10.0 * _namespace(a).log10(error)  # log10(0) is -inf


def _window_mean(x: Pixels, window: np.ndarray) -> Float[Any, "b _h _w c"]:
  """The weighted mean over the window at every place where it fits; for JAX rows and columns as one matrix product."""
  if isinstance(x, np.ndarray):
    line, rim = (window / window.sum()).astype(np.float32), slice(len(window) // 2, -(len(window) // 2))
    means = [cv2.sepFilter2D(picture, -1, line, line).reshape(picture.shape)[rim, rim] for picture in x]
    return np.stack(means)

  def places(length: int) -> Float[np.ndarray, "out length"]:
    out = np.zeros((length - len(window) + 1, length), np.float32)
    for i, weight in enumerate(window / window.sum()):
      np.fill_diagonal(out[:, i:], weight)
    return out

  highest = jax.lax.Precision.HIGHEST
  x = jnp.einsum("bchw,jw->bchj", jnp.moveaxis(x, -1, 1), places(x.shape[2]), precision=highest)
  return jnp.einsum("ih,bchj->bijc", places(x.shape[2]), x, precision=highest)


def _similarity(
  a: Pixels, b: Pixels, window: np.ndarray, *, sample: bool = False
) -> tuple[Float[Any, "b c"], Float[Any, "b c"]]:
  """SSIM and its contrast-structure factor of pictures in [0, 1], means over places (Wang et al. 2004, eq. 12, 13)."""
  if min(a.shape[1:3]) < len(window):
    raise ValueError(f"images of {a.shape[1]}x{a.shape[2]} pixels are smaller than SSIM's window of {len(window)}")
  planes = (a, b, a * a, b * b, a * b)
  if isinstance(a, np.ndarray):
    moments = [_window_mean(plane, window) for plane in planes]  # OpenCV filters four channels at most
  else:
    moments = jnp.split(_window_mean(jnp.concatenate(planes, axis=-1), window), 5, axis=-1)
  mean_a, mean_b, square_a, square_b, product = moments
  pixels = len(window) ** 2
  unbiased = pixels / (pixels - 1) if sample else 1.0
  variances = unbiased * (square_a + square_b - mean_a * mean_a - mean_b * mean_b)
  covariance = unbiased * (product - mean_a * mean_b)
  contrast = (2 * covariance + 0.03**2) / (variances + 0.03**2)
  luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a * mean_a + mean_b * mean_b + 0.01**2)
  # In float32, NumPy's sums of a million places would be off in the fifth digit.
  exactly: dict[str, Any] = {"axis": (1, 2)} | ({"dtype": np.float64} if isinstance(a, np.ndarray) else {})
  return (luminance * contrast).mean(**exactly), contrast.mean(**exactly)


def ssim(a: Pixels, b: Pixels) -> PerImage:
  """Structural similarity in [-1, 1], 1 for equal images (Wang et al. 2004, eq. 13).

  Gaussian window of 11 pixels, sigma 1.5, at every place where it fits ('valid'); data range 1, K1 = .01, K2 = .03;
  mean over places and channels. Same as scikit-image's with use_sample_covariance=False.
  """
  return _similarity(_unit_range(a), _unit_range(b), GAUSSIAN)[0].mean(axis=1)


def ssim_uniform(a: Pixels, b: Pixels, side: int) -> PerImage:
  """SSIM with a flat window of `side` pixels and sample covariance, scikit-image's defaults; else as `ssim`."""
  return _similarity(_unit_range(a), _unit_range(b), np.ones(side), sample=True)[0].mean(axis=1)


def ms_ssim_scales(height: int, width: int) -> int:
  """The number of scales of `ms_ssim`: all that leave room for a window, at most 5.

  5 from 161 pixels on, 4 from 81, 3 from 41, 2 from 21.
  """
  scales = 1
  while scales < len(MS_SSIM_WEIGHTS) and -(-min(height, width) // 2**scales) >= len(GAUSSIAN):
    scales += 1
  return scales


def _halve(x: Pixels) -> Float[Any, "b _h _w c"]:
  # An odd last row or column is repeated, as TensorFlow does, so that nothing is lost or darkened.
  x = _namespace(x).pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
  return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) * 0.25


def ms_ssim(a: Pixels, b: Pixels) -> PerImage:
  """Multi-scale structural similarity in [0, 1], 1 for equal images (Wang, Simoncelli & Bovik 2003, eq. 7).

  The window, constants and data range of `ssim`; each scale halves the one before by 2x2 means; factors below 0 count
  as 0; mean over channels. Images below 161 pixels have fewer than five scales (see `ms_ssim_scales`) with the
  weights divided by their sum: comparable only with values of the same number of scales.
  """
  scales = ms_ssim_scales(*a.shape[1:3])
  exponents = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
  a, b = _unit_range(a), _unit_range(b)
  product = _namespace(a).ones((a.shape[0], a.shape[-1]), np.float32)
  for scale, exponent in enumerate(exponents):
    a, b = (_halve(a), _halve(b)) if scale else (a, b)
    full, contrast = _similarity(a, b, GAUSSIAN)
    product *= (full if scale == scales - 1 else contrast).clip(0.0) ** float(exponent)
  return product.mean(axis=1)


def means(values: Mapping[str, ArrayLike]) -> dict[str, float]:
  """The mean of each metric over its images, in float64: for PSNR the mean of dB.

  Images at +inf (PSNR of equal images) are left out of the mean and reported as `NAME_infinite` where there are any; if
  all are, the mean is inf. NaN is not hidden; without any image the mean is NaN.
  """
  result = {}
  for name, value in values.items():
    array = np.asarray(value, np.float64)
    finite = array[~np.isposinf(array)]
    infinite = len(array) - len(finite)
    result[name] = float(np.sum(finite)) / len(finite) if len(finite) else (math.inf if infinite else math.nan)
    if infinite:
      result[f"{name}_infinite"] = float(infinite)
  return result
