"""LPIPS beside a slow reference and the PyTorch package."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.pretrained.lpips import hole_distance, load_alexnet, lpips, lpips_maps, mean_distance
from gmsrm_jax.pretrained.vgg16 import load_vgg16
from tests import photographs, reference

EXTRACT = {"alex": reference.alexnet_features, "vgg": reference.vgg16_features}


@pytest.fixture(scope="module")
def alexnet():
  return load_alexnet()


@pytest.fixture(scope="module")
def photos():
  return image_from_uint8(jnp.asarray(photographs.built_in(40)[:2]))


@pytest.fixture(scope="module")
def distorted(photos):
  noise = 0.3 * np.random.default_rng(0).normal(size=photos.shape)
  return jnp.asarray(np.clip(photos + noise, -1, 1), jnp.float32)


@pytest.fixture(scope="module")
def distance(alexnet):
  measure = jax.jit(lpips)
  return lambda a, b: np.asarray(measure(alexnet, a, b))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_equals_numpy(net, alexnet, photos, distorted):
  params = {"alex": alexnet, "vgg": load_vgg16()}[net]
  extract, a, b = EXTRACT[net], photos[:, 8:], distorted[:, 8:]
  expected = [reference.lpips(extract(params, a[i]), extract(params, b[i]), params["heads"]) for i in range(2)]
  actual = jax.jit(lpips, static_argnames="net")(params, a, b, net=net)
  np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_it_is_a_symmetric_distance_that_orders_damage(distance, photos, distorted):
  np.testing.assert_array_equal(distance(photos, photos), 0)
  np.testing.assert_allclose(distance(photos, distorted), distance(distorted, photos), rtol=1e-5)
  blurred = [jnp.asarray(scipy.ndimage.gaussian_filter(photos, (0, sigma, sigma, 0))) for sigma in (0.4, 1, 2)]
  little, more, most = (distance(photos, x) for x in blurred)
  assert np.all(little > 0) and np.all(little < more) and np.all(more < most)


def test_its_gradient_is_finite_where_images_agree_and_features_vanish(alexnet, photos):
  slope = jax.jit(jax.grad(lambda a, b, params: lpips(params, a, b).sum()))
  image = photos[:1, :32, :32]
  assert np.all(np.isfinite(slope(image, image, alexnet)))
  dead = {**alexnet, "convolutions": jax.tree.map(np.zeros_like, alexnet["convolutions"])}
  assert np.all(np.isfinite(slope(image, -image, dead)))


def test_small_images_are_refused(alexnet, photos):
  with pytest.raises(ValueError, match="16x40 .*32x32"):
    lpips(alexnet, photos[:, :16], photos[:, :16])


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_equals_the_package_over_all_and_over_the_hole(net, alexnet):
  torch = pytest.importorskip("torch")
  lpips_package = pytest.importorskip("benchmarks.torch_twin.lpips_package")
  params = {"alex": alexnet, "vgg": load_vgg16()}[net]
  try:
    whole, spatial = (lpips_package.model(net, params, spatial=spatial) for spatial in (False, True))
  except ImportError as error:
    pytest.skip(f"the lpips package is not at hand: {error}")
  clean = photographs.built_in(176)
  filled, mask = photographs.damage(clean)
  with torch.no_grad():
    pair = lpips_package.pixels(filled), lpips_package.pixels(clean)
    expected, spatial_maps = whole(*pair).reshape(-1).numpy(), spatial(*pair)[:, 0].numpy()
  over_hole = [m[hole].mean() for m, hole in zip(spatial_maps, mask[..., 0] > 0, strict=True)]
  a, b = (image_from_uint8(jnp.asarray(x)) for x in (filled, clean))
  maps = jax.jit(lpips_maps, static_argnames="net")(params, a, b, net=net)
  assert expected.min() > 0.01 and np.all(over_hole > 1.2 * expected)
  np.testing.assert_allclose(mean_distance(maps), expected, atol=1e-4)
  np.testing.assert_allclose(hole_distance(maps, jnp.asarray(mask, jnp.float32)), over_hole, atol=1e-4)


def test_the_hole_is_all_that_its_distance_averages(alexnet, photos, distorted):
  maps = lpips_maps(alexnet, photos, distorted)
  mask = jnp.zeros((2, 40, 40, 1)).at[:, 5:20, 10:36].set(1)
  np.testing.assert_array_equal(hole_distance(maps, jnp.zeros_like(mask)), 0)
  share = mask.mean()
  whole = share * hole_distance(maps, mask) + (1 - share) * hole_distance(maps, 1 - mask)
  np.testing.assert_allclose(whole, hole_distance(maps, jnp.ones_like(mask)), rtol=1e-4)
