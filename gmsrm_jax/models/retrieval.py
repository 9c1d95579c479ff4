"""Memory retrieval attention: one differentiable distribution over all slots, factored through the groups.

  p(slot | query) = p(group | query, anchors) · p(slot | group, query, keys)

Both factors are softmaxes of cosine scores, per head, each with a learned temperature. Cosine scores keep the
weights independent of the query's length, so teacher and student need only agree on directions. A hard memory has a
distribution per book, p(slot | query, keys), and the likeliest slot of each is what is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.config import MemoryConfig
from gmsrm_jax.models.blocks import unit
from gmsrm_jax.models.codebook import BookKeys, Slots
from gmsrm_jax.models.reasoning import Decided


class Retrieval(NamedTuple):
  """A read and the weights behind it; exp(log_weights) sums to one over s = g · k slots, group by group.

  Of a hard memory n are the books, and s the k slots of each.
  """

  read: Float[Array, "b q d"]
  log_weights: Float[Array, "b n q s"]


def _by_head(x: Float[Array, "*b d"], heads: int) -> Float[Array, "n p e"]:
  """Cuts channels into heads, which come first, and numbers everything else through; in float32."""
  flat = x.astype(jnp.float32).reshape(-1, heads, x.shape[-1] // heads)
  return jnp.moveaxis(flat, 1, 0)


class RetrievalAttention(nn.Module):
  """Multi-head attention of queries over the codebook, in float32 throughout."""

  config: MemoryConfig

  @nn.compact
  def __call__(self, query: Float[Array, "b q d"], slots: Slots) -> Retrieval:
    heads = self.config.heads
    group_scale = self._inverse_temperature("group_scale", self.config.group_temperature)
    slot_scale = self._inverse_temperature("slot_scale", self.config.slot_temperature)

    # Heads first: both products then write and read the weights, the largest array by far, as they lie in memory.
    queries = unit(_by_head(query, heads))
    groups, per_group = slots.keys.shape[:2]
    group_scores = jnp.einsum("npe,nge->npg", queries * group_scale, unit(_by_head(slots.anchors, heads)))
    slot_scores = jnp.einsum("npe,nse->nps", queries * slot_scale, unit(_by_head(slots.keys, heads)))
    slot_scores = slot_scores.reshape(*slot_scores.shape[:2], groups, per_group)
    log_group = jax.nn.log_softmax(group_scores, axis=-1)
    log_weights = slot_scores + (log_group - jax.nn.logsumexp(slot_scores, axis=-1))[..., None]

    log_weights = log_weights.reshape(*slot_scores.shape[:2], -1)
    weights = jnp.exp(log_weights)
    read = jnp.einsum("nps,nse->npe", weights, _by_head(slots.values, heads))
    log_weights = log_weights.reshape(heads, *query.shape[:2], -1)
    return Retrieval(jnp.moveaxis(read, 0, 1).reshape(query.shape), jnp.moveaxis(log_weights, 0, 1))

  def _inverse_temperature(self, name: str, initial: float) -> Float[Array, "n 1 1"]:
    """One positive scale per head, learned as its logarithm."""
    log_scale = self.param(name, nn.initializers.constant(-math.log(initial)), (self.config.heads,))
    # Beyond e^5 a softmax of cosines is a hard choice with no gradient left.
    return jnp.exp(jnp.minimum(log_scale, 5.0))[:, None, None]


class Choice(NamedTuple):
  """Directions of queries in each book of a hard memory, those of its slots, and the slot that is nearest to each."""

  queries: Float[Array, "n p e"]
  slots: Float[Array, "n k e"]
  scores: Float[Array, "n p k"]  # cosines
  nearest: Float[Array, "n p e"]


def _choose(query: Float[Array, "b q d"], keys: BookKeys) -> Choice:
  queries, slots = unit(_by_head(query, len(keys))), unit(keys.astype(jnp.float32))
  scores = jnp.einsum("npe,nke->npk", queries, slots)
  nearest = jnp.take_along_axis(slots, jnp.argmax(scores, axis=-1)[..., None], axis=1)
  return Choice(queries, slots, scores, nearest)


def retrieve_from_books(
  query: Float[Array, "b q d"], keys: BookKeys, temperature: float, decided: Decided | None = None
) -> Retrieval:
  """Retrieves from the books of a hard memory by attention, in float32 throughout.

  Reads the slots' mean by their weights, what is expected where it is not known, or the slot that is decided there.
  """
  choice = _choose(query, keys)
  log_weights = jax.nn.log_softmax(choice.scores / temperature, axis=-1)
  weights = jnp.exp(log_weights)
  if decided is not None:
    slots, flags = (jnp.moveaxis(x, 1, 0).reshape(len(keys), -1) for x in decided)
    weights = jnp.where(flags[..., None], jax.nn.one_hot(slots, keys.shape[1]), weights)
  return _retrieval(query, jnp.einsum("npk,nke->npe", weights, choice.slots), log_weights)


def choose_from_books(query: Float[Array, "b q d"], keys: BookKeys, temperature: float) -> Retrieval:
  """Does the same for what is seen: reads the nearest slot of each book.

  The gradient is that of the query's direction (straight-through, van den Oord et al. 2017; codes of length 1, Yu et
  al. 2022).
  """
  choice = _choose(query, keys)
  read = choice.queries + jax.lax.stop_gradient(choice.nearest - choice.queries)
  return _retrieval(query, read, jax.nn.log_softmax(choice.scores / temperature, axis=-1))


def _retrieval(
  query: Float[Array, "b q d"], read: Float[Array, "n p e"], log_weights: Float[Array, "n p k"]
) -> Retrieval:
  # Channels of about unit variance, as the generator expects them.
  read = jnp.moveaxis(read, 0, 1).reshape(query.shape) * math.sqrt(read.shape[-1])
  return Retrieval(read, jnp.moveaxis(log_weights.reshape(len(log_weights), *query.shape[:2], -1), 0, 1))


def read_decided(keys: BookKeys, decided: Decided) -> Float[Array, "b q d"]:
  """Returns what is read for decided slots, 0 elsewhere."""
  slots = unit(keys.astype(jnp.float32)) * math.sqrt(keys.shape[-1])
  chosen = jax.nn.one_hot(decided.slots, keys.shape[1]) * decided.flags[..., None]
  return einops.rearrange(jnp.einsum("bgqk,gke->bgqe", chosen, slots), "b g q e -> b q (g e)")


def quantisation(query: Float[Array, "b q d"], keys: BookKeys) -> Float[Array, " b"]:
  """Squared distance of the queries' directions and the slots they choose, a mean over books and positions.

  It pulls the slots to the queries, and a quarter as hard the queries to the slots (van den Oord et al. 2017).
  """
  choice = _choose(query, keys)
  to_queries = jnp.sum(jnp.square(jax.lax.stop_gradient(choice.queries) - choice.nearest), axis=-1)
  to_slots = jnp.sum(jnp.square(choice.queries - jax.lax.stop_gradient(choice.nearest)), axis=-1)
  distance = jnp.mean(to_queries + 0.25 * to_slots, axis=0)
  return jnp.mean(distance.reshape(query.shape[:2]), axis=1)


def slot_values(config: MemoryConfig, codebook: Mapping[str, Array]) -> Float[Array, "s d"]:
  """Returns what is read where a slot has all the weight; of the other books of a hard memory their mean."""
  if not config.hard:
    return codebook["values"].reshape(-1, config.slot_dim)
  slots = unit(codebook["keys"]) * math.sqrt(codebook["keys"].shape[-1])
  books, per_book, dim = slots.shape
  alone = jnp.eye(books)[:, None, :, None]  # book of the slot, slot, book, channel
  values = alone * slots[:, :, None] + (1.0 - alone) * jnp.mean(slots, axis=1)[None, None]
  return values.reshape(books * per_book, books * dim)
