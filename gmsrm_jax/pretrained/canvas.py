"""Pictures at the upper left of larger canvases of zeros: few programs for pictures of many sizes.

Everywhere `sizes` None means that the pictures fill their canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Sizes = Int[Array, "b 2"]  # height and width


def inside(x: Float[Array, "b h w c"], sizes: Sizes | None) -> Float[Array, "b h w c"]:
  """Puts zeros beyond the pictures: after every layer, what it gives for the picture alone."""
  if sizes is None:
    return x
  rows, columns = (jnp.arange(x.shape[axis + 1])[None] < sizes[:, axis, None] for axis in (0, 1))
  return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], x, 0.0)


def mean_inside(x: Float[Array, "b h w *c"], sizes: Sizes | None) -> Float[Array, " b *c"]:
  """The mean over places of what is 0 beyond `sizes`."""
  if sizes is None:
    return jnp.mean(x, axis=(1, 2))
  return jnp.sum(x, axis=(1, 2)) / jnp.prod(sizes, axis=1).astype(jnp.float32).reshape(-1, *[1] * (x.ndim - 3))


def resize_inside(
  x: Float[Array, "b _h _w *c"], sizes: Sizes | None, target: Sizes | None, shape: Sequence[int]
) -> Float[Array, "b h w *c"]:
  """Bilinear, without antialiasing, from pictures of `sizes` to `target` on a canvas; beyond that is anything."""
  options: dict[str, Any] = {"antialias": False, "precision": jax.lax.Precision.HIGHEST}
  if sizes is None or target is None:
    return jax.image.resize(x, (len(x), *shape, *x.shape[3:]), "bilinear", **options)

  def resize(x: Float[Array, "_h _w *c"], own: Int[Array, " 2"], wanted: Int[Array, " 2"]) -> Float[Array, "h w *c"]:
    for axis in (0, 1):  # an edge goes on beyond itself, where a zero would shine in
      x = jnp.take(x, jnp.minimum(jnp.arange(x.shape[axis]), own[axis] - 1), axis=axis)
    scale = wanted.astype(jnp.float32) / own.astype(jnp.float32)
    nowhere = jnp.zeros(2, jnp.float32)
    return jax.image.scale_and_translate(x, (*shape, *x.shape[2:]), (0, 1), scale, nowhere, "bilinear", **options)

  return jax.vmap(resize)(x, sizes, target)
