"""The decoder: at each scale, what is known, what is likely, and where is what."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gmsrm_jax.arrays import Image
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.blocks import (
  ChannelNorm,
  Map,
  Pyramid,
  Share,
  Shares,
  Upsample,
  conv1x1,
  conv3x3,
  depth_to_space,
  refine,
  smoothed,
)


class Fusion(nn.Module):
  """Mask-aware fusion: h + (h · scale + shift), both from the encoder's features, the prior and the hole's share.

  The form is CodeFormer's controllable feature transformation; that the hole's share weighs skip against prior
  before the two are mixed is ours (after PUT's x · mask + ref · (1 - mask)).
  """

  channels: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: Map, skip: Map, prior: Map, share: Share) -> Map:
    share = share.astype(self.dtype)
    skip = ChannelNorm(self.dtype, name="norm_skip")(skip)
    prior = ChannelNorm(self.dtype, name="norm_prior")(prior)
    blend = skip * (1 - share) + prior * share
    evidence = jnp.concatenate([h, skip, prior, blend, share], axis=-1)
    hidden = nn.silu(conv1x1(self.channels, self.dtype, name="mix")(evidence))
    scale, shift = jnp.split(conv1x1(2 * self.channels, self.dtype, name="modulate")(hidden), 2, axis=-1)
    return h + (h * scale + shift)


class Decoder(nn.Module):
  """Features and priors to a residual over the initial fill, zero at the start of training."""

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: Pyramid, priors: Pyramid, shares: Shares) -> Image:
    h = features[-1]
    for scale, width in reversed(list(enumerate(self.config.widths))):
      if scale < len(features) - 1:
        h = Upsample(width, self.dtype, self.config.smooth_upsampling, name=f"up{scale}")(h)
      h = Fusion(width, self.dtype, name=f"fuse{scale}")(h, features[scale], priors[scale], shares[scale])
      h = refine(self.config, self.dtype, scale, h, shares[scale])
    pixels = conv3x3(12, self.dtype, nn.initializers.zeros, name="to_pixels")(ChannelNorm(self.dtype)(h))
    pixels = depth_to_space(pixels).astype(jnp.float32)
    return smoothed(pixels) if self.config.smooth_upsampling else pixels
