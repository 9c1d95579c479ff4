"""Fills without learning, to set beside a model: uint8 images and holes; none sees what the hole hides."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from gmsrm_jax.arrays import image_from_uint8, image_to_uint8, mask_from_uint8
from gmsrm_jax.config import names_in
from gmsrm_jax.models.blocks import FILL_SWEEPS

Images = UInt8[np.ndarray, "b h w 3"]
Masks = UInt8[np.ndarray, "b h w 1"]
Fill = Callable[[Images, Masks], Images]

_RADIUS = 3.0  # pixels that OpenCV's two methods look around


def mean_fill(images: Images, masks: Masks) -> Images:
  """Each hole takes the mean colour of its image's known pixels."""
  known = 1.0 - masks
  mean = (images * known).sum((1, 2), keepdims=True) / np.maximum(known.sum((1, 2), keepdims=True), 1.0)
  return np.where(masks > 0, np.round(mean).astype(np.uint8), images)


def opencv_fill(images: Images, masks: Masks, method: int) -> Images:
  """OpenCV's inpainting: cv2.INPAINT_TELEA (fast marching, 2004) or cv2.INPAINT_NS (Navier-Stokes, 2001)."""
  images = mean_fill(images, masks)  # OpenCV's gradients reach into the hole, where the truth would still be.
  pairs = zip(images, masks, strict=True)
  return np.stack([cv2.inpaint(image, np.ascontiguousarray(mask[..., 0]), _RADIUS, method) for image, mask in pairs])


telea_fill = functools.partial(opencv_fill, method=cv2.INPAINT_TELEA)


def biharmonic_fill(images: Images, masks: Masks) -> Images:
  """The smoothest surface through the known pixels: scikit-image's biharmonic equation, region by region."""
  from skimage.restoration import inpaint_biharmonic  # SciPy's solvers take a second to import, which only this needs

  fills = mean_fill(images, masks)
  for row, hole in enumerate(masks[..., 0] > 0):
    if hole.any() and not hole.all():
      fill = inpaint_biharmonic(fills[row], hole, channel_axis=-1, split_into_regions=True)
      fills[row] = np.where(hole[..., None], np.clip(np.round(fill * 255.0), 0, 255).astype(np.uint8), images[row])
  return fills


def initial_fill(images: Images, masks: Masks) -> Images:
  """The smooth fill that the network starts from, to rounding: what a method adds to this one was learned."""
  known = 1.0 - mask_from_uint8(masks)
  pairs = zip(image_from_uint8(images) * known, known, strict=True)
  smooth = np.stack([_push_pull(colour, weight) for colour, weight in pairs])
  return np.where(masks > 0, image_to_uint8(smooth), images)


def _push_pull(colour: Float[np.ndarray, "h w 3"], weight: Float[np.ndarray, "h w 1"]) -> Float[np.ndarray, "h w 3"]:
  """That of `models.blocks`, which compiles for seconds for every size."""
  height, width = weight.shape[:2]
  if height == width == 1:
    return colour
  both = np.pad(np.concatenate([colour, weight], axis=-1), ((0, height % 2), (0, width % 2), (0, 0)))
  sums = both[::2, ::2] + both[1::2, ::2] + both[::2, 1::2] + both[1::2, 1::2]
  coarse_weight = sums[..., 3:].clip(max=1.0)
  coarse = _push_pull(sums[..., :3] / sums[..., 3:].clip(1e-6) * coarse_weight, coarse_weight)
  filled = colour + (1.0 - weight) * cv2.resize(coarse, None, fx=2, fy=2)[:height, :width]
  for _ in range(FILL_SWEEPS):
    x = np.pad(filled, ((1, 1), (1, 1), (0, 0)), mode="edge")
    filled = colour + (1.0 - weight) * (0.25 * (x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]))
  return filled


_FILLS: dict[str, tuple[str, Fill]] = {
  "telea": ("Telea", telea_fill),
  "navier_stokes": ("Navier-Stokes", functools.partial(opencv_fill, method=cv2.INPAINT_NS)),
  "biharmonic": ("biharmonic", biharmonic_fill),
  "initial": ("initial fill", initial_fill),
  "mean": ("mean fill", mean_fill),
}


def baselines(names: str) -> dict[str, Fill]:
  """The fills that `eval.baselines` names, by their titles."""
  return dict(_FILLS[name] for name in names_in(names))
