"""The curves of a run: losses, what held-out pictures are worth, and learning rates, drawn from metrics.jsonl."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from gmsrm_jax.panels import save_image
from gmsrm_jax.training.logger import read_metrics
from gmsrm_jax.training.stages import STAGES

CURVES = "curves.png"

_WIDTH, _HEIGHT, _EDGE = 460, 240, 40  # pixels of a plot, and of what is around its frame
_COLOURS = ("#1f5fbf", "#d9772b")
_PLOTS = {
  "loss": {"": "loss"},
  "PSNR of held-out samples, dB": {"average": "held_out/psnr_average", "model": "held_out/psnr_model"},
  "LPIPS of held-out samples": {"average": "held_out/lpips_average", "model": "held_out/lpips_model"},
  "learning rate": {"generator": "learning_rate", "discriminator": "discriminator_rate"},
}

Points = Sequence[tuple[float, float]]


def draw_curves(run: pathlib.Path) -> None:
  """Draws what `metrics.jsonl` of a run's folder holds into `curves.png` beside it, a plot per row and stage."""
  records = read_metrics(run / "metrics.jsonl")
  stages = [stage for stage in STAGES if any(record["stage"] == stage for record in records)]
  if not stages:
    return
  page = Image.new("RGB", (_WIDTH * len(stages), _HEIGHT * len(_PLOTS)), "white")
  for column, stage in enumerate(stages):
    own = [record for record in records if record["stage"] == stage]
    for row, (title, names) in enumerate(_PLOTS.items()):
      lines = {label: [(r["step"], r[name]) for r in own if r.get(name) is not None] for label, name in names.items()}
      page.paste(_plot(f"{stage}: {title}", lines), (column * _WIDTH, row * _HEIGHT))
  save_image(run / CURVES, page)


def _plot(title: str, lines: Mapping[str, Points]) -> Image.Image:
  """One plot with the least and the largest number at its axes."""
  plot = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
  draw = ImageDraw.Draw(plot)
  left, top, right, bottom = 1.5 * _EDGE, _EDGE, _WIDTH - _EDGE / 2, _HEIGHT - _EDGE / 1.5
  draw.text((left, 4), title, fill="black")
  draw.rectangle((left, top, right, bottom), outline="#999999")
  points = [point for line in lines.values() for point in line if all(map(math.isfinite, point))]
  if not points:
    return plot
  (first, last), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
  across, up = (right - left) / ((last - first) or 1), (bottom - top) / ((high - low) or 1)
  for x, text in ((left, first), (right, last)):
    draw.text((x, bottom + 4), f"{text}", fill="black", anchor="mt")
  for y, text in ((bottom, low), (top, high)):
    draw.text((left - 4, y), f"{text:.4g}", fill="black", anchor="rm")
  for number, ((label, line), colour) in enumerate(zip(lines.items(), _COLOURS, strict=False)):
    path = [(left + (x - first) * across, bottom - (y - low) * up) for x, y in line if math.isfinite(y)]
    draw.line(path, fill=colour, width=2)
    draw.text((left + 110 * number, 20), label, fill=colour)
  return plot
