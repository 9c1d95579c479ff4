"""Encoders: the mask-aware one of the inpainting network, and the recognition encoder of the memory."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.blocks import Downsample, Pyramid, ResidualBlock, Shares, conv3x3, space_to_depth
from gmsrm_jax.models.context import ContextBlock, ContextTransfer


def _scale(
  config: ModelConfig,
  dtype: Any,
  scale: int,
  h: Float[Array, "b h w c"],
  share: Float[Array, "b _h _w 1"] | None = None,
) -> Float[Array, "b _h _w _c"]:
  """Halves the size, but at the first scale, and refines: submodules of whichever encoder calls it."""
  width = config.widths[scale]
  if scale > 0:
    h = Downsample(width, dtype, name=f"down{scale}")(h)
  for block in range(config.blocks):
    h = ResidualBlock(width, dtype, name=f"block{scale}_{block}")(h, share)
  return h


class Encoder(nn.Module):
  """The filled image and its mask to features at every scale; they all have seen all known content."""

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, filled: Image, mask: Mask, shares: Shares) -> Pyramid:
    # The mask goes in with the fill, so the network knows what is invented.
    pixels = space_to_depth(jnp.concatenate([filled, mask], axis=-1).astype(self.dtype))
    h = conv3x3(self.config.widths[0], self.dtype, name="stem")(pixels)
    features = []
    for scale, share in enumerate(shares):
      h = _scale(self.config, self.dtype, scale, h, share)
      features.append(h)
    if not self.config.context_blocks:
      return tuple(features)
    for block in range(self.config.context_blocks):
      h = ContextBlock(self.config.heads, self.dtype, name=f"context{block}")(h, shares[-1])
    return ContextTransfer(self.dtype, name="transfer")((*features[:-1], h), shares)


class RecognitionEncoder(nn.Module):
  """The whole image to features at every scale, the coarsest of them the base of the teacher's query.

  Purely convolutional: a position describes its own surroundings, so what it retrieves is a local pattern that the
  student must infer for a hole from its context.
  """

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Image) -> Pyramid:
    h = conv3x3(self.config.widths[0], self.dtype, name="stem")(space_to_depth(image.astype(self.dtype)))
    features = []
    for scale in range(len(self.config.widths)):
      h = _scale(self.config, self.dtype, scale, h)
      features.append(h)
    return tuple(features)
