"""The two models that are trained, put together from their parts."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.torch_twin.blocks import ChannelNorm, push_pull_fill
from benchmarks.torch_twin.decoder import Decoder
from benchmarks.torch_twin.encoder import Encoder, Pyramid, RecognitionEncoder
from benchmarks.torch_twin.memory import Memory, Retrieval
from gmsrm_jax.config import Config


class QueryHead(nn.Module):
  """Bottleneck features to the query map, in float32."""

  def __init__(self, channels: int, dim: int):
    super().__init__()
    self.norm = ChannelNorm(channels)
    self.conv = nn.Conv2d(channels, dim, 1)

  def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
    with torch.autocast(features.device.type, enabled=False):
      return self.conv(self.norm(features.float()))


class Recognised(NamedTuple):
  """Stage 1's view of an image."""

  query: Tensor
  image: Tensor
  retrieval: Retrieval


class Learner(nn.Module):
  """Stage 1: recognises the whole image, retrieves, and draws it again; the teacher of stage 2."""

  def __init__(self, config: Config):
    super().__init__()
    self.recognition = RecognitionEncoder(config.model)
    self.query = QueryHead(config.model.widths[-1], config.memory.slot_dim)
    self.memory = Memory(config.model, config.memory)

  def forward(self, image: Float[Tensor, "b 3 h w"]) -> Recognised:
    query = self.query(self.recognition(image)[-1])
    read, retrieval = self.memory.recall(query)
    assert retrieval is not None, "stage 1 needs a codebook"
    return Recognised(query, self.memory.generator(read)[1], retrieval)

  @torch.no_grad()
  def teach(self, image: Float[Tensor, "b 3 h w"]) -> Retrieval:
    """The memory's read for the whole image."""
    retrieval = self.memory.recall(self.query(self.recognition(image)[-1]))[1]
    assert retrieval is not None, "a teacher needs a codebook"
    return retrieval


class Inpainted(NamedTuple):
  """Stage 2's outputs; `prediction` is not yet composited."""

  prediction: Tensor
  memory_image: Tensor
  retrieval: Retrieval | None
  strengths: Pyramid


def _same(x: Tensor) -> Tensor:
  return x


class Inpainter(nn.Module):
  """Stage 2: encoder, retrieval, generator with conditional variation, decoder."""

  def __init__(self, config: Config):
    super().__init__()
    widths = config.model.widths
    self.encoder = Encoder(config.model)
    self.query = QueryHead(widths[-1], config.memory.slot_dim)
    self.memory = Memory(config.model, config.memory)
    self.decoder = Decoder(config.model)
    self.strengths = nn.ModuleList(nn.Conv2d(w, w, 1) for w in widths) if config.variation.enabled else None

  def forward(
    self,
    image: Float[Tensor, "b 3 h w"],
    mask: Float[Tensor, "b 1 h w"],
    noise: Pyramid | None = None,
    rows: Callable[[Tensor], Tensor] = _same,
  ) -> Inpainted:
    """Fills the hole; `rows` repeats images that are filled more than once."""
    filled = push_pull_fill(image, mask)
    features = self.encoder(filled, mask)
    strengths, scaled = (), None
    if self.strengths is not None:
      strengths = tuple(F.softplus(head(f)) for head, f in zip(self.strengths, features, strict=True))
      if noise is not None:
        scaled = tuple(n.to(s.dtype) * rows(s) for n, s in zip(noise, strengths, strict=True))
    read, retrieval = self.memory.recall(self.query(features[-1]))
    priors, memory_image = self.memory.generator(rows(read), scaled)
    residual = self.decoder(tuple(map(rows, features)), priors, rows(mask))
    return Inpainted(rows(filled) + residual, memory_image, retrieval, strengths)
