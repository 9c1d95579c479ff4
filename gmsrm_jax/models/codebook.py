"""The memory codebook: groups of slots, and the statistics that keep it alive.

A slot of a soft memory has a key, which queries are compared with, and a value, which is read. Slots come in groups,
each with an anchor that routes queries to it (after the semantic sets of Cross-Image Context Memory, NeurIPS 2022).
The groups of a hard memory are books: each stands for a part of what is read, and of each one slot is chosen (product
quantisation, Jégou et al. 2011); key and value are the same there, a direction.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Scalar

from gmsrm_jax.config import MemoryConfig
from gmsrm_jax.models.blocks import unit

USAGE_DECAY = 0.99  # per step, of the running mean of slot usage
REVIVE_BELOW = 0.05  # a slot is dead when its usage is below this share of the uniform usage

Usage = Float[Array, "*books s"]
"""Running mean of the retrieval weights; of a hard memory, that of the choices in each book."""


BookKeys = Float[Array, "g k e"]


class Slots(NamedTuple):
  """The parameters of a codebook. One group is a flat memory: its anchor then changes nothing."""

  anchors: Float[Array, "g d"]
  keys: Float[Array, "g k d"]
  values: Float[Array, "g k d"]


class Codebook(nn.Module):
  """Learned slots."""

  config: MemoryConfig

  @nn.compact
  def __call__(self) -> Slots:
    groups, slots, dim = self.config.num_groups, self.config.slots_per_group, self.config.slot_dim
    shapes = {"anchors": (groups, dim), "keys": (groups, slots, dim), "values": (groups, slots, dim)}
    return Slots(**{name: self.param(name, nn.initializers.normal(1.0), shape) for name, shape in shapes.items()})


class Books(nn.Module):
  """The learned keys of a hard memory."""

  config: MemoryConfig

  @nn.compact
  def __call__(self) -> BookKeys:
    books, slots, dim = self.config.num_groups, self.config.slots_per_group, self.config.slot_dim
    return self.param("keys", nn.initializers.normal(1.0), (books, slots, dim // books))


def mean_weights(log_weights: Float[Array, "b n q s"]) -> Float[Array, " s"]:
  """The retrieval weights averaged over batch, heads and positions; sums to one."""
  return jnp.mean(jnp.exp(log_weights), axis=(0, 1, 2))


def usage_of(config: MemoryConfig, log_weights: Float[Array, "b n q s"]) -> Usage:
  """The use of the slots: their mean weights or, of a hard memory, how often each is the likeliest of its book."""
  if not config.hard:
    return mean_weights(log_weights)
  likeliest = jax.nn.one_hot(jnp.argmax(log_weights, axis=-1), log_weights.shape[-1])
  return jnp.mean(likeliest, axis=(0, 2))


def perplexity(usage: Usage) -> Scalar:
  """exp(entropy) of the mean weights, a sum over books: how many slots are in even use, from 1 (collapsed) to all."""
  usage = usage / jnp.sum(usage, axis=-1, keepdims=True)
  return jnp.sum(jnp.exp(-jnp.sum(usage * jnp.log(jnp.maximum(usage, 1e-12)), axis=-1)))


def used_slots(usage: Usage) -> Scalar:
  """The number of slots that are alive."""
  return jnp.sum(usage >= REVIVE_BELOW / usage.shape[-1]).astype(jnp.float32)


def fresh_usage(config: MemoryConfig) -> Usage:
  """Even use of all slots."""
  shape = (config.num_groups, config.slots_per_group) if config.hard else (config.num_slots,)
  return jnp.full(shape, 1.0 / shape[-1], jnp.float32)


def revive_books(
  key: Key[Array, ""], keys: BookKeys, usage: Float[Array, "g k"], queries: Float[Array, "b q d"]
) -> tuple[BookKeys, Float[Array, "g k"], Scalar]:
  """Moves dead slots to what queries of the batch ask of their book; returns keys, usage and how many were dead."""
  books, slots, dim = keys.shape
  queries = queries.reshape(-1, books, dim)
  picks = jax.random.randint(key, (books, slots), 0, len(queries))
  asked = jnp.take_along_axis(jnp.moveaxis(queries, 1, 0), picks[..., None], axis=1)
  dead = usage < REVIVE_BELOW / slots
  return jnp.where(dead[..., None], asked, keys), jnp.where(dead, 1.0 / slots, usage), jnp.sum(dead).astype(jnp.float32)


def revive(
  key: Key[Array, ""], slots: Slots, usage: Usage, queries: Float[Array, "b q d"], reads: Float[Array, "b q d"]
) -> tuple[Slots, Usage, Scalar]:
  """Re-seeds dead slots from the batch and returns slots, usage and how many were dead (ours).

  A dead slot takes a query of this batch as its key and what was read there as its value: it starts as a
  double of something in use and then specialises. A group whose slots are all dead gets a query as anchor, too.
  Its optimiser moments are near zero already, because a slot without weight has no gradient.
  """
  groups, per_group, dim = slots.keys.shape
  queries, reads = queries.reshape(-1, dim), reads.reshape(-1, dim)
  anchor_key, slot_key = jax.random.split(key)

  dead = (usage < REVIVE_BELOW / usage.shape[0]).reshape(groups, per_group)
  chosen = jax.random.randint(anchor_key, (groups,), 0, queries.shape[0])
  anchors = jnp.where(jnp.all(dead, axis=1)[:, None], queries[chosen], slots.anchors)

  # A slot lives in its group, so it is seeded with queries that are routed there.
  affinity = jnp.einsum("gd,pd->gp", unit(anchors), unit(queries)) / 0.1
  picks = jax.random.categorical(slot_key, affinity[:, None, :], axis=-1, shape=(groups, per_group))
  keys = jnp.where(dead[..., None], queries[picks], slots.keys)
  values = jnp.where(dead[..., None], reads[picks], slots.values)

  # A revived slot gets a fresh start: it is not dead again before its usage could be measured.
  usage = jnp.where(dead.reshape(-1), 1.0 / usage.shape[0], usage)
  return Slots(anchors, keys, values), usage, jnp.sum(dead).astype(jnp.float32)
