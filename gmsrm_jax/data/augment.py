"""Colour jitter: random brightness, contrast and saturation as one affine map of RGB."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_LUMA = np.array([0.299, 0.587, 0.114])  # of R, G and B (ITU-R BT.601), as Pillow and torchvision weigh them


def jitter_matrix(
  image: UInt8[np.ndarray, "h w 3"], brightness: float, contrast: float, saturation: float
) -> Float[np.ndarray, "3 4"]:
  """The map from (R, G, B, 1) to RGB; a factor of 1 leaves its property as it is.

  Brightness scales towards black, then contrast towards the image's mean luma, then saturation towards each pixel's own
  luma, as torchvision's factors do, but nothing is rounded or clipped in between.
  """
  mean = brightness * float(_LUMA @ cv2.mean(image)[:3])
  scale = brightness * contrast
  colours = scale * (saturation * np.eye(3) + (1.0 - saturation) * np.ones((3, 1)) * _LUMA)
  return np.column_stack([colours, np.full(3, (1.0 - contrast) * mean)])


def colour_jitter(
  image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator, strength: float
) -> UInt8[np.ndarray, "h w 3"]:
  """The image with each of the three factors uniform in [1 - strength, 1 + strength]; rounded and clipped once."""
  brightness, contrast, saturation = rng.uniform(1.0 - strength, 1.0 + strength, 3).tolist()
  return cv2.transform(image, jitter_matrix(image, brightness, contrast, saturation))
