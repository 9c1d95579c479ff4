"""Encoders: the mask-aware one of the inpainter, with context blocks, and the recognition encoder of the memory."""

from __future__ import annotations

import math
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.blocks import (
  BRANCH_INIT,
  ChannelNorm,
  Downsample,
  Pyramid,
  ResidualBlock,
  Shares,
  conv1x1,
  conv3x3,
  space_to_depth,
  unit,
)

HOLE_PENALTY = 16.0
"""How far a cell that is all hole lies below a known one in the scores of `ContextTransfer`, in nats."""


def rotate_by_position(x: Float[Array, "b h w n d"]) -> Float[Array, "b h w n d"]:
  """Rotary position embedding over rows (first half of d) and columns (second half); d is a multiple of 4.

  Attention scores then depend on offsets only (Su et al. 2021), at any grid size: what repeats along a wall can be
  found by its spacing.
  """
  _, height, width, _, dim = x.shape
  quarter = dim // 4
  frequency = 1.0 / 100.0 ** (jnp.arange(quarter) / quarter)
  rows = jnp.broadcast_to(jnp.arange(height)[:, None, None] * frequency[None, None, :], (height, width, quarter))
  columns = jnp.broadcast_to(jnp.arange(width)[None, :, None] * frequency[None, None, :], (height, width, quarter))
  angle = jnp.concatenate([rows, columns], axis=-1)[None, :, :, None, :]
  even, odd = x[..., : 2 * quarter], x[..., 2 * quarter :]
  return jnp.concatenate(
    [even * jnp.cos(angle) - odd * jnp.sin(angle), even * jnp.sin(angle) + odd * jnp.cos(angle)], axis=-1
  ).astype(x.dtype)


class ContextBlock(nn.Module):
  """Self-attention over the bottleneck grid, then an MLP: every position sees all known content.

  The mask is an input to the projections, so the block can tell known evidence from what it filled in itself.
  """

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], mask: Float[Array, "b h w 1"]) -> Float[Array, "b h w c"]:
    batch, height, width, channels = x.shape
    split = (batch, height, width, self.heads, channels // self.heads)
    flat = (batch, height * width, self.heads, channels // self.heads)

    normed = jnp.concatenate([ChannelNorm(self.dtype)(x), mask.astype(self.dtype)], axis=-1)
    # Keys without bias: it would shift all scores of a query alike, which softmax ignores.
    query = rotate_by_position(conv1x1(channels, self.dtype, name="query")(normed).reshape(split))
    key = nn.Dense(channels, use_bias=False, dtype=self.dtype, name="key")(normed).reshape(split)
    value = conv1x1(channels, self.dtype, name="value")(normed)
    attended = jax.nn.dot_product_attention(
      query.reshape(flat), rotate_by_position(key).reshape(flat), value.reshape(flat)
    )
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
    share = shares[-1].reshape(batch, 1, height * width).astype(jnp.float32)

    embedded = conv1x1(channels, jnp.float32, name="embed")(ChannelNorm()(bottom.astype(jnp.float32)))
    embedded = unit(embedded.reshape(batch, height * width, channels))
    # As in retrieval: a learned temperature, beyond e^5 no gradient would be left.
    log_scale = self.param("log_scale", nn.initializers.constant(math.log(10.0)), ())
    scores = jnp.einsum("bqc,bkc->bqk", embedded, embedded) * jnp.exp(jnp.minimum(log_scale, 5.0))
    # A cell lends the less, the more of it is hole; finite, so that weights exist where nothing at all is known.
    weights = jax.nn.softmax(scores - HOLE_PENALTY * share, axis=-1).astype(self.dtype)

    lent = []
    for scale, (fine, hole) in enumerate(zip(finer, shares[:-1], strict=True)):
      cell = 2 ** (len(finer) - scale)
      cells = einops.rearrange(fine, "b (h i) (w j) c -> b (h w) (i j c)", i=cell, j=cell)
      borrowed = jnp.einsum("bqk,bkv->bqv", weights, cells)
      borrowed = einops.rearrange(borrowed, "b (h w) (i j c) -> b (h i) (w j) c", h=height, i=cell, j=cell)
      borrowed = conv1x1(fine.shape[-1], self.dtype, name=f"project{scale}")(ChannelNorm(self.dtype)(borrowed))
      lent.append(fine + hole.astype(self.dtype) * borrowed)
    return (*lent, bottom)


class Encoder(nn.Module):
  """The filled image and its mask to features at every scale; they all have seen all known content."""

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, filled: Image, mask: Mask, shares: Shares) -> Pyramid:
    widths = self.config.widths
    # The mask goes in with the fill, so the network knows what is invented.
    pixels = space_to_depth(jnp.concatenate([filled, mask], axis=-1).astype(self.dtype))
    h = conv3x3(widths[0], self.dtype, name="stem")(pixels)
    features = []
    for scale, width in enumerate(widths):
      if scale > 0:
        h = Downsample(width, self.dtype, name=f"down{scale}")(h)
      for block in range(self.config.blocks):
        h = ResidualBlock(width, self.dtype, name=f"block{scale}_{block}")(h, shares[scale])
      if scale == len(widths) - 1:
        for block in range(self.config.context_blocks):
          h = ContextBlock(self.config.heads, self.dtype, name=f"context{block}")(h, shares[-1])
      features.append(h)
    if self.config.context_blocks:
      return ContextTransfer(self.dtype, name="transfer")(tuple(features), shares)
    return tuple(features)


class RecognitionEncoder(nn.Module):
  """The whole image to features at every scale, the coarsest of them the base of the teacher's query.

  Purely convolutional: a position describes its own surroundings, so what it retrieves is a local pattern that the
  student must infer for a hole from its context.
  """

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Image) -> Pyramid:
    widths = self.config.widths
    h = conv3x3(widths[0], self.dtype, name="stem")(space_to_depth(image.astype(self.dtype)))
    features = []
    for scale, width in enumerate(widths):
      if scale > 0:
        h = Downsample(width, self.dtype, name=f"down{scale}")(h)
      for block in range(self.config.blocks):
        h = ResidualBlock(width, self.dtype, name=f"block{scale}_{block}")(h)
      features.append(h)
    return tuple(features)
