"""Layers that every network shares, the mask pyramid and the initial fill."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

HALF = 2
"""Factor between two scales."""


class ChannelNorm(nn.LayerNorm):
  """Layer norm over the channels of each position; free of copies in channels_last memory."""

  def __init__(self, channels: int):
    super().__init__(channels, eps=1e-5)

  def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
  """A 3x3 convolution that keeps the size."""
  return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResidualBlock(nn.Module):
  """Norm, 3x3, SiLU, gate by features and mask (where it has one), 3x3."""

  def __init__(self, channels: int, *, gated: bool):
    super().__init__()
    self.norm = ChannelNorm(channels)
    self.expand = conv3x3(channels, channels)
    self.gate = nn.Conv2d(channels + 1, channels, 1) if gated else None
    self.project = conv3x3(channels, channels)

  def forward(
    self, x: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None = None
  ) -> Float[Tensor, "b c h w"]:
    hidden = F.silu(self.expand(self.norm(x)))
    if self.gate is not None:
      assert mask is not None
      hidden = hidden * torch.sigmoid(self.gate(torch.cat([hidden, mask.to(hidden.dtype)], dim=1)))
    return x + self.project(hidden)


class Downsample(nn.Module):
  """Halves the size: pixel unshuffle and a 1x1 convolution."""

  def __init__(self, inputs: int, outputs: int):
    super().__init__()
    self.conv = nn.Conv2d(4 * inputs, outputs, 1)

  def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
    return self.conv(F.pixel_unshuffle(x, HALF))


def smoothed(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
  """Weights 1 2 1 along both axes, as means of two twice."""
  return F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 2, 1), 2, 1)


class Upsample(nn.Module):
  """Doubles the size: a 1x1 convolution and pixel shuffle, on request smoothed by 1 2 1 along both axes."""

  def __init__(self, inputs: int, outputs: int, *, smooth: bool = False):
    super().__init__()
    self.conv, self.smooth = nn.Conv2d(inputs, 4 * outputs, 1), smooth

  def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
    doubled = F.pixel_shuffle(self.conv(x), HALF)
    return smoothed(doubled) if self.smooth else doubled


def mask_pyramid(mask: Float[Tensor, "b 1 h w"], scales: int) -> list[Tensor]:
  """The hole's share of each cell at 1/2, 1/4 … of the size."""
  pyramid = []
  for _ in range(scales):
    mask = F.avg_pool2d(mask, HALF)
    pyramid.append(mask)
  return pyramid


def push_pull_fill(image: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
  """Fills the hole smoothly from known pixels: a pyramid of weighted means, four Jacobi sweeps at each level."""
  known = 1 - mask
  return _push_pull(torch.where(mask < 0.5, image, 0) * known, known)


def _push_pull(colour: Tensor, weight: Tensor) -> Tensor:
  height, width = colour.shape[-2:]
  if height == width == 1:
    return colour
  both = F.pad(torch.cat([colour, weight], dim=1), (0, width % 2, 0, height % 2))
  sums = F.avg_pool2d(both, HALF, divisor_override=1)
  total = sums[:, 3:]
  coarse_weight = total.clamp(max=1)
  coarse = _push_pull(sums[:, :3] / total.clamp(min=1e-6) * coarse_weight, coarse_weight)
  fine = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
  unknown = 1 - weight
  filled = colour + unknown * fine
  for _ in range(4):
    x = F.pad(filled, (1, 1, 1, 1), mode="replicate")
    mean = (x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]) / 4
    filled = colour + unknown * mean
  return filled
