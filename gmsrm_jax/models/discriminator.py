"""The discriminator: a spectral-normalised patch discriminator that sees the mask as a fourth channel."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.blocks import space_to_depth


class Discriminator(nn.Module):
  """One logit per patch; larger means more real.

  Strides are space-to-depth and a 3x3 convolution: every backend runs their gradients fast. The vectors of
  its power iterations live in the `batch_stats` collection and move only with `update_stats`.
  """

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Image, mask: Mask, *, update_stats: bool) -> Float[Array, "b _h _w 1"]:
    h = jnp.concatenate([image, mask], axis=-1).astype(self.dtype)
    for layer in range(self.config.discriminator_layers + 1):
      channels = min(self.config.discriminator_width * 2**layer, 512)
      conv = nn.Conv(channels, (3, 3), padding="SAME", dtype=self.dtype, name=f"conv{layer}")
      h = nn.SpectralNorm(conv, name=f"spectral{layer}")(space_to_depth(h), update_stats=update_stats)
      h = nn.leaky_relu(h, 0.2)
    out = nn.Conv(1, (3, 3), padding="SAME", dtype=self.dtype, name="to_logits")
    return nn.SpectralNorm(out, name="spectral_logits")(h, update_stats=update_stats).astype(jnp.float32)
