from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.config import MemoryConfig
from gmsrm_jax.models import codebook

GROUPS, SLOTS, DIM = 3, 4, 6
UNIFORM = np.full(GROUPS * SLOTS, 1 / (GROUPS * SLOTS), np.float32)


def test_mean_weights_averages_over_batch_heads_and_positions():
  weights = np.random.default_rng(0).dirichlet(np.ones(5), (2, 3, 4)).astype(np.float32)
  expected = sum(weights[b, n, q] for b in range(2) for n in range(3) for q in range(4)) / 24
  np.testing.assert_allclose(codebook.mean_weights(jnp.log(weights)), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_perplexity_counts_the_slots_in_even_use(scale):
  one, three = np.eye(12, dtype=np.float32)[4], np.float32(np.arange(12) < 3)
  for usage, expected in ((one, 1), (three, 3), (UNIFORM, 12)):
    np.testing.assert_allclose(codebook.perplexity(jnp.asarray(scale * usage)), expected, rtol=1e-5)


def test_used_slots_counts_those_at_or_above_a_share_of_the_uniform_use():
  least = np.float32(codebook.REVIVE_BELOW / 4)
  assert float(codebook.used_slots(jnp.array([1 - 2 * least, least, 0.99 * least, 0.0]))) == 2


@pytest.fixture(scope="module")
def batch():
  """Slots, queries and reads in which every row is unlike any other."""
  rng = np.random.default_rng(1)
  shapes = (GROUPS, DIM), (GROUPS, SLOTS, DIM), (GROUPS, SLOTS, DIM)
  slots = codebook.Slots(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes))
  queries, reads = (jnp.asarray(rng.normal(size=(2, 8, DIM)), jnp.float32) for _ in range(2))
  return slots, queries, reads


def _revive(batch, usage, seed=0):
  slots, queries, reads = batch
  return codebook.revive(jax.random.key(seed), slots, jnp.asarray(usage), queries, reads)


def _row_of(row, rows):
  """The index of an exact copy of the row."""
  (places,) = np.nonzero((np.asarray(rows).reshape(-1, DIM) == np.asarray(row)).all(axis=-1))
  assert len(places) == 1
  return places[0]


def test_a_dead_slot_becomes_a_query_of_the_batch_with_what_was_read_there(batch):
  slots, queries, reads = batch
  usage = np.linspace(0.2, 1.8, 12, dtype=np.float32) / 12
  usage[[1, 6]] = 0.9 * codebook.REVIVE_BELOW / 12
  new, new_usage, dead = _revive(batch, usage)
  assert float(dead) == 2
  for group, slot in ((0, 1), (1, 2)):
    assert _row_of(new.keys[group, slot], queries) == _row_of(new.values[group, slot], reads)
  alive = np.delete(np.arange(12), [1, 6])
  for before, after in ((slots.keys, new.keys), (slots.values, new.values)):
    np.testing.assert_array_equal(after.reshape(-1, DIM)[alive], before.reshape(-1, DIM)[alive])
  np.testing.assert_array_equal(new.anchors, slots.anchors)
  np.testing.assert_array_equal(new_usage[alive], usage[alive])
  np.testing.assert_array_equal(new_usage[jnp.array([1, 6])], UNIFORM[:2])


def test_only_a_group_without_a_living_slot_gets_a_new_anchor(batch):
  slots, queries, _ = batch
  usage = UNIFORM.copy()
  usage[SLOTS : 2 * SLOTS] = 0
  usage[: SLOTS - 1] = 0
  new, _, dead = _revive(batch, usage)
  assert float(dead) == 2 * SLOTS - 1
  _row_of(new.anchors[1], queries)
  np.testing.assert_array_equal(new.anchors[jnp.array([0, 2])], slots.anchors[jnp.array([0, 2])])


def test_revival_is_a_function_of_its_key(batch):
  once, again, other = (_revive(batch, 0 * UNIFORM, seed)[0] for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, once, again)
  assert np.any(once.keys != other.keys) and np.any(once.anchors != other.anchors)


def test_a_dead_slot_is_seeded_with_queries_that_are_routed_to_its_group():
  # Each anchor points where its own queries lie: with cosine 1 against -1 no other can be drawn.
  anchors = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
  slots = codebook.Slots(anchors, jnp.zeros((2, 3, 2)), jnp.zeros((2, 3, 2)))
  queries = jnp.array([[[2.0, 0.0], [-0.1, 0.0], [3.0, 0.0], [-5.0, 0.0]]])
  usage = jnp.array([0.0, 0.5, 0.0, 0.0, 0.5, 0.0])
  new, _, _ = codebook.revive(jax.random.key(3), slots, usage, queries, queries)
  dead = jnp.array([0, 2])
  assert np.all(new.keys[0, dead, 0] > 0) and np.all(new.keys[1, dead, 0] < 0)


BOOKS = MemoryConfig(kind="hard", num_groups=2, slots_per_group=4, slot_dim=6)


def test_use_of_a_hard_memory_counts_choices_book_by_book():
  chosen = np.array([[[0, 0, 1], [3, 2, 1]], [[0, 1, 0], [0, 3, 2]]])  # b n q
  log_weights = jnp.log(0.1 + np.eye(4)[chosen])
  usage = codebook.usage_of(BOOKS, log_weights)
  np.testing.assert_allclose(usage, np.array([[4, 2, 0, 0], [1, 1, 2, 2]]) / 6, rtol=1e-6)
  assert float(codebook.used_slots(usage)) == 6
  even = np.stack([[0.5, 0.5, 0, 0], [0.25] * 4]).astype(np.float32)
  np.testing.assert_allclose(codebook.perplexity(jnp.asarray(even)), 2 + 4, rtol=1e-5)
  assert codebook.fresh_usage(BOOKS).shape == usage.shape


def test_a_dead_slot_of_a_book_becomes_what_a_query_asks_of_it():
  rng = np.random.default_rng(3)
  keys, queries = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 4, 3), (2, 8, 6)))
  usage = np.full((2, 4), 0.3, np.float32)
  usage[0, 1] = usage[1, 3] = 0.9 * codebook.REVIVE_BELOW / 4
  new, new_usage, dead = codebook.revive_books(jax.random.key(0), keys, jnp.asarray(usage), queries)
  assert float(dead) == 2
  parts = np.asarray(queries).reshape(-1, 2, 3)
  for book, slot in np.ndindex(2, 4):
    if (book, slot) in ((0, 1), (1, 3)):
      assert (parts[:, book] == np.asarray(new[book, slot])).all(axis=-1).sum() == 1 and new_usage[book, slot] == 0.25
    else:
      np.testing.assert_array_equal(new[book, slot], keys[book, slot])
      assert new_usage[book, slot] == usage[book, slot]
