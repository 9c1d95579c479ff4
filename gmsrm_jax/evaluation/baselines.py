"""Fills without learning, to set beside a model: uint8 images and holes; none sees what the hole hides."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.arrays import image_from_uint8, image_to_uint8, mask_from_uint8
from gmsrm_jax.config import names_in
from gmsrm_jax.models.blocks import push_pull_fill
from gmsrm_jax.parallel.fixed_batches import in_fixed_batches

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
  """The smooth fill that the network starts from: what a method adds to this one was learned."""
  return _initial_program()(images, masks)


@functools.cache
def _initial_program() -> Fill:
  def fill(_: tuple[()], images: jax.Array, masks: jax.Array) -> jax.Array:
    smooth = push_pull_fill(image_from_uint8(images), mask_from_uint8(masks))
    return jnp.where(masks > 0, image_to_uint8(smooth), images)

  return in_fixed_batches(fill)


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
