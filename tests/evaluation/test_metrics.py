"""Each metric beside the tool that everybody else uses, or beside its definition in NumPy."""

from __future__ import annotations

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gmsrm_jax.arrays import image_from_uint8, mask_from_uint8
from gmsrm_jax.evaluation import metrics
from tests import photographs, reference


@pytest.fixture(scope="module", params=["built in", "shared"])
def pairs(request):
  """Filled and true pictures of 176 x 176 and their holes, uint8: scikit-image's and real data's."""
  clean = photographs.built_in(176) if request.param == "built in" else photographs.real(176)
  if clean is None:
    pytest.skip("shared data are not at hand")
  filled, mask = photographs.damage(clean)
  return filled, clean, mask


@pytest.fixture(scope="module")
def images(pairs):
  filled, clean, mask = (jnp.asarray(x) for x in pairs)
  return image_from_uint8(filled), image_from_uint8(clean), mask_from_uint8(mask)


similarity = functools.partial(structural_similarity, data_range=255, channel_axis=-1)
TOOLS = {
  "psnr": (metrics.psnr, functools.partial(peak_signal_noise_ratio, data_range=255)),
  "ssim": (metrics.ssim, functools.partial(similarity, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)),
  **{
    f"ssim_uniform {side}": (
      functools.partial(metrics.ssim_uniform, side=side),
      functools.partial(similarity, win_size=side),
    )
    for side in (7, 11, 51)
  },
  "l1": (metrics.l1, lambda a, b: np.abs(np.float64(a) - b).mean() / 255),
  "mae_relative": (metrics.mae_relative, lambda a, b: np.abs(np.float64(a) - b).sum() / (np.float64(a) + b).sum()),
}


@pytest.mark.parametrize("name", TOOLS)
def test_a_metric_equals_the_tool(name, pairs, images):
  ours, tool = TOOLS[name]
  expected = [tool(a, b) for a, b in zip(*pairs[:2], strict=True)]
  actual = jax.jit(ours)(*images[:2])
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


def test_ms_ssim_equals_its_definition_at_every_number_of_scales(images):
  for side, scales in ((176, 5), (128, 4), (64, 3), (32, 2), (12, 1)):
    assert metrics.ms_ssim_scales(side, side) == scales
    top, left = (0, 0) if side == 176 else (40, 48)
    a, b = (x[:, top : top + side, left : left + side] for x in images[:2])
    expected = [reference.ms_ssim(x, y, scales) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(jax.jit(metrics.ms_ssim)(a, b), expected, atol=1e-4, err_msg=f"{side}")


def test_the_scales_are_those_that_hold_a_window_and_odd_sides_are_as_good():
  sides = {11: 1, 20: 1, 21: 2, 40: 2, 41: 3, 80: 3, 81: 4, 160: 4, 161: 5, 400: 5}
  assert {side: metrics.ms_ssim_scales(side, 500) for side in sides} == sides
  a, b = jnp.full((1, 161, 163, 3), 0.2), jnp.full((1, 161, 163, 3), -0.4)
  luminance = (2 * 0.6 * 0.3 + 0.01**2) / (0.6**2 + 0.3**2 + 0.01**2)
  np.testing.assert_allclose(metrics.ms_ssim(a, b), luminance**0.1333, rtol=1e-4, err_msg="odd sides darken nothing")
  with pytest.raises(ValueError, match="10x40 .*11"):
    metrics.ms_ssim(a[:, :10, :40], b[:, :10, :40])


def test_structure_turned_around_counts_as_no_similarity():
  stripes = jnp.tile(jnp.array([-1.0, 1.0]), 32).reshape(1, 1, 64, 1) * jnp.ones((1, 64, 1, 3))
  np.testing.assert_array_equal(metrics.ms_ssim(stripes, -stripes), 0)


def test_hole_metrics_equal_numpy_and_ignore_the_rest(images):
  a, b, mask = images
  np.testing.assert_allclose(metrics.l1_hole(a, b, mask), reference.masked_l1(a, b, mask) / 2, atol=1e-6)
  expected = [reference.psnr(*one) for one in zip(a, b, mask, strict=True)]
  np.testing.assert_allclose(metrics.psnr_hole(a, b, mask), expected, atol=1e-4)
  elsewhere, whole = jnp.where(mask > 0, b, -b), jnp.ones_like(mask)
  for of_hole, of_all in ((metrics.psnr_hole, metrics.psnr), (metrics.l1_hole, metrics.l1)):
    np.testing.assert_array_equal(of_hole(a, elsewhere, mask), of_hole(a, b, mask))
    np.testing.assert_allclose(of_hole(a, b, whole), of_all(a, b), rtol=1e-5)


def test_boundary_error_equals_numpy_pair_by_pair(images):
  expected = [reference.boundary_error(*one) for one in zip(*images, strict=True)]
  assert min(expected) > 0.01
  np.testing.assert_allclose(metrics.boundary_error(*images), expected, rtol=1e-4)


def test_boundary_error_sees_the_seam_and_nothing_else():
  truth = jnp.broadcast_to(jnp.linspace(-1, 1, 24).reshape(1, 1, 24, 1), (1, 24, 24, 3))
  mask = jnp.zeros((1, 24, 24, 1)).at[:, 6:16, 6:16].set(1)
  measure = lambda filled: float(metrics.boundary_error(filled, truth, mask)[0])  # noqa: E731
  assert measure(truth) == 0 and measure(truth + 0.1) == pytest.approx(0, abs=1e-7)
  assert measure(jnp.where(mask > 0, truth + 0.2, truth)) == pytest.approx(0.1, rel=1e-5)
  inner = jnp.zeros_like(mask).at[:, 7:15, 7:15].set(1)
  assert measure(jnp.where(inner > 0, 0.0, truth)) == 0, "what lies inside is no seam"


def test_detail_is_the_ratio_of_opencvs_laplacian_energies(images):
  a, b, mask = images
  energies = []
  for picture in (a, b):
    luma = [cv2.cvtColor(np.asarray(x * 127.5 + 127.5), cv2.COLOR_RGB2GRAY) for x in picture]
    squares = np.stack([cv2.Laplacian(x, cv2.CV_32F) ** 2 for x in luma])
    energies.append(np.array([x[m > 0].mean() for x, m in zip(squares, mask[..., 0], strict=True)]))
  expected = 10 * np.log10((energies[0] + 1) / (energies[1] + 1))
  assert np.abs(expected).min() > 0.01
  np.testing.assert_allclose(metrics.detail(a, b, mask), expected, atol=0.01)
  np.testing.assert_array_equal(metrics.detail(a, a, mask), 0)
  np.testing.assert_array_equal(metrics.detail(a, b, jnp.zeros_like(mask)), 0)


def test_equal_images_and_black_against_white(images):
  a, _, mask = images
  black, none = -jnp.ones((1, 12, 12, 3)), jnp.zeros_like(mask)
  assert np.all(np.isposinf(metrics.psnr(a, a))) and np.all(np.isposinf(metrics.psnr_hole(a, -a, none)))
  np.testing.assert_allclose(metrics.ssim(a, a), 1, atol=1e-6)
  for value in (metrics.l1(a, a), metrics.l1_hole(a, -a, none), metrics.boundary_error(a, -a, none)):
    np.testing.assert_array_equal(value, 0)
  np.testing.assert_allclose(metrics.psnr(black, -black), 0, atol=1e-6)
  np.testing.assert_allclose([metrics.l1(black, -black), metrics.mae_relative(black, -black)], 1)
  np.testing.assert_array_equal(metrics.mae_relative(black, black), 0)
  np.testing.assert_allclose(metrics.psnr(black, black + 2 / 255), 20 * np.log10(255), rtol=1e-5)


def test_infinite_psnr_is_counted_apart_and_nan_is_not_hidden():
  assert metrics.means({"psnr": [20.0, np.inf, 30.0], "l1": [1.0]}) == {"psnr": 25.0, "psnr_infinite": 1.0, "l1": 1.0}
  assert metrics.means({"psnr": [np.inf, np.inf]}) == {"psnr": np.inf, "psnr_infinite": 2.0}
  assert np.isnan(metrics.means({"psnr": [20.0, np.nan]})["psnr"]) and np.isnan(metrics.means({"psnr": []})["psnr"])
  assert metrics.means({"x": np.array([2.0**24, 1.0], np.float32)})["x"] == (2**24 + 1) / 2  # no float32 holds the sum
