"""The rows of stage 2 and the energy score that trains them to differ as much as the truth does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax import losses, variation
from gmsrm_jax.config import SIZES


def test_the_first_of_every_two_images_has_one_row_and_the_second_two():
  image = jnp.arange(6.0).reshape(6, 1)
  np.testing.assert_array_equal(variation.rows(image)[:, 0], [0, 1, 1, 2, 3, 3, 4, 5, 5])
  first, second = variation.fills(variation.rows(image) + jnp.arange(9.0).reshape(9, 1))
  np.testing.assert_array_equal(first[:, 0], [2, 7, 12])
  np.testing.assert_array_equal(second[:, 0], [3, 8, 13])


def test_only_the_rows_of_second_images_have_noise_and_no_two_the_same():
  noise = variation.row_noise(jax.random.key(0), SIZES["tiny"], 4)
  for n in noise:
    moved = np.abs(n).reshape(6, -1).max(axis=1)
    np.testing.assert_array_equal(moved > 0, [False, True, True, False, True, True])
    assert len({np.asarray(row + 0.0).tobytes() for row in n}) == 5  # -0 + 0 = 0


def test_the_score_is_the_distance_for_one_fill_and_the_energy_score_for_two():
  rng = np.random.default_rng(0)
  truth, drawn = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))
  x, z = drawn.astype(np.float64), truth.astype(np.float64)
  d = lambda a, b: np.abs(a - b).sum()  # noqa: E731
  expected = [
    d(x[0], z[0]),
    (d(x[1], z[1]) + d(x[2], z[1]) - d(x[1], x[2])) / 2,
    d(x[3], z[2]),
    (d(x[4], z[3]) + d(x[5], z[3]) - d(x[4], x[5])) / 2,
  ]

  def distance(a, b):
    return sum(jnp.sum(jnp.abs(i - j), axis=1) for i, j in zip(a, b, strict=True))

  fills, truths = ((jnp.asarray(part[:, :1]), jnp.asarray(part[:, 1:])) for part in (drawn, truth))
  found = variation.score(distance, fills, truths)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_the_score_is_least_for_fills_that_spread_as_the_truth_does(spread):
  """The mean over many draws; equal fills (spread 0) are worse than any of these."""
  rng = np.random.default_rng(0)
  truth, noise = rng.normal(size=(40000, 1)), rng.normal(size=(60000, 1))

  def mean(scale):
    scores = variation.score(lambda a, b: jnp.abs(a - b)[:, 0], jnp.asarray(scale * noise), jnp.asarray(truth))
    return float(scores[1::2].mean())

  assert mean(1.0) <= mean(spread) < mean(0.0)


def test_two_equal_fills_are_pushed_apart():
  """Once each has moved by any amount, the gradient goes on pushing until they differ as much as from the truth."""
  truth = jnp.zeros((2, 1))
  slope = jax.grad(lambda x: variation.score(lambda a, b: jnp.abs(a - b)[:, 0], x, truth)[1])
  pushed = slope(jnp.asarray([[0.0], [1.0], [1.01]]))
  np.testing.assert_allclose(pushed[:, 0], [0, 1, 0], atol=1e-6)  # the nearer to the truth goes there, the other stays


def test_coarse_l1_sees_what_a_cell_has_in_common_and_no_grain():
  rng = np.random.default_rng(1)
  image = jnp.asarray(rng.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
  mask = jnp.zeros((2, 16, 16, 1)).at[:, 2:14, 3:].set(1.0)
  np.testing.assert_allclose(variation.coarse_hole_l1(image + 0.25, image, mask), 0.25, rtol=1e-5)
  grain = 0.5 * (-1.0) ** jnp.arange(16).reshape(1, 1, 16, 1)
  whole = jnp.ones_like(mask)
  np.testing.assert_allclose(variation.coarse_hole_l1(image + grain, image, whole), 0.0, atol=1e-6)
  np.testing.assert_allclose(losses.hole_l1(image + grain, image, whole), 0.5, rtol=1e-5)
  changed = jnp.where(mask > 0, image, image + 1.0)
  np.testing.assert_array_equal(variation.coarse_hole_l1(changed, image, mask), 0.0)
