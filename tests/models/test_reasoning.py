from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax import experiments
from gmsrm_jax.config import Config, VariationConfig
from gmsrm_jax.models import reasoning
from gmsrm_jax.models.blocks import apply
from gmsrm_jax.models.inpainter import InpaintingNetwork, draw_noise, inpaint
from tests.small import shrink

BOOKS, SLOTS, POSITIONS = 2, 5, 6
HOLE = np.array([[1, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]], bool)


def quiet(_):
  return jnp.zeros((3, BOOKS, POSITIONS, SLOTS))


def test_rounds_decide_the_surest_first_and_at_last_the_whole_hole_and_nothing_else():
  log_weights = jax.nn.log_softmax(2.0 * jax.random.normal(jax.random.key(0), (3, BOOKS, POSITIONS, SLOTS)))
  sureness = np.where(HOLE[:, None], np.asarray(log_weights.max(axis=-1)), -np.inf)
  decided = reasoning.none_decided(3, BOOKS, POSITIONS)
  for step in range(reasoning.ROUNDS):
    before = decided
    decided = reasoning.decide(lambda _: log_weights, decided, jnp.asarray(HOLE), quiet, jnp.asarray(step))
    flags = np.asarray(decided.flags)
    assert (flags | ~np.asarray(before.flags)).all()
    # MaskGIT's cosine schedule, rounded up.
    share = 1 - np.cos(np.pi / 2 * (step + 1) / reasoning.ROUNDS)
    for one, kept, of_hole in zip(sureness, flags, HOLE, strict=True):
      assert kept.sum() == np.ceil(BOOKS * of_hole.sum() * share - 1e-3)
      if kept.any():
        assert one[kept].min() >= np.max(one[~kept], initial=-np.inf)
  np.testing.assert_array_equal(flags, np.broadcast_to(HOLE[:, None], flags.shape))
  np.testing.assert_array_equal(np.asarray(decided.slots)[flags], np.asarray(log_weights.argmax(-1))[flags])


def test_a_later_round_sees_what_was_decided_and_does_not_change_it():
  seen = []

  def predict(decided):
    seen.append(np.asarray(decided.flags).sum())
    return jax.nn.log_softmax(
      jnp.roll(jnp.arange(3.0 * BOOKS * POSITIONS * SLOTS), 7 * len(seen)).reshape(3, BOOKS, -1, SLOTS) % 11
    )

  decided = reasoning.none_decided(3, BOOKS, POSITIONS)
  for step in range(reasoning.ROUNDS):
    before = decided
    decided = reasoning.decide(predict, decided, jnp.asarray(HOLE), quiet, jnp.asarray(step))
    flags = np.asarray(before.flags)
    np.testing.assert_array_equal(np.asarray(decided.slots)[flags], np.asarray(before.slots)[flags])
  assert seen[0] == 0 < seen[1] and seen == sorted(seen)


def test_slots_are_drawn_as_often_as_they_are_likely():
  weights = np.array([0.5, 0.3, 0.15, 0.05, 0.0]) + 1e-9
  log_weights = jnp.broadcast_to(jnp.log(weights), (1, 1, 20000, SLOTS))
  hole, noise = jnp.ones((1, 20000), bool), jax.random.gumbel(jax.random.key(1), (1, 1, 20000, SLOTS))
  last = jnp.asarray(reasoning.ROUNDS - 1)
  decided = reasoning.decide(lambda _: log_weights, reasoning.none_decided(1, 1, 20000), hole, lambda _: noise, last)
  np.testing.assert_allclose(np.bincount(np.asarray(decided.slots).ravel(), minlength=5) / 20000, weights, atol=0.012)


def test_half_of_the_images_show_nothing_and_known_cells_are_never_revealed():
  slots, hole = jnp.zeros((4000, BOOKS, POSITIONS), jnp.int32), jnp.asarray(np.resize(HOLE, (4000, POSITIONS)))
  decided = reasoning.reveal(jax.random.key(0), slots, hole)
  assert not np.asarray(decided.flags)[~np.broadcast_to(np.asarray(hole)[:, None], slots.shape)].any()
  # E[u^2] = 1/3 of every second image's holes.
  inside = np.broadcast_to(np.asarray(hole)[:, None], slots.shape)
  np.testing.assert_allclose(np.asarray(decided.flags)[inside].mean(), 1 / 6, atol=0.015)


@pytest.fixture(scope="module")
def model() -> tuple[Config, InpaintingNetwork, dict]:
  config = shrink(experiments.load("street"))
  memory = dataclasses.replace(config.memory, kind="hard", reasoning_blocks=1)
  config = dataclasses.replace(config, memory=memory, variation=VariationConfig(enabled=False))
  network = InpaintingNetwork(config)
  image, mask = jnp.zeros((1, 32, 32, 3)), jnp.ones((1, 32, 32, 1))
  params = jax.jit(network.init)(jax.random.key(0), image, mask)["params"]
  # The last layer starts at zero: nothing would reach the prediction.
  kernel = jax.random.normal(jax.random.key(1), params["decoder"]["to_pixels"]["kernel"].shape)
  params["decoder"]["to_pixels"]["kernel"] = 0.1 * kernel
  return config, network, params


def test_samples_differ_in_their_slots_equal_noise_repeats_them_and_no_noise_is_the_deterministic_fill(model):
  config, network, params = model
  image = jax.random.uniform(jax.random.key(2), (1, 32, 32, 3), minval=-1.0)
  mask = jnp.zeros((1, 32, 32, 1)).at[:, 8:24, 8:24].set(1.0)
  fill = jax.jit(lambda noise: inpaint(network, params, image, mask, noise))
  first, again, second = (fill(draw_noise(jax.random.key(seed), config.model, 1)) for seed in (3, 3, 4))
  np.testing.assert_array_equal(first.prediction, again.prediction)
  np.testing.assert_array_equal(
    fill(tuple(0.0 * n for n in draw_noise(jax.random.key(3), config.model, 1))).prediction, fill(None).prediction
  )
  keys = np.asarray(params["memory"]["codebook"]["keys"], np.float64)
  slots = keys / np.linalg.norm(keys, axis=-1, keepdims=True) * np.sqrt(keys.shape[-1])
  cells = np.asarray(first.shares[-1]).reshape(-1) > 0
  reads = [
    np.asarray(out.retrieval.read)[0].reshape(len(cells), *keys.shape[::2]) for out in (first, second, fill(None))
  ]
  distances = [np.abs(read[:, :, None] - slots[None]).max(axis=-1).min(axis=-1) for read in reads]
  # In the hole each part of a sample's read is one of its book's slots; elsewhere, and without noise, it is a mean.
  for distance in distances[:2]:
    assert distance[cells].max() < 1e-4 and distance[~cells].min() > 1e-3
  assert distances[2].min() > 1e-3
  assert np.abs(reads[0] - reads[1])[cells].max() > 0.1


def test_what_is_decided_changes_what_is_predicted_elsewhere(model):
  _, network, params = model
  image, mask = jnp.zeros((1, 32, 32, 3)), jnp.ones((1, 32, 32, 1))
  none = reasoning.none_decided(1, 4, 16)
  one = reasoning.Decided(none.slots + 2, none.flags.at[0, 1, 5].set(True))
  predict = jax.jit(lambda decided: apply(network, params, image, mask, decided, method=type(network).retrieve)[0])
  difference = np.abs(np.asarray(predict(none).log_weights - predict(one).log_weights)).max(axis=(0, 1, 3))
  assert difference[5] > 1e-4 and np.delete(difference, 5).min() > 1e-6


def test_a_program_for_any_batch_draws_the_same_samples(model):
  config, network, params = model

  def sample(image, mask):
    return inpaint(network, params, image, mask, draw_noise(jax.random.key(5), config.model, image.shape[0])).prediction

  (batch,) = jax.export.symbolic_shape("b")
  shapes = [jax.ShapeDtypeStruct((batch, 32, 32, channels), jnp.float32) for channels in (3, 1)]
  program = jax.export.export(jax.jit(sample))(*shapes)
  image = jax.random.uniform(jax.random.key(6), (2, 32, 32, 3), minval=-1.0)
  mask = jnp.zeros((2, 32, 32, 1)).at[:, 8:24, 8:24].set(1.0)
  np.testing.assert_allclose(jax.jit(program.call)(image, mask), jax.jit(sample)(image, mask), atol=1e-4)
