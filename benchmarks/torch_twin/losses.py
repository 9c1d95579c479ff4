"""The loss terms, each one value per image, and how the two fills of an image are scored."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_l1(prediction: Tensor, image: Tensor, mask: Tensor) -> Tensor:
  """Mean absolute error where the mask is 1; 0 where it is 1 nowhere."""
  pixels = mask.sum(dim=(1, 2, 3)).clamp(min=1)
  return ((prediction - image).abs() * mask).sum(dim=(1, 2, 3)) / (prediction.shape[1] * pixels)


def l1(prediction: Tensor, image: Tensor) -> Tensor:
  """Mean absolute error."""
  return (prediction - image).abs().mean(dim=(1, 2, 3))


def perceptual(found: tuple[Tensor, ...], wished: tuple[Tensor, ...]) -> Tensor:
  """Sum over layers of the mean absolute difference."""
  return torch.stack([l1(a.float(), b.float()) for a, b in zip(found, wished, strict=True)]).sum(dim=0)


def gram(x: Tensor) -> Tensor:
  """Gram matrix of the channels over c · h · w, in float32."""
  with torch.autocast(x.device.type, enabled=False):
    flat = x.float().permute(0, 2, 3, 1).flatten(1, 2)
    return flat.mT @ flat / (flat.shape[1] * flat.shape[2])


def style(found: tuple[Tensor, ...], wished: tuple[Tensor, ...]) -> Tensor:
  """Sum over layers of the mean absolute difference of Gram matrices."""
  pairs = zip(found, wished, strict=True)
  return torch.stack([(gram(a) - gram(b)).abs().mean(dim=(1, 2)) for a, b in pairs]).sum(dim=0)


class _FixGradientNorm(torch.autograd.Function):
  @staticmethod
  def forward(ctx: Any, image: Tensor, norm: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
    ctx.save_for_backward(norm)
    return image.view_as(image)

  @staticmethod
  def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
    (norm,) = ctx.saved_tensors
    length = gradient.square().sum(dim=(1, 2, 3)).sqrt().clamp(min=1e-12)
    return gradient * (norm / length).view(-1, 1, 1, 1), None


def fix_gradient_norm(image: Tensor, norm: Tensor) -> Tensor:
  """The image; on the way back its gradient gets the length `norm`."""
  return _FixGradientNorm.apply(image, norm)  # pyright: ignore[reportReturnType]


def hole_l1_gradient_norm(mask: Tensor) -> Tensor:
  """Length of the gradient of the mean L1 over the hole, for each image."""
  return 1 / (len(mask) * (3 * mask.sum(dim=(1, 2, 3)).clamp(min=1)).sqrt())


def hinge_generator(logits: Tensor) -> Tensor:
  """Minus the mean logit."""
  return -logits.mean(dim=(1, 2, 3))


def hinge_discriminator(real: Tensor, fake: Tensor, hole: Tensor | None) -> Tensor:
  """Hinge loss; with the share of hole of each patch, a patch is as fake as it has hole."""
  wrong = F.relu(1 + fake)
  if hole is not None:
    wrong = torch.lerp(F.relu(1 - fake), wrong, hole)
  return F.relu(1 - real).mean(dim=(1, 2, 3)) + wrong.mean(dim=(1, 2, 3))


def position_mean(values: Tensor, weight: Tensor) -> Tensor:
  """Mean over positions by their weight."""
  return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def retrieval_kl(teacher: Tensor, student: Tensor, weight: Tensor) -> Tensor:
  """KL(teacher || student) of log-weights, mean over heads and positions."""
  return position_mean(F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1).mean(dim=1), weight)


def read_loss(teacher: Tensor, student: Tensor, weight: Tensor) -> Tensor:
  """Squared error of the read, mean over channels and positions."""
  return position_mean((student - teacher).square().mean(dim=-1), weight)


def balance(mean_weights: Tensor) -> Tensor:
  """log(slots) minus the entropy of the mean weights."""
  return (
    mean_weights.new_tensor(len(mean_weights)).log()
    + torch.special.xlogy(mean_weights, mean_weights.clamp(min=1e-12)).sum()
  )


# With variation the fills lie in the order 0 1 1 2 3 3 …: every second image is filled twice.


def rows(x: Tensor) -> Tensor:
  """Every second image once more."""
  index = torch.arange(len(x), device=x.device)
  return x[index.repeat_interleave(1 + index % 2, output_size=len(x) * 3 // 2)]


def per_image(values: Tensor) -> Tensor:
  """The value of an image's fill, or the mean of its two."""
  first, second, third = values.view(-1, 3).unbind(dim=1)
  return torch.stack([first, (second + third) / 2], dim=1).flatten()


def coarse_hole_l1(a: Tensor, b: Tensor, mask: Tensor, cell: int) -> Tensor:
  """L1 over the hole of means over cells."""
  difference = F.avg_pool2d((a - b) * mask, cell)
  cells = F.avg_pool2d(mask, cell).sum(dim=(1, 2, 3)).clamp(min=1 / cell**2)
  return difference.abs().sum(dim=(1, 2, 3)) / (3 * cells)


def hole_score(prediction: Tensor, image: Tensor, mask: Tensor, cell: int) -> Tensor:
  """L1 over the hole of images filled once, the energy score of those filled twice."""
  once, x, y = prediction.unflatten(0, (-1, 3)).unbind(dim=1)
  fine = masked_l1(once, image[::2], mask[::2])
  truth, hole = image[1::2], mask[1::2]
  errors = coarse_hole_l1(x, truth, hole, cell) + coarse_hole_l1(y, truth, hole, cell)
  energy = (errors - coarse_hole_l1(x, y, hole, cell)) / 2
  return torch.stack([fine, energy], dim=1).flatten()
