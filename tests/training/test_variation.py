"""The rows of stage 2 and the energy score that trains them to differ as much as the truth does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.config import SIZES
from gmsrm_jax.training import losses, variation
from gmsrm_jax.training.variation import ONCE, TWICE


def test_the_first_of_every_two_images_has_one_row_and_the_second_two():
  image = jnp.arange(6.0).reshape(6, 1)
  np.testing.assert_array_equal(TWICE.rows(image)[:, 0], [0, 1, 1, 2, 3, 3, 4, 5, 5])
  first, second = variation.both(TWICE.rows(image) + jnp.arange(9.0).reshape(9, 1))
  np.testing.assert_array_equal(first[:, 0], [2, 7, 12])
  np.testing.assert_array_equal(second[:, 0], [3, 8, 13])


def test_only_the_rows_of_second_images_have_noise_and_no_two_the_same():
  noise = variation.row_noise(jax.random.key(0), SIZES["tiny"], 4)
  for n in noise:
    moved = np.abs(n).reshape(6, -1).max(axis=1)
    np.testing.assert_array_equal(moved > 0, [False, True, True, False, True, True])
    assert len({np.asarray(row + 0.0).tobytes() for row in n}) == 5  # -0 + 0 = 0


def test_a_value_of_two_fills_is_their_mean():
  np.testing.assert_allclose(TWICE.per_image(jnp.array([1.0, 2.0, 5.0, 3.0, 0.0, 1.0])), [1.0, 3.5, 3.0, 0.5])


def fill(values, side=8):
  """A row of constant images."""
  return jnp.broadcast_to(jnp.asarray(values, jnp.float32).reshape(-1, 1, 1, 1), (len(values), side, side, 3))


HOLE = jnp.zeros((2, 8, 8, 1)).at[:, 2:, 1:6].set(1.0)


def test_the_score_is_l1_for_one_fill_and_the_energy_score_for_two():
  truth, drawn = [0.1, -0.3], [0.4, 0.2, -0.4]
  expected = [0.3, (0.5 + 0.1 - 0.6) / 2]
  np.testing.assert_allclose(TWICE.hole_score(fill(drawn), fill(truth), HOLE, 1, 4), expected, atol=1e-6)
  # On one side of the truth there is something to gain.
  np.testing.assert_allclose(
    TWICE.hole_score(fill([0.4, 0.2, 0.5]), fill(truth), HOLE, 1, 4), [0.3, (0.5 + 0.8 - 0.3) / 2], atol=1e-6
  )


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_score_is_least_for_fills_that_spread_as_the_truth_does(spread):
  """The mean over many draws; equal fills (spread 0) are worse than any of these."""
  rng = np.random.default_rng(0)
  truth, noise = rng.normal(size=40000), rng.normal(size=60000)
  mask = jnp.ones((40000, 1, 1, 1))

  def mean(scale):
    scores = TWICE.hole_score(fill(scale * noise, 1), fill(truth, 1), mask, 1, 1)
    return float(scores[1::2].mean())

  assert mean(1.0) <= mean(spread) < mean(0.0)


def test_grain_is_no_way_to_vary():
  """Two fills that differ inside the cells alone score like two equal ones; the gradient drives nothing apart there."""
  rng = np.random.default_rng(1)
  image = jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
  mask = jnp.zeros((2, 16, 16, 1)).at[:, 2:14, 3:].set(1.0)
  np.testing.assert_allclose(variation.coarse_hole_l1(image + 0.25, image, mask, 4), 0.25, rtol=1e-5)
  grain = 0.5 * (-1.0) ** jnp.arange(16).reshape(1, 1, 16, 1)
  whole = jnp.ones_like(mask)
  np.testing.assert_allclose(variation.coarse_hole_l1(image + grain, image, whole, 4), 0.0, atol=1e-6)
  np.testing.assert_allclose(losses.hole_l1(image + grain, image, whole), 0.5, rtol=1e-5)
  changed = jnp.where(mask > 0, image, image + 1.0)
  np.testing.assert_array_equal(variation.coarse_hole_l1(changed, image, mask, 4), 0.0)


@pytest.mark.parametrize("fills", [ONCE, TWICE])
def test_a_coarse_l1_of_one_fill_leaves_grain_to_others(fills):
  image, whole = jnp.zeros((2, 8, 8, 3)), jnp.ones((2, 8, 8, 1))
  grain = jnp.broadcast_to(jnp.indices((8, 8)).sum(axis=0)[None, :, :, None] % 2 - 0.5, fills.rows(image).shape)
  fine, coarse = (float(fills.hole_score(grain, image, whole, cell, 4)[0]) for cell in (1, 4))
  assert fine == pytest.approx(0.5) and coarse == pytest.approx(0.0, abs=1e-6)
  shifted = float(fills.hole_score(grain + 0.25, image, whole, 4, 4)[0])
  assert shifted == pytest.approx(0.25, rel=1e-5)
