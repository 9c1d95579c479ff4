"""Array types, value ranges and the only conversions between them.

Axis letters, used in signatures and einsums everywhere:
  b batch · h w height, width · c channels · q query positions (flattened grid)
  g groups · k slots in a group · s slots of all groups · n heads · d channels of a slot

An `image` lies in [-1, 1], NHWC, RGB. A `mask` is 1 in the hole and 0 where pixels are known.
Files and batches from the input pipeline hold both as uint8: images 0..255, masks 0 or 1.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

Image = Float[Array, "b h w 3"]
Mask = Float[Array, "b h w 1"]
PerImage = Float[Array, " b"]
Rgb8 = UInt8[Array, "b h w 3"]
Mask8 = UInt8[Array, "b h w 1"]


def image_from_uint8(pixels: UInt8[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
  """Maps 0..255 to [-1, 1]."""
  return pixels.astype(jnp.float32) / 127.5 - 1.0


def image_to_uint8(image: Float[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
  """Maps [-1, 1] to 0..255, rounded to the nearest and clipped: inverts `image_from_uint8` exactly."""
  return jnp.clip(jnp.round((image.astype(jnp.float32) + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def mask_from_uint8(mask: UInt8[Array, "*b h w 1"]) -> Float[Array, "*b h w 1"]:
  """Maps {0, 1} to float; any other non-zero value counts as hole."""
  return (mask > 0).astype(jnp.float32)


def composite(prediction: Image, image: Image, mask: Mask) -> Image:
  """Takes the prediction in the hole and the image, unchanged to the bit, elsewhere."""
  return jnp.where(mask > 0.5, prediction, image)


def hole_area(mask: Mask) -> PerImage:
  """The share of each image that is hole, in [0, 1]."""
  return jnp.mean(mask, axis=(1, 2, 3))
