"""Less memory for the same step: a batch in parts, one after the other, and layers computed again going backwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gmsrm_jax.config import Config


def in_parts(objective: Callable, parts: int, groups: int) -> Callable:
  """Returns `value_and_grad` of an objective, over a batch that is split into parts of equal size.

  The objective maps (params, *arrays with a leading axis of examples) to (value, (means, examples)). Value, gradient
  and `means` are averages over the parts: those of the whole batch where the objective is a mean over examples;
  `examples` is put together again. An array holds `groups` groups of rows that belong together, a multiple of `parts`;
  part i holds groups i, i + parts, …, so that each device splits the rows that it has.
  """
  whole = jax.value_and_grad(objective, has_aux=True)
  if parts == 1:
    return whole

  def split(array: jax.Array) -> jax.Array:
    unit, rest = array.shape[0] // groups, array.shape[1:]
    return array.reshape(groups // parts, parts, unit, *rest).swapaxes(0, 1).reshape(parts, -1, *rest)

  def joined(array: jax.Array) -> jax.Array:
    unit, rest = array.shape[1] * parts // groups, array.shape[2:]
    return array.reshape(parts, groups // parts, unit, *rest).swapaxes(0, 1).reshape(-1, *rest)

  def accumulated(params: Any, *arrays: Any) -> Any:
    arrays = jax.tree.map(split, arrays)

    def averaged_and_examples(part: Any) -> tuple[Any, Any]:
      (value, (means, examples)), gradient = whole(params, *part)
      return (value, means, gradient), examples

    def step(total: Any, part: Any) -> tuple[Any, Any]:
      averaged, examples = averaged_and_examples(part)
      return jax.tree.map(jnp.add, total, averaged), examples

    shapes, _ = jax.eval_shape(averaged_and_examples, jax.tree.map(lambda array: array[0], arrays))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, examples = jax.lax.scan(step, zeros, arrays)
    value, means, gradient = jax.tree.map(lambda leaf: leaf / parts, total)
    return (value, (means, jax.tree.map(joined, examples))), gradient

  return accumulated


def recomputed(config: Config, group: str) -> Callable[[Callable], Callable]:
  """Returns what has a function computed again in the backward pass, where `run.remat` names its group."""
  return jax.checkpoint if group in config.run.recomputed else lambda function: function
