"""Context: attention over the bottleneck grid, and the transfer of known features into holes along one such map."""

from __future__ import annotations

import math
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.models.blocks import BRANCH_INIT, ChannelNorm, Map, Pyramid, Share, Shares, conv1x1, unit

HOLE_PENALTY = 16.0
"""Distance by which a cell that is all hole lies below a known one in the scores of `ContextTransfer`, in nats."""


def rotate_by_position(x: Float[Array, "b h w n d"], *, oblique: bool = False) -> Float[Array, "b h w n d"]:
  """Rotary position embedding along two axes, one for each half of d, a multiple of 4.

  Attention scores then depend on offsets only (Su et al. 2021), at any grid size: what repeats along a wall can be
  found by its spacing. The axes are rows and columns or, `oblique`, turned further for each head, from none to short of
  a right angle: where all heads look along rows and columns, fills become streaks along these (ours).
  """
  _, height, width, heads, dim = x.shape
  quarter = dim // 4
  frequency = 1.0 / 100.0 ** (jnp.arange(quarter) / quarter)
  places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1)
  if oblique:
    turn = jnp.pi / 2 * jnp.arange(heads) / heads
    axes = jnp.stack([jnp.cos(turn), -jnp.sin(turn), jnp.sin(turn), jnp.cos(turn)], axis=-1).reshape(heads, 2, 2)
    along = jnp.einsum("hwc,nca->hwna", places.astype(jnp.float32), axes)
  else:
    along = places[:, :, None, :]
  angle = (along[..., None] * frequency[None, None, None, None, :]).reshape(1, height, width, -1, 2 * quarter)
  even, odd = jnp.split(x, 2, axis=-1)
  rotated = (even * jnp.cos(angle) - odd * jnp.sin(angle), even * jnp.sin(angle) + odd * jnp.cos(angle))
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


class ContextBlock(nn.Module):
  """Self-attention over the bottleneck grid, then an MLP: every position sees all known content.

  The hole's share is an input to the projections, so the block can tell evidence from what it filled in itself.
  """

  heads: int
  oblique: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Map, share: Share) -> Map:
    batch, height, width, channels = x.shape
    split = (batch, height, width, self.heads, channels // self.heads)
    flat = (batch, height * width, self.heads, channels // self.heads)

    normed = jnp.concatenate([ChannelNorm(self.dtype)(x), share.astype(self.dtype)], axis=-1)
    query = conv1x1(channels, self.dtype, name="query")(normed).reshape(split)
    # Keys without bias: it would shift all scores of a query alike, which softmax ignores.
    key = nn.Dense(channels, use_bias=False, dtype=self.dtype, name="key")(normed).reshape(split)
    value = conv1x1(channels, self.dtype, name="value")(normed)
    query, key = (rotate_by_position(x, oblique=self.oblique).reshape(flat) for x in (query, key))
    attended = jax.nn.dot_product_attention(query, key, value.reshape(flat))
    x = x + conv1x1(channels, self.dtype, BRANCH_INIT, name="project")(attended.reshape(x.shape))

    hidden = nn.gelu(conv1x1(2 * channels, self.dtype, name="expand")(ChannelNorm(self.dtype)(x)))
    return x + conv1x1(channels, self.dtype, BRANCH_INIT, name="contract")(hidden)


class ContextTransfer(nn.Module):
  """Lends known features to the hole at every finer scale, along one attention map over the bottleneck grid.

  A cell of the grid that has hole in it receives whole cells of fine features from known places that look alike at the
  bottleneck: what repeats in a picture, such as the windows of a wall, is at hand in full detail. One coarse map for
  all finer scales is the idea of contextual residual aggregation (Yi et al. 2020); learned embeddings, the
  temperature and the residual form are ours.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: Pyramid, shares: Shares) -> Pyramid:
    *finer, bottom = features
    batch, height, width, channels = bottom.shape
    embedded = conv1x1(channels, jnp.float32, name="embed")(ChannelNorm()(bottom.astype(jnp.float32)))
    embedded = unit(embedded.reshape(batch, height * width, channels))
    # As in retrieval: a learned temperature, beyond e^5 no gradient would be left.
    log_scale = self.param("log_scale", nn.initializers.constant(math.log(10.0)), ())
    scores = jnp.einsum("bqc,bkc->bqk", embedded, embedded) * jnp.exp(jnp.minimum(log_scale, 5.0))
    # A cell lends the less, the more of it is hole; finite, so that weights exist where nothing at all is known.
    penalty = HOLE_PENALTY * shares[-1].reshape(batch, 1, height * width).astype(jnp.float32)
    weights = jax.nn.softmax(scores - penalty, axis=-1).astype(self.dtype)

    lent = []
    for scale, (fine, share) in enumerate(zip(finer, shares[:-1], strict=True)):
      cell = 2 ** (len(finer) - scale)
      cells = einops.rearrange(fine, "b (h i) (w j) c -> b (h w) (i j c)", i=cell, j=cell)
      borrowed = jnp.einsum("bqk,bkv->bqv", weights, cells)
      borrowed = einops.rearrange(borrowed, "b (h w) (i j c) -> b (h i) (w j) c", h=height, i=cell, j=cell)
      borrowed = conv1x1(fine.shape[-1], self.dtype, name=f"project{scale}")(ChannelNorm(self.dtype)(borrowed))
      lent.append(fine + share.astype(self.dtype) * borrowed)
    return (*lent, bottom)
