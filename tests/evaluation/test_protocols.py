"""Each protocol beside a plain restatement of the script it is named after."""

from __future__ import annotations

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.color import rgb2gray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.evaluation.protocols import PROTOCOLS
from gmsrm_jax.pretrained import lpips, vgg16
from tests import photographs


@pytest.fixture(scope="module")
def networks():
  return {"alex": lpips.load_alexnet(), "vgg": vgg16.load_vgg16()}


@pytest.fixture(scope="module", params=["built in", "shared"])
def pairs(request):
  """Four filled and true pictures of 64 x 64 and their holes, uint8."""
  clean = photographs.built_in(64) if request.param == "built in" else photographs.real(64)
  if clean is None:
    pytest.skip("shared data are not at hand")
  clean = clean[-4:]
  filled, mask = photographs.damage(clean)
  return filled, clean, mask


@functools.cache
def scorer(name):
  return jax.jit(PROTOCOLS[name].score)


def relative(a, b):
  a, b = np.float32(a), np.float32(b)
  return np.sum(np.abs(a - b)) / np.sum(a + b)


def edgeconnect(a, b):
  a, b = (rgb2gray((x / 255.0).astype(np.float32)) for x in (a, b))
  return {
    "psnr": peak_signal_noise_ratio(b, a, data_range=1),
    "ssim": structural_similarity(b, a, data_range=1, win_size=51),
    "mae": relative(a, b),
  }


def aotgan(a, b):
  return {
    "psnr": peak_signal_noise_ratio(b, a),
    "ssim": structural_similarity(b, a, channel_axis=-1),
    "mae": relative(a, b),
  }


def hint(a, b):
  return {
    "psnr": min(100, peak_signal_noise_ratio(b, a)),
    "ssim": structural_similarity(b, a, channel_axis=-1, data_range=255),
    "l1": np.abs(a / 255.0 - b / 255.0).mean(),
  }


def mat(a, b):
  """Written with OpenCV's filter over the 0..255 scale, as the script's is."""
  a, b = np.float64(a), np.float64(b)
  line = cv2.getGaussianKernel(11, 1.5)
  mean = lambda x: cv2.filter2D(x, -1, line @ line.T)[5:-5, 5:-5]  # noqa: E731
  ma, mb = mean(a), mean(b)
  va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
  c1, c2 = 2.55**2, 7.65**2
  ssim = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
  return {
    "psnr": 10 * np.log10(255**2 / ((a - b) ** 2).mean()),
    "ssim": ssim.mean(),
    "l1": np.abs(a - b).mean() / 255,
  }


def spl(a, b):
  return {
    "psnr": peak_signal_noise_ratio(b, a, data_range=255),
    "ssim": structural_similarity(a, b, data_range=255, channel_axis=-1, win_size=11),
    "l1": np.mean(np.abs((np.mean(a, 2) - np.mean(b, 2)) / 255)),
  }


RESTATED = {"edgeconnect": edgeconnect, "aotgan": aotgan, "hint": hint, "mat": mat, "spl": spl}
LPIPS = {"hint": "vgg", "mat": "alex"}


@pytest.mark.parametrize("name", RESTATED)
def test_a_peers_protocol_equals_its_script(name, networks, pairs):
  filled, clean, _ = pairs
  expected = [RESTATED[name](a, b) for a, b in zip(filled, clean, strict=True)]
  actual = scorer(name)(networks, *pairs)
  assert set(actual) == set(expected[0]) | ({"lpips"} if name in LPIPS else set())
  for metric in expected[0]:
    values = [one[metric] for one in expected]
    np.testing.assert_allclose(actual[metric], values, rtol=1e-4, atol=2e-5, err_msg=metric)
  if name in LPIPS:
    a, b = (image_from_uint8(jnp.asarray(x)) for x in (filled, clean))
    values = jax.jit(lpips.lpips, static_argnames="net")(networks[LPIPS[name]], a, b, net=LPIPS[name])
    np.testing.assert_allclose(actual["lpips"], values, rtol=1e-5)


def test_hint_puts_a_ceiling_on_equal_images(networks):
  clean = photographs.built_in(64)
  np.testing.assert_array_equal(scorer("hint")(networks, clean, clean, clean[..., :1])["psnr"], 100)


def test_ours_is_every_metric_of_its_own_module(networks, pairs):
  def expect(networks, a, b, hole):
    return {
      **{name: getattr(metrics, name)(a, b) for name in ("psnr", "ssim", "ms_ssim", "l1")},
      **{name: getattr(metrics, name)(a, b, hole) for name in ("psnr_hole", "l1_hole", "boundary_error", "detail")},
      "lpips": lpips.lpips(networks["alex"], a, b),
      "lpips_vgg": lpips.lpips(networks["vgg"], a, b, net="vgg"),
      "lpips_hole": lpips.hole_distance(lpips.lpips_maps(networks["alex"], a, b), hole),
    }

  filled, clean, mask = (jnp.asarray(x) for x in pairs)
  expected = jax.jit(expect)(networks, image_from_uint8(filled), image_from_uint8(clean), mask.astype(jnp.float32))
  actual = scorer("ours")(networks, *pairs)
  assert set(actual) == set(expected)
  for name, values in expected.items():
    np.testing.assert_allclose(actual[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_pictures_that_are_too_small_are_one_clear_line(networks):
  batch = [jnp.zeros((1, 50, 80, channels), jnp.uint8) for channels in (3, 3, 1)]
  with pytest.raises(ConfigError, match=r"^protocol=edgeconnect needs .* at least 51x51 .* 50x80: .* choose another"):
    scorer("edgeconnect")(networks, *batch)
  for protocol in PROTOCOLS.values():
    side = protocol.least
    least = [jax.ShapeDtypeStruct((1, side, side, channels), jnp.uint8) for channels in (3, 3, 1)]
    jax.eval_shape(protocol.score, networks, *least)
    with pytest.raises(ConfigError, match=f"protocol={protocol.name} "):
      protocol.check(side - 1, 512)


def test_scoring_a_second_fill_costs_half_of_the_first(networks):
  """The truth goes through the networks once where all fills are scored in one jitted function."""
  score = PROTOCOLS["mat"].score
  picture, mask = (jax.ShapeDtypeStruct((2, 64, 64, channels), jnp.uint8) for channels in (3, 1))

  def both(networks, fills, truth, mask):
    return [score(networks, fill, truth, mask) for fill in fills]

  def work(fills):
    return jax.jit(both).lower(networks, fills, picture, mask).compile().cost_analysis()["flops"]

  assert work([picture, picture]) < 1.6 * work([picture])


@pytest.mark.parametrize("name", PROTOCOLS)
def test_numpy_measures_what_jax_measures(name, networks, pairs):
  expected, actual = scorer(name)(networks, *pairs), PROTOCOLS[name].score_pixels(*pairs)
  assert {metric for metric in expected if not metric.startswith("lpips")} == actual.keys()
  for metric, values in actual.items():
    assert isinstance(values, np.ndarray)
    np.testing.assert_allclose(values, expected[metric], rtol=1e-4, atol=2e-5, err_msg=metric)
