"""The train steps of both stages; random numbers are arguments, so that a step can be compared with another's.

`compile` compiles the two differentiated functions (networks and losses in one graph each); everything else is the
optimisers' foreach and fused kernels, which gain nothing from it.
"""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from benchmarks.torch_twin import losses
from benchmarks.torch_twin.decoder import Discriminator
from benchmarks.torch_twin.memory import Retrieval, revive
from benchmarks.torch_twin.models import Inpainter, Learner
from benchmarks.torch_twin.optim import Player
from gmsrm_jax.config import Config

Terms = dict[str, Tensor]


def decode(image: UInt8[Tensor, "b 3 h w"], mask: UInt8[Tensor, "b 1 h w"]) -> tuple[Tensor, Tensor]:
  """The pipeline's bytes as floats."""
  return image.float() / 127.5 - 1, (mask > 0).float()


def cut_windows(image: Tensor, corners: Int[Tensor, "b 2"], side: int) -> Tensor:
  """The window of each image, by one gather, without asking the device for the corners."""
  span = torch.arange(side, device=image.device)
  y, x = (corners[:, i, None] + span for i in (0, 1))
  batch = torch.arange(len(image), device=image.device)
  cut = image.permute(0, 2, 3, 1)[batch[:, None, None], y[:, :, None], x[:, None, :]]
  return cut.permute(0, 3, 1, 2)


class Trainer:
  """One stage's networks and optimisers; `memory_step` and `inpaint_step` are its two kinds of step."""

  def __init__(
    self,
    config: Config,
    stage: str,
    *,
    vgg: nn.Module | None = None,
    teacher: Learner | None = None,
    device: str = "cpu",
    compiled: bool = False,
    bfloat16: bool = False,
    fused: bool = True,
  ):
    self.config, self.step = config, 0
    settings = config.stage1 if stage == "memory" else config.stage2

    def place(network: nn.Module) -> Any:
      return network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    self.model = place(Learner(config) if stage == "memory" else Inpainter(config))
    self.teacher = None if teacher is None else place(teacher).requires_grad_(False)
    self.discriminator = place(Discriminator(config.model))
    self.vgg = None if vgg is None else place(vgg)
    pretrained = stage == "inpaint" and config.memory.enabled and config.memory.pretrain
    if pretrained and config.memory.finetune == 0:
      self.model.memory.requires_grad_(False)
    self.generator_player = Player(
      self.model, settings, memory_rate=config.memory.finetune if pretrained else 1.0, fused=fused
    )
    self.discriminator_player = Player(self.discriminator, settings, discriminator=True, fused=fused)
    slots = config.memory.num_slots
    self.usage = torch.full((slots,), 1 / slots, device=device)

    compile: Callable = torch.compile if compiled else lambda function: function
    self._objective = compile(self._memory_objective if stage == "memory" else self._inpaint_objective)
    self._judge = compile(self._discriminator_objective)
    self._autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=bfloat16)

  def _features(self, x: Tensor) -> tuple[Tensor, ...]:
    if self.vgg is not None:
      return self.vgg(x)
    learner = self.teacher if self.teacher is not None else self.model
    # Stopped: the loss must not reach the parameters of the network that it looks through.
    frozen = {name: p.detach() for name, p in learner.recognition.named_parameters()}
    return torch.func.functional_call(learner.recognition, frozen, (x,))

  def _feature_terms(self, drawn: Tensor, image: Tensor, corners: Tensor | None, *, varied: bool, style: bool) -> Terms:
    weights, same = self.config.loss, lambda x: x
    rows, fold = (losses.rows, losses.per_image) if varied else (same, same)
    if side := weights.feature_crop:
      assert corners is not None
      image, drawn = cut_windows(image, corners, side), cut_windows(drawn, rows(corners), side)
    with torch.no_grad():
      wished = tuple(map(rows, self._features(image)))
    found = self._features(drawn)
    terms = {}
    if weights.perceptual > 0:
      terms["perceptual"] = fold(losses.perceptual(found, wished))
    if style and weights.style > 0:
      terms["style"] = fold(losses.style(found, wished))
    return terms

  def _adversarial(self, drawn: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    norm = self.config.loss.adversarial * losses.hole_l1_gradient_norm(mask)
    fake = torch.where(mask > 0.5, losses.fix_gradient_norm(drawn, norm), image)
    return losses.hinge_generator(self.discriminator(fake, mask))

  def _total(self, terms: Terms) -> tuple[Tensor, Terms]:
    terms = {name: term.mean() for name, term in terms.items() if getattr(self.config.loss, name) > 0}
    total = torch.stack([getattr(self.config.loss, name) * term for name, term in terms.items()]).sum()
    return total, terms

  def _memory_objective(self, image: Tensor, corners: Tensor | None) -> tuple[Tensor, Terms, Any]:
    recognised = self.model(image)
    usage = recognised.retrieval.log_weights.exp().mean(dim=(0, 1, 2))
    terms = {"l1": losses.l1(recognised.image, image), "balance": losses.balance(usage)}
    terms |= self._feature_terms(recognised.image, image, corners, varied=False, style=False)
    terms["adversarial"] = self._adversarial(recognised.image, image, torch.ones_like(image[:, :1]))
    total, means = self._total(terms)
    return total, means, (recognised, usage.detach())

  def _inpaint_objective(
    self, image: Tensor, mask: Tensor, noise: Any, corners: Tensor | None, teacher: Retrieval | None
  ) -> tuple[Tensor, Terms, Tensor]:
    varied, stride = self.config.variation.enabled, self.config.model.stride
    rows, fold = (losses.rows, losses.per_image) if varied else ((lambda x: x), (lambda x: x))
    images, masks = rows(image), rows(mask)
    out = self.model(image, mask, noise, rows)
    inpainted = torch.where(masks > 0.5, out.prediction, images)
    terms = {
      "hole": losses.hole_score(out.prediction, image, mask, stride)
      if varied
      else losses.masked_l1(out.prediction, image, mask),
      "valid": fold(losses.masked_l1(out.prediction, images, 1 - masks)),
      "memory_image": fold(losses.masked_l1(out.memory_image, images, masks)),
      **self._feature_terms(inpainted, image, corners, varied=varied, style=True),
    }
    if teacher is not None and out.retrieval is not None:
      hole = F.avg_pool2d(mask, stride).flatten(1)
      supervised = hole + self.config.loss.retrieval_known * (1 - hole)
      terms["retrieval"] = losses.retrieval_kl(teacher.log_weights, out.retrieval.log_weights, supervised)
      terms["read"] = losses.read_loss(teacher.read, out.retrieval.read, supervised)
    terms["adversarial"] = self._adversarial(out.prediction, images, masks)
    total, means = self._total(terms)
    return total, means, inpainted

  def _discriminator_objective(self, real: Tensor, fake: Tensor, mask: Tensor, hole: bool) -> Tensor:
    logits = self.discriminator(torch.cat([real, fake]), torch.cat([mask, mask]), update=True)
    share = F.avg_pool2d(mask, real.shape[-1] // logits.shape[-1]) if hole else None
    real_logits, fake_logits = logits.chunk(2)
    return losses.hinge_discriminator(real_logits, fake_logits, share).mean()

  def _update(self, total: Tensor) -> Tensor:
    total.backward()
    return self.generator_player.update(self.step)

  def _update_discriminator(self, real: Tensor, fake: Tensor, mask: Tensor, *, hole: bool) -> Terms:
    self.discriminator.requires_grad_(True)
    with self._autocast():
      loss = self._judge(real, fake.detach(), mask, hole)
    loss.backward()
    return {"disc_loss": loss.detach(), "disc_grad_norm": self.discriminator_player.update(self.step)}

  def memory_step(self, image: Tensor, corners: Tensor | None = None, revived: tuple = (None, None)) -> Terms:
    """Stage 1's step on a batch of bytes; `revived` says what `memory.revive` draws otherwise."""
    image, whole = decode(image, torch.ones_like(image[:, :1]))
    self.discriminator.requires_grad_(False)
    with self._autocast():
      total, terms, (recognised, batch_usage) = self._objective(image, corners)
    norm = self._update(total)
    terms |= self._update_discriminator(image, recognised.image, whole, hole=False)
    memory = self.config.memory
    self.usage = torch.lerp(batch_usage, self.usage, 0.99)
    if memory.revive_every and (self.step + 1) % memory.revive_every == 0:
      codebook, player = self.model.memory.codebook, self.generator_player
      ema = [player.ema[player.names.index(f"memory.codebook.{n}")] for n in ("anchors", "keys", "values")]
      queries = recognised.query.permute(0, 2, 3, 1).reshape(-1, memory.slot_dim)
      reads = recognised.retrieval.read.reshape(-1, memory.slot_dim)
      self.usage = revive(codebook, ema, self.usage, queries, reads, 0.05, *revived)
    self.step += 1
    return {"loss": total.detach(), "grad_norm": norm, **terms}

  def inpaint_step(self, image: Tensor, mask: Tensor, noise: Any = None, corners: Tensor | None = None) -> Terms:
    """Stage 2's step on a batch of bytes; `noise` is what `gmsrm_jax.variation.row_noise` gives, as NCHW."""
    image, mask = decode(image, mask)
    self.discriminator.requires_grad_(False)
    with self._autocast():
      teacher = None if self.teacher is None else self.teacher.teach(image)
      total, terms, inpainted = self._objective(image, mask, noise, corners, teacher)
    norm = self._update(total)
    rows: Callable = losses.rows if self.config.variation.enabled else lambda x: x
    terms |= self._update_discriminator(rows(image), inpainted, rows(mask), hole=True)
    self.step += 1
    return {"loss": total.detach(), "grad_norm": norm, **terms}
