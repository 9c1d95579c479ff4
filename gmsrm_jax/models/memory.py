"""The generative memory, and the network of stage 1 that fills it by recognising and redrawing whole images.

Both stages hold a submodule named `memory` with equal parameters, so that stage 2 takes over the tree of stage 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image
from gmsrm_jax.config import Config, MemoryConfig, ModelConfig
from gmsrm_jax.models.blocks import ChannelNorm, Pyramid, conv1x1, recomputed
from gmsrm_jax.models.codebook import Codebook
from gmsrm_jax.models.encoder import RecognitionEncoder
from gmsrm_jax.models.generator import MemoryGenerator, Rendering
from gmsrm_jax.models.retrieval import Retrieval, RetrievalAttention


class Memory(nn.Module):
  """Codebook, retrieval attention and generator: query map in, priors out."""

  model: ModelConfig
  memory: MemoryConfig
  dtype: Any = jnp.float32
  remat: tuple[str, ...] = ()  # groups of modules that are computed again in the backward pass

  def setup(self):
    self.generator = recomputed(MemoryGenerator, "generator", self.remat)(self.model, self.dtype)
    if self.memory.enabled:
      self.codebook = Codebook(self.memory)
      self.retrieval = RetrievalAttention(self.memory)
    else:
      # The no-memory twin: an MLP whose two matrices have the sizes of keys and values.
      self.expand = nn.Dense(self.memory.num_slots, dtype=jnp.float32)
      self.contract = nn.Dense(self.memory.slot_dim, dtype=jnp.float32)

  def recall(self, query: Float[Array, "b h w d"]) -> tuple[Float[Array, "b h w d"], Retrieval | None]:
    """The read at every position of the query map, and how it came about: None for the no-memory twin."""
    if not self.memory.enabled:
      return self.contract(nn.gelu(self.expand(query))), None
    batch, height, width, dim = query.shape
    retrieval = self.retrieval(query.reshape(batch, height * width, dim), self.codebook())
    return retrieval.read.reshape(query.shape), retrieval


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


class MemoryNetwork(nn.Module):
  """Stage 1: recognises the whole image, retrieves, and draws it again. In stage 2 it is the teacher."""

  model: ModelConfig
  memory_config: MemoryConfig
  dtype: Any = jnp.float32
  remat: tuple[str, ...] = ()  # as in `Memory`

  def setup(self):
    self.recognition = recomputed(RecognitionEncoder, "encoder", self.remat)(self.model, self.dtype)
    self.query = QueryHead(self.memory_config.slot_dim)
    self.memory = Memory(self.model, self.memory_config, self.dtype, self.remat)

  def __call__(self, image: Image) -> Recognised:
    query = self.query(self.recognition(image)[-1])
    read, retrieval = self.memory.recall(query)
    return Recognised(query, self.memory.generator(read), cast(Retrieval, retrieval))

  def teach(self, image: Image) -> Retrieval:
    return cast(Retrieval, self.memory.recall(self.query(self.recognition(image)[-1]))[1])

  def features(self, image: Image) -> Pyramid:
    return self.recognition(image)


def make_memory_network(config: Config, dtype: Any = jnp.float32) -> MemoryNetwork:
  """The network of stage 1."""
  return MemoryNetwork(config.model, config.memory, dtype, config.run.recomputed)


# Linen's `apply` returns anything; these say what it is.


def recognise(network: MemoryNetwork, params: Any, image: Image) -> Recognised:
  """Recognises and redraws an image."""
  return cast(Recognised, network.apply({"params": params}, image))


def teach(network: MemoryNetwork, params: Any, image: Image) -> Retrieval:
  """Retrieves for the whole image; needs no parameters of the generator."""
  return cast(Retrieval, network.apply({"params": params}, image, method="teach"))


def recognition_features(network: MemoryNetwork, params: Any, image: Image) -> Pyramid:
  """The recognition encoder's features, for feature terms without ImageNet weights; needs no other parameters."""
  return cast(Pyramid, network.apply({"params": params}, image, method="features"))
