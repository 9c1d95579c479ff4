"""The memory generator: renders what was retrieved into priors at every scale and into an image."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.blocks import (
  ChannelNorm,
  Pyramid,
  Upsample,
  conv1x1,
  conv3x3,
  depth_to_space,
  refine,
  subpixel_init,
)


class MemoryGenerator(nn.Module):
  """Bottleneck to full size, progressively."""

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, read: Float[Array, "b h w d"], noise: tuple | None = None
  ) -> tuple[Pyramid, Float[Array, "b _h _w 3"]]:
    """Renders a read into priors for the decoder, and into the image that shows what they stand for.

    `noise`, finest scale first, is added to the features at each scale.
    """
    widths = self.config.widths
    h = conv1x1(widths[-1], self.dtype, name="lift")(read.astype(self.dtype))
    priors = []
    for scale, width in reversed(list(enumerate(widths))):
      if scale < len(widths) - 1:
        h = Upsample(width, self.dtype, name=f"up{scale}")(h)
      if noise is not None:
        h = h + noise[scale].astype(self.dtype)
      h = refine(self.config, self.dtype, scale, h)
      priors.append(h)
    pixels = conv3x3(12, self.dtype, subpixel_init, name="to_pixels")(ChannelNorm(self.dtype)(h))
    return tuple(reversed(priors)), depth_to_space(pixels).astype(jnp.float32)
