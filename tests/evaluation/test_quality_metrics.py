"""The metrics of photographs beside the tools that everybody else uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.metrics

from gmsrm_jax.arrays import image_from_uint8, mask_from_uint8
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.pretrained import lpips, vgg16
from tests import photographs, reference


@pytest.fixture(scope="module", params=["built in", "shared"])
def pairs(request):
  """Filled and true pictures of 176 x 176 and their holes, uint8: scikit-image's and real data's."""
  clean = photographs.built_in(176) if request.param == "built in" else photographs.real(176)
  if clean is None:
    pytest.skip("shared data are not at hand")
  filled, mask = photographs.damage(clean)
  return filled, clean, mask


def images(pairs):
  filled, clean, mask = (jnp.asarray(x) for x in pairs)
  return image_from_uint8(filled), image_from_uint8(clean), mask_from_uint8(mask)


def test_ms_ssim_equals_its_definition_at_every_number_of_scales(pairs):
  filled, clean, _ = images(pairs)
  for side, scales in ((176, 5), (128, 4), (64, 3), (32, 2), (12, 1)):
    assert metrics.ms_ssim_scales(side, side) == scales
    a, b = filled[:, 40 : 40 + side, 48 : 48 + side], clean[:, 40 : 40 + side, 48 : 48 + side]
    a, b = (filled, clean) if side == 176 else (a, b)
    expected = [reference.ms_ssim(x, y, scales) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(jax.jit(metrics.ms_ssim)(a, b), expected, atol=1e-4, err_msg=f"{side}")


def test_ms_ssim_equals_pytorch_msssim(pairs):
  torch = pytest.importorskip("torch")
  package = pytest.importorskip("pytorch_msssim")
  a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in pairs[:2])
  expected = package.ms_ssim(a, b, data_range=255, size_average=False).numpy()
  assert expected.min() < 0.95
  np.testing.assert_allclose(metrics.ms_ssim(*images(pairs)[:2]), expected, atol=1e-4)


def test_the_scales_are_those_that_hold_a_window_and_odd_sides_are_as_good():
  assert [metrics.ms_ssim_scales(side, 500) for side in (11, 20, 21, 40, 41, 80, 81, 160, 161, 400)] == [
    *(1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
  ]
  a, b = jnp.full((1, 161, 163, 3), 0.2), jnp.full((1, 161, 163, 3), -0.4)
  luminance = (2 * 0.6 * 0.3 + 0.01**2) / (0.6**2 + 0.3**2 + 0.01**2)
  np.testing.assert_allclose(metrics.ms_ssim(a, b), luminance**0.1333, rtol=1e-4, err_msg="odd sides darken nothing")
  with pytest.raises(ValueError, match="10x40 pixels are smaller than SSIM's window of 11"):
    metrics.ms_ssim(a[:, :10, :40], b[:, :10, :40])


def test_structure_turned_around_counts_as_no_similarity():
  stripes = jnp.tile(jnp.array([-1.0, 1.0]), 32).reshape(1, 1, 64, 1) * jnp.ones((1, 64, 1, 3))
  np.testing.assert_array_equal(metrics.ms_ssim(stripes, -stripes), 0)


@pytest.mark.parametrize("side", [7, 11, 51])
def test_uniform_ssim_equals_scikit_image(pairs, side):
  filled, clean, _ = pairs
  expected = [
    skimage.metrics.structural_similarity(a, b, data_range=255, channel_axis=-1, win_size=side)
    for a, b in zip(filled, clean, strict=True)
  ]
  a, b, _ = images(pairs)
  np.testing.assert_allclose(metrics.ssim_uniform(a, b, side), expected, atol=2e-5)


def test_relative_mae_is_the_error_over_the_light(pairs):
  filled, clean, _ = pairs
  a, b = np.float64(filled), np.float64(clean)
  expected = np.abs(a - b).sum((1, 2, 3)) / (a + b).sum((1, 2, 3))
  a, b, _ = images(pairs)
  np.testing.assert_allclose(metrics.mae_relative(a, b), expected, rtol=1e-5)
  black = -jnp.ones((1, 8, 8, 3))
  np.testing.assert_array_equal(metrics.mae_relative(black, black), 0)
  np.testing.assert_allclose(metrics.mae_relative(black, -black), 1)


def test_boundary_error_equals_numpy_pair_by_pair(pairs):
  a, b, mask = images(pairs)
  expected = [reference.boundary_error(*one) for one in zip(a, b, mask, strict=True)]
  assert min(expected) > 0.01
  np.testing.assert_allclose(metrics.boundary_error(a, b, mask), expected, rtol=1e-4)


def test_boundary_error_sees_the_seam_and_nothing_else():
  truth = jnp.broadcast_to(jnp.linspace(-1, 1, 24).reshape(1, 1, 24, 1), (1, 24, 24, 3))
  mask = jnp.zeros((1, 24, 24, 1)).at[:, 6:16, 6:16].set(1)
  measure = lambda filled: float(metrics.boundary_error(filled, truth, mask)[0])  # noqa: E731
  assert measure(truth) == 0 and measure(truth + 0.1) == pytest.approx(0, abs=1e-7)
  assert measure(jnp.where(mask > 0, truth + 0.2, truth)) == pytest.approx(0.1, rel=1e-5)
  inner = jnp.zeros_like(mask).at[:, 7:15, 7:15].set(1)
  assert measure(jnp.where(inner > 0, 0.0, truth)) == 0, "what lies inside is no seam"
  for whole in (jnp.ones_like(mask), jnp.zeros_like(mask)):
    np.testing.assert_array_equal(metrics.boundary_error(-truth, truth, whole), 0)


@pytest.fixture(scope="module", params=["alex", "vgg"])
def net(request):
  torch = pytest.importorskip("torch")
  lpips_package = pytest.importorskip("benchmarks.torch_twin.lpips_package")
  params = lpips.load_alexnet() if request.param == "alex" else vgg16.load_vgg16()
  try:
    whole, spatial = (lpips_package.model(request.param, params, spatial=spatial) for spatial in (False, True))
  except ImportError as error:
    pytest.skip(f"the lpips package is not at hand: {error}")

  def package(filled, clean, mask):
    a, b, hole = lpips_package.pixels(filled), lpips_package.pixels(clean), mask[..., 0] > 0
    with torch.no_grad():
      maps = spatial(a, b)[:, 0].numpy()
      return whole(a, b).reshape(-1).numpy(), np.array([m[h].mean() for m, h in zip(maps, hole, strict=True)])

  @jax.jit
  def ours(params, a, b, mask):
    maps = lpips.lpips_maps(params, a, b, net=request.param)
    return lpips.mean_distance(maps), lpips.hole_distance(maps, mask)

  return package, lambda *batch: ours(params, *batch)


def test_lpips_equals_the_package_over_all_and_over_the_hole(pairs, net):
  package, ours = net
  expected, expected_hole = package(*pairs)
  actual, actual_hole = ours(*images(pairs))
  assert expected.min() > 0.01 and np.all(expected_hole > 1.2 * expected)
  np.testing.assert_allclose(actual, expected, atol=1e-4)
  np.testing.assert_allclose(actual_hole, expected_hole, atol=1e-4)


def test_the_hole_is_all_that_lpips_hole_averages():
  params = lpips.load_alexnet()
  clean = photographs.built_in(96)
  filled, mask = (jnp.asarray(x) for x in photographs.damage(clean))
  a, b, mask = image_from_uint8(filled), image_from_uint8(jnp.asarray(clean)), mask_from_uint8(mask)
  whole, none = jnp.ones_like(mask), jnp.zeros_like(mask)
  measure = jax.jit(lambda params, a, b, mask: lpips.hole_distance(lpips.lpips_maps(params, a, b), mask))
  np.testing.assert_array_equal(measure(params, a, b, none), 0)
  share = np.asarray(mask.mean(axis=(1, 2, 3)))
  parts = share * measure(params, a, b, mask) + (1 - share) * measure(params, a, b, 1 - mask)
  np.testing.assert_allclose(parts, measure(params, a, b, whole), rtol=1e-4)


# What goes wrong between two evaluators: each must change the number, or nobody would notice.
MISTAKES = {
  "the fill shifted by a pixel": lambda a, b: (jnp.roll(a, 1, axis=2), b),
  "colours in another order": lambda a, b: (a[..., ::-1], b),
  "values of [0, 1] taken for [-1, 1]": lambda a, b: ((a + 1) / 2, (b + 1) / 2),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", ["psnr", "l1", "ssim", "ms_ssim", "mae_relative", "lpips", "ssim_uniform"])
def test_a_mistake_in_the_pictures_changes_the_number(name, mistake):
  measures = {
    "lpips": lambda a, b: lpips.lpips(lpips.load_alexnet(), a, b),
    "ssim_uniform": lambda a, b: metrics.ssim_uniform(a, b, 7),
  }
  measure = jax.jit(measures.get(name) or getattr(metrics, name))
  clean = photographs.built_in(64)
  a = image_from_uint8(jnp.asarray(photographs.damage(clean)[0][:3]))
  b = image_from_uint8(jnp.asarray(clean[:3]))
  right, wrong = np.asarray(measure(a, b)), np.asarray(measure(*MISTAKES[mistake](a, b)))
  assert np.all(np.abs(wrong - right) > 0.005 * np.abs(right)), (right, wrong)
