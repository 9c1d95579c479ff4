"""VGG16's convolutions, for the perceptual and style terms."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


class Vgg16(nn.Module):
  """Activations after the last ReLU of each of the first blocks, of an image in [-1, 1]."""

  mean: Tensor
  deviation: Tensor

  def __init__(self, stages: int):
    super().__init__()
    self.register_buffer("mean", torch.tensor((-0.030, -0.088, -0.188)).view(1, 3, 1, 1))
    self.register_buffer("deviation", torch.tensor((0.458, 0.448, 0.450)).view(1, 3, 1, 1))
    self.blocks = nn.ModuleList()
    inputs = 3
    for channels, depth in _BLOCKS[:stages]:
      sizes = [inputs] + [channels] * depth
      self.blocks.append(
        nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
      )
      inputs = channels

  def forward(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
    x = (image - self.mean) / self.deviation
    found = []
    for index, block in enumerate(self.blocks):
      if index:
        x = F.max_pool2d(x, 2)
      for convolution in block:  # pyright: ignore[reportGeneralTypeIssues]
        x = F.relu(convolution(x))
      found.append(x)
    return tuple(found)


def load_vgg16(convolutions: Sequence[Mapping], stages: int) -> Vgg16:
  """The network with kernels (HWIO) and biases as `gmsrm_jax.pretrained.vgg16.load_vgg16` gives them; frozen."""
  network = Vgg16(stages)
  layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
  with torch.no_grad():
    for layer, weights in zip(layers, convolutions, strict=False):
      layer.weight.copy_(torch.tensor(weights["kernel"]).permute(3, 2, 0, 1))
      assert layer.bias is not None
      layer.bias.copy_(torch.tensor(weights["bias"]))
  return network.requires_grad_(False)
