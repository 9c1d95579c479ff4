"""The two models that are trained: the memory with its recognition encoder (stage 1), and the inpainter (stage 2).

Both hold a submodule named `memory` with equal parameters, so that stage 2 takes over the tree of stage 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gmsrm_jax.arrays import (
  Image,
  Mask,
  Mask8,
  Rgb8,
  composite,
  image_from_uint8,
  image_to_uint8,
  mask_from_uint8,
)
from gmsrm_jax.config import Config, MemoryConfig, ModelConfig
from gmsrm_jax.models.blocks import ChannelNorm, Pyramid, conv1x1, hole_shares, push_pull_fill
from gmsrm_jax.models.codebook import Codebook
from gmsrm_jax.models.decoder import Decoder
from gmsrm_jax.models.encoder import Encoder, RecognitionEncoder
from gmsrm_jax.models.generator import MemoryGenerator, Rendering
from gmsrm_jax.models.retrieval import Retrieval, RetrievalAttention


def _remat(group: str, groups: tuple[str, ...], module: type[nn.Module]) -> Any:
  """The module's class, computed again in the backward pass where its group is named; parameters are the same."""
  return nn.remat(module) if group in groups else module


class Memory(nn.Module):
  """Codebook, retrieval attention and generator: query map in, priors out."""

  model: ModelConfig
  memory: MemoryConfig
  dtype: Any = jnp.float32
  remat: tuple[str, ...] = ()

  def setup(self):
    self.generator = _remat("generator", self.remat, MemoryGenerator)(self.model, self.dtype)
    if self.memory.enabled:
      self.codebook = Codebook(self.memory)
      self.retrieval = RetrievalAttention(self.memory)
    else:
      # The no-memory twin: an MLP whose two matrices have the sizes of keys and values.
      self.expand = nn.Dense(self.memory.num_slots, dtype=jnp.float32)
      self.contract = nn.Dense(self.memory.slot_dim, dtype=jnp.float32)

  def retrieve(self, query: Float[Array, "b h w d"]) -> Retrieval | None:
    """Reads the codebook at every position of the query map; None for the no-memory twin."""
    if not self.memory.enabled:
      return None
    batch, height, width, dim = query.shape
    return self.retrieval(query.reshape(batch, height * width, dim), self.codebook())

  def recall(self, query: Float[Array, "b h w d"]) -> tuple[Float[Array, "b h w d"], Retrieval | None]:
    """The read at every position of the query map, and how it came about."""
    retrieval = self.retrieve(query)
    read = self.contract(nn.gelu(self.expand(query))) if retrieval is None else retrieval.read.reshape(query.shape)
    return read, retrieval

  def __call__(self, query: Float[Array, "b h w d"]) -> tuple[Rendering, Retrieval | None]:
    read, retrieval = self.recall(query)
    return self.generator(read), retrieval


class QueryHead(nn.Module):
  """Bottleneck features to the query map."""

  dim: int

  @nn.compact
  def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    return conv1x1(self.dim, jnp.float32)(ChannelNorm()(features.astype(jnp.float32)))


class Recognised(NamedTuple):
  """Stage 1's view of an image."""

  query: Float[Array, "b h w d"]
  rendering: Rendering
  retrieval: Retrieval


class MemoryLearner(nn.Module):
  """Stage 1: recognises the whole image, retrieves, and draws it again. In stage 2 it is the teacher."""

  model: ModelConfig
  memory_config: MemoryConfig
  dtype: Any = jnp.float32
  remat: tuple[str, ...] = ()  # groups of modules that are computed again in the backward pass

  def setup(self):
    self.recognition = _remat("encoder", self.remat, RecognitionEncoder)(self.model, self.dtype)
    self.query = QueryHead(self.memory_config.slot_dim)
    self.memory = Memory(self.model, self.memory_config, self.dtype, self.remat)

  def __call__(self, image: Image) -> Recognised:
    query = self.query(self.recognition(image)[-1])
    rendering, retrieval = self.memory(query)
    assert retrieval is not None, "stage 1 needs a codebook"
    return Recognised(query, rendering, retrieval)

  def teach(self, image: Image) -> Retrieval:
    """What the memory holds for the whole image, without drawing it."""
    retrieval = self.memory.retrieve(self.query(self.recognition(image)[-1]))
    assert retrieval is not None, "a teacher needs a codebook"
    return retrieval

  def features(self, image: Image) -> Pyramid:
    """The recognition encoder's features, for the perceptual terms without ImageNet weights."""
    return self.recognition(image)


class Inpainted(NamedTuple):
  """Stage 2's outputs; `prediction` is raw, not yet composited."""

  prediction: Image
  memory_image: Image
  retrieval: Retrieval | None
  strengths: Any  # Pyramid of the variation's strengths, () when there is none
  shares: Any  # Shares: of the hole, at every scale of the network


Rows = Callable[[Array], Array]
"""Picks, repeats or keeps the examples of a batch."""


class Inpainter(nn.Module):
  """Stage 2: encoder, retrieval from the memory, generator with conditional variation, decoder."""

  model: ModelConfig
  memory_config: MemoryConfig
  variation: bool
  dtype: Any = jnp.float32
  remat: tuple[str, ...] = ()  # groups of modules that are computed again in the backward pass

  def setup(self):
    self.encoder = _remat("encoder", self.remat, Encoder)(self.model, self.dtype)
    self.query = QueryHead(self.memory_config.slot_dim)
    self.memory = Memory(self.model, self.memory_config, self.dtype, self.remat)
    self.decoder = _remat("decoder", self.remat, Decoder)(self.model, self.dtype)
    if self.variation:
      # softplus(-2) = 0.13: the noise starts well below the features it is added to.
      self.strength = [
        nn.Dense(
          width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), bias_init=nn.initializers.constant(-2.0)
        )
        for width in self.model.widths
      ]

  def __call__(self, image: Image, mask: Mask, noise: tuple | None = None, rows: Rows = lambda x: x) -> Inpainted:
    """Fills the hole; nothing in `image` under the mask is looked at.

    Args:
      image: the picture; the hole may hold anything.
      mask: 1 in the hole.
      noise: standard normal vectors, one per scale (see `draw_noise`); None is the deterministic fill.
      rows: what of the encoded batch is drawn, for several fills of an image that is encoded once; prediction and
        memory image have these rows, all else those of the batch.
    """
    filled = push_pull_fill(image, mask)
    shares = hole_shares(mask, len(self.model.widths))
    features = self.encoder(filled, mask, shares)
    strengths = ()
    if self.variation:
      strengths = tuple(nn.softplus(head(f)) for head, f in zip(self.strength, features, strict=True))
    scaled = None
    if self.variation and noise is not None:
      scaled = tuple(n.astype(s.dtype) * rows(s) for n, s in zip(noise, strengths, strict=True))
    read, retrieval = self.memory.recall(self.query(features[-1]))
    rendering = self.memory.generator(rows(read), scaled)
    residual = self.decoder(tuple(map(rows, features)), rendering.priors, tuple(map(rows, shares)))
    return Inpainted(rows(filled) + residual, rendering.image, retrieval, strengths, shares)


def draw_noise(key: Key[Array, ""], model: ModelConfig, batch: Any) -> tuple[Float[Array, "b 1 1 _c"], ...]:
  """Standard normal vectors, one per image and scale, finest first.

  The same at all positions, so that a draw stands for one idea of the picture's holes: with a value of its own for each
  position (as in StyleGAN) the samples came out speckled. `batch` is a number, or a symbolic size while a program is
  exported.
  """
  keys = jax.random.split(key, len(model.widths))
  return tuple(jax.random.normal(k, (batch, 1, 1, width)) for k, width in zip(keys, model.widths, strict=True))


def make_memory_learner(config: Config, dtype: Any = jnp.float32) -> MemoryLearner:
  """The model of stage 1."""
  return MemoryLearner(config.model, config.memory, dtype, config.run.recomputed)


def make_inpainter(config: Config, dtype: Any = jnp.float32) -> Inpainter:
  """The model of stage 2, and the one that ships."""
  return Inpainter(config.model, config.memory, config.variation.enabled, dtype, config.run.recomputed)


# Linen's `apply` returns anything; these four say what it is.


def apply_learner(learner: MemoryLearner, params: Any, image: Image) -> Recognised:
  """Recognises and redraws an image."""
  return cast(Recognised, learner.apply({"params": params}, image))


def apply_teacher(learner: MemoryLearner, params: Any, image: Image) -> Retrieval:
  """Retrieves for the whole image; needs no parameters of the generator."""
  return cast(Retrieval, learner.apply({"params": params}, image, method="teach"))


def apply_recognition(learner: MemoryLearner, params: Any, image: Image) -> Pyramid:
  """The recognition encoder's features; needs no other parameters."""
  return cast(Pyramid, learner.apply({"params": params}, image, method="features"))


def apply_inpainter(
  inpainter: Inpainter, params: Any, image: Image, mask: Mask, noise: tuple | None = None, rows: Rows = lambda x: x
) -> Inpainted:
  """Fills the hole; without noise it is the deterministic fill."""
  return cast(Inpainted, inpainter.apply({"params": params}, image, mask, noise, rows))


def predict_pixels(inpainter: Inpainter, params: Any, images: Rgb8, masks: Mask8, noise: tuple | None = None) -> Image:
  """The prediction in the holes and the images elsewhere, in [-1, 1]: a fill before it is rounded."""
  image, mask = image_from_uint8(images), mask_from_uint8(masks)
  return composite(apply_inpainter(inpainter, params, image, mask, noise).prediction, image, mask)


def fill_pixels(inpainter: Inpainter, params: Any, images: Rgb8, masks: Mask8, noise: tuple | None = None) -> Rgb8:
  """Fills the holes; known pixels stay as they are to the bit. Without noise it is the deterministic fill."""
  return image_to_uint8(predict_pixels(inpainter, params, images, masks, noise))
