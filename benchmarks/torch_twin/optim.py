"""Adam with warm-up and cosine decay, clipping, and the moving average of parameters."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gmsrm_jax.config import StageConfig


class Player:
  """The parameters of one side with their optimiser, schedule and, for the generator's side, average."""

  def __init__(
    self,
    network: nn.Module,
    stage: StageConfig,
    *,
    discriminator: bool = False,
    memory_rate: float = 1.0,
    fused: bool = True,
  ):
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    self.names = [name for name, _ in named]
    self.params = [parameter for _, parameter in named]
    self.clip_norm, self.decay = stage.clip_norm, stage.ema_decay
    rate = stage.discriminator_rate if discriminator else stage.learning_rate
    groups = [
      {"params": [p for name, p in named if name.startswith("memory.") == memory], "lr": rate * factor}
      for memory, factor in ((False, 1.0), (True, memory_rate))
    ]
    betas = (0.0 if discriminator else stage.beta1, 0.99)
    self.adam = torch.optim.Adam([g for g in groups if g["params"]], lr=rate, betas=betas, eps=1e-8, fused=fused)
    self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, lambda step: relative_rate(stage, step))
    self.ema: list[Tensor] = [] if discriminator else [p.detach().clone() for p in self.params]

  def update(self, step: int) -> Tensor:
    """One step from the gradients that are there; returns their norm."""
    norm = nn.utils.clip_grad_norm_(self.params, self.clip_norm)
    self.adam.step()
    self.schedule.step()
    self.adam.zero_grad(set_to_none=True)
    if self.ema:
      move_average(self.ema, self.params, step, self.decay)
    return norm


def relative_rate(stage: StageConfig, step: int) -> float:
  """The rate at a step over its peak: linear warm-up, then half a cosine down to a twentieth."""
  steps = max(stage.steps, 1)
  warmup = min(stage.warmup, steps // 5)
  if step < warmup:
    return step / warmup
  share = min(1.0, (step - warmup) / (steps - warmup))
  return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def move_average(ema: list[Tensor], params: Sequence[Tensor], step: int, decay: float) -> None:
  """Moves the average towards the parameters, faster while there are few steps."""
  torch._foreach_lerp_(ema, list(params), 1 - min(decay, (1 + step) / (10 + step)))  # pyright: ignore[reportPrivateImportUsage]
