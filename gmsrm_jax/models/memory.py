"""The generative memory, and the network of stage 1 that fills it by recognising and redrawing whole images.

Both stages hold a submodule named `memory` with equal parameters, so that stage 2 takes over the tree of stage 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image
from gmsrm_jax.config import Config
from gmsrm_jax.models.blocks import ChannelNorm, Pyramid, apply, conv1x1, recomputed
from gmsrm_jax.models.codebook import Books, Codebook
from gmsrm_jax.models.encoder import RecognitionEncoder
from gmsrm_jax.models.generator import MemoryGenerator
from gmsrm_jax.models.reasoning import Decided
from gmsrm_jax.models.retrieval import Retrieval, RetrievalAttention, choose_from_books, retrieve_from_books

QueryMap = Float[Array, "b h w d"]


class Memory(nn.Module):
  """Codebook, retrieval attention and generator."""

  config: Config
  dtype: Any = jnp.float32

  def setup(self):
    memory = self.config.memory
    self.generator = recomputed(MemoryGenerator, "generator", self.config.run.recomputed)(self.config.model, self.dtype)
    if memory.enabled and memory.hard:
      self.codebook = Books(memory)
    elif memory.enabled:
      self.codebook = Codebook(memory)
      self.retrieval = RetrievalAttention(memory)
    else:
      # The no-memory twin: an MLP whose two matrices have the sizes of keys and values.
      self.expand = nn.Dense(memory.num_slots, dtype=jnp.float32)
      self.contract = nn.Dense(memory.slot_dim, dtype=jnp.float32)

  def recall(self, query: QueryMap, *, seen: bool = False, decided: Decided | None = None) -> tuple[QueryMap, Any]:
    """The read at every position of the query map, and its Retrieval: None for the no-memory twin.

    Where the query is of what is `seen` there, a hard memory chooses its slots; else those that are `decided` are read,
    and elsewhere what is to be expected.
    """
    memory = self.config.memory
    if not memory.enabled:
      return self.contract(nn.gelu(self.expand(query))), None
    flat = query.reshape(query.shape[0], -1, query.shape[-1])
    codebook: Any = self.codebook()
    if not memory.hard:
      retrieval = self.retrieval(flat, codebook)
    elif seen:
      retrieval = choose_from_books(flat, codebook, memory.slot_temperature)
    else:
      retrieval = retrieve_from_books(flat, codebook, memory.slot_temperature, decided)
    return retrieval.read.reshape(query.shape), retrieval


class QueryHead(nn.Module):
  """Bottleneck features to the query map."""

  dim: int

  @nn.compact
  def __call__(self, features: Float[Array, "b h w c"]) -> QueryMap:
    return conv1x1(self.dim, jnp.float32)(ChannelNorm()(features.astype(jnp.float32)))


class Recognised(NamedTuple):
  """Stage 1's view of an image."""

  query: QueryMap
  image: Image  # as the memory draws it
  retrieval: Retrieval


class MemoryNetwork(nn.Module):
  """Stage 1: recognises the whole image, retrieves, and draws it again. In stage 2 it is the teacher."""

  config: Config
  dtype: Any = jnp.float32

  def setup(self):
    encoder = recomputed(RecognitionEncoder, "encoder", self.config.run.recomputed)
    self.recognition = encoder(self.config.model, self.dtype)
    self.query = QueryHead(self.config.memory.slot_dim)
    self.memory = Memory(self.config, self.dtype)

  def __call__(self, image: Image) -> Recognised:
    query = self.query(self.recognition(image)[-1])
    read, retrieval = self.memory.recall(query, seen=True)
    return Recognised(query, self.memory.generator(read)[1], retrieval)


def recognise(network: MemoryNetwork, params: Any, image: Image) -> Recognised:
  """Recognises and redraws an image."""
  return apply(network, params, image)


@jax.named_scope("teach")
def teach(network: MemoryNetwork, params: Any, image: Image) -> Retrieval:
  """Retrieves for the whole image; needs no parameters of the generator."""

  def retrieve(net: MemoryNetwork, x: Image) -> Retrieval:
    return net.memory.recall(net.query(net.recognition(x)[-1]), seen=True)[1]

  return apply(network, params, image, method=retrieve)


def recognition_features(network: MemoryNetwork, params: Any, image: Image) -> Pyramid:
  """The recognition encoder's features, for feature terms without ImageNet weights; needs no other parameters."""
  return apply(network, params, image, method=lambda net, x: net.recognition(x))
