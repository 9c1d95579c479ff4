from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax import arrays


@pytest.mark.parametrize("xp", [jnp, np])
def test_uint8_survives_the_trip_through_floats_and_what_lies_beyond_the_range_is_clipped(xp):
  pixels = xp.arange(256, dtype=xp.uint8).reshape(1, 16, 16, 1)
  back = arrays.image_to_uint8(arrays.image_from_uint8(pixels))
  assert isinstance(back, type(pixels))
  np.testing.assert_array_equal(back, pixels)
  image = xp.asarray([-9.0, -1.0, 1.0, 1.01, 9.0])
  assert arrays.image_to_uint8(image).tolist() == [0, 0, 255, 255, 255]


def test_a_composite_keeps_known_pixels_to_the_bit_and_takes_the_prediction_in_the_hole():
  rng = np.random.default_rng(0)
  pixels = jnp.asarray(rng.integers(0, 256, (1, 8, 8, 3), np.uint8))
  image, mask = arrays.image_from_uint8(pixels), jnp.zeros((1, 8, 8, 1)).at[:, 2:5, 3:].set(1)
  known = np.broadcast_to(mask < 0.5, image.shape)
  filled = np.asarray(arrays.composite(jnp.where(known, jnp.nan, 0.25), image, mask))
  np.testing.assert_array_equal(filled[known], np.asarray(image)[known])
  np.testing.assert_array_equal(filled[~known], 0.25)


def test_a_masked_mean_is_over_channels_and_the_mask_and_zero_without_one():
  rng = np.random.default_rng(1)
  values = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
  mask = (rng.uniform(size=(2, 4, 5, 1)) < 0.5).astype(np.float32)
  mask[1] = 0
  expected = [values[0][mask[0, ..., 0] > 0].mean(dtype=np.float64), 0]
  np.testing.assert_allclose(arrays.masked_mean(jnp.asarray(values), jnp.asarray(mask)), expected, rtol=1e-5)
