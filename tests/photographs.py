"""Pairs of photographs to score, beside each other: scikit-image's, and real ones where `shared` data are at hand."""

from __future__ import annotations

import pathlib

import numpy as np
import skimage.data
from PIL import Image

import run

SHARED = pathlib.Path(run.__file__).parent.parent / "shared" / "data"
FOLDERS = ("street/val", "faces/val", "scenes/val")


def damage(clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Fills as they might come out, and the hole: each picture another kind of damage inside the same disc."""
  count, height, width = clean.shape[:3]
  rows, columns = np.mgrid[:height, :width]
  hole = (rows - 0.45 * height) ** 2 + (columns - 0.6 * width) ** 2 < (0.3 * min(height, width)) ** 2
  noise = np.random.default_rng(0).normal(scale=25, size=clean.shape[1:])
  kinds = (
    lambda x: x + noise,
    lambda x: np.roll(x, 7, axis=1),
    lambda x: x * 0.6 + 30,
    lambda x: np.full_like(x, 128),
  )
  filled = np.stack([kinds[i % 4](np.float64(clean[i])) for i in range(count)])
  filled = np.where(hole[..., None], np.clip(np.round(filled), 0, 255), clean).astype(np.uint8)
  return filled, np.broadcast_to(hole[..., None], (count, height, width, 1)).astype(np.uint8)


def built_in(side: int) -> np.ndarray:
  """Four photographs of scikit-image's."""
  pictures = (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
  return np.stack([picture[40 : 40 + side, 90 : 90 + side] for picture in pictures])


def real(side: int) -> np.ndarray | None:
  """Two photographs of each shared held-out set, or None where these are not at hand."""
  if not SHARED.is_dir():
    return None
  pictures = []
  for folder in FOLDERS:
    for path in sorted((SHARED / folder).glob("*.jpg"))[:2]:
      with Image.open(path) as image:
        pictures.append(np.asarray(image.convert("RGB"))[:side, :side])
  return np.stack(pictures)
