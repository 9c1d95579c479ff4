from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.config import MemoryConfig
from gmsrm_jax.models.codebook import Slots
from gmsrm_jax.models.reasoning import Decided
from gmsrm_jax.models.retrieval import (
  RetrievalAttention,
  choose_from_books,
  quantisation,
  read_decided,
  retrieve_from_books,
  slot_values,
)

CONFIG = MemoryConfig(
  num_groups=3, slots_per_group=4, slot_dim=8, heads=2, group_temperature=0.5, slot_temperature=0.25
)


def _inputs(config, seed=0):
  rng = np.random.default_rng(seed)
  groups, slots, dim = config.num_groups, config.slots_per_group, config.slot_dim
  shapes = ((groups, dim), (groups, slots, dim), (groups, slots, dim), (2, 5, dim))
  *slots, query = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
  return query, Slots(*slots)


def _retrieve(config, query, slots, params=None):
  module = RetrievalAttention(config)
  return module.apply({"params": params} if params else module.init(jax.random.key(0), query, slots), query, slots)


def _softmax(x):
  x = np.exp(x - x.max())
  return x / x.sum()


def _reference(config, query, slots):
  """Weights and read, one query and head at a time, in float64."""
  query, anchors, keys, values = (np.float64(x) for x in (query, *slots))
  batch, positions, dim = query.shape
  size = dim // config.heads
  weights = np.zeros((batch, config.heads, positions, config.num_slots))
  read = np.zeros_like(query)
  for b, n, p in np.ndindex(batch, config.heads, positions):
    part = slice(n * size, (n + 1) * size)
    q = query[b, p, part]

    def cosine(x, q=q, part=part):
      return x[..., part] @ q / (np.linalg.norm(x[..., part], axis=-1) * np.linalg.norm(q))

    group = _softmax(cosine(anchors) / config.group_temperature)
    slot = np.stack([_softmax(cosine(k) / config.slot_temperature) for k in keys])
    weights[b, n, p] = (group[:, None] * slot).ravel()
    read[b, p, part] = weights[b, n, p] @ values.reshape(-1, dim)[:, part]
  return weights, read


@pytest.mark.parametrize("changes", [{}, {"num_groups": 1, "heads": 1}], ids=["routed", "flat"])
def test_a_fresh_retrieval_equals_the_slow_reference(changes):
  config = dataclasses.replace(CONFIG, **changes)
  query, slots = _inputs(config)
  out = _retrieve(config, query, slots)
  weights, read = _reference(config, query, slots)
  np.testing.assert_allclose(np.exp(out.log_weights), weights, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(out.read, read, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def gradient():
  """Of a random projection of the read, with respect to everything that is learned."""
  query, slots = _inputs(CONFIG, 7)
  direction = jax.random.normal(jax.random.key(8), query.shape)
  params = RetrievalAttention(CONFIG).init(jax.random.key(0), query, slots)["params"]

  @jax.jit
  def of(*arguments):
    return jax.grad(lambda *a: jnp.sum(direction * _retrieve(CONFIG, *a).read), argnums=(0, 1, 2))(*arguments)

  return lambda scale: of(scale * query, slots, params)


def test_gradients_reach_all_that_is_learned_and_are_finite_for_a_zero_query(gradient):
  for leaf in jax.tree.leaves(gradient(1.0)):
    assert np.all(np.isfinite(leaf)) and np.all(leaf != 0)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(0.0)))


BOOKS = MemoryConfig(kind="hard", num_groups=3, slots_per_group=5, slot_dim=12)


@pytest.fixture(scope="module")
def asked():
  """Queries, keys of three books, and cosine, slot and direction of each query in each book, in float64."""
  rng = np.random.default_rng(2)
  query, keys = rng.normal(size=(2, 7, 12)), rng.normal(size=(3, 5, 4))
  directions = query.reshape(2, 7, 3, 4) / np.linalg.norm(query.reshape(2, 7, 3, 4), axis=-1, keepdims=True)
  slots = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
  cosines = np.stack([[[slots[n] @ x[p, n] for p in range(7)] for n in range(3)] for x in directions])
  return jnp.float32(query), jnp.float32(keys), cosines, slots, directions


@pytest.mark.parametrize("how", ["seen", "expected", "decided"])
def test_books_are_read_by_the_nearest_slot_the_mean_by_weights_or_what_is_decided(asked, how):
  query, keys, cosines, slots, _ = asked
  weights = np.exp(5.0 * cosines) / np.exp(5.0 * cosines).sum(axis=-1, keepdims=True)
  if how == "seen":
    found, taken = choose_from_books(query, keys, 0.2), np.eye(5)[cosines.argmax(axis=-1)]
  elif how == "expected":
    found, taken = retrieve_from_books(query, keys, 0.2), weights
  else:
    rng = np.random.default_rng(4)
    decided = Decided(jnp.asarray(rng.integers(0, 5, (2, 3, 7))), jnp.asarray(rng.random((2, 3, 7)) < 0.5))
    found = retrieve_from_books(query, keys, 0.2, decided)
    given = np.eye(5)[np.asarray(decided.slots)] * np.asarray(decided.flags)[..., None]
    taken = np.where(np.asarray(decided.flags)[..., None], given, weights)
    alone = np.concatenate([given[:, n] @ slots[n] for n in range(3)], axis=-1)
    np.testing.assert_allclose(read_decided(keys, decided), 2.0 * alone, atol=1e-5)
  np.testing.assert_allclose(np.exp(found.log_weights), weights, rtol=1e-4)
  parts = [taken[:, n] @ slots[n] for n in range(3)]
  np.testing.assert_allclose(found.read, 2.0 * np.concatenate(parts, axis=-1), atol=1e-5)  # the square root of 4


def test_a_chosen_read_passes_its_gradient_to_the_direction_of_the_query(asked):
  query, keys, *_ = asked
  factors = jax.random.normal(jax.random.key(3), query.shape)

  def direction(query):
    parts = query.reshape(2, 7, 3, 4)
    return (2.0 * parts / jnp.linalg.norm(parts, axis=-1, keepdims=True)).reshape(query.shape)

  found = jax.grad(lambda q: jnp.sum(factors * choose_from_books(q, keys, 0.2).read))(query)
  np.testing.assert_allclose(found, jax.grad(lambda q: jnp.sum(factors * direction(q)))(query), atol=1e-4)


def test_quantisation_pulls_chosen_slots_alone_and_queries_a_quarter_as_hard(asked):
  query, keys, cosines, _, _ = asked
  # |a - b|^2 = 2 - 2 cos for directions.
  np.testing.assert_allclose(quantisation(query, keys), 1.25 * (2 - 2 * cosines.max(-1)).mean(axis=(1, 2)), rtol=1e-4)
  of_query, of_keys = jax.grad(lambda *a: jnp.sum(quantisation(*a)), argnums=(0, 1))(query, keys)
  chosen = np.stack([np.isin(np.arange(5), cosines[:, n].argmax(-1)) for n in range(3)])
  assert not chosen.all()
  np.testing.assert_array_equal(np.abs(of_keys).max(-1) > 1e-6, chosen)

  def distance(query):
    parts = query.reshape(2, 7, 3, 4)
    cosine = jnp.einsum("bpne,nke->bnpk", parts / jnp.linalg.norm(parts, axis=-1, keepdims=True), asked[3])
    return jnp.sum((2 - 2 * cosine.max(-1)).mean(axis=(1, 2)))

  np.testing.assert_allclose(of_query, 0.25 * jax.grad(distance)(query), atol=1e-5)


def test_the_value_of_a_slot_is_what_is_read_for_it_beside_the_means_of_other_books(asked):
  _, keys, _, slots, _ = asked
  values = np.asarray(slot_values(BOOKS, {"keys": keys})).reshape(3, 5, 3, 4)
  for book, slot in np.ndindex(3, 5):
    expected = [slots[n, slot] if n == book else slots[n].mean(axis=0) for n in range(3)]
    np.testing.assert_allclose(values[book, slot], 2.0 * np.stack(expected), atol=1e-5)
