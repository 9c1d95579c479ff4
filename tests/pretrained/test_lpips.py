"""LPIPS beside a slow reference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import torch

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
def test_over_all_and_over_the_hole_it_equals_numpy_and_torch(net, alexnet, photos, distorted):
  """Features and layers' maps in NumPy, their sum at the size of the picture by torch, as `lpips` with spatial=True."""
  params = {"alex": alexnet, "vgg": load_vgg16()}[net]
  extract, a, b = EXTRACT[net], photos[:, 8:], distorted[:, 8:]
  mask = np.zeros((2, 32, 40, 1), np.float32)
  mask[0, 5:20, 10:36] = mask[1, 20:, :9] = 1
  means, over_hole = [], []
  for one, other, hole in zip(a, b, mask, strict=True):
    maps = reference.lpips_maps(extract(params, one), extract(params, other), params["heads"])
    means.append(sum(layer.mean() for layer in maps))
    layers = [torch.from_numpy(np.asarray(layer))[None, None] for layer in maps]
    large = sum(torch.nn.functional.interpolate(layer, (32, 40), mode="bilinear") for layer in layers)
    over_hole.append(large[0, 0].numpy()[hole[..., 0] > 0].mean())
  maps = jax.jit(lpips_maps, static_argnames="net")(params, a, b, net=net)
  np.testing.assert_allclose(mean_distance(maps), means, atol=1e-4)
  np.testing.assert_allclose(hole_distance(maps, jnp.asarray(mask)), over_hole, atol=1e-4)
  np.testing.assert_array_equal(hole_distance(maps, jnp.zeros_like(mask)), 0)
  assert np.abs(np.subtract(means, over_hole)).min() > 1e-3


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
