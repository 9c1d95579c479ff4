from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.models import blocks


def _normal(seed, shape):
  return jax.random.normal(jax.random.key(seed), shape)


def _scene(seed, height, width, share=0.6):
  """Two random images and blotchy holes, with at least one known pixel each."""
  rng = np.random.default_rng(seed)
  image = rng.uniform(-1, 1, (2, height, width, 3)).astype(np.float32)
  mask = (rng.uniform(size=(2, height, width, 1)) < share).astype(np.float32)
  mask[:, -1, -1] = 0
  return image, mask


@pytest.fixture(scope="module")
def fill():
  return jax.jit(blocks.push_pull_fill)


def test_space_to_depth_lays_the_four_pixels_of_a_cell_side_by_side_and_is_inverted():
  x = _normal(0, (1, 6, 4, 5))
  folded = blocks.space_to_depth(x)
  np.testing.assert_array_equal(folded[0, 2, 1], np.concatenate([x[0, 4, 2], x[0, 4, 3], x[0, 5, 2], x[0, 5, 3]]))
  np.testing.assert_array_equal(blocks.depth_to_space(folded), x)


def test_hole_shares_is_the_exact_share_of_hole_in_every_cell():
  _, mask = _scene(2, 24, 40)
  for scale, level in enumerate(blocks.hole_shares(jnp.asarray(mask), 3), start=1):
    side = 2**scale
    for row in range(24 // side):
      for column in range(40 // side):
        cell = mask[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        np.testing.assert_array_equal(level[:, row, column, 0], cell.mean(axis=(1, 2, 3)))
    assert level.shape[1:3] == (24 // side, 40 // side)


def _reference_fill(image, mask):
  """Push-pull of one image, cell by cell, in float64."""
  known = mask[..., 0] < 0.5
  if known.all():
    return np.float64(image)
  height, width = known.shape
  if height == width == 1:
    return np.zeros((1, 1, 3))
  rows, columns = -(-height // 2), -(-width // 2)
  coarse, coarse_mask = np.zeros((rows, columns, 3)), np.ones((rows, columns, 1))
  for i in range(rows):
    for j in range(columns):
      inside = known[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
      if inside.any():
        coarse[i, j] = np.float64(image)[2 * i : 2 * i + 2, 2 * j : 2 * j + 2][inside].mean(axis=0)
        coarse_mask[i, j] = 0
  coarse = _reference_fill(coarse, coarse_mask)
  filled = np.float64(image).copy()
  for y, x in np.argwhere(~known):
    # The centre of a fine pixel lies a quarter of a cell from the centre of its coarse one.
    i, j = y // 2, x // 2
    other_i = min(max(i + (1 if y % 2 else -1), 0), rows - 1)
    other_j = min(max(j + (1 if x % 2 else -1), 0), columns - 1)
    near = 0.75 * coarse[i, j] + 0.25 * coarse[i, other_j]
    far = 0.75 * coarse[other_i, j] + 0.25 * coarse[other_i, other_j]
    filled[y, x] = 0.75 * near + 0.25 * far
  for _ in range(blocks.FILL_SWEEPS):
    before = filled.copy()
    for y, x in np.argwhere(~known):
      up, down, left, right = max(y - 1, 0), min(y + 1, height - 1), max(x - 1, 0), min(x + 1, width - 1)
      filled[y, x] = (before[up, x] + before[down, x] + before[y, left] + before[y, right]) / 4
  return filled


@pytest.mark.parametrize(("height", "width"), [(13, 7), (16, 16), (1, 5)])
def test_push_pull_equals_the_slow_reference(fill, height, width):
  image, mask = _scene(3, height, width, share=0.8)
  mask[0] = 1  # nothing known
  expected = [_reference_fill(i, m) for i, m in zip(image, mask, strict=True)]
  np.testing.assert_allclose(fill(image, mask), expected, atol=1e-6)


def test_push_pull_never_looks_into_the_hole_and_keeps_known_pixels_to_the_bit(fill):
  image, mask = _scene(5, 13, 7)
  filled, known = fill(image, mask), np.broadcast_to(mask < 0.5, image.shape)
  np.testing.assert_array_equal(fill(np.where(known, image, np.nan), mask), filled)
  np.testing.assert_array_equal(np.asarray(filled)[known], image[known])


def test_channel_norm_is_zero_mean_unit_variance_at_each_position_whatever_the_others_hold():
  x = 3 * _normal(8, (1, 4, 4, 16)) + 2
  y, _ = blocks.ChannelNorm().init_with_output(jax.random.key(0), x)
  np.testing.assert_allclose(np.mean(y, axis=-1), 0, atol=1e-5)
  np.testing.assert_allclose(np.std(y, axis=-1), 1, atol=1e-3)
  z, _ = blocks.ChannelNorm().init_with_output(jax.random.key(0), x.at[0, 0, 0].multiply(-100))
  np.testing.assert_array_equal(np.asarray(z)[0, 1:], np.asarray(y)[0, 1:])


@pytest.fixture(scope="module")
def residual_block():
  module = blocks.ResidualBlock(8)
  x, mask = _normal(9, (1, 16, 16, 8)), jnp.ones((1, 16, 16, 1))
  params = module.init(jax.random.key(1), x, mask)
  return jax.jit(lambda x, mask: module.apply(params, x, mask))


def test_a_residual_block_sees_two_positions_far_and_no_farther(residual_block):
  x, mask = _normal(9, (1, 16, 16, 8)), jnp.zeros((1, 16, 16, 1))
  changed = residual_block(x.at[0, 5, 5, 0].add(1.0), mask) != residual_block(x, mask)
  rows, columns = np.nonzero(np.any(np.asarray(changed)[0], axis=-1))
  assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 7, 3, 7)


def test_the_mask_gates_a_residual_block_where_it_is(residual_block):
  x, mask = _normal(9, (1, 16, 16, 8)), jnp.zeros((1, 16, 16, 1))
  changed = np.any(np.asarray(residual_block(x, mask.at[0, 8, 8].set(1.0)) != residual_block(x, mask))[0], axis=-1)
  assert changed[8, 8] and changed.sum() == 9


def test_a_fresh_upsampling_is_nearest_neighbour():
  """No checkerboard at the start: the four pixels of a cell are equal, and cells differ."""
  x = _normal(7, (1, 3, 5, 6))
  module = blocks.Upsample(3)
  up = np.asarray(module.apply(module.init(jax.random.key(8), x), x))
  np.testing.assert_array_equal(up, np.repeat(np.repeat(up[:, ::2, ::2], 2, axis=1), 2, axis=2))
  assert up[:, ::2, ::2].std() > 0.1


def test_a_fresh_smooth_upsampling_is_linear_interpolation():
  x = _normal(7, (1, 4, 6, 6))
  module = blocks.Upsample(3, smooth=True)
  up = np.asarray(module.apply(module.init(jax.random.key(8), x), x))
  cells = np.asarray(blocks.Upsample(3).apply(module.init(jax.random.key(8), x), x))[:, ::2, ::2]
  np.testing.assert_allclose(up, jax.image.resize(cells, up.shape, "linear"), atol=1e-6)
