"""Reads the tensors of a file that `torch.save` wrote, without torch and without running anything the file says.

Both of its formats: the zip archive of torch 1.6 and later, and the row of pickles before it.
"""

from __future__ import annotations

import collections
import io
import pathlib
import pickle
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from gmsrm_jax.errors import ConfigError

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
  "FloatStorage": "<f4",
  "DoubleStorage": "<f8",
  "HalfStorage": "<f2",
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}


class _Storage(NamedTuple):
  key: str
  dtype: str
  count: int


class _Tensor(NamedTuple):
  """A tensor whose bytes are still to be read: in the old format they follow the pickle that describes it."""

  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
  """Knows tensors and ordered dictionaries of them and refuses every other name."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
      return _tensor
    if module == "torch" and name in _STORAGES:
      return _STORAGES[name]
    raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")

  def persistent_load(self, pid: Any) -> _Storage:
    kind, dtype, key, _, count = pid[:5]
    if kind != "storage" or (len(pid) > 5 and pid[5] is not None):
      raise pickle.UnpicklingError("it holds something other than whole storages")
    return _Storage(str(key), dtype, int(count))


def _array(tensor: _Tensor, content: bytes) -> np.ndarray:
  values = np.frombuffer(content, tensor.storage.dtype)
  last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
  if len(values) != tensor.storage.count or min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
    raise ValueError(f"storage {tensor.storage.key} is cut off")
  if 0 in tensor.shape:
    return np.zeros(tensor.shape, values.dtype)
  if last >= len(values):
    raise ValueError(f"a tensor reaches beyond storage {tensor.storage.key}")
  strides = tuple(stride * values.itemsize for stride in tensor.strides)
  return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False).copy()


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
  with zipfile.ZipFile(file) as archive:
    (listing,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
    folder = listing.removesuffix("data.pkl") + "data/"
    contents = {name.removeprefix(folder): archive.read(name) for name in archive.namelist() if name.startswith(folder)}
    return _Unpickler(io.BytesIO(archive.read(listing))).load(), contents


def _read_pickles(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
  if _Unpickler(file).load() != _MAGIC:
    raise ValueError("it does not begin as one")
  _Unpickler(file).load()  # the format's version
  _Unpickler(file).load()  # of the machine that wrote it
  tree = _Unpickler(file).load()
  sizes = {tensor.storage.key: np.dtype(tensor.storage.dtype).itemsize for tensor in tree.values()}
  contents = {}
  for key in _Unpickler(file).load():
    count = int.from_bytes(file.read(8), "little")
    contents[key] = file.read(count * sizes[key])
  return tree, contents


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The tensors of a saved state dict by name.

  Raises:
    ConfigError: the file cannot be read, or is no state dict.
  """
  try:
    with path.open("rb") as file:
      tree, contents = (_read_zip if zipfile.is_zipfile(path) else _read_pickles)(file)
    if not isinstance(tree, dict) or not all(isinstance(tensor, _Tensor) for tensor in tree.values()):
      raise ValueError("it holds other things than named tensors")
    return {name: _array(tensor, contents[tensor.storage.key]) for name, tensor in tree.items()}
  except OSError as error:
    raise ConfigError(f"cannot read {path}: {error.strerror}: give the file of the weights") from error
  except Exception as error:  # whatever a broken pickle or archive may raise
    raise ConfigError(
      f"{path} is no state dict that torch.save wrote ({type(error).__name__}: {error}): download it again"
    ) from error
