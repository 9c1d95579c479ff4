"""Rates, clipping and averages, each against its formula."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gmsrm_jax.config import StageConfig
from gmsrm_jax.training.optimiser import make_optimiser, make_schedule, update_ema

STAGE = StageConfig(steps=1000, learning_rate=2e-3, warmup=100)


def _updates(optimiser, params, grads, steps=1):
  state = optimiser.init(params)
  for _ in range(steps):
    updates, state = optimiser.update(grads, state, params)
  return updates


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
  rate = make_schedule(STAGE, 2e-3)
  assert rate(0) == 0
  np.testing.assert_allclose(rate(25), 0.25 * 2e-3, rtol=1e-6)
  np.testing.assert_allclose(rate(100), 2e-3, rtol=1e-6)
  # Half-way down the cosine: the mean of peak and end.
  np.testing.assert_allclose(rate(550), 2e-3 * (1 + 0.05) / 2, rtol=1e-5)
  np.testing.assert_allclose(rate(1000), 0.05 * 2e-3, rtol=1e-5)


def test_a_short_stage_warms_up_for_a_fifth_and_one_without_warm_up_starts_at_the_peak():
  short = make_schedule(dataclasses.replace(STAGE, steps=50), 1e-3)
  np.testing.assert_allclose([short(5), short(10)], [0.5e-3, 1e-3], rtol=1e-6)
  assert make_schedule(dataclasses.replace(STAGE, warmup=0), 1e-3)(0) == np.float32(1e-3)
  assert np.isfinite(make_schedule(dataclasses.replace(STAGE, steps=0), 1e-3)(0))


@pytest.mark.parametrize("step", [0, 3, 50, 10**6])
def test_the_average_moves_by_its_formula(step):
  old, new = np.array([1.0, -2.0], np.float32), np.array([3.0, 5.0], np.float32)
  decay = min(0.99, (1 + step) / (10 + step))
  averaged = update_ema({"a": jnp.asarray(old)}, {"a": jnp.asarray(new)}, jnp.asarray(step), 0.99)
  np.testing.assert_allclose(averaged["a"], decay * old + (1 - decay) * new, rtol=1e-5)


def test_the_global_norm_is_clipped_before_adam():
  stage = dataclasses.replace(STAGE, warmup=0, clip_norm=1.0)
  params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
  large, small = {"a": jnp.array([30.0, 0.0]), "b": jnp.array([40.0])}, {"a": jnp.ones(2) * 0.1, "b": jnp.zeros(1)}
  state = make_optimiser(stage).init(params)
  for grads, expected in ((large, [0.6, 0.0, 0.8]), (small, [0.1, 0.1, 0.0])):
    _, after = make_optimiser(stage).update(grads, state, params)
    moments = optax.tree.get(after, "mu")  # (1 - beta1) of what reached Adam
    reached = np.concatenate([moments["a"], moments["b"]]) / (1 - stage.beta1)
    np.testing.assert_allclose(reached, expected, rtol=1e-5)


def test_adams_first_step_is_the_rate_and_the_memorys_a_share_of_it():
  stage = dataclasses.replace(STAGE, warmup=0)
  params = {"memory": {"x": jnp.zeros(3)}, "decoder": {"x": jnp.zeros(3)}}
  grads = {"memory": {"x": jnp.ones(3)}, "decoder": {"x": -jnp.ones(3)}}
  updates = _updates(make_optimiser(stage, memory_rate=0.1), params, grads)
  np.testing.assert_allclose(updates["decoder"]["x"], 2e-3, rtol=1e-5)
  np.testing.assert_allclose(updates["memory"]["x"], -0.1 * 2e-3, rtol=1e-5)
  np.testing.assert_allclose(_updates(make_optimiser(stage), params, grads)["memory"]["x"], -2e-3, rtol=1e-5)


def test_the_discriminator_has_its_own_rate_and_no_momentum():
  stage = dataclasses.replace(STAGE, warmup=0, discriminator_rate=1e-2)
  optimiser = make_optimiser(stage, discriminator=True)
  params = {"a": jnp.zeros(1)}
  state = optimiser.init(params)
  first, state = optimiser.update({"a": jnp.ones(1)}, state, params)
  np.testing.assert_allclose(first["a"], -1e-2, rtol=1e-4)
  # Without momentum the second update has the sign of the second gradient alone.
  second, _ = optimiser.update({"a": -0.1 * jnp.ones(1)}, state, params)
  assert second["a"][0] > 0
