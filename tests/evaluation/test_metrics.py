from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import skimage.metrics

from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.evaluation import metrics
from tests import reference


@pytest.fixture(scope="module")
def pixels():
  """Four pairs of 96 x 80 photographs, uint8: each with noise, darkened, shifted and with a box painted over."""
  astronaut, cat = skimage.data.astronaut(), skimage.data.chelsea()
  clean = np.stack([astronaut[:96, 180:260], astronaut[300:396, 100:180], cat[60:156, 120:200], cat[:96, :80]])
  noise = np.random.default_rng(0).normal(scale=20, size=clean.shape[1:])
  damaged = np.stack([clean[0] + noise, clean[1] * 0.7, np.roll(clean[2], 2, axis=0), clean[3]])
  damaged[3, 20:60, 20:60] = 128
  return clean, np.clip(np.round(damaged), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images(pixels):
  return tuple(image_from_uint8(jnp.asarray(x)) for x in pixels)


@pytest.fixture(scope="module")
def mask():
  return jnp.zeros((4, 96, 80, 1)).at[:, 10:50, 15:60].set(1)


def test_psnr_equals_scikit_image(pixels, images):
  expected = [skimage.metrics.peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(*pixels, strict=True)]
  actual = metrics.psnr(*images)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_ssim_equals_scikit_image(pixels, images):
  expected = [
    skimage.metrics.structural_similarity(
      a, b, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    for a, b in zip(*pixels, strict=True)
  ]
  assert max(expected) < 0.95
  np.testing.assert_allclose(jax.jit(metrics.ssim)(*images), expected, atol=1e-4)


def test_ssim_equals_numpy_window_by_window(images):
  a, b = (x[:, 20:44, 20:40] for x in images)
  expected = [reference.ssim(x, y) for x, y in zip(a, b, strict=True)]
  np.testing.assert_allclose(jax.jit(metrics.ssim)(a, b), expected, atol=1e-5)


def test_hole_metrics_equal_numpy_and_ignore_the_rest(images, mask):
  a, b = images
  np.testing.assert_allclose(metrics.l1_hole(a, b, mask), reference.masked_l1(a, b, mask) / 2, atol=1e-6)
  expected = [reference.psnr(*pair) for pair in zip(a, b, mask, strict=True)]
  np.testing.assert_allclose(metrics.psnr_hole(a, b, mask), expected, atol=1e-4)
  elsewhere = jnp.where(mask > 0, b, -b)
  np.testing.assert_array_equal(metrics.psnr_hole(a, elsewhere, mask), metrics.psnr_hole(a, b, mask))
  np.testing.assert_array_equal(metrics.l1_hole(a, elsewhere, mask), metrics.l1_hole(a, b, mask))


def test_hole_metrics_over_everything_are_the_plain_ones(images, mask):
  a, b = images
  whole = jnp.ones_like(mask)
  np.testing.assert_allclose(metrics.psnr_hole(a, b, whole), metrics.psnr(a, b), rtol=1e-5)
  np.testing.assert_allclose(metrics.l1_hole(a, b, whole), metrics.l1(a, b), rtol=1e-5)


def test_black_against_white_and_one_grey_level():
  black, white = -jnp.ones((1, 12, 12, 3)), jnp.ones((1, 12, 12, 3))
  np.testing.assert_allclose(metrics.psnr(black, white), 0, atol=1e-6)
  np.testing.assert_allclose(metrics.l1(black, white), 1)
  np.testing.assert_allclose(metrics.psnr(black, black + 2 / 255), 20 * np.log10(255), rtol=1e-5)


def test_equal_images(images, mask):
  a, _ = images
  assert np.all(np.isposinf(metrics.psnr(a, a))) and np.all(np.isposinf(metrics.psnr_hole(a, a, mask)))
  np.testing.assert_allclose(metrics.ssim(a, a), 1, atol=1e-6)
  np.testing.assert_array_equal(metrics.l1(a, a), 0)


def test_without_a_hole_there_is_no_error_in_it(images, mask):
  assert np.all(np.isposinf(metrics.psnr_hole(*images, jnp.zeros_like(mask))))
  np.testing.assert_array_equal(metrics.l1_hole(*images, jnp.zeros_like(mask)), 0)


def test_ssim_refuses_images_smaller_than_its_window(images):
  with pytest.raises(ValueError, match="10x80 pixels are smaller than SSIM's window of 11"):
    metrics.ssim(images[0][:, :10], images[1][:, :10])


def test_infinite_psnr_is_counted_apart_and_nan_is_not_hidden():
  assert metrics.means({"psnr": [20.0, np.inf, 30.0], "l1": [1.0]}) == {"psnr": 25.0, "psnr_infinite": 1.0, "l1": 1.0}
  assert metrics.means({"psnr": [np.inf, np.inf]}) == {"psnr": np.inf, "psnr_infinite": 2.0}
  assert np.isnan(metrics.means({"psnr": [20.0, np.nan]})["psnr"]) and np.isnan(metrics.means({"psnr": []})["psnr"])
  assert metrics.means({"x": np.array([2.0**24, 1.0], np.float32)})["x"] == (2**24 + 1) / 2  # no float32 holds the sum
