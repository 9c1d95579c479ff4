"""InceptionV3 as FID has it, and its weights: those of TensorFlow's graph of 2015-12-05 in pytorch-fid's file.

The network is that of Szegedy et al. 2016 with the graph's own ways: average pools leave the padding out, the last
block pools by maximum, 1,008 classes (not used). Nothing is downloaded unless `download` is called.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import tempfile
import urllib.error
import urllib.request
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import linen as nn
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.pretrained import weight_files

NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299
"""Pixels; pictures are resized to it."""

RESIZE = "bilinear, half-pixel centres, no antialiasing, as pytorch-fid (TensorFlow's of 2015 and clean-fid differ)"
"""What the report has to say beside a FID."""

Map = Float[Array, "b h w c"]
_average = functools.partial(nn.avg_pool, window_shape=(3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)
_maximum = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))


class Conv(nn.Module):
  """Convolution, frozen batch norm, ReLU; pads so that stride 1 keeps the size, unless it is `valid`."""

  width: int
  window: tuple[int, int] = (1, 1)
  stride: int = 1
  valid: bool = False

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b _h _w _c"]:
    padding = [(0, 0) if self.valid else (side // 2, side // 2) for side in self.window]
    x = nn.Conv(
      self.width,
      self.window,
      self.stride,
      padding,
      use_bias=False,
      precision=jax.lax.Precision.HIGHEST,
      name="conv",
    )(x)
    return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


def _chain(x: Map, prefix: str, *plan: tuple[int, tuple[int, int]]) -> Float[Array, "b _h _w _c"]:
  """Convolutions prefix_1, prefix_2, … one after the other."""
  for i, (width, window) in enumerate(plan, 1):
    x = Conv(width, window, name=f"{prefix}_{i}")(x)
  return x


class BlockA(nn.Module):
  """35 x 35: 1x1, 5x5, two 3x3 and a pooled branch."""

  pooled: int

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b _h _w _c"]:
    branches = [
      Conv(64, name="branch1x1")(x),
      _chain(x, "branch5x5", (48, (1, 1)), (64, (5, 5))),
      _chain(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
      Conv(self.pooled, name="branch_pool")(_average(x)),
    ]
    return jnp.concatenate(branches, axis=-1)


class BlockB(nn.Module):
  """35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b _h _w _c"]:
    double = _chain(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)))
    branches = [
      Conv(384, (3, 3), 2, True, name="branch3x3")(x),
      Conv(96, (3, 3), 2, True, name="branch3x3dbl_3")(double),
      _maximum(x),
    ]
    return jnp.concatenate(branches, axis=-1)


class BlockC(nn.Module):
  """17 x 17: windows of seven, factorised."""

  width: int

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b _h _w _c"]:
    row, column, width = (1, 7), (7, 1), self.width
    double = ((width, (1, 1)), (width, column), (width, row), (width, column), (192, row))
    branches = [
      Conv(192, name="branch1x1")(x),
      _chain(x, "branch7x7", (width, (1, 1)), (width, row), (192, column)),
      _chain(x, "branch7x7dbl", *double),
      Conv(192, name="branch_pool")(_average(x)),
    ]
    return jnp.concatenate(branches, axis=-1)


class BlockD(nn.Module):
  """17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b _h _w _c"]:
    seven = _chain(x, "branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
    branches = [
      Conv(320, (3, 3), 2, True, name="branch3x3_2")(_chain(x, "branch3x3", (192, (1, 1)))),
      Conv(192, (3, 3), 2, True, name="branch7x7x3_4")(seven),
      _maximum(x),
    ]
    return jnp.concatenate(branches, axis=-1)


class BlockE(nn.Module):
  """8 x 8: branches that fork into a row and a column; the graph's last one pools by maximum."""

  last: bool

  @nn.compact
  def __call__(self, x: Map) -> Float[Array, "b _h _w _c"]:
    single = _chain(x, "branch3x3", (384, (1, 1)))
    double = _chain(x, "branch3x3dbl", (448, (1, 1)), (384, (3, 3)))
    pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME") if self.last else _average(x)
    branches = [
      Conv(320, name="branch1x1")(x),
      Conv(384, (1, 3), name="branch3x3_2a")(single),
      Conv(384, (3, 1), name="branch3x3_2b")(single),
      Conv(384, (1, 3), name="branch3x3dbl_3a")(double),
      Conv(384, (3, 1), name="branch3x3dbl_3b")(double),
      Conv(192, name="branch_pool")(pooled),
    ]
    return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
  """From a picture of 299 x 299 in [-1, 1] to the 2,048 numbers of the last pool; names as in the file."""

  @nn.compact
  def __call__(self, x: Image) -> Float[Array, "b 2048"]:
    x = Conv(32, (3, 3), 2, True, name="Conv2d_1a_3x3")(x)
    x = Conv(32, (3, 3), 1, True, name="Conv2d_2a_3x3")(x)
    x = _maximum(Conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
    x = Conv(80, name="Conv2d_3b_1x1")(x)
    x = _maximum(Conv(192, (3, 3), 1, True, name="Conv2d_4a_3x3")(x))
    for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
      x = BlockA(pooled, name=f"Mixed_5{letter}")(x)
    x = BlockB(name="Mixed_6a")(x)
    for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
      x = BlockC(width, name=f"Mixed_6{letter}")(x)
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(False, name="Mixed_7b")(x)
    x = BlockE(True, name="Mixed_7c")(x)
    return jnp.mean(x, axis=(1, 2))


def resize(image: Image) -> Float[Array, "b 299 299 3"]:
  """To 299 x 299 in the way of `RESIZE`."""
  shape = (image.shape[0], SIDE, SIDE, 3)
  return jax.image.resize(image, shape, "bilinear", antialias=False, precision=jax.lax.Precision.HIGHEST)


def inception_features(variables: Any, image: Image) -> Float[Array, "b 2048"]:
  """The feature vectors that FID and KID compare, of images in [-1, 1] of any size.

  `variables` are those of `load_inception`.
  """
  features = InceptionV3().apply(variables, resize(image.astype(jnp.float32)))
  assert isinstance(features, jax.Array)
  return features


class Weights(NamedTuple):
  """The network's variables and the hash of the file they came from, for the report."""

  variables: dict[str, Any]
  sha256: str


_LEAVES = {
  "conv.weight": ("params", "conv", "kernel"),
  "bn.weight": ("params", "bn", "scale"),
  "bn.bias": ("params", "bn", "bias"),
  "bn.running_mean": ("batch_stats", "bn", "mean"),
  "bn.running_var": ("batch_stats", "bn", "var"),
}


@functools.cache
def _shapes() -> Any:
  picture = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
  return jax.eval_shape(InceptionV3().init, jax.random.key(0), picture)


def convert(tensors: dict[str, np.ndarray], source: str) -> dict[str, Any]:
  """The network's variables from the tensors of a state dict with torchvision's names.

  Raises:
    ConfigError: a tensor is missing or of another shape.
  """

  def fill(tree: Any, path: tuple[str, ...]) -> Any:
    return {
      key: fill(value, (*path, key)) if isinstance(value, dict) else leaf(value, (*path, key))
      for key, value in tree.items()
    }

  def leaf(shape: Any, path: tuple[str, ...]) -> np.ndarray:
    kind, *scope, layer, field = path
    ending = next(ending for ending, place in _LEAVES.items() if place == (kind, layer, field))
    name = ".".join((*scope, ending))
    require(name in tensors, f"{source} has no tensor {name}: these are not the weights of FID's InceptionV3 ({NAME})")
    array = np.asarray(tensors[name], np.float32)
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    require(
      array.shape == shape.shape,
      f"{source} has {name} as {array.shape} instead of {shape.shape}: these are not the weights of FID's InceptionV3 "
      f"({NAME})",
    )
    return array

  return fill(_shapes(), ())


def load_inception(path: str | pathlib.Path, *, sha256: str | None = SHA256) -> Weights:
  """The weights from pytorch-fid's .pth, or from a .npz or .safetensors with the same names and shapes.

  Args:
    path: the file.
    sha256: what a .pth must hash to; None for any. Converted files have hashes of their own, which the report states.

  Raises:
    ConfigError: the file is missing, altered, or holds another network.
  """
  path = pathlib.Path(path).expanduser()
  require(path.is_file(), f"there are no InceptionV3 weights at {path}: download {URL} and give its path")
  require(
    path.suffix in (".pth", ".npz", ".safetensors"), f"{path} is no weight file: give a .pth, .npz or .safetensors"
  )
  found = _sha256(path)
  if path.suffix == ".pth":
    require(
      sha256 in (None, found),
      f"{path} has sha256 {found[:8]}… instead of {(sha256 or '')[:8]}…: download it again from {URL}",
    )
    tensors = weight_files.read(path)
  else:
    try:
      tensors = safetensors.numpy.load_file(path) if path.suffix == ".safetensors" else dict(np.load(path))
    except Exception as error:  # safetensors and NumPy each have their own ways to fail
      raise ConfigError(f"cannot read {path} ({type(error).__name__}: {error}): convert it again") from error
  return Weights(convert(tensors, str(path)), found)


def find_inception() -> pathlib.Path | None:
  """The file where `download` or pytorch-fid has left it on this machine, if one of them has."""
  torch_home = os.environ.get("TORCH_HOME", "~/.cache/torch")
  for folder in (cache_folder(), pathlib.Path(torch_home).expanduser() / "hub" / "checkpoints"):
    if (folder / NAME).is_file():
      return folder / NAME
  return None


def cache_folder() -> pathlib.Path:
  """Where `download` puts the file unless told otherwise."""
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "gmsrm_jax"


def download(folder: str | pathlib.Path | None = None) -> pathlib.Path:
  """Fetches the weights once, 91 MiB, and checks their hash; a file that is there already is only checked.

  Raises:
    ConfigError: no network, no room, or another file than expected.
  """
  target = (cache_folder() if folder is None else pathlib.Path(folder).expanduser()) / NAME
  if target.is_file() and _sha256(target) == SHA256:
    return target
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
      part = pathlib.Path(scratch) / NAME
      with urllib.request.urlopen(URL, timeout=30) as answer, part.open("wb") as file:
        while block := answer.read(1 << 20):
          file.write(block)
      found = _sha256(part)
      require(found == SHA256, f"{URL} gave a file of sha256 {found[:8]}… instead of {SHA256[:8]}…: try again later")
      part.replace(target)
  except OSError as error:
    reason = getattr(error, "reason", None) or error.strerror or error
    raise ConfigError(
      f"cannot download {URL} to {target.parent}: {reason}: fetch it on a machine with a network and give its path"
    ) from error
  return target


def _sha256(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
