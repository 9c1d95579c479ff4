"""Reasoning: which slots of a hard memory belong into a hole, from what is known and from slots that are decided.

A transformer over the bottleneck grid, trained as masked modelling: a part of the true slots is revealed, the rest is
to be predicted (Devlin et al. 2019). A sample decides the hole's slots in rounds, the surest first, so that each is
chosen in the light of those before (MaskGIT, Chang et al. 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gmsrm_jax.config import Config
from gmsrm_jax.models.blocks import ChannelNorm, Map, Share, conv1x1
from gmsrm_jax.models.context import ContextBlock

ROUNDS = 8
TEMPERATURE = 1.0


class Decided(NamedTuple):
  """The slots of the books at some positions of the grid, and where they count."""

  slots: Int[Array, "b g q"]
  flags: Bool[Array, "b g q"]


def none_decided(batch: Any, books: int, positions: int) -> Decided:
  """No slot anywhere. `batch` is a number, or a symbolic size while a program is exported."""
  return Decided(jnp.zeros((batch, books, positions), jnp.int32), jnp.zeros((batch, books, positions), bool))


class Reasoner(nn.Module):
  """Bottleneck features and what is read for the decided slots to the query map."""

  config: Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, features: Map, share: Share, read: Float[Array, "b q d"], flags: Bool[Array, "b g q"]
  ) -> Float[Array, "b _h _w d"]:
    model, (_, height, width, channels) = self.config.model, features.shape
    marks = jnp.concatenate([read, jnp.moveaxis(flags, 1, 2).astype(read.dtype)], axis=-1)
    marks = einops.rearrange(marks, "b (h w) c -> b h w c", h=height, w=width).astype(self.dtype)
    x = features + conv1x1(channels, self.dtype, name="decided")(marks)
    for block in range(self.config.memory.reasoning_blocks):
      x = ContextBlock(model.heads, model.oblique, self.dtype, name=f"block{block}")(x, share)
    return conv1x1(self.config.memory.slot_dim, jnp.float32, name="query")(ChannelNorm()(x.astype(jnp.float32)))


def reveal(key: Key[Array, ""], slots: Int[Array, "b g q"], hole: Bool[Array, "b q"]) -> Decided:
  """Draws what is revealed of the true slots of a hole in training: of half of the images none, of others a share.

  The share is the square of a uniform number: a fill begins without any.
  """
  which_key, share_key, slot_key = jax.random.split(key, 3)
  batch = (slots.shape[0], 1, 1)
  share = jnp.where(jax.random.bernoulli(which_key, 0.5, batch), jax.random.uniform(share_key, batch) ** 2, 0.0)
  return Decided(slots, (jax.random.uniform(slot_key, slots.shape) < share) & hole[:, None])


def decide(
  predict: Callable[[Decided], Float[Array, "b g q s"]],
  decided: Decided,
  hole: Bool[Array, "b q"],
  gumbel: Callable[[Int[Array, ""]], Float[Array, "_b g q s"]],
  step: Int[Array, ""],
) -> Decided:
  """One of `ROUNDS` rounds: draws the slots of a hole that are open and keeps the surest, in the last round all.

  Args:
    predict: log-probabilities of the slots, given those that are decided.
    decided: those of the rounds before.
    hole: positions that are to be decided.
    gumbel: standard Gumbel noise of a round.
    step: number of the round, from 0.
  """
  log_weights = predict(decided)
  drawn = jnp.argmax(log_weights + TEMPERATURE * gumbel(step), axis=-1)
  sureness = jnp.take_along_axis(log_weights, drawn[..., None], axis=-1)[..., 0]
  inside = jnp.broadcast_to(hole[:, None], drawn.shape)
  sureness = jnp.where(decided.flags, jnp.inf, jnp.where(inside, sureness, -jnp.inf))
  ranked = -jnp.sort(-sureness.reshape(sureness.shape[0], -1), axis=-1)
  # Few at first, when little is known to go by: MaskGIT's cosine schedule.
  share = 1.0 - jnp.cos(0.5 * jnp.pi * (step + 1) / ROUNDS)
  count = jnp.ceil(jnp.sum(inside, axis=(1, 2)) * share - 1e-3).astype(jnp.int32)
  least = jnp.take_along_axis(ranked, jnp.maximum(count - 1, 0)[:, None], axis=-1)[..., None]
  kept = (sureness >= least) & inside & (count > 0)[:, None, None]
  return Decided(jnp.where(decided.flags, decided.slots, drawn), decided.flags | kept)
