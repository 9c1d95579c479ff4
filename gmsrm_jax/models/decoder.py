"""The decoder: at each scale, what is known, what is likely, and where is what."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.blocks import (
  ChannelNorm,
  Pyramid,
  ResidualBlock,
  Shares,
  Upsample,
  conv1x1,
  conv3x3,
  depth_to_space,
)


class Fusion(nn.Module):
  """Mask-aware fusion: h + (h · scale + shift), both from the encoder's features, the prior and the mask.

  The form is CodeFormer's controllable feature transformation; that the hole's share weighs skip against prior
  before the two are mixed is ours (after PUT's x · mask + ref · (1 - mask)).
  """

  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    h: Float[Array, "b h w c"],
    skip: Float[Array, "b h w c"],
    prior: Float[Array, "b h w c"],
    mask: Float[Array, "b h w 1"],
  ) -> Float[Array, "b h w c"]:
    mask = mask.astype(self.dtype)
    skip = ChannelNorm(self.dtype, name="norm_skip")(skip)
    prior = ChannelNorm(self.dtype, name="norm_prior")(prior)
    blend = skip * (1 - mask) + prior * mask
    evidence = jnp.concatenate([h, skip, prior, blend, mask], axis=-1)
    hidden = nn.silu(conv1x1(self.channels, self.dtype, name="mix")(evidence))
    scale, shift = jnp.split(conv1x1(2 * self.channels, self.dtype, name="modulate")(hidden), 2, axis=-1)
    return h + (h * scale + shift)


class Decoder(nn.Module):
  """Features and priors to a residual over the initial fill, zero at the start of training."""

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: Pyramid, priors: Pyramid, shares: Shares) -> Image:
    widths = self.config.widths
    h = features[-1]
    for scale in reversed(range(len(widths))):
      if scale < len(widths) - 1:
        h = Upsample(widths[scale], self.dtype, name=f"up{scale}")(h)
      h = Fusion(widths[scale], self.dtype, name=f"fuse{scale}")(h, features[scale], priors[scale], shares[scale])
      for block in range(self.config.blocks):
        h = ResidualBlock(widths[scale], self.dtype, name=f"block{scale}_{block}")(h, shares[scale])
    pixels = conv3x3(12, self.dtype, nn.initializers.zeros, name="to_pixels")(ChannelNorm(self.dtype)(h))
    return depth_to_space(pixels).astype(jnp.float32)
