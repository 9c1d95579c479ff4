"""Encoders: the mask-aware one of the inpainting network, and the recognition encoder of the memory."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gmsrm_jax.arrays import Image, Mask
from gmsrm_jax.config import ModelConfig
from gmsrm_jax.models.blocks import Downsample, Map, Pyramid, Shares, conv3x3, refine, space_to_depth
from gmsrm_jax.models.context import ContextBlock, ContextTransfer


def _pyramid(config: ModelConfig, dtype: Any, pixels: Map, shares: Shares | None = None) -> Pyramid:
  """Features at every scale; the layers are submodules of the encoder that calls it."""
  h = conv3x3(config.widths[0], dtype, name="stem")(space_to_depth(pixels.astype(dtype)))
  features = []
  for scale, width in enumerate(config.widths):
    if scale > 0:
      h = Downsample(width, dtype, name=f"down{scale}")(h)
    h = refine(config, dtype, scale, h, None if shares is None else shares[scale])
    features.append(h)
  return tuple(features)


class Encoder(nn.Module):
  """The filled image and its mask to features at every scale; they all have seen all known content."""

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, filled: Image, mask: Mask, shares: Shares) -> Pyramid:
    # The mask goes in with the fill, so the network knows what is invented.
    *finer, h = _pyramid(self.config, self.dtype, jnp.concatenate([filled, mask], axis=-1), shares)
    for block in range(self.config.context_blocks):
      h = ContextBlock(self.config.heads, self.config.oblique, self.dtype, name=f"context{block}")(h, shares[-1])
    features = (*finer, h)
    return ContextTransfer(self.dtype, name="transfer")(features, shares) if self.config.context_blocks else features


class RecognitionEncoder(nn.Module):
  """The whole image to features at every scale, the coarsest of them the base of the teacher's query.

  Purely convolutional: a position describes its own surroundings, so what it retrieves is a local pattern that the
  student must infer for a hole from its context.
  """

  config: ModelConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Image) -> Pyramid:
    return _pyramid(self.config, self.dtype, image)
