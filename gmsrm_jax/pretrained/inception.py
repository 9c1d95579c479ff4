"""InceptionV3 as FID has it, and its weights: those of TensorFlow's graph of 2015-12-05 in pytorch-fid's file.

The network is that of Szegedy et al. 2016 with the graph's own ways: average pools leave the padding out, the last
block pools by maximum, 1,008 classes (not used). Nothing is downloaded unless `download` is called.
"""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import tempfile
import urllib.request

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.files import cache_folder
from gmsrm_jax.pretrained import weight_files
from gmsrm_jax.pretrained.canvas import Sizes, resize_inside

NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299
"""Pixels; pictures are resized to it."""

RESIZE = "bilinear, half-pixel centres, no antialiasing, as pytorch-fid (TensorFlow's of 2015 and clean-fid differ)"
"""The report says this beside a FID."""

Params = dict[str, jax.Array] | dict[str, np.ndarray]
"""Tensors by their names in the file; kernels are HWIO."""

Map = Float[Array, "b _h _w _c"]

# Branches side by side, each of steps one after the other: the convolution of that name (its width and window are its
# kernel's) or a pool; with /2 it has stride 2 and no padding. `jit` computes once what two branches begin with.
_A = (
  "branch1x1",
  "branch5x5_1 branch5x5_2",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
  "average branch_pool",
)
_B = (
  "branch3x3/2",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/2",
  "maximum/2",
)
_C = (
  "branch1x1",
  "branch7x7_1 branch7x7_2 branch7x7_3",
  "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
  "average branch_pool",
)
_D = (
  "branch3x3_1 branch3x3_2/2",
  "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/2",
  "maximum/2",
)
_E = (
  "branch1x1",
  "branch3x3_1 branch3x3_2a",
  "branch3x3_1 branch3x3_2b",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a",
  "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3b",
)
_BLOCKS = {
  **dict.fromkeys(("Mixed_5b", "Mixed_5c", "Mixed_5d"), _A),  # 35 x 35
  "Mixed_6a": _B,
  **dict.fromkeys(("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), _C),  # 17 x 17
  "Mixed_7a": _D,
  "Mixed_7b": (*_E, "average branch_pool"),  # 8 x 8
  "Mixed_7c": (*_E, "maximum branch_pool"),
}


def _conv(params: Params, name: str, x: Map, stride: int = 1, *, valid: bool = False) -> Map:
  """Convolution, frozen batch norm, ReLU; pads so that stride 1 keeps the size, unless it is `valid`."""
  kernel, *norm = (
    jnp.asarray(params[f"{name}.{leaf}"])
    for leaf in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  )
  scale, bias, mean, variance = (leaf.reshape(1, 1, 1, -1) for leaf in norm)
  padding = [(0, 0) if valid else (side // 2, side // 2) for side in kernel.shape[:2]]
  layout, precision = ("NHWC", "HWIO", "NHWC"), jax.lax.Precision.HIGHEST
  x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout, precision=precision)
  return nn.relu((x - mean) * (jax.lax.rsqrt(variance + 1e-3) * scale) + bias)


def _step(params: Params, block: str, x: Map, step: str) -> Map:
  name, _, halved = step.partition("/")
  if name == "average":
    return nn.avg_pool(x, (3, 3), (1, 1), padding="SAME", count_include_pad=False)
  if name == "maximum":
    return nn.max_pool(x, (3, 3), (2, 2)) if halved else nn.max_pool(x, (3, 3), padding="SAME")
  return _conv(params, f"{block}.{name}", x, 2 if halved else 1, valid=bool(halved))


def resize(image: Image, sizes: Sizes | None = None) -> Float[Array, "b 299 299 3"]:
  """To 299 x 299 in the way of `RESIZE`."""
  target = None if sizes is None else jnp.full_like(sizes, SIDE)
  return resize_inside(image, sizes, target, (SIDE, SIDE))


@jax.named_scope("inception")
def inception_features(params: Params, image: Image, sizes: Sizes | None = None) -> Float[Array, "b 2048"]:
  """The feature vectors that FID and KID compare, of images in [-1, 1] of any size."""
  x = _conv(params, "Conv2d_1a_3x3", resize(image.astype(jnp.float32), sizes), 2, valid=True)
  x = _conv(params, "Conv2d_2a_3x3", x, valid=True)
  x = nn.max_pool(_conv(params, "Conv2d_2b_3x3", x), (3, 3), (2, 2))
  x = _conv(params, "Conv2d_3b_1x1", x)
  x = nn.max_pool(_conv(params, "Conv2d_4a_3x3", x, valid=True), (3, 3), (2, 2))
  for block, branches in _BLOCKS.items():
    run = functools.partial(_step, params, block)
    x = jnp.concatenate([functools.reduce(run, branch.split(), x) for branch in branches], axis=-1)
  return jnp.mean(x, axis=(1, 2))


def load_inception(path: str | pathlib.Path) -> Params:
  """The weights from pytorch-fid's file.

  Raises:
    ConfigError: the file is missing or altered.
  """
  path = pathlib.Path(path)
  weight_files.check_sha256(path, SHA256, f"download {URL} and set eval.inception_weights to its path")
  return {
    name: tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor
    for name, tensor in weight_files.read_torch(path).items()
    if name.startswith(("Conv2d", "Mixed")) and not name.endswith("num_batches_tracked")
  }


def find_inception() -> pathlib.Path | None:
  """The file where `download` or pytorch-fid has left it on this machine, if one of them has."""
  torch_home = os.environ.get("TORCH_HOME", "~/.cache/torch")
  folders = (cache_folder(), pathlib.Path(torch_home).expanduser() / "hub" / "checkpoints")
  return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def download() -> pathlib.Path:
  """Fetches the weights once, 91 MiB; a file that is there already stays.

  Raises:
    ConfigError: no network, no room, or another file than expected.
  """
  target = cache_folder() / NAME
  if target.is_file():
    return target
  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
      fetched = pathlib.Path(scratch) / NAME
      with urllib.request.urlopen(URL, timeout=30) as answer, fetched.open("wb") as file:
        shutil.copyfileobj(answer, file)
      weight_files.check_sha256(fetched, SHA256, f"{URL} gave another file than it should: try again later")
      fetched.replace(target)
  except OSError as error:
    reason = getattr(error, "reason", None) or error.strerror or error
    way_out = "fetch it on a machine with a network and give its path"
    raise ConfigError(f"cannot download {URL} to {target.parent}: {reason}: {way_out}") from error
  return target
