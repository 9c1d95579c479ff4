"""Both encoders, the context blocks and the transfer of known features into the hole."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.torch_twin.blocks import HALF, ChannelNorm, Downsample, ResidualBlock, conv3x3, mask_pyramid
from gmsrm_jax.config import ModelConfig

Pyramid = tuple[Tensor, ...]


def rotary(
  height: int, width: int, dim: int, heads: int, device: torch.device, *, oblique: bool
) -> tuple[Tensor, Tensor]:
  """Cosines and sines of rotary position embedding, [heads, h·w, dim / 2], an axis in each half.

  The axes are rows and columns, turned by a further part of a right angle for each head where `oblique`.
  """
  quarter = dim // 4
  frequency = 100.0 ** (-torch.arange(quarter, device=device) / quarter)
  turn = torch.arange(heads, device=device)[:, None] * (math.pi / 2 / heads if oblique else 0.0)
  rows = torch.arange(height, device=device).repeat_interleave(width)
  columns = torch.arange(width, device=device).repeat(height)
  along = (rows * turn.cos() + columns * turn.sin(), columns * turn.cos() - rows * turn.sin())
  angle = torch.cat([places[..., None] * frequency for places in along], dim=-1)
  return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "b n q d"], cos: Tensor, sin: Tensor) -> Float[Tensor, "b n q d"]:
  """Turns the pairs (i, i + d/2) by their angles."""
  a, b = x.chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class ContextBlock(nn.Module):
  """Self-attention over the bottleneck grid, then an MLP; the mask goes into the projections."""

  def __init__(self, channels: int, heads: int, *, oblique: bool):
    super().__init__()
    self.heads, self.oblique = heads, oblique
    self.norm1 = ChannelNorm(channels)
    self.query = nn.Conv2d(channels + 1, channels, 1)
    self.key = nn.Conv2d(channels + 1, channels, 1, bias=False)
    self.value = nn.Conv2d(channels + 1, channels, 1)
    self.project = nn.Conv2d(channels, channels, 1)
    self.norm2 = ChannelNorm(channels)
    self.expand = nn.Conv2d(channels, 2 * channels, 1)
    self.contract = nn.Conv2d(2 * channels, channels, 1)

  def _split(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n q d"]:
    return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)

  def forward(self, x: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
    batch, channels, height, width = x.shape
    normed = self.norm1(x)
    normed = torch.cat([normed, mask.to(normed.dtype)], dim=1)
    cos, sin = rotary(height, width, channels // self.heads, self.heads, x.device, oblique=self.oblique)
    query, key, value = (self._split(layer(normed)) for layer in (self.query, self.key, self.value))
    attended = F.scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value)
    # Heads back beside their channels, in channels_last memory.
    attended = attended.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    x = x + self.project(attended)
    return x + self.contract(F.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class ContextTransfer(nn.Module):
  """Lends cells of fine features to the hole along one attention map over the bottleneck grid."""

  def __init__(self, widths: tuple[int, ...]):
    super().__init__()
    *finer, bottom = widths
    self.norm = ChannelNorm(bottom)
    self.embed = nn.Conv2d(bottom, bottom, 1)
    self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
    self.norms = nn.ModuleList(ChannelNorm(width) for width in finer)
    self.projects = nn.ModuleList(nn.Conv2d(width, width, 1) for width in finer)

  def forward(self, features: list[Tensor], masks: list[Tensor]) -> Pyramid:
    *finer, bottom = features
    height, width = bottom.shape[-2:]
    with torch.autocast(bottom.device.type, enabled=False):
      embedded = self.embed(self.norm(bottom.float())).flatten(2)
      embedded = embedded * torch.rsqrt(embedded.square().sum(dim=1, keepdim=True) + 1e-6)
      scores = embedded.mT @ embedded * self.log_scale.clamp(max=5).exp()
      weights = torch.softmax(scores - 16.0 * masks[-1].flatten(2), dim=-1)
    lent = []
    for i, (fine, mask) in enumerate(zip(finer, masks[:-1], strict=True)):
      cell = fine.shape[-1] // width
      batch, channels = fine.shape[:2]
      # [b, h·w, cell·cell·c]: with channels last, every row of a cell is one piece of memory.
      cells = fine.permute(0, 2, 3, 1).reshape(batch, height, cell, width, cell, channels).transpose(2, 3)
      borrowed = weights.to(fine.dtype) @ cells.reshape(batch, height * width, -1)
      borrowed = borrowed.view(batch, height, width, cell, cell, channels).transpose(2, 3)
      borrowed = borrowed.reshape(batch, height * cell, width * cell, channels).permute(0, 3, 1, 2)
      lent.append(fine + mask.to(fine.dtype) * self.projects[i](self.norms[i](borrowed)))
    return (*lent, bottom)


class _Trunk(nn.Module):
  """Pixel unshuffle, a stem, and residual blocks with a downsampling between two scales."""

  def __init__(self, config: ModelConfig, *, inputs: int, gated: bool):
    super().__init__()
    widths = config.widths
    self.stem = conv3x3(4 * inputs, widths[0])
    self.downs = nn.ModuleList(Downsample(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
    self.blocks = nn.ModuleList(
      nn.ModuleList(ResidualBlock(width, gated=gated) for _ in range(config.blocks)) for width in widths
    )


class Encoder(_Trunk):
  """The filled image and its mask to features at every scale."""

  def __init__(self, config: ModelConfig):
    super().__init__(config, inputs=4, gated=True)
    width = config.widths[-1]
    self.contexts = nn.ModuleList(
      ContextBlock(width, config.heads, oblique=config.oblique) for _ in range(config.context_blocks)
    )
    self.transfer = ContextTransfer(config.widths) if config.context_blocks else None

  def forward(self, filled: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"]) -> Pyramid:
    masks = mask_pyramid(mask, len(self.blocks))
    h = self.stem(F.pixel_unshuffle(torch.cat([filled, mask], dim=1), HALF))
    features = []
    for scale, blocks in enumerate(self.blocks):
      if scale > 0:
        h = self.downs[scale - 1](h)
      for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
        h = block(h, masks[scale])
      features.append(h)
    for context in self.contexts:
      h = context(h, masks[-1])
    features[-1] = h
    return tuple(features) if self.transfer is None else self.transfer(features, masks)


class RecognitionEncoder(_Trunk):
  """The whole image to features at every scale."""

  def __init__(self, config: ModelConfig):
    super().__init__(config, inputs=3, gated=False)

  def forward(self, image: Float[Tensor, "b 3 h w"]) -> Pyramid:
    h = self.stem(F.pixel_unshuffle(image, HALF))
    features = []
    for scale, blocks in enumerate(self.blocks):
      if scale > 0:
        h = self.downs[scale - 1](h)
      for block in blocks:  # pyright: ignore[reportGeneralTypeIssues]
        h = block(h)
      features.append(h)
    return tuple(features)
