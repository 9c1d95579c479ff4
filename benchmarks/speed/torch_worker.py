"""The worker of `benchmarks.speed.beside_torch` that runs the twin in PyTorch, eager or compiled."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import torch

from benchmarks.speed.worker import Call, configure, random_batch, serve
from benchmarks.torch_twin.models import Inpainter, Learner
from benchmarks.torch_twin.steps import Trainer, decode
from benchmarks.torch_twin.vgg import Vgg16
from gmsrm_jax.parallel import backend


def build(kind: str, size: str, batch: int, changes: list[str], *, device: str, compiled: bool) -> Call:
  """A call of the fill, or of a train step."""
  config = configure(size, batch, changes)
  arrays = random_batch(config.model.image_size, batch)
  image, mask = (torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).to(device) for name in ("image", "mask"))
  if compiled:
    torch.compiler.reset()
  if kind == "inference":
    network: Any = Inpainter(config).to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network.eval().requires_grad_(False)

    def fill(image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
      prediction = network(*decode(image, mask)).prediction
      return torch.where(mask > 0, ((prediction + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), image)

    run = torch.compile(fill, mode="max-autotune" if device == "cuda" else None) if compiled else fill

    def infer() -> torch.Tensor:
      with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return run(image, mask)

    return infer

  vgg = Vgg16(config.loss.vgg_stages).requires_grad_(False) if config.loss.features == "vgg16" else None
  teacher = Learner(config) if kind == "inpaint" else None
  trainer = Trainer(config, kind, vgg=vgg, teacher=teacher, device=device, compiled=compiled, bfloat16=device == "cuda")
  side, crop = config.model.image_size, config.loss.feature_crop
  noisy = (torch.arange(3 * batch // 2, device=device) % 3 > 0).view(-1, 1, 1, 1)

  def train() -> Any:
    corners = torch.randint(side - crop + 1, (batch, 2), device=device) if crop else None
    if kind == "memory":
      return trainer.memory_step(image, corners)
    noise = tuple(torch.randn(len(noisy), width, 1, 1, device=device) * noisy for width in config.model.widths)
    return trainer.inpaint_step(image, mask, noise if config.variation.enabled else None, corners)

  return train


def main() -> None:
  """Serves requests: python -m benchmarks.speed.torch_worker PLATFORM eager|compile [KEY=VALUE …]."""
  backend.keep_freed_memory()
  device = "cuda" if sys.argv[1] == "gpu" else "cpu"
  if device == "cpu":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
  else:
    torch.backends.cudnn.benchmark = True

  def wait(_: Any) -> None:
    if device == "cuda":
      torch.cuda.synchronize()

  def describe() -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {"torch": torch.__version__, "device": name}

  compiled = sys.argv[2] == "compile"
  serve(functools.partial(build, changes=sys.argv[3:], device=device, compiled=compiled), wait, describe)


if __name__ == "__main__":
  main()
