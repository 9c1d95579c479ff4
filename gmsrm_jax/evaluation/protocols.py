"""Ways to score a fill: this project's own, and those of peers, read from their scripts, to set numbers beside theirs.

All take uint8 pictures, composited, and give one value per image; means are taken over images. Equal names mean the
same kind of thing, not the same formula: a number is comparable only within its protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.arrays import image_from_uint8, mask_from_uint8
from gmsrm_jax.errors import require
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.evaluation.metrics import Image, Mask, PerImage
from gmsrm_jax.pretrained import lpips, weight_files
from gmsrm_jax.pretrained.canvas import Sizes

Networks = dict[str, weight_files.Params]
"""Feature networks by their LPIPS names, 'alex' and 'vgg'."""

Rgb8 = UInt8[Any, "b h w 3"]
Mask8 = UInt8[Any, "b h w 1"]


class Metric(NamedTuple):
  """A number's description for the report, and its formula: of fill, truth and mask, or of these and networks."""

  description: str
  formula: Callable[..., PerImage]
  has_network: bool = False


class Protocol(NamedTuple):
  """One way to score; `PROTOCOLS` has them by name."""

  name: str
  least: int  # pixels that the shorter side must have
  source: str
  metrics: Mapping[str, Metric]

  def check(self, height: int, width: int) -> None:
    """Raises ConfigError unless pictures of that size can be scored."""
    require(
      min(height, width) >= self.least,
      f"protocol={self.name} needs pictures of at least {self.least}x{self.least} pixels, the reach of its windows, "
      f"and these are {height}x{width}: score larger pictures or choose another protocol",
    )

  def describe(self, height: int, width: int) -> dict[str, str]:
    """Describes each number, for pictures of that size."""
    scales = metrics.ms_ssim_scales(height, width)
    described = {name: metric.description.format(scales=scales) for name, metric in self.metrics.items()}
    return {"name": self.name, "source": self.source, **described}

  def without_vgg16(self) -> Protocol:
    """The same without its second LPIPS, which takes more time than all else."""
    return self._replace(metrics={name: metric for name, metric in self.metrics.items() if name != "lpips_vgg"})

  def score(self, networks: Networks, filled: Rgb8, truth: Rgb8, mask: Mask8) -> dict[str, PerImage]:
    """Each metric of each image; to be jitted.

    Several fills of one truth belong into one jitted function: the compiler merges the work on the truth, which is
    half of all.

    Raises:
      ConfigError: the pictures are too small.
    """
    scores = self.score_pixels(filled, truth, mask) | self.score_features(networks, filled, truth, mask)
    return {name: scores[name] for name in self.metrics}

  def score_pixels(self, filled: Rgb8, truth: Rgb8, mask: Mask8) -> dict[str, PerImage]:
    """The metrics without a network, of JAX's arrays or NumPy's; else as `score`."""
    self.check(*truth.shape[1:3])
    a, b, hole = image_from_uint8(filled), image_from_uint8(truth), mask_from_uint8(mask)
    return {name: metric.formula(a, b, hole) for name, metric in self.metrics.items() if not metric.has_network}

  def score_features(
    self, networks: Networks, filled: Rgb8, truth: Rgb8, mask: Mask8, sizes: Sizes | None = None
  ) -> dict[str, PerImage]:
    """The metrics of networks; `sizes` are those of pictures that lie on larger canvases, at their upper left."""
    a, b, hole = image_from_uint8(filled), image_from_uint8(truth), mask_from_uint8(mask)
    chosen = {name: metric for name, metric in self.metrics.items() if metric.has_network}
    return {name: metric.formula(a, b, hole, networks, sizes) for name, metric in chosen.items()}


def _whole(description: str, metric: Callable[[Image, Image], PerImage]) -> Metric:
  return Metric(description, lambda a, b, mask: metric(a, b))


def _lpips(description: str, net: str) -> Metric:
  def formula(a: Image, b: Image, mask: Mask, networks: Networks, sizes: Sizes | None) -> PerImage:
    return lpips.lpips(networks[net], a, b, net=net, sizes=sizes)

  return Metric(description, formula, has_network=True)


def _over_hole(a: Image, b: Image, mask: Mask, networks: Networks, sizes: Sizes | None) -> PerImage:
  return lpips.hole_distance(lpips.lpips_maps(networks["alex"], a, b, sizes=sizes), mask, sizes)


def _flat_ssim(side: int) -> Metric:
  text = f"flat window of {side} pixels, sample covariance, RGB (scikit-image's structural_similarity)"
  return _whole(text, lambda a, b: metrics.ssim_uniform(a, b, side))


def _grey(image: Image) -> metrics.Pixels:
  # Luma as scikit-image's rgb2gray weighs it; the weights' sum is 1, so the range stays.
  weights = np.array((0.2125, 0.7154, 0.0721), np.float32).reshape(1, 1, 1, 3)
  return (image * weights).sum(axis=-1, keepdims=True)


def _mean(image: Image) -> metrics.Pixels:
  return image.mean(axis=-1, keepdims=True)


_PSNR = _whole("dB over RGB, mean of the images' dB", metrics.psnr)
_WINDOW = "Gaussian window of 11 pixels, sigma 1.5, population covariance, 'valid' places, mean over RGB"
_SSIM = _whole(_WINDOW, metrics.ssim)
_SCALES = "{scales} scales (five from 161 pixels on), Wang et al. 2003, weights over their sum; window as ssim"
_L1 = _whole("mean of |a - b| over RGB", metrics.l1)
_MAE = _whole("sum of |a - b| over sum of a + b over RGB", metrics.mae_relative)
_ALEX, _VGG = _lpips("v0.1, AlexNet", "alex"), _lpips("v0.1, VGG16", "vgg")
_HOLE_ALEX = Metric("v0.1, AlexNet, spatial, mean over the hole's pixels", _over_hole, has_network=True)
_SEAM = "mean error of the steps between neighbours across the hole's boundary"
_DETAIL = "dB, Laplacian energy of luma over the hole against the truth's: 0 is as sharp, -3 has half of it"
_GREY_SSIM = "flat window of 51 pixels, sample covariance, grey pictures (scikit-image's structural_similarity)"
_GREY_MAE = "sum of |a - b| over sum of a + b of grey pictures"
_L1_OF_MEANS = "mean of |a - b| of the means over RGB: errors of opposite sign cancel"

_ALL = (
  Protocol(
    "ours",
    32,
    "this project: composited uint8 RGB, every metric in the range of [0, 1] values",
    {
      "psnr": _PSNR,
      "ssim": _SSIM,
      "ms_ssim": _whole(_SCALES, metrics.ms_ssim),
      "l1": _L1,
      "lpips": _ALEX,
      "lpips_vgg": _VGG,
      "psnr_hole": Metric("psnr over the hole's pixels alone", metrics.psnr_hole),
      "l1_hole": Metric("l1 over the hole's pixels alone", metrics.l1_hole),
      "lpips_hole": _HOLE_ALEX,
      "boundary_error": Metric(_SEAM, metrics.boundary_error),
      "detail": Metric(_DETAIL, metrics.detail),
    },
  ),
  Protocol(
    "edgeconnect",
    51,
    "edge-connect, scripts/metrics.py: grey pictures (scikit-image's rgb2gray)",
    {
      "psnr": _whole("dB of grey pictures", lambda a, b: metrics.psnr(_grey(a), _grey(b))),
      "ssim": _whole(_GREY_SSIM, lambda a, b: metrics.ssim_uniform(_grey(a), _grey(b), 51)),
      "mae": _whole(_GREY_MAE, lambda a, b: metrics.mae_relative(_grey(a), _grey(b))),
    },
  ),
  Protocol(
    "aotgan",
    7,
    "AOT-GAN-for-Inpainting, src/metric/metric.py",
    {"psnr": _PSNR, "ssim": _flat_ssim(7), "mae": _MAE},
  ),
  Protocol(
    "hint",
    32,
    "HINT, src/HINT.py (SEM-Net, MxT alike); there uint8 is cut off, not rounded; l1, lpips of floats",
    {
      "psnr": _whole(f"{_PSNR.description}, at most 100", lambda a, b: metrics.psnr(a, b).clip(max=100.0)),
      "ssim": _flat_ssim(7),
      "l1": _L1,
      "lpips": _VGG,
    },
  ),
  Protocol(
    "mat",
    32,
    "MAT, evaluatoin/cal_psnr_ssim_l1.py and cal_lpips.py",
    {"psnr": _PSNR, "ssim": _SSIM, "l1": _L1, "lpips": _ALEX},
  ),
  Protocol(
    "spl",
    11,
    "SPL, eval_final.py; there uint8 is cut off, not rounded",
    {
      "psnr": _PSNR,
      "ssim": _flat_ssim(11),
      "l1": _whole(_L1_OF_MEANS, lambda a, b: metrics.l1(_mean(a), _mean(b))),
    },
  ),
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
"""By name: ours, edgeconnect, aotgan, hint, mat, spl."""
