"""The inpainting network of stage 2, the one that ships, and the fill of uint8 pictures with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gmsrm_jax.arrays import Image, Mask, Mask8, Rgb8, composite, image_from_uint8, image_to_uint8, mask_from_uint8
from gmsrm_jax.config import Config, ModelConfig
from gmsrm_jax.models.blocks import Map, Pyramid, Share, Shares, apply, hole_shares, push_pull_fill, recomputed
from gmsrm_jax.models.decoder import Decoder
from gmsrm_jax.models.encoder import Encoder
from gmsrm_jax.models.memory import Memory, QueryHead
from gmsrm_jax.models.reasoning import ROUNDS, Decided, Reasoner, decide, none_decided
from gmsrm_jax.models.retrieval import Retrieval, read_decided

Rows = Callable[[Array], Array]
"""Picks, repeats or keeps examples of a batch."""

Noise = tuple[Float[Array, "r 1 1 _c"], ...]  # r rows: one for every fill
"""Standard normal vectors, one per row that is drawn (or one for all) and scale, finest first."""


class Inpainted(NamedTuple):
  """Stage 2's outputs; `prediction` is raw, not yet composited."""

  prediction: Image
  memory_image: Image
  retrieval: Retrieval | None
  strengths: Any  # Pyramid of the variation's strengths, () when there is none
  shares: Any  # Shares: of the hole, at every scale of the network


class InpaintingNetwork(nn.Module):
  """Stage 2: encoder, retrieval from the memory, generator with conditional variation, decoder."""

  config: Config
  dtype: Any = jnp.float32

  def setup(self):
    model, groups = self.config.model, self.config.run.recomputed
    self.encoder = recomputed(Encoder, "encoder", groups)(model, self.dtype)
    head = Reasoner(self.config, self.dtype) if reasons(self.config) else QueryHead(self.config.memory.slot_dim)
    self.query: Any = head
    self.memory = Memory(self.config, self.dtype)
    self.decoder = recomputed(Decoder, "decoder", groups)(model, self.dtype)
    if self.config.variation.enabled:
      # softplus(-2) = 0.13: the noise starts well below the features it is added to.
      weights, bias = nn.initializers.normal(0.01), nn.initializers.constant(-2.0)
      self.strength = [nn.Dense(width, dtype=self.dtype, kernel_init=weights, bias_init=bias) for width in model.widths]

  def __call__(
    self,
    image: Image,
    mask: Mask,
    noise: Noise | None = None,
    rows: Rows = lambda x: x,
    decided: Decided | None = None,
  ) -> Inpainted:
    """Fills the hole; nothing in `image` under the mask is looked at.

    Args:
      image: the picture; the hole may hold anything.
      mask: 1 in the hole.
      noise: see `draw_noise`; None is the deterministic fill.
      rows: what of the encoded batch is drawn, for several fills of an image that is encoded once; prediction and
        memory image have these rows, all else those of the batch.
      decided: slots of a hard memory that is reasoned with; those that noise decides come instead.
    """
    filled, features, shares = self.encode(image, mask)
    strengths, scaled = (), None
    if self.config.variation.enabled:
      strengths = tuple(nn.softplus(head(f)) for head, f in zip(self.strength, features, strict=True))
      if noise is not None:
        scaled = tuple(n.astype(s.dtype) * rows(s) for n, s in zip(noise, strengths, strict=True))
    if reasons(self.config) and noise is not None:
      decided = self._decide(features[-1], shares[-1], noise)
    read, retrieval = self.recall(features[-1], shares[-1], decided)
    priors, memory_image = self.memory.generator(rows(read), scaled)
    residual = self.decoder(tuple(map(rows, features)), priors, tuple(map(rows, shares)))
    return Inpainted(rows(filled) + residual, memory_image, retrieval, strengths, shares)

  def retrieve(self, image: Image, mask: Mask, decided: Decided | None = None) -> tuple[Retrieval, Shares]:
    """Returns what is read from the memory, and the hole's shares; needs no parameters of generator and decoder."""
    _, features, shares = self.encode(image, mask)
    return self.recall(features[-1], shares[-1], decided)[1], shares

  def encode(self, image: Image, mask: Mask) -> tuple[Image, Pyramid, Shares]:
    """The initial fill, the encoder's features and the hole's shares."""
    filled, shares = push_pull_fill(image, mask), hole_shares(mask, len(self.config.model.widths))
    return filled, self.encoder(filled, mask, shares), shares

  def recall(self, bottom: Map, share: Share, decided: Decided | None = None) -> tuple[Map, Any]:
    """Returns what is read for bottleneck features, and its Retrieval: see `Memory.recall`."""
    if not reasons(self.config):
      return self.memory.recall(self.query(bottom))
    if decided is None:
      decided = none_decided(bottom.shape[0], self.config.memory.num_groups, bottom.shape[1] * bottom.shape[2])
    keys: Any = self.memory.codebook()
    read = read_decided(keys, decided)
    return self.memory.recall(self.query(bottom, share, read, decided.flags), decided=decided)

  def _decide(self, bottom: Map, share: Share, noise: Noise) -> Decided:
    """Draws the slots of the hole in rounds; none where the noise is 0, which is the deterministic fill."""
    batch, height, width, _ = bottom.shape
    # The same choices for the same noise, at all windows of a photograph.
    seeds = jax.lax.bitcast_convert_type(noise[0][:, 0, 0, 0].astype(jnp.float32), jnp.int32)
    shape = (self.config.memory.num_groups, height * width, self.config.memory.slots_per_group)
    hole = share.reshape(batch, -1) > 0

    def gumbel(step: Array) -> Array:
      return jax.vmap(lambda seed: jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), step), shape))(seeds)

    def round_of(network: InpaintingNetwork, decided: Decided, step: Array) -> tuple[Decided, None]:
      def predict(decided: Decided) -> Array:
        return network.recall(bottom, share, decided)[1].log_weights

      return decide(predict, decided, hole, gumbel, step), None

    def rounds(network: InpaintingNetwork, decided: Decided) -> Decided:
      scan = nn.scan(round_of, variable_broadcast="params", split_rngs={"params": False})
      return scan(network, decided, jnp.arange(ROUNDS))[0]

    undecided = none_decided(batch, shape[0], shape[1])
    return nn.cond(jnp.any(noise[0] != 0), rounds, lambda _, decided: decided, self, undecided)


def reasons(config: Config) -> bool:
  """True where the slots of a hard memory are predicted in the light of others."""
  return config.memory.enabled and config.memory.reasoning_blocks > 0


def varies(config: Config) -> bool:
  """True where noise changes a fill."""
  return config.variation.enabled or reasons(config)


def draw_noise(key: Key[Array, ""], model: ModelConfig, batch: Any) -> Noise:
  """Draws noise that is the same at all positions, so that a draw stands for one idea of the picture's holes.

  With a value of its own for each position (as in StyleGAN) the samples came out speckled. `batch` is a number, or a
  symbolic size while a program is exported.
  """
  keys = jax.random.split(key, len(model.widths))
  return tuple(jax.random.normal(k, (batch, 1, 1, width)) for k, width in zip(keys, model.widths, strict=True))


def inpaint(network: InpaintingNetwork, params: Any, image: Image, mask: Mask, *options: Any) -> Inpainted:
  """Applies the network; `options` are noise, rows and what is decided."""
  return apply(network, params, image, mask, *options)


def predict_pixels(
  network: InpaintingNetwork, params: Any, images: Rgb8, masks: Mask8, noise: Noise | None = None
) -> Image:
  """The prediction in the holes and the images elsewhere, in [-1, 1]: a fill before it is rounded."""
  image, mask = image_from_uint8(images), mask_from_uint8(masks)
  return composite(inpaint(network, params, image, mask, noise).prediction, image, mask)


def fill_pixels(
  network: InpaintingNetwork, params: Any, images: Rgb8, masks: Mask8, noise: Noise | None = None
) -> Rgb8:
  """Fills the holes; known pixels stay as they are to the bit. Without noise it is the deterministic fill."""
  return image_to_uint8(predict_pixels(network, params, images, masks, noise))
