from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.config import MemoryConfig
from gmsrm_jax.models.codebook import Slots
from gmsrm_jax.models.retrieval import RetrievalAttention, likeliest

CONFIG = MemoryConfig(
  num_groups=3, slots_per_group=4, slot_dim=8, heads=2, group_temperature=0.5, slot_temperature=0.25
)


def _inputs(config, seed=0):
  rng = np.random.default_rng(seed)
  groups, slots, dim = config.num_groups, config.slots_per_group, config.slot_dim
  shapes = ((groups, dim), (groups, slots, dim), (groups, slots, dim), (2, 5, dim))
  *slots, query = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
  return query, Slots(*slots)


def _params(config):
  return {
    "group_scale": -jnp.log(jnp.full((config.heads,), config.group_temperature)),
    "slot_scale": -jnp.log(jnp.full((config.heads,), config.slot_temperature)),
  }


def _retrieve(config, query, slots, params=None):
  return RetrievalAttention(config).apply({"params": params or _params(config)}, query, slots)


def _softmax(x):
  x = np.exp(x - x.max())
  return x / x.sum()


def _reference(config, query, slots, group_temperature, slot_temperature):
  """Weights and read, one query and head at a time, in float64."""
  query, anchors, keys, values = (np.float64(x) for x in (query, *slots))
  batch, positions, dim = query.shape
  size = dim // config.heads
  weights = np.zeros((batch, config.heads, positions, config.num_slots))
  read = np.zeros_like(query)
  for b in range(batch):
    for n in range(config.heads):
      part = slice(n * size, (n + 1) * size)
      for p in range(positions):

        def cosine(x, q=query[b, p, part], part=part):
          return x[..., part] @ q / (np.linalg.norm(x[..., part], axis=-1) * np.linalg.norm(q))

        group = _softmax(cosine(anchors) / group_temperature)
        slot = np.stack([_softmax(cosine(k) / slot_temperature) for k in keys])
        weights[b, n, p] = (group[:, None] * slot).ravel()
        read[b, p, part] = weights[b, n, p] @ values.reshape(-1, dim)[:, part]
  return weights, read


def test_the_hierarchical_read_equals_the_slow_reference():
  query, slots = _inputs(CONFIG)
  out = _retrieve(CONFIG, query, slots)
  weights, read = _reference(CONFIG, query, slots, 0.5, 0.25)
  np.testing.assert_allclose(np.exp(out.log_weights), weights, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(out.read, read, rtol=1e-4, atol=1e-5)


def test_temperatures_start_as_the_settings_say():
  query, slots = _inputs(CONFIG)
  fresh = RetrievalAttention(CONFIG).init(jax.random.key(0), query, slots)["params"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), dict(fresh), _params(CONFIG))


def test_one_group_is_plain_softmax_attention_and_its_anchor_changes_nothing():
  config = dataclasses.replace(CONFIG, num_groups=1, heads=1)
  query, slots = _inputs(config)
  out = _retrieve(config, query, slots)
  q, k = (np.float64(x) / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, slots.keys[0]))
  weights = np.stack([[_softmax(k @ row / config.slot_temperature) for row in rows] for rows in q])
  np.testing.assert_allclose(np.exp(out.log_weights[:, 0]), weights, rtol=1e-4)
  np.testing.assert_allclose(out.read, weights @ np.float64(slots.values[0]), rtol=1e-4, atol=1e-5)
  other = _retrieve(config, query, slots._replace(anchors=-3 * slots.anchors))
  np.testing.assert_array_equal(other.read, out.read)


def test_weights_sum_to_one_over_all_slots():
  query, slots = _inputs(CONFIG, 1)
  np.testing.assert_allclose(np.exp(_retrieve(CONFIG, query, slots).log_weights).sum(axis=-1), 1, atol=1e-6)


def test_the_order_of_groups_and_slots_changes_the_order_of_weights_and_nothing_else():
  query, slots = _inputs(CONFIG, 2)
  rng = np.random.default_rng(3)
  groups = rng.permutation(CONFIG.num_groups)
  within = np.stack([rng.permutation(CONFIG.slots_per_group) for _ in groups])
  permuted = Slots(
    slots.anchors[groups],
    *(jnp.take_along_axis(x[groups], within[..., None], axis=1) for x in (slots.keys, slots.values)),
  )
  out, other = _retrieve(CONFIG, query, slots), _retrieve(CONFIG, query, permuted)
  np.testing.assert_allclose(other.read, out.read, atol=1e-5)
  order = (groups[:, None] * CONFIG.slots_per_group + within).ravel()
  np.testing.assert_allclose(other.log_weights, out.log_weights[..., order], atol=1e-5)


def test_only_directions_of_queries_anchors_and_keys_count():
  query, slots = _inputs(CONFIG, 4)
  out = _retrieve(CONFIG, query, slots)
  longer = _retrieve(CONFIG, 30 * query, Slots(5 * slots.anchors, 7 * slots.keys, slots.values))
  np.testing.assert_allclose(longer.log_weights, out.log_weights, atol=1e-4)
  np.testing.assert_allclose(longer.read, out.read, atol=1e-4)


def test_a_head_reads_from_its_own_channels_only():
  query, slots = _inputs(CONFIG, 5)
  half = CONFIG.slot_dim // 2
  other = _retrieve(CONFIG, query.at[..., half:].multiply(-1), slots)
  out = _retrieve(CONFIG, query, slots)
  np.testing.assert_array_equal(other.log_weights[:, 0], out.log_weights[:, 0])
  np.testing.assert_array_equal(other.read[..., :half], out.read[..., :half])
  assert np.all(other.read[..., half:] != out.read[..., half:])


def _entropies(out):
  """Of the choice of a group, and of the choice of a slot within each group."""
  p = np.float64(np.exp(out.log_weights)).reshape(*out.log_weights.shape[:-1], CONFIG.num_groups, -1)
  group = p.sum(axis=-1)
  slot = p / group[..., None]
  return -(group * np.log(group)).sum(-1), -(slot * np.log(slot)).sum(-1)


@pytest.mark.parametrize(("name", "sharper"), [("group_scale", 0), ("slot_scale", 1)])
def test_a_lower_temperature_sharpens_its_own_choice_only(name, sharper):
  query, slots = _inputs(CONFIG, 6)
  params = _params(CONFIG)
  before = _entropies(_retrieve(CONFIG, query, slots, params))
  after = _entropies(_retrieve(CONFIG, query, slots, {**params, name: params[name] + 0.5}))
  assert np.all(after[sharper] < before[sharper])
  np.testing.assert_allclose(after[1 - sharper], before[1 - sharper], atol=1e-4)


@pytest.fixture(scope="module")
def gradient():
  """Of a random projection of the read, with respect to everything that is learned."""
  query, slots = _inputs(CONFIG, 7)
  direction = jax.random.normal(jax.random.key(8), query.shape)

  @jax.jit
  def of(query, slots):
    def objective(query, slots, params):
      return jnp.sum(direction * _retrieve(CONFIG, query, slots, params).read)

    return jax.grad(objective, argnums=(0, 1, 2))(query, slots, _params(CONFIG))

  return lambda scale: of(scale * query, slots)


def test_gradients_reach_all_that_is_learned(gradient):
  for leaf in jax.tree.leaves(gradient(1.0)):
    assert np.all(np.isfinite(leaf)) and np.all(leaf != 0)


def test_gradients_of_a_zero_query_are_finite(gradient):
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(0.0)))


def test_a_hard_read_takes_the_values_of_the_likeliest_slots_alone():
  query, slots = _inputs(CONFIG)
  soft = _retrieve(CONFIG, query, slots)
  hard = _retrieve(dataclasses.replace(CONFIG, top=1), query, slots)
  np.testing.assert_array_equal(hard.log_weights, soft.log_weights)
  values = np.asarray(slots.values).reshape(CONFIG.num_slots, CONFIG.heads, -1)
  best = np.asarray(soft.log_weights).argmax(-1)  # b n q
  expected = np.stack([values[best[:, n], n] for n in range(CONFIG.heads)], axis=2)
  np.testing.assert_allclose(hard.read, expected.reshape(hard.read.shape), atol=1e-6)
  every = _retrieve(dataclasses.replace(CONFIG, top=CONFIG.num_slots), query, slots)
  np.testing.assert_allclose(every.read, soft.read, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_likeliest_weights_sum_to_one_and_pass_the_gradient_to_all(count):
  weights = jax.nn.softmax(jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32))
  kept = likeliest(weights, count)
  np.testing.assert_allclose(kept.sum(-1), 1, rtol=1e-6)
  assert (np.asarray(kept > 1e-6).sum(-1) == count).all()
  ratio = kept / weights
  np.testing.assert_allclose(ratio.max(-1), np.sort(weights, -1)[:, -count:].sum(-1) ** -1, rtol=1e-5)
  factors = jnp.arange(15.0).reshape(3, 5)
  np.testing.assert_allclose(jax.grad(lambda w: jnp.sum(factors * likeliest(w, count)))(weights), factors, rtol=1e-6)
