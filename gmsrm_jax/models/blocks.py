"""Layers that the networks share: norm, residual block, resampling; the hole's share of each cell; the initial fill.

All are local or translation-equivariant, so a network accepts any image whose sides are multiples of its stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.kernels import convolution

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
# A residual branch starts small, so that a deep stack starts near the identity.
BRANCH_INIT = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")

Map = Float[Array, "b _h _w _c"]
Share = Float[Array, "b _h _w 1"]
Pyramid = tuple[Map, ...]
"""Features from the finest scale (half the image's size) to the bottleneck."""
Shares = tuple[Share, ...]
"""The hole's share of each cell, in [0, 1], for the scales of a `Pyramid`."""


def apply(network: nn.Module, params: Any, *inputs: Any, method: Any = None) -> Any:
  """Applies a network, or a method of it, to inputs."""
  return network.apply({"params": params}, *inputs, method=method)


def recomputed(module: type[nn.Module], group: str, groups: Sequence[str]) -> Any:
  """The module's class, computed again in the backward pass where its group is named; parameters are the same."""
  return nn.remat(module) if group in groups else module


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Scales vectors to length 1; the zero vector stays (and has a finite gradient)."""
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def subpixel_init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
  """Initial kernel of a layer before `depth_to_space`: the four pixels of a cell start equal.

  The layer then begins as nearest-neighbour upsampling, without a checkerboard (ICNR, Aitken et al. 2017).
  """
  kernel = KERNEL_INIT(key, (*shape[:-1], shape[-1] // 4), dtype, out_sharding)
  return jnp.concatenate([kernel] * 4, axis=-1)


def space_to_depth(x: Map) -> Map:
  """Folds 2x2 pixels into channels."""
  return einops.rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=2, j=2)


def depth_to_space(x: Map) -> Map:
  """Unfolds channels into 2x2 pixels: the inverse of `space_to_depth`."""
  return einops.rearrange(x, "b h w (i j c) -> b (h i) (w j) c", i=2, j=2)


def conv3x3(channels: int, dtype: Any, kernel_init: Any = KERNEL_INIT, name: str | None = None) -> nn.Conv:
  """A 3x3 convolution that keeps the size."""
  kind = {"kernel_init": kernel_init, "conv_general_dilated": convolution.general}
  return nn.Conv(channels, (3, 3), padding="SAME", dtype=dtype, name=name, **kind)


def conv1x1(channels: int, dtype: Any, kernel_init: Any = KERNEL_INIT, name: str | None = None) -> nn.Dense:
  """A 1x1 convolution, as a matrix product."""
  return nn.Dense(channels, dtype=dtype, kernel_init=kernel_init, name=name)


class ChannelNorm(nn.Module):
  """Layer norm over channels at each position, statistics in float32.

  Position-local on purpose (ours): no statistic depends on the image's size or on what lies far away, so padding
  or cropping a photo cannot shift the colours of its fill, as group norm would.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, use_fast_variance=False)(x)


class ResidualBlock(nn.Module):
  """Pre-norm residual block; with the hole's shares, its hidden features are gated by features and shares.

  The gate is the dynamic feature selection of gated convolution (Yu et al. 2019), from a 1x1 product instead of a
  second 3x3 convolution (ours: a ninth of the cost).
  """

  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Map, share: Share | None = None) -> Map:
    hidden = nn.silu(conv3x3(self.channels, self.dtype, name="expand")(ChannelNorm(self.dtype)(x)))
    if share is not None:
      context = jnp.concatenate([hidden, share.astype(hidden.dtype)], axis=-1)
      hidden = hidden * nn.sigmoid(conv1x1(self.channels, self.dtype, name="gate")(context))
    return x + conv3x3(self.channels, self.dtype, BRANCH_INIT, name="project")(hidden)


def refine(config: ModelConfig, dtype: Any, scale: int, h: Map, share: Share | None = None) -> Map:
  """Runs a scale's residual blocks, submodules of the module that calls it."""
  for block in range(config.blocks):
    h = ResidualBlock(config.widths[scale], dtype, name=f"block{scale}_{block}")(h, share)
  return h


class Downsample(nn.Module):
  """Halves the size: a 2x2 convolution of stride 2."""

  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Map) -> Map:
    return conv1x1(self.channels, self.dtype)(space_to_depth(x))


def smoothed(x: Map) -> Map:
  """Averages each position with its neighbours by the weights 1 2 1 along both axes; the border counts twice."""
  for axis in (1, 2):
    size = x.shape[axis]
    padded = jnp.pad(x, [(int(other == axis),) * 2 for other in range(4)], mode="edge")
    before, after = (jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2))
    x = 0.25 * (before + 2.0 * x + after)
  return x


class Upsample(nn.Module):
  """Doubles the size: a 2x2 transposed convolution of stride 2, on request smoothed, so that cells overlap.

  Without, each cell of the bottleneck becomes a square of its own, and what the 3x3 convolutions behind do not mend
  shows as a weave in large holes. The filter is that of Karras et al. 2019; its place is ours.
  """

  channels: int
  dtype: Any = jnp.float32
  smooth: bool = False

  @nn.compact
  def __call__(self, x: Map) -> Map:
    doubled = depth_to_space(conv1x1(4 * self.channels, self.dtype, subpixel_init)(x))
    return smoothed(doubled) if self.smooth else doubled


def hole_shares(mask: Mask | Share, scales: int) -> Shares:
  """The hole's share of each cell at 1/2, 1/4 … of the size."""
  shares = []
  for _ in range(scales):
    mask = nn.avg_pool(mask, (2, 2), (2, 2))
    shares.append(mask)
  return tuple(shares)


FILL_SWEEPS = 4
"""Smoothing sweeps per level of the initial fill: 4 gain 0.4 dB over none on held-out photographs, 8 hardly more."""


@jax.named_scope("push_pull_fill")
def push_pull_fill(image: Image, mask: Mask) -> Image:
  """Fills the hole smoothly from known pixels only, and keeps these unchanged.

  A normalised-convolution pyramid (push-pull, Gortler et al. 1996): known colours are averaged down, and cells
  without any take the upsampled colour of the coarser level. At each level a few Jacobi sweeps of Laplace's equation
  smooth what was filled (ours). An image without known pixels becomes 0.
  """
  known = 1.0 - mask
  # `where`, not a product: whatever lies in the hole, even NaN, must not leak.
  return _push_pull(jnp.where(known > 0.5, image, 0.0) * known, known)


def _push_pull(colour: Image, weight: Mask) -> Image:
  """Returns colour where weight is 1 and blends in the coarser levels by 1 - weight; colour is given times weight."""
  batch, height, width, _ = colour.shape
  if height == width == 1:
    return colour
  padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
  both = jnp.pad(jnp.concatenate([colour, weight], axis=-1), padding)
  sums = 4.0 * nn.avg_pool(both, (2, 2), (2, 2))
  coarse_weight = jnp.minimum(sums[..., 3:], 1.0)
  coarse = _push_pull(sums[..., :3] / jnp.maximum(sums[..., 3:], 1e-6) * coarse_weight, coarse_weight)
  fine = (batch, 2 * coarse.shape[1], 2 * coarse.shape[2], 3)
  filled = colour + (1.0 - weight) * jax.image.resize(coarse, fine, "bilinear")[:, :height, :width]
  for _ in range(FILL_SWEEPS):
    x = jnp.pad(filled, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    neighbours = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    filled = colour + (1.0 - weight) * (0.25 * neighbours)
  return filled
