"""The PyTorch `lpips` package with this project's trunk weights, so that nothing is downloaded.

The package takes its trunks from torchvision, of which it needs nothing but two lists of layers: they are built here,
so that a torchvision that does not fit the installed torch is no obstacle. All else, the heads included, is its own.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
_ALEXNET = ((64, 11, 4, 2), "pool", (192, 5, 1, 2), "pool", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "pool")


def _trunk(plan: tuple[Any, ...], pool: int) -> types.SimpleNamespace:
  layers, channels = [], 3
  for item in plan:
    if item == "pool":
      layers.append(nn.MaxPool2d(pool, 2))
    else:
      width, side, stride, padding = item if isinstance(item, tuple) else (item, 3, 1, 1)
      layers += [nn.Conv2d(channels, width, side, stride, padding), nn.ReLU(inplace=True)]
      channels = width
  return types.SimpleNamespace(features=nn.Sequential(*layers))


def _load() -> Any:
  models = types.ModuleType("torchvision.models")
  vars(models)["alexnet"] = lambda pretrained: _trunk(_ALEXNET, 3)
  vars(models)["vgg16"] = lambda pretrained: _trunk(_VGG16, 2)
  torchvision = types.ModuleType("torchvision")
  vars(torchvision)["models"] = models
  stand_in = {"torchvision": torchvision, "torchvision.models": models}
  # Not mock.patch.dict, which would also forget whatever lpips imports for the first time.
  before = {name: sys.modules.pop(name) for name in stand_in if name in sys.modules}
  sys.modules.update(stand_in)
  try:
    import lpips  # pyright: ignore[reportMissingImports]
  finally:
    for name in stand_in:
      del sys.modules[name]
    sys.modules.update(before)
  return lpips


def model(net: str, params: dict[str, Any], *, spatial: bool = False) -> Any:
  """The package's LPIPS v0.1 with its own heads and the convolutions of `load_alexnet` and `load_vgg16`.

  Args:
    net: 'alex' or 'vgg'.
    params: of that network.
    spatial: a distance per pixel.
  """
  measure = _load().LPIPS(net=net, spatial=spatial, pnet_rand=True, verbose=False)
  convolutions = [layer for layer in measure.net.modules() if isinstance(layer, nn.Conv2d)]
  with torch.no_grad():
    for layer, weights in zip(convolutions, params["convolutions"], strict=True):
      layer.weight.copy_(torch.tensor(np.asarray(weights["kernel"])).permute(3, 2, 0, 1))
      layer.get_parameter("bias").copy_(torch.tensor(np.asarray(weights["bias"])))
  return measure


def pixels(images: np.ndarray) -> torch.Tensor:
  """uint8 NHWC pictures as the package takes them: NCHW in [-1, 1]."""
  return torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
