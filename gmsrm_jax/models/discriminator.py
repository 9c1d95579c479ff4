"""The discriminators: one sees pixels and the mask, the other features of VGG16 and the hole's shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.blocks import Map, Share, conv3x3, space_to_depth

Logits = Float[Array, "b _h _w 1"]
PLAIN_INIT = nn.initializers.lecun_normal()


class Discriminator(nn.Module):
  """One logit per patch; larger means more real. Spectral-normalised; the mask is a fourth channel.

  Strides are space-to-depth and a 3x3 convolution: every backend runs their gradients fast. The vectors of
  its power iterations live in the `batch_stats` collection and move only with `update_stats`.
  """

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Image, mask: Mask, *, update_stats: bool) -> tuple[Logits, ...]:
    h = jnp.concatenate([image, mask], axis=-1).astype(self.dtype)
    for layer in range(self.config.discriminator_layers + 1):
      channels = min(self.config.discriminator_width * 2**layer, 512)
      conv = conv3x3(channels, self.dtype, PLAIN_INIT, name=f"conv{layer}")
      h = nn.SpectralNorm(conv, name=f"spectral{layer}")(space_to_depth(h), update_stats=update_stats)
      h = nn.leaky_relu(h, 0.2)
    out = conv3x3(1, self.dtype, PLAIN_INIT, name="to_logits")
    return (nn.SpectralNorm(out, name="spectral_logits")(h, update_stats=update_stats).astype(jnp.float32),)


FEATURE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
"""Layers of VGG16 with a head each, at 1/1 to 1/16 of the image's size."""

FEATURE_CHANNELS = (64, 128, 256, 512, 512)

HEAD_WIDTHS = (32, 64, 64, 64, 64)
"""Channels of the heads; the first, at full size, would cost as much as all others with as many."""


class FeatureDiscriminator(nn.Module):
  """One logit per place of each feature map; larger means more real. A head of 1x1, 3x3 and 1x1 per map.

  The features come from a network trained before and left as it is (Projected GAN, Sauer et al. 2021, which mixes them
  at random first; a learned projection is ours, as is the hole's share beside them). What a discriminator of pixels
  has to find in some hundred photographs, it is given. It has no statistics of its own.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, features: Sequence[Map], shares: Sequence[Share], *, update_stats: bool) -> tuple[Logits, ...]:
    del update_stats
    logits = []
    for level, (x, share) in enumerate(zip(features, shares, strict=True)):
      x = x.astype(jnp.float32)
      x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-3)
      h = jnp.concatenate([x, share], axis=-1).astype(self.dtype)
      h = nn.leaky_relu(nn.Dense(HEAD_WIDTHS[level], dtype=self.dtype, name=f"project{level}")(h), 0.2)
      h = nn.leaky_relu(conv3x3(HEAD_WIDTHS[level], self.dtype, PLAIN_INIT, name=f"conv{level}")(h), 0.2)
      logits.append(nn.Dense(1, dtype=self.dtype, name=f"to_logits{level}")(h).astype(jnp.float32))
    return tuple(logits)
