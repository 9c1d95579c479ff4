"""The training of the variation in stage 2: some images are filled twice, and the two fills are scored as a forecast.

Of every two images of a batch, the first is filled once, without noise: the deterministic fill. The second is filled
twice, with two draws of noise, and over the hole scored by the energy score, which is least when the fills are drawn
from the true distribution of what the hole may hold: fills that all come out alike pay for it, as do fills that stray
further than the truth does. It looks at means over cells alone; all other terms judge each fill for itself, because
where they rewarded differences, too, grain and grids were the easiest to make.

The rows that are filled lie in the order 0 1 1 2 3 3 ..., so an even batch that is split over devices keeps every
image's rows on its device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import einops
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from gmsrm_jax.arrays import Image, Mask, PerImage
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.inpainter import draw_noise
from gmsrm_jax.training.losses import hole_l1


def _rows(x: Shaped[Array, "b ..."]) -> Shaped[Array, "r ..."]:
  twos = x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
  return jnp.concatenate([twos, twos[:, 1:]], axis=1).reshape(-1, *x.shape[1:])


def both(x: Float[Array, "r ..."]) -> tuple[Float[Array, "h ..."], Float[Array, "h ..."]]:
  """Returns the two fills of every second image; h = b / 2."""
  threes = x.reshape(x.shape[0] // 3, 3, *x.shape[1:])
  return threes[:, 1], threes[:, 2]


def row_noise(key: Key[Array, ""], model: ModelConfig, batch: int) -> tuple:
  """Returns noise for every row, zero for the deterministic ones."""
  noisy = jnp.arange(3 * batch // 2) % 3 > 0
  noise = draw_noise(key, model, 3 * batch // 2)
  return tuple(n * noisy[:, None, None, None] for n in noise)


def _per_image(values: Float[Array, " r"]) -> PerImage:
  threes = values.reshape(-1, 3)
  return jnp.stack([threes[:, 0], 0.5 * (threes[:, 1] + threes[:, 2])], axis=1).reshape(-1)


def _hole_score(prediction: Float[Array, "r h w 3"], image: Image, mask: Mask, fine: int, cell: int) -> PerImage:
  """Returns L1 over the hole for an image's one fill, or the energy score of its two, in units of [-1, 1].

  The L1 compares means over cells of `fine` x `fine` pixels.

  The score of two fills x, y of a truth z is (d(x, z) + d(y, z) - d(x, y)) / 2 (Gneiting & Raftery 2007, eq. 21), here
  with d the L1 of means over cells of `cell` x `cell` pixels (ours).
  """
  once = _hole_l1(prediction, _rows(image), _rows(mask), fine).reshape(-1, 3)[:, 0]
  errors = coarse_hole_l1(prediction, _rows(image), _rows(mask), cell).reshape(-1, 3)
  spread = coarse_hole_l1(*both(prediction), both(_rows(mask))[0], cell)
  energy = 0.5 * (errors[:, 1] + errors[:, 2] - spread)
  return jnp.stack([once, energy], axis=1).reshape(-1)


def _hole_l1(prediction: Image, image: Image, mask: Mask, cell: int, _: int = 0) -> PerImage:
  return hole_l1(prediction, image, mask) if cell == 1 else coarse_hole_l1(prediction, image, mask, cell)


def coarse_hole_l1(a: Image, b: Image, mask: Mask, cell: int) -> PerImage:
  """Returns L1 over the hole of means over cells of pixels, in units of [-1, 1]; 0 without a hole.

  What differs from pixel to pixel inside a cell cancels: grain is no way to vary a fill (ours).
  """
  difference = _cell_means((a.astype(jnp.float32) - b.astype(jnp.float32)) * mask, cell)
  share = _cell_means(mask.astype(jnp.float32), cell)
  cells = jnp.maximum(jnp.sum(share, axis=(1, 2, 3)), 1.0 / cell**2)
  return jnp.sum(jnp.abs(difference), axis=(1, 2, 3)) / (3.0 * cells)


def _cell_means(x: Float[Array, "b h w c"], cell: int) -> Float[Array, "b _h _w c"]:
  # A reduction, whose gradient is a broadcast; that of a pooling window is far slower on a CPU.
  return einops.reduce(x, "b (h i) (w j) c -> b h w c", "mean", i=cell, j=cell)


class Fills(NamedTuple):
  """The fills of the images of a batch, one row for each."""

  rows: Callable[[Array], Array]  # of images: every image once for each of its fills
  per_image: Callable[[Array], Array]  # of a value per row: that of the one fill, or the mean of the two
  hole_score: Callable[..., Array]  # (prediction, image, mask, sides of cells) to the loss over the hole
  images: int  # that belong together
  rows_of_images: int  # that they have together


ONCE = Fills(lambda x: x, lambda values: values, _hole_l1, 1, 1)
TWICE = Fills(_rows, _per_image, _hole_score, 2, 3)
"""Every first image of two is filled once, every second one twice."""
