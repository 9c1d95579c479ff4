"""The memory: codebook with retrieval attention, and the generator that draws what was read."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.torch_twin.blocks import HALF, ChannelNorm, ResidualBlock, Upsample, conv3x3
from benchmarks.torch_twin.encoder import Pyramid
from gmsrm_jax.config import MemoryConfig, ModelConfig


class Retrieval(NamedTuple):
  """A read and the logarithms of the weights behind it."""

  read: Float[Tensor, "b q d"]
  log_weights: Float[Tensor, "b n q s"]


def _unit(x: Tensor) -> Tensor:
  return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + 1e-6)


class Codebook(nn.Module):
  """Groups of slots with anchors, and hierarchical attention over them, in float32 throughout."""

  def __init__(self, config: MemoryConfig):
    super().__init__()
    groups, slots, dim, self.heads = config.num_groups, config.slots_per_group, config.slot_dim, config.heads
    self.anchors = nn.Parameter(torch.randn(groups, dim))
    self.keys = nn.Parameter(torch.randn(groups, slots, dim))
    self.values = nn.Parameter(torch.randn(groups, slots, dim))
    self.group_scale = nn.Parameter(torch.full((self.heads,), -math.log(config.group_temperature)))
    self.slot_scale = nn.Parameter(torch.full((self.heads,), -math.log(config.slot_temperature)))

  def _split(self, x: Tensor) -> Tensor:
    return x.float().unflatten(-1, (self.heads, -1))

  def forward(self, query: Float[Tensor, "b q d"]) -> Retrieval:
    with torch.autocast(query.device.type, enabled=False):
      queries = _unit(self._split(query))
      groups = torch.einsum("bqne,gne->bnqg", queries, _unit(self._split(self.anchors)))
      slots = torch.einsum("bqne,gkne->bnqgk", queries, _unit(self._split(self.keys)))
      groups = groups * self.group_scale.clamp(max=5).exp()[:, None, None]
      slots = slots * self.slot_scale.clamp(max=5).exp()[:, None, None, None]
      log_weights = F.log_softmax(groups, dim=-1)[..., None] + F.log_softmax(slots, dim=-1)
      read = torch.einsum("bnqgk,gkne->bqne", log_weights.exp(), self._split(self.values))
    return Retrieval(read.flatten(2), log_weights.flatten(3))


@torch.no_grad()
def revive(
  codebook: Codebook,
  ema: list[Tensor],
  usage: Float[Tensor, " s"],
  queries: Float[Tensor, "p d"],
  reads: Float[Tensor, "p d"],
  revive_below: float,
  chosen: Int[Tensor, " g"] | None = None,
  picks: Int[Tensor, "g k"] | None = None,
) -> Float[Tensor, " s"]:
  """Re-seeds dead slots of the codebook and its averages (anchors, keys, values); returns the usage after it.

  `chosen` and `picks` say which queries are taken; drawn where they are not given.
  """
  groups, slots = codebook.keys.shape[:2]
  dead = usage < revive_below / len(usage)
  grid = dead.view(groups, slots)
  whole = grid.all(dim=1, keepdim=True)
  if chosen is None:
    chosen = torch.randint(len(queries), (groups,), device=queries.device)
  anchors = torch.where(whole, queries[chosen], codebook.anchors)
  if picks is None:
    unit = [x / (x.norm(dim=-1, keepdim=True) + 1e-6) for x in (anchors, queries)]
    picks = torch.multinomial(torch.softmax(unit[0] @ unit[1].T / 0.1, dim=-1), slots, replacement=True)
  new = (anchors, torch.where(grid[..., None], queries[picks], codebook.keys))
  new = (*new, torch.where(grid[..., None], reads[picks], codebook.values))
  for parameter, average, value in zip((codebook.anchors, codebook.keys, codebook.values), ema, new, strict=True):
    average.copy_(torch.where(value != parameter, value, average))
    parameter.copy_(value)
  return torch.where(dead, 1 / len(usage), usage)


class Generator(nn.Module):
  """Bottleneck to full size: priors at every scale, and an image."""

  def __init__(self, config: ModelConfig, slot_dim: int):
    super().__init__()
    widths = config.widths
    self.lift = nn.Conv2d(slot_dim, widths[-1], 1)
    self.ups = nn.ModuleList(Upsample(b, a) for a, b in zip(widths[:-1], widths[1:], strict=True))
    self.blocks = nn.ModuleList(
      nn.ModuleList(ResidualBlock(width, gated=False) for _ in range(config.blocks)) for width in widths
    )
    self.norm = ChannelNorm(widths[0])
    self.to_pixels = conv3x3(widths[0], 12)

  def forward(self, read: Float[Tensor, "b d h w"], noise: Pyramid | None = None) -> tuple[Pyramid, Tensor]:
    h = self.lift(read)
    priors = []
    for scale in reversed(range(len(self.blocks))):
      if scale < len(self.ups):
        h = self.ups[scale](h)
      if noise is not None:
        h = h + noise[scale]
      for block in self.blocks[scale]:  # pyright: ignore[reportGeneralTypeIssues]
        h = block(h)
      priors.append(h)
    image = F.pixel_shuffle(self.to_pixels(self.norm(h)), HALF).float()
    return tuple(reversed(priors)), image


class Memory(nn.Module):
  """Codebook and generator; without a codebook, an MLP of the same size reads instead."""

  def __init__(self, model: ModelConfig, config: MemoryConfig):
    super().__init__()
    self.generator = Generator(model, config.slot_dim)
    self.codebook = Codebook(config) if config.enabled else None
    if not config.enabled:
      self.expand = nn.Conv2d(config.slot_dim, config.num_slots, 1)
      self.contract = nn.Conv2d(config.num_slots, config.slot_dim, 1)

  def recall(self, query: Float[Tensor, "b d h w"]) -> tuple[Float[Tensor, "b d h w"], Retrieval | None]:
    """The read at every position of the query map, and how it came about."""
    if self.codebook is None:
      with torch.autocast(query.device.type, enabled=False):
        return self.contract(F.gelu(self.expand(query), approximate="tanh")), None
    retrieval = self.codebook(query.flatten(2).mT)
    return retrieval.read.unflatten(1, query.shape[-2:]).permute(0, 3, 1, 2), retrieval
