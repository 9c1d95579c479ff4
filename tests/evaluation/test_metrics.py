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


@pytest.fixture(scope="module")
def values():
  rng = np.random.default_rng(1)
  return {"psnr": rng.uniform(10, 40, 23).astype(np.float32), "l1": rng.uniform(size=23).astype(np.float32)}


def _batched(values, order, size):
  """Sums over batches of `size`, the last one padded with NaN and inf."""
  sums = metrics.Sums()
  for start in range(0, len(order), size):
    rows = order[start : start + size]
    padding = np.resize([np.nan, np.inf], size - len(rows))
    batch = {name: np.concatenate((value[rows], padding)) for name, value in values.items()}
    sums = sums.merge(metrics.Sums.of(batch, valid=np.arange(size) < len(rows)))
  return sums


@pytest.mark.parametrize("size", [1, 2, 5, 8, 23, 64])
def test_batching_order_and_padding_change_no_mean(values, size):
  order = np.random.default_rng(size).permutation(23)
  sums = _batched(values, order, size)
  assert sums.count == {"psnr": 23, "l1": 23}
  means = sums.finalise()
  assert list(means) == ["psnr", "l1"]
  for name, value in values.items():
    np.testing.assert_allclose(means[name], np.mean(np.float64(value)), rtol=1e-13)


def test_merging_is_associative_and_the_empty_sums_change_nothing(values):
  parts = [metrics.Sums.of({name: value[i::3] for name, value in values.items()}) for i in range(3)]
  left, right = parts[0].merge(parts[1]).merge(parts[2]), parts[0].merge(parts[1].merge(parts[2]))
  assert left.count == right.count
  assert left.finalise() == pytest.approx(right.finalise(), rel=1e-13)
  assert metrics.Sums().merge(parts[0]) == parts[0] == parts[0].merge(metrics.Sums())
  assert metrics.Sums().finalise() == {}


def test_sums_of_different_names_keep_their_own_counts():
  sums = metrics.Sums.of({"a": [1.0, 2.0]}).merge(metrics.Sums.of({"a": [6.0], "b": [5.0]}))
  assert sums.finalise() == {"a": 3.0, "b": 5.0}


def test_many_small_values_do_not_get_lost_in_float32():
  sums = metrics.Sums.of({"x": np.array([2.0**24], np.float32)})
  for _ in range(64):
    sums = sums.merge(metrics.Sums.of({"x": np.ones(1, np.float32)}))
  assert sums.total["x"] == 2**24 + 64


def test_infinite_psnr_is_counted_apart_and_nan_is_not_hidden():
  sums = metrics.Sums.of({"psnr": jnp.array([20.0, jnp.inf, 30.0])})
  assert sums.finalise() == {"psnr": 25.0, "psnr_infinite": 1.0}
  assert metrics.Sums.of({"psnr": [np.inf, np.inf]}).finalise() == {"psnr": np.inf, "psnr_infinite": 2.0}
  assert np.isnan(metrics.Sums.of({"psnr": [20.0, np.nan]}).finalise()["psnr"])
  assert np.isnan(metrics.Sums.of({"psnr": [20.0]}, valid=[False]).finalise()["psnr"])


def test_sums_refuse_what_is_not_one_value_per_image():
  with pytest.raises(ValueError, match=r"psnr has shape \(\): give one value per image"):
    metrics.Sums.of({"psnr": 3.0})
  with pytest.raises(ValueError, match=r"psnr has 2 values, but valid has shape \(3,\)"):
    metrics.Sums.of({"psnr": [1.0, 2.0]}, valid=[True, True, False])
