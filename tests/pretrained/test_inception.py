"""FID's network and its weight file; torch, where it is at hand, is the reference for both."""

from __future__ import annotations

import functools
import io
import pathlib
import pickle
import urllib.error
import urllib.request
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.pretrained import features, inception, weight_files
from tests import photographs

torch = pytest.importorskip("torch")
pytest.importorskip("torch")
from tests.pretrained import torch_inception  # noqa: E402


@pytest.fixture(scope="module")
def network():
  return torch_inception.random_network()


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
  """The network as torch.save leaves it."""
  path = tmp_path_factory.mktemp("weights") / inception.NAME
  torch.save(network.state_dict(), path)
  return path


@pytest.fixture(scope="module")
def weights(path):
  return inception.load_inception(path, sha256=None)


@pytest.fixture(scope="module")
def photos():
  return photographs.built_in(200)[:2]


@pytest.fixture(scope="module")
def layers(network, photos):
  """What each named module of torch's network gives for the photos, NHWC, and the last pool's output."""
  found, handles = {}, []
  for name, module in network.named_modules():
    if name:
      keep = functools.partial(lambda name, module, inputs, output: found.__setitem__(name, output), name)
      handles.append(module.register_forward_hook(keep))
  with torch.no_grad():
    last = network(torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255).numpy()
  for handle in handles:
    handle.remove()
  return {name: x.permute(0, 2, 3, 1).numpy() for name, x in found.items()}, last


def test_every_layer_equals_torch(weights, photos, layers):
  expected, last = layers

  @jax.jit
  def run(variables, image):
    return inception.InceptionV3().apply(variables, inception.resize(image), capture_intermediates=True)

  out, captured = run(weights.variables, image_from_uint8(jnp.asarray(photos)))
  leaves = jax.tree_util.tree_flatten_with_path(captured["intermediates"], is_leaf=lambda x: isinstance(x, tuple))[0]
  actual = {".".join(key.key for key in keys[:-1]): values[0] for keys, values in leaves if len(keys) > 1}
  assert len(expected) == 94 * 3 + 11 and set(actual) == set(expected)
  for name, value in expected.items():
    scale = np.abs(value).max()
    np.testing.assert_allclose(actual[name], value, rtol=1e-3, atol=2e-5 * scale, err_msg=name)
  np.testing.assert_allclose(out, last, rtol=1e-4, atol=1e-5 * np.abs(last).max())
  direct = jax.jit(inception.inception_features)(weights.variables, image_from_uint8(jnp.asarray(photos)))
  np.testing.assert_allclose(direct, out, rtol=1e-5, atol=1e-6)
  assert np.ptp(last, axis=0).max() > 1e-3 * np.abs(last).max(), "the two pictures are told apart"


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (299, 299), (301, 420), (512, 512)])
def test_resize_equals_torchs_interpolate(shape):
  picture = np.random.default_rng(0).uniform(-1, 1, (1, *shape, 3)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(picture).permute(0, 3, 1, 2), size=(299, 299), mode="bilinear", align_corners=False
  )
  actual = inception.resize(jnp.asarray(picture))
  np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1).numpy(), atol=2e-6)


def test_both_formats_of_torch_are_read_to_the_bit(network, path, tmp_path):
  old = tmp_path / "old.pth"
  torch.save(network.state_dict(), old, _use_new_zipfile_serialization=False)
  assert zipfile.is_zipfile(path) and not zipfile.is_zipfile(old)
  for file in (path, old):
    tensors = weight_files.read(file)
    assert list(tensors) == list(network.state_dict())
    for name, value in network.state_dict().items():
      np.testing.assert_array_equal(tensors[name], value.numpy(), err_msg=name)


@pytest.mark.parametrize("zipped", [True, False])
def test_views_types_and_empty_tensors_are_read(tmp_path, zipped):
  whole = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
  state = {"turned": whole.permute(2, 0, 1), "part": whole[1, 1:], "half": torch.ones(3).half()}
  state |= {"count": torch.tensor(7), "none": torch.zeros(0, 3), "flags": torch.tensor([True, False])}
  torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
  tensors = weight_files.read(tmp_path / "x.pth")
  assert set(tensors) == set(state)
  for name, value in state.items():
    assert tensors[name].dtype == value.numpy().dtype
    np.testing.assert_array_equal(tensors[name], value.numpy(), err_msg=name)


def test_converted_files_hold_the_same(weights, path, tmp_path):
  tensors = weight_files.read(path)
  safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
  np.savez(tmp_path / "x.npz", **tensors)
  for name in ("x.safetensors", "x.npz"):
    loaded = inception.load_inception(tmp_path / name)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, weights.variables)
    assert len(loaded.sha256) == 64 and loaded.sha256 != weights.sha256


def test_a_tampered_file_is_refused_before_it_is_read(path, monkeypatch):
  monkeypatch.setattr(weight_files, "read", lambda path: pytest.fail("read an unverified file"))
  with pytest.raises(ConfigError, match=r"has sha256 [0-9a-f]{8}… instead of 6726825d…: download it again from https"):
    inception.load_inception(path)


def test_the_name_of_the_file_begins_its_hash():
  assert inception.NAME.endswith(f"-{inception.SHA256[:8]}.pth") and len(inception.SHA256) == 64


def test_another_network_is_named_by_what_it_lacks(network, tmp_path):
  path = tmp_path / "vgg.pth"
  torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
  with pytest.raises(ConfigError, match=r"vgg.pth has no tensor \S+: these are not the weights of FID's InceptionV3"):
    inception.load_inception(path, sha256=None)
  state = network.state_dict() | {"Mixed_5b.branch_pool.conv.weight": torch.zeros(192, 192, 1, 1)}
  torch.save(state, path)
  with pytest.raises(ConfigError, match=r"has Mixed_5b.branch_pool.conv.weight as \(1, 1, 192, 192\) instead of \(1,"):
    inception.load_inception(path, sha256=None)


class Evil:
  def __reduce__(self):
    return (pathlib.Path.touch, (pathlib.Path("ran"),))


def broken(kind: str) -> bytes:
  file = io.BytesIO()
  if kind in ("code", "old code"):
    torch.save({"x": Evil()}, file, _use_new_zipfile_serialization=kind == "code")
  elif kind == "list":
    torch.save([torch.zeros(3)], file)
  elif kind in ("cut off", "old cut off"):
    torch.save({"x": torch.zeros(3000)}, file, _use_new_zipfile_serialization=kind == "cut off")
    return file.getvalue()[: len(file.getvalue()) // 2]
  elif kind == "pickle":
    return pickle.dumps({"x": 1})
  return file.getvalue()


@pytest.mark.parametrize("kind", ["code", "old code", "list", "cut off", "old cut off", "pickle", "empty"])
def test_a_broken_or_harmful_file_is_one_clear_line(kind, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / "x.pth"
  path.write_bytes(broken(kind))
  with pytest.raises(
    ConfigError, match=r"x.pth is no state dict that torch.save wrote \(.*\): download it again$"
  ) as error:
    weight_files.read(path)
  assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


def test_missing_and_unknown_files_are_one_clear_line(tmp_path):
  with pytest.raises(ConfigError, match=r"^there are no InceptionV3 weights at .*x.pth: download https"):
    inception.load_inception(tmp_path / "x.pth")
  for name, rule in (("x.bin", "is no weight file: give a .pth, .npz or .safetensors"), ("x.npz", "cannot read")):
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=rule):
      inception.load_inception(tmp_path / name)


class Answer(io.BytesIO):
  """What urlopen gives."""


def test_download_keeps_what_has_the_right_hash_and_nothing_else(tmp_path, monkeypatch):
  monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Answer(b"weights"))
  with pytest.raises(ConfigError, match=r"^https.* gave a file of sha256 [0-9a-f]{8}… instead of 6726825d…"):
    inception.download(tmp_path)
  assert list(tmp_path.iterdir()) == []
  monkeypatch.setattr(inception, "SHA256", "9a7a16c4fd0b7cae1ed7ee4cd1dd4dcdd2ffee2ea1ae2fd4bfb5c16d3a2e2d84")
  monkeypatch.setattr(inception, "_sha256", lambda path: inception.SHA256 if path.read_bytes() == b"weights" else "")
  assert inception.download(tmp_path).read_bytes() == b"weights"
  monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: pytest.fail("fetched twice"))
  assert inception.download(tmp_path) == tmp_path / inception.NAME


def test_no_network_is_one_clear_line(tmp_path, monkeypatch):
  def refuse(url, timeout):
    raise urllib.error.URLError("Name or service not known")

  monkeypatch.setattr(urllib.request, "urlopen", refuse)
  with pytest.raises(ConfigError, match=r"^cannot download https\S* to .*: Name or service not known: fetch it on"):
    inception.download(tmp_path)


def test_the_file_is_found_where_it_was_left_and_nothing_is_fetched(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
  monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("used the network"))
  assert inception.find_inception() is None
  for folder in (tmp_path / "torch" / "hub" / "checkpoints", inception.cache_folder()):
    folder.mkdir(parents=True)
    (folder / inception.NAME).touch()
    assert inception.find_inception() == folder / inception.NAME


def test_vgg16_embedding_is_the_mean_of_its_last_layer(photos):
  params = features.load_vgg16()
  image = image_from_uint8(jnp.asarray(photos[:, :64, :64]))
  (deepest,) = jax.jit(lambda p, x: features.vgg16_features(p, x, layers=("relu5_3",)))(params, image)
  actual = jax.jit(features.vgg16_embedding)(params, image)
  assert actual.shape == (2, 512)
  np.testing.assert_allclose(actual, np.float64(deepest).mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)
