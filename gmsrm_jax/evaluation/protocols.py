"""Ways to score a fill: this project's own, and those of peers, read from their scripts, to set numbers beside theirs.

All take uint8 pictures, composited, and give one value per image; means are taken over images. Equal names mean the
same kind of thing, not the same formula: a number is comparable only within its protocol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp

from gmsrm_jax.arrays import Image, Mask, Mask8, PerImage, Rgb8, hole_area, image_from_uint8, mask_from_uint8
from gmsrm_jax.errors import require
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.pretrained import lpips, vgg16, weight_files

Networks = dict[str, weight_files.Params]
"""Feature networks by their LPIPS names, 'alex' and 'vgg'."""

Scores = dict[str, PerImage]

_LOADERS = {"alex": lpips.load_alexnet, "vgg": vgg16.load_vgg16}


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One way to score; `PROTOCOLS` has them by name."""

  name: str
  description: Mapping[str, str]  # what each number is, and where the formula comes from, for the report
  formula: Callable[[Networks, Image, Image, Mask], Scores]
  networks: tuple[str, ...]  # which feature networks the formula reads
  least: int  # pixels that the shorter side must have

  def check(self, height: int, width: int) -> None:
    """Raises ConfigError unless pictures of that size can be scored."""
    require(
      min(height, width) >= self.least,
      f"protocol={self.name} needs pictures of at least {self.least}x{self.least} pixels, the reach of its windows, "
      f"and these are {height}x{width}: score larger pictures or choose another protocol",
    )

  def describe(self, height: int, width: int) -> dict[str, str]:
    """The description for pictures of that size."""
    scales = metrics.ms_ssim_scales(height, width)
    return {"name": self.name} | {key: text.format(scales=scales) for key, text in self.description.items()}

  def load_networks(self) -> Networks:
    """The parameters that `score` wants; raises ConfigError where the files are lost or altered."""
    return {net: _LOADERS[net]() for net in self.networks}

  def score(self, networks: Networks, filled: Rgb8, truth: Rgb8, mask: Mask8) -> Scores:
    """Each metric of each image; to be jitted.

    Several fills of one truth belong into one jitted function: the compiler merges the work on the truth, which is
    half of all.

    Raises:
      ConfigError: the pictures are too small.
    """
    self.check(*truth.shape[1:3])
    return self.formula(networks, image_from_uint8(filled), image_from_uint8(truth), mask_from_uint8(mask))


def _grey(image: Image) -> metrics.Picture:
  # Luma as scikit-image's rgb2gray weighs it; the weights' sum is 1, so the range stays.
  return jnp.sum(image * jnp.array((0.2125, 0.7154, 0.0721)).reshape(1, 1, 1, 3), axis=-1, keepdims=True)


def _ours(networks: Networks, a: Image, b: Image, mask: Mask) -> Scores:
  maps = lpips.lpips_maps(networks["alex"], a, b, net="alex")
  return {
    "psnr": metrics.psnr(a, b),
    "ssim": metrics.ssim(a, b),
    "ms_ssim": metrics.ms_ssim(a, b),
    "l1": metrics.l1(a, b),
    "lpips": lpips.mean_distance(maps),
    "lpips_vgg": lpips.lpips(networks["vgg"], a, b, net="vgg"),
    "psnr_hole": metrics.psnr_hole(a, b, mask),
    "l1_hole": metrics.l1_hole(a, b, mask),
    "lpips_hole": lpips.hole_distance(maps, mask),
    "boundary_error": metrics.boundary_error(a, b, mask),
    "hole_area": hole_area(mask),
  }


def _edgeconnect(networks: Networks, a: Image, b: Image, mask: Mask) -> Scores:
  a, b = _grey(a), _grey(b)
  return {"psnr": metrics.psnr(a, b), "ssim": metrics.ssim_uniform(a, b, 51), "mae": metrics.mae_relative(a, b)}


def _aotgan(networks: Networks, a: Image, b: Image, mask: Mask) -> Scores:
  return {"psnr": metrics.psnr(a, b), "ssim": metrics.ssim_uniform(a, b, 7), "mae": metrics.mae_relative(a, b)}


def _hint(networks: Networks, a: Image, b: Image, mask: Mask) -> Scores:
  return {
    "psnr": jnp.minimum(metrics.psnr(a, b), 100.0),
    "ssim": metrics.ssim_uniform(a, b, 7),
    "l1": metrics.l1(a, b),
    "lpips": lpips.lpips(networks["vgg"], a, b, net="vgg"),
  }


def _mat(networks: Networks, a: Image, b: Image, mask: Mask) -> Scores:
  return {
    "psnr": metrics.psnr(a, b),
    "ssim": metrics.ssim(a, b),
    "l1": metrics.l1(a, b),
    "lpips": lpips.lpips(networks["alex"], a, b, net="alex"),
  }


def _spl(networks: Networks, a: Image, b: Image, mask: Mask) -> Scores:
  a_mean, b_mean = (jnp.mean(x, axis=-1, keepdims=True) for x in (a, b))
  return {"psnr": metrics.psnr(a, b), "ssim": metrics.ssim_uniform(a, b, 11), "l1": metrics.l1(a_mean, b_mean)}


_RGB_PSNR = "dB over RGB, mean of the images' dB"
_FLAT = "flat window of {side} pixels, sample covariance, RGB (scikit-image's structural_similarity)"
_GAUSSIAN = "Gaussian window of 11 pixels, sigma 1.5, population covariance, 'valid' places, mean over RGB"
_RELATIVE = "sum of |a - b| over sum of a + b"

_ALL = (
  Protocol(
    "ours",
    {
      "source": "this project: composited uint8 RGB, every metric in the range of [0, 1] values",
      "psnr": _RGB_PSNR,
      "ssim": _GAUSSIAN,
      "ms_ssim": "{scales} scales (five from 161 pixels on), Wang et al. 2003, weights over their sum; window as ssim",
      "l1": "mean of |a - b| over RGB",
      "lpips": "v0.1, AlexNet",
      "lpips_vgg": "v0.1, VGG16",
      "psnr_hole": "psnr over the hole's pixels alone",
      "l1_hole": "l1 over the hole's pixels alone",
      "lpips_hole": "v0.1, AlexNet, spatial, mean over the hole's pixels",
      "boundary_error": "mean error of the steps between neighbours across the hole's boundary",
      "hole_area": "share of the image that is hole",
    },
    _ours,
    ("alex", "vgg"),
    32,
  ),
  Protocol(
    "edgeconnect",
    {
      "source": "edge-connect, scripts/metrics.py: grey pictures (scikit-image's rgb2gray)",
      "psnr": "dB of grey pictures",
      "ssim": "flat window of 51 pixels, sample covariance, grey pictures (scikit-image's structural_similarity)",
      "mae": f"{_RELATIVE} of grey pictures",
    },
    _edgeconnect,
    (),
    51,
  ),
  Protocol(
    "aotgan",
    {
      "source": "AOT-GAN-for-Inpainting, src/metric/metric.py",
      "psnr": _RGB_PSNR,
      "ssim": _FLAT.format(side=7),
      "mae": f"{_RELATIVE} over RGB",
    },
    _aotgan,
    (),
    7,
  ),
  Protocol(
    "hint",
    {
      "source": "HINT, src/HINT.py (SEM-Net, MxT alike); there uint8 is cut off, not rounded; l1, lpips of floats",
      "psnr": f"{_RGB_PSNR}, at most 100",
      "ssim": _FLAT.format(side=7),
      "l1": "mean of |a - b| over RGB",
      "lpips": "v0.1, VGG16",
    },
    _hint,
    ("vgg",),
    32,
  ),
  Protocol(
    "mat",
    {
      "source": "MAT, evaluatoin/cal_psnr_ssim_l1.py and cal_lpips.py",
      "psnr": _RGB_PSNR,
      "ssim": _GAUSSIAN,
      "l1": "mean of |a - b| over RGB",
      "lpips": "v0.1, AlexNet",
    },
    _mat,
    ("alex",),
    32,
  ),
  Protocol(
    "spl",
    {
      "source": "SPL, eval_final.py; there uint8 is cut off, not rounded",
      "psnr": _RGB_PSNR,
      "ssim": _FLAT.format(side=11),
      "l1": "mean of |a - b| of the means over RGB: errors of opposite sign cancel",
    },
    _spl,
    (),
    11,
  ),
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""By name: ours, edgeconnect, aotgan, hint, mat, spl."""
