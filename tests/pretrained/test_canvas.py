"""A picture on a larger canvas: networks say of it what they say of the picture alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.pretrained import inception, lpips, vgg16

SIZES = np.array([[75, 91], [52, 96]], np.int32)  # odd rests at every pool; the whole canvas in one direction


@pytest.fixture(scope="module")
def pair():
  """A picture and a damaged one on canvases of 75x96, with noise beyond the pictures."""
  photo = skimage.data.astronaut()
  picture = np.stack([photo[40 * i : 40 * i + 75, 180:276] for i in range(2)])
  damaged = picture.copy()
  damaged[:, 20:50, 30:60] = 200
  return [image_from_uint8(jnp.asarray(x)) for x in (picture, damaged)]


def alone(function, *arrays):
  each = [function(*(array[i : i + 1, :height, :width] for array in arrays)) for i, (height, width) in enumerate(SIZES)]
  return np.concatenate(each)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_of_all_and_of_the_hole(net, pair):
  params = {"alex": lpips.load_alexnet, "vgg": vgg16.load_vgg16}[net]()
  mask = (pair[0] != pair[1]).any(axis=-1, keepdims=True).astype(jnp.float32)

  def both(a, b, mask, sizes=None):
    layers = lpips.lpips_maps(params, a, b, net=net, sizes=sizes)
    return jnp.stack([lpips.mean_distance(layers), lpips.hole_distance(layers, mask, sizes)], axis=1)

  on_canvas = jax.jit(both)(*pair, mask, jnp.asarray(SIZES))
  np.testing.assert_allclose(on_canvas, alone(jax.jit(both), *pair, mask), rtol=1e-5)


def test_features_for_distances_of_sets(pair):
  params, sizes = vgg16.load_vgg16(), jnp.asarray(SIZES)
  embed = jax.jit(vgg16.vgg16_embedding)
  np.testing.assert_allclose(
    embed(params, pair[0], sizes), alone(lambda x: embed(params, x), pair[0]), rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(inception.resize(pair[0], sizes), alone(inception.resize, pair[0]), atol=1e-4)
