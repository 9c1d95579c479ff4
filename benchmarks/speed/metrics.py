"""Seconds to score fills with every per-image metric: this project beside the PyTorch `lpips` package and scikit-image.

  python -m benchmarks.speed.metrics [--images=DIR] [--output=FILE.json]

Both sides take the same uint8 pictures and give PSNR, SSIM (Gaussian window) and LPIPS with AlexNet and VGG16; ours, in
the same time, also MS-SSIM, the hole's metrics and the seam. The other side is written the usual way: LPIPS in batches
without gradients, scikit-image picture by picture. The sides take turns in one run with as many threads each, because
only ratios of neighbours mean anything on a machine that others use; `CPU` is processor time, which they disturb least.
Where several methods are scored on the same pictures, as --mode=evaluate does, ours looks at the truth only once.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
import skimage.data
import skimage.metrics
import torch  # pyright: ignore[reportMissingImports]
from PIL import Image
from tqdm import tqdm

from benchmarks.torch_twin import lpips_package
from gmsrm_jax.config import MaskConfig
from gmsrm_jax.data.masks import draw
from gmsrm_jax.evaluation.protocols import PROTOCOLS
from gmsrm_jax.pretrained.lpips import load_alexnet
from gmsrm_jax.pretrained.vgg16 import load_vgg16

SHOWN = ("psnr", "ssim", "lpips", "lpips_vgg")
Scores = dict[str, np.ndarray]
Side = Callable[[Mapping[str, np.ndarray], np.ndarray, np.ndarray], dict[str, Scores]]


class Measured(NamedTuple):
  """One turn of one side."""

  seconds: float
  cpu_seconds: float


def pictures(folder: str | None, count: int, size: int) -> np.ndarray:
  """Square pictures from a folder of JPEGs, or windows of scikit-image's photographs."""
  if folder:
    files = sorted(path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    sources = [np.asarray(Image.open(path).convert("RGB")) for path in files[:count]]
  else:
    sources = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
  rng, found = np.random.default_rng(0), []
  for index in range(count):
    source = sources[index % len(sources)]
    side = int(rng.uniform(0.6, 1.0) * min(source.shape[:2]))
    top, left = (int(rng.integers(length - side + 1)) for length in source.shape[:2])
    found.append(cv2.resize(source[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA))
  return np.stack(found)


def fills(truth: np.ndarray, mask: np.ndarray, methods: int) -> dict[str, np.ndarray]:
  """Smeared holes, another width each: what they cost to score does not depend on what they show."""
  return {
    f"blur {i}": np.where(mask > 0, np.stack([cv2.GaussianBlur(x, (0, 0), 4.0 * i) for x in truth]), truth)
    for i in range(1, methods + 1)
  }


def theirs(networks: Mapping[str, Any], batch: int) -> Side:
  """The usual way: every method against the truth."""
  nets = {
    "lpips": lpips_package.model("alex", networks["alex"]),
    "lpips_vgg": lpips_package.model("vgg", networks["vgg"]),
  }
  similarity = functools.partial(
    skimage.metrics.structural_similarity,
    data_range=255,
    channel_axis=-1,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
  )

  def score(filled: np.ndarray, truth: np.ndarray) -> Scores:
    pairs = list(zip(filled, truth, strict=True))
    scores = {
      "psnr": np.array([skimage.metrics.peak_signal_noise_ratio(b, a, data_range=255) for a, b in pairs]),
      "ssim": np.array([similarity(b, a) for a, b in pairs]),
    }
    for name, net in nets.items():
      values = []
      with torch.inference_mode():
        for start in range(0, len(truth), batch):
          rows = slice(start, start + batch)
          values.append(net(lpips_package.pixels(filled[rows]), lpips_package.pixels(truth[rows])).reshape(-1).numpy())
      scores[name] = np.concatenate(values)
    return scores

  return lambda filled, truth, mask: {name: score(picture, truth) for name, picture in filled.items()}


def ours(networks: Mapping[str, Any], batch: int) -> Side:
  """This project's protocol, all methods in one jitted function."""
  protocol = PROTOCOLS["ours"]
  on_device = jax.device_put(networks)

  @jax.jit
  def score(networks: Any, filled: Any, truth: Any, mask: Any) -> Any:
    return {name: protocol.score(networks, picture, truth, mask) for name, picture in filled.items()}

  def run(filled: Mapping[str, np.ndarray], truth: np.ndarray, mask: np.ndarray) -> dict[str, Scores]:
    parts = []
    for start in range(0, len(truth), batch):
      rows = slice(start, start + batch)
      part = {name: picture[rows] for name, picture in filled.items()}
      parts.append(jax.device_get(score(on_device, part, truth[rows], mask[rows])))
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)

  return run


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints the table, and writes it as JSON if asked to."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--images", metavar="DIR", help="folder of image files; scikit-image's photographs without it")
  parser.add_argument("--count", type=int, default=64, help="images per turn, a multiple of the batch")
  parser.add_argument("--size", type=int, default=256, help="side of the pictures, pixels")
  parser.add_argument("--batch", type=int, default=8, help="images per batch of both sides")
  parser.add_argument("--methods", type=int, default=1, help="fills of each picture")
  parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
  parser.add_argument("--output", metavar="FILE", help="where the JSON goes")
  flags = parser.parse_args(argv)
  if flags.count % flags.batch:
    parser.error(f"--count={flags.count} is no multiple of --batch={flags.batch}: the last batch would compile again")

  threads = len(os.sched_getaffinity(0))
  torch.set_num_threads(threads)
  truth = pictures(flags.images, flags.count, flags.size)
  rng, settings = np.random.default_rng(1), MaskConfig()
  mask = np.stack([draw.draw(rng, flags.size, flags.size, settings) for _ in range(flags.count)])[..., None]
  filled = fills(truth, mask, flags.methods)
  networks = {"alex": load_alexnet(), "vgg": load_vgg16()}
  sides = {"lpips + scikit-image": theirs(networks, flags.batch), "ours": ours(networks, flags.batch)}

  first = slice(0, flags.batch)
  begin = time.perf_counter()
  sides["ours"]({name: x[first] for name, x in filled.items()}, truth[first], mask[first])
  compiled = time.perf_counter() - begin
  sides["lpips + scikit-image"]({name: x[first] for name, x in filled.items()}, truth[first], mask[first])

  turns: dict[str, list[Measured]] = {side: [] for side in sides}
  scores: dict[str, dict[str, Scores]] = {}
  for _ in tqdm(range(flags.repeats), unit="turn", disable=None):
    for side, measure in sides.items():
      begin, cpu = time.perf_counter(), time.process_time()
      scores[side] = measure(filled, truth, mask)
      turns[side].append(Measured(time.perf_counter() - begin, time.process_time() - cpu))

  reference, mine = scores.values()
  apart = {
    name: max(float(np.abs(mine[method][name] - reference[method][name]).max()) for method in filled) for name in SHOWN
  }
  rows = []
  for side, measured in turns.items():
    ratios = [theirs.seconds / turn.seconds for turn, theirs in zip(measured, next(iter(turns.values())), strict=True)]
    rows.append(
      {
        "side": side,
        "seconds_per_1000": statistics.median(turn.seconds for turn in measured) * 1000 / flags.count,
        "cpu_seconds_per_1000": statistics.median(turn.cpu_seconds for turn in measured) * 1000 / flags.count,
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_range": [min(ratios), max(ratios)],
      }
    )
  print(f"{flags.count} images at {flags.size}x{flags.size}, {flags.methods} methods, {threads} threads")
  print("| side | s per 1,000 images | CPU s per 1,000 | speed ÷ lpips + scikit-image (range) |\n|---|---|---|---|")
  for row in rows:
    low, high = row["speed_ratio_range"]
    times = f"{row['seconds_per_1000']:.0f} | {row['cpu_seconds_per_1000']:.0f}"
    print(f"| {row['side']} | {times} | {row['speed_ratio']:.2f} ({low:.2f}-{high:.2f}) |")
  print(f"compiling took {compiled:.1f} s; furthest apart: {', '.join(f'{k} {v:.1e}' for k, v in apart.items())}")
  if flags.output:
    text = json.dumps({"flags": vars(flags), "threads": threads, "compile_s": compiled, "apart": apart, "rows": rows})
    pathlib.Path(flags.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
