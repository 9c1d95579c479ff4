"""FID's network beside torch's, and where its weights come from."""

from __future__ import annotations

import hashlib
import io
import urllib.error
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.files import cache_folder
from gmsrm_jax.pretrained import inception, weight_files
from tests import photographs
from tests.pretrained import torch_inception


def test_the_features_equal_torch(tmp_path, monkeypatch):
  network, path, photos = torch_inception.Inception(), tmp_path / inception.NAME, photographs.built_in(200)[:2]
  with torch.no_grad():
    expected = network(torch.from_numpy(photos).permute(0, 3, 1, 2).float() / 255).numpy()
  torch.save(network.state, path)
  monkeypatch.setattr(inception, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
  params = inception.load_inception(path)
  actual = jax.jit(inception.inception_features)(params, image_from_uint8(jnp.asarray(photos)))
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
  assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max(), "the two pictures are not told apart"


@pytest.mark.parametrize("shape", [(64, 64), (299, 299), (301, 420), (512, 512)])
def test_resize_equals_torchs_interpolate(shape):
  picture = np.random.default_rng(0).uniform(-1, 1, (1, *shape, 3)).astype(np.float32)
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(picture).permute(0, 3, 1, 2), size=(299, 299), mode="bilinear", align_corners=False
  )
  actual = inception.resize(jnp.asarray(picture))
  np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1).numpy(), atol=2e-6)


def test_a_lost_or_tampered_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(weight_files, "read_torch", lambda path: pytest.fail("read an unverified file"))
  path = tmp_path / "x.pth"
  with pytest.raises(ConfigError, match=r"x.pth.*download https.*eval.inception_weights"):
    inception.load_inception(path)
  path.write_bytes(b"nothing")
  with pytest.raises(ConfigError, match=r"x.pth has sha256 [0-9a-f]{8}… instead of 6726825d….*download https"):
    inception.load_inception(path)


@pytest.fixture
def home(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
  monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("used the network"))
  return tmp_path


def test_a_download_keeps_what_has_the_right_hash_and_is_fetched_once(home, monkeypatch):
  with monkeypatch.context() as online:
    online.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"weights"))
    with pytest.raises(ConfigError, match=r"sha256 [0-9a-f]{8}… instead of 6726825d….*https"):
      inception.download()
    assert list(cache_folder().iterdir()) == []
    online.setattr(inception, "SHA256", hashlib.sha256(b"weights").hexdigest())
    assert inception.download().read_bytes() == b"weights"
  assert inception.download() == cache_folder() / inception.NAME


def test_no_network_is_one_clear_line(home, monkeypatch):
  def refuse(url, timeout):
    raise urllib.error.URLError("Name or service not known")

  monkeypatch.setattr(urllib.request, "urlopen", refuse)
  with pytest.raises(ConfigError, match=r"^cannot download https\S* to .*: Name or service not known: .*give its path"):
    inception.download()


def test_the_file_is_found_where_it_was_left(home):
  assert inception.find_inception() is None
  for folder in (home / "torch" / "hub" / "checkpoints", cache_folder()):
    folder.mkdir(parents=True)
    (folder / inception.NAME).touch()
    assert inception.find_inception() == folder / inception.NAME
