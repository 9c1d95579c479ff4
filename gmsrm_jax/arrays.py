"""Array types, value ranges and the only conversions between them.

Axis letters, used in signatures and einsums everywhere:
  b batch · h w height, width · c channels · q query positions (flattened grid)
  g groups · k slots in a group · s slots of all groups · n heads · d channels of a slot

An `image` lies in [-1, 1], NHWC, RGB. A `mask` is 1 in the hole and 0 where pixels are known.
Files and batches from the input pipeline hold both as uint8: images 0..255, masks 0 or 1.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

AnyArray = TypeVar("AnyArray", jax.Array, np.ndarray)
"""Arrays that the conversions take and return: JAX's or NumPy's."""

Image = Float[Array, "b h w 3"]
Mask = Float[Array, "b h w 1"]
PerImage = Float[Array, " b"]
Rgb8 = UInt8[Array, "b h w 3"]
Mask8 = UInt8[Array, "b h w 1"]


def image_from_uint8(pixels: UInt8[AnyArray, "*shape"]) -> Float[AnyArray, "*shape"]:
  """Maps 0..255 to [-1, 1]."""
  return pixels.astype(np.float32) / 127.5 - 1.0


def image_to_uint8(image: Float[AnyArray, "*shape"]) -> UInt8[AnyArray, "*shape"]:
  """Maps [-1, 1] to 0..255, rounded to the nearest and clipped: inverts `image_from_uint8` exactly."""
  return ((image.astype(np.float32) + 1.0) * 127.5).round().clip(0, 255).astype(np.uint8)


def mask_from_uint8(mask: UInt8[AnyArray, "*b h w 1"]) -> Float[AnyArray, "*b h w 1"]:
  """Maps {0, 1} to float; any other non-zero value counts as hole."""
  return (mask > 0).astype(np.float32)


def composite(prediction: Image, image: Image, mask: Mask) -> Image:
  """Takes the prediction in the hole and the image, unchanged to the bit, elsewhere."""
  return jnp.where(mask > 0.5, prediction, image)


def masked_mean(values: Float[AnyArray, "b ..."], mask: Float[AnyArray, "b ..."]) -> Float[AnyArray, " b"]:
  """The mean of each image's values where the mask is 1, or weighted by it; 0 where it is empty.

  A mask of one channel holds for all channels of the values.
  """
  axes, mask = tuple(range(1, values.ndim)), mask.astype(np.float32)
  channels = values.shape[-1] // mask.shape[-1]
  total: Any = (values * mask).sum(axis=axes)
  return total / (channels * mask.sum(axis=axes).clip(1.0))


def hole_area(mask: Mask) -> PerImage:
  """The share of each image that is hole, in [0, 1]."""
  return jnp.mean(mask, axis=(1, 2, 3))
