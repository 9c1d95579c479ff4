"""The decoder, and the spectrally normalised discriminator."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.torch_twin.blocks import HALF, ChannelNorm, ResidualBlock, Upsample, conv3x3, mask_pyramid, smoothed
from benchmarks.torch_twin.encoder import Pyramid
from gmsrm_jax.config import ModelConfig


class Fusion(nn.Module):
  """h + (h · scale + shift) from the encoder's features, the prior and the mask."""

  def __init__(self, channels: int):
    super().__init__()
    self.norm_skip, self.norm_prior = ChannelNorm(channels), ChannelNorm(channels)
    self.mix = nn.Conv2d(4 * channels + 1, channels, 1)
    self.modulate = nn.Conv2d(channels, 2 * channels, 1)

  def forward(self, h: Tensor, skip: Tensor, prior: Tensor, mask: Tensor) -> Float[Tensor, "b c h w"]:
    skip, prior = self.norm_skip(skip), self.norm_prior(prior)
    blend = torch.lerp(skip, prior, mask.to(skip.dtype).expand_as(skip))
    evidence = torch.cat([h, skip, prior, blend, mask.to(skip.dtype)], dim=1)
    scale, shift = self.modulate(F.silu(self.mix(evidence))).chunk(2, dim=1)
    return h + (h * scale + shift)


class Decoder(nn.Module):
  """Features and priors to a residual over the initial fill."""

  def __init__(self, config: ModelConfig):
    super().__init__()
    widths = config.widths
    self.smooth = config.smooth_upsampling
    self.ups = nn.ModuleList(Upsample(b, a, smooth=self.smooth) for a, b in zip(widths[:-1], widths[1:], strict=True))
    self.fuses = nn.ModuleList(Fusion(width) for width in widths)
    self.blocks = nn.ModuleList(
      nn.ModuleList(ResidualBlock(width, gated=True) for _ in range(config.blocks)) for width in widths
    )
    self.norm = ChannelNorm(widths[0])
    self.to_pixels = conv3x3(widths[0], 12)

  def forward(self, features: Pyramid, priors: Pyramid, mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
    masks = mask_pyramid(mask, len(self.blocks))
    h = features[-1]
    for scale in reversed(range(len(self.blocks))):
      if scale < len(self.ups):
        h = self.ups[scale](h)
      h = self.fuses[scale](h, features[scale], priors[scale], masks[scale])
      for block in self.blocks[scale]:  # pyright: ignore[reportGeneralTypeIssues]
        h = block(h, masks[scale])
    pixels = F.pixel_shuffle(self.to_pixels(self.norm(h)), HALF).float()
    return smoothed(pixels) if self.smooth else pixels


class SpectralConv(nn.Conv2d):
  """A 3x3 convolution whose weight is divided by its largest singular value, from one power iteration.

  Not torch's own parametrisation: that one keeps both vectors and iterates in training mode only, ours keeps `u`, and
  iterates once in every call, whether the result is kept or not.
  """

  u: Tensor
  sigma: Tensor

  def __init__(self, inputs: int, outputs: int):
    super().__init__(inputs, outputs, 3, padding=1)
    self.register_buffer("u", torch.randn(outputs))
    self.register_buffer("sigma", torch.ones(()))

  def forward(self, input: Tensor, update: bool = False) -> Tensor:
    matrix = self.weight.flatten(1)
    with torch.no_grad():
      v = matrix.T @ self.u
      v = v * torch.rsqrt(v.square().sum() + 1e-12)
      u = matrix @ v
      u = u * torch.rsqrt(u.square().sum() + 1e-12)
    sigma = torch.dot(u, matrix @ v)
    if update:
      with torch.no_grad():
        self.u.copy_(u)
        self.sigma.copy_(sigma)
    return F.conv2d(input, self.weight / sigma, self.bias, padding=1)


class Discriminator(nn.Module):
  """One logit per patch of image and mask; larger is more real."""

  def __init__(self, config: ModelConfig):
    super().__init__()
    count = config.discriminator_layers + 1
    widths = [min(config.discriminator_width * 2**layer, 512) for layer in range(count)]
    self.layers = nn.ModuleList(SpectralConv(4 * a, b) for a, b in zip([4, *widths[:-1]], widths, strict=True))
    self.to_logits = SpectralConv(widths[-1], 1)

  def forward(self, image: Float[Tensor, "b 3 h w"], mask: Float[Tensor, "b 1 h w"], update: bool = False) -> Tensor:
    h = torch.cat([image, mask], dim=1)
    for layer in self.layers:
      h = F.leaky_relu(layer(F.pixel_unshuffle(h, HALF), update), 0.2)
    return self.to_logits(h, update).float()
