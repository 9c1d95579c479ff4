"""Memory retrieval attention: one differentiable distribution over all slots, factored through the groups.

  p(slot | query) = p(group | query, anchors) · p(slot | group, query, keys)

Both factors are softmaxes of cosine scores, per head, each with a learned temperature. Cosine scores keep the
weights independent of the query's length, so teacher and student need only agree on directions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gmsrm_jax.config import MemoryConfig
from gmsrm_jax.models.codebook import Slots


class Retrieval(NamedTuple):
  """A read and the weights behind it; exp(log_weights) sums to one over s = g · k slots, group by group."""

  read: Float[Array, "b q d"]
  log_weights: Float[Array, "b n q s"]


def _unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Scales vectors to length 1; the zero vector stays (and has a finite gradient)."""
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _split_heads(x: Float[Array, "*b d"], heads: int) -> Float[Array, "*b n e"]:
  """Cuts channels into heads, in float32."""
  return x.astype(jnp.float32).reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


class RetrievalAttention(nn.Module):
  """Multi-head attention of queries over the codebook, in float32 throughout."""

  config: MemoryConfig

  @nn.compact
  def __call__(self, query: Float[Array, "b q d"], slots: Slots) -> Retrieval:
    heads, (batch, positions) = self.config.heads, query.shape[:2]

    def for_each(x: Array) -> Array:
      # Slots of each image, so that the products are laid out as the weights are: else these, the largest arrays here,
      # are transposed on the CPU.
      return jnp.broadcast_to(x[None], (batch, *x.shape))

    group_scale = self._inverse_temperature("group_scale", self.config.group_temperature)
    slot_scale = self._inverse_temperature("slot_scale", self.config.slot_temperature)

    queries = _unit(_split_heads(query, heads))
    group_scores = jnp.einsum("bqnd,gnd->bnqg", queries, _unit(_split_heads(slots.anchors, heads)))
    slot_scores = jnp.einsum("bqnd,bgknd->bnqgk", queries, for_each(_unit(_split_heads(slots.keys, heads))))
    log_group = jax.nn.log_softmax(group_scores * group_scale[None, :, None, None], axis=-1)
    log_slot = jax.nn.log_softmax(slot_scores * slot_scale[None, :, None, None, None], axis=-1)
    log_weights = log_group[..., None] + log_slot

    read = jnp.einsum("bnqgk,bgknd->bqnd", jnp.exp(log_weights), for_each(_split_heads(slots.values, heads)))
    return Retrieval(
      read=read.reshape(batch, positions, -1),
      log_weights=log_weights.reshape(batch, heads, positions, -1),
    )

  def _inverse_temperature(self, name: str, initial: float) -> Float[Array, " n"]:
    """One positive scale per head, learned as its logarithm."""
    log_scale = self.param(name, nn.initializers.constant(-math.log(initial)), (self.config.heads,))
    # Beyond e^5 a softmax of cosines is a hard choice with no gradient left.
    return jnp.exp(jnp.minimum(log_scale, 5.0))
