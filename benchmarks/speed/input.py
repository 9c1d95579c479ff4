"""Training images per second: this project's input pipeline beside a PyTorch DataLoader that does the same work.

  python -m benchmarks.speed.input --images=DIR --workers=2 [--records=DIR] [--output=FILE.json]

Both decode, cut a random square window (aspect kept), resize it, mirror half of them and draw a hole with this
project's generator, to uint8 batches. PyTorch's side is written the usual way: Pillow decodes, cuts and resizes
(bilinear), a process per worker. The sides take turns in one run, because only ratios of neighbours mean anything on
a machine that others use; `CPU` is processor time per image over all processes of a side, which they disturb least.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import pathlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.utils.data  # pyright: ignore[reportMissingImports]
from PIL import Image
from tqdm import tqdm

from gmsrm_jax.config import SIZES, Config, DataConfig, RunConfig
from gmsrm_jax.data import datasets, pipeline
from gmsrm_jax.data.masks import draw

_AHEAD = 2  # batches that each worker keeps ready, PyTorch's default
_SETTLE = 1.0  # seconds in which the side before fills its queues again


class Measured(NamedTuple):
  """One turn of one side."""

  images_per_s: float
  cpu_ms: float  # processor time per image


class TorchExamples(torch.utils.data.Dataset):
  """The training examples as a PyTorch user would write them."""

  def __init__(self, config: Config):
    self.config = config
    self.paths = [
      pathlib.Path(config.data.train) / name for name in datasets.image_names(pathlib.Path(config.data.train))
    ]

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(index + 1_000_000 * int(torch.randint(1 << 30, ())))
    size = self.config.model.image_size
    image = Image.open(self.paths[index]).convert("RGB")
    side = round(rng.uniform(self.config.data.crop_min, 1.0) * min(image.size))
    left, top = int(rng.integers(image.width - side + 1)), int(rng.integers(image.height - side + 1))
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mask = draw.draw(rng, size, size, self.config.mask)
    return {"image": torch.from_numpy(np.array(image)), "mask": torch.from_numpy(mask[:, :, None])}


class _Endless(torch.utils.data.Sampler):
  """A new permutation each epoch, without the pause between two epochs."""

  def __init__(self, count: int):
    self.count = count

  def __iter__(self) -> Iterator[int]:
    while True:
      yield from torch.randperm(self.count).tolist()


def torch_batches(config: Config, workers: int) -> Iterator[dict[str, torch.Tensor]]:
  """PyTorch's side."""
  examples = TorchExamples(config)
  ahead = {"prefetch_factor": _AHEAD, "persistent_workers": True} if workers else {}
  loader = torch.utils.data.DataLoader(
    examples, config.run.batch_size, sampler=_Endless(len(examples)), num_workers=workers, drop_last=True, **ahead
  )
  return iter(loader)


def our_batches(config: Config, *, threads: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
  """This project's side: that many threads, or worker processes if there are any."""
  prefetch = _AHEAD * config.run.batch_size * max(threads, workers)
  data = dataclasses.replace(config.data, threads=threads, workers=workers, prefetch=prefetch)
  return pipeline.training_iterator(dataclasses.replace(config, data=data), "inpaint")


def cpu_seconds() -> float:
  """Processor time of this process and its living children so far."""
  pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
  ticks = 0
  for pid in pids:
    # After the name in brackets, which may hold spaces: user and system time are fields 14 and 15 of the line.
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    ticks += int(fields[11]) + int(fields[12])
  return ticks / os.sysconf("SC_CLK_TCK")


def measure(batches: Iterator[Any], waiting: int, seconds: float) -> Measured:
  """Takes what may have been made beforehand, then counts images for so many seconds."""
  time.sleep(_SETTLE)
  for _ in range(waiting):
    next(batches)
  images, begin, cpu = 0, time.perf_counter(), cpu_seconds()
  while time.perf_counter() - begin < seconds:
    images += len(next(batches)["mask"])
  took = time.perf_counter() - begin
  return Measured(images / took, 1000.0 * (cpu_seconds() - cpu) / images)


def report(turns: dict[str, list[Measured]]) -> list[dict[str, Any]]:
  """A row per side: medians, and images per second and processor time as ratios to PyTorch's of the same turn."""
  reference = turns["pytorch"]
  rows = []
  for side, measured in turns.items():
    faster = [mine.images_per_s / theirs.images_per_s for mine, theirs in zip(measured, reference, strict=True)]
    lighter = [theirs.cpu_ms / mine.cpu_ms for mine, theirs in zip(measured, reference, strict=True)]
    rows.append(
      {
        "side": side,
        "images_per_s": statistics.median(turn.images_per_s for turn in measured),
        "cpu_ms_per_image": statistics.median(turn.cpu_ms for turn in measured),
        "speed_ratio": statistics.median(faster),
        "speed_ratio_range": [min(faster), max(faster)],
        "cpu_ratio": statistics.median(lighter),
      }
    )
  return rows


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints the table, and writes it as JSON if asked to."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--images", required=True, metavar="DIR", help="folder of image files, read by both")
  parser.add_argument("--records", metavar="DIR", help="the same, prepared by --mode=prepare: a row of its own")
  parser.add_argument("--workers", type=int, default=2, help="worker processes of both; 0 stays in this process")
  parser.add_argument("--size", type=int, default=256, help="side of the training image, pixels")
  parser.add_argument("--batch", type=int, default=32, help="images per batch")
  parser.add_argument("--crop_min", type=float, default=0.6, help="smallest window, share of the short side")
  parser.add_argument("--seconds", type=float, default=4.0, help="of one turn of one side")
  parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
  parser.add_argument("--output", metavar="FILE", help="where the JSON goes")
  flags = parser.parse_args(argv)

  config = Config(
    name="benchmark",
    model=dataclasses.replace(SIZES["base"], image_size=flags.size),
    data=DataConfig(train=flags.images, val=flags.images, crop_min=flags.crop_min),
    run=RunConfig(batch_size=flags.batch),
  )
  parallel = max(1, flags.workers)
  sides: dict[str, Any] = {
    "pytorch": torch_batches(config, flags.workers),
    "ours, threads": our_batches(config, threads=parallel, workers=0),
  }
  if flags.workers:
    sides["ours, workers"] = our_batches(config, threads=1, workers=flags.workers)
  if flags.records:
    prepared = dataclasses.replace(config, data=dataclasses.replace(config.data, train=flags.records))
    sides["ours, records"] = our_batches(prepared, threads=parallel, workers=flags.workers)

  turns: dict[str, list[Measured]] = {side: [] for side in sides}
  for _ in tqdm(range(flags.repeats), unit="turn", disable=None):
    for side, batches in sides.items():
      turns[side].append(measure(batches, _AHEAD * parallel + 2, flags.seconds))

  for side, batches in sides.items():
    if side != "pytorch":
      batches.close()

  rows = report(turns)
  print(f"{flags.workers} workers, batches of {flags.batch}, {flags.size}x{flags.size}, {os.cpu_count()} cores")
  print("| side | images/s | CPU ms/image | speed ÷ PyTorch (range) | PyTorch's CPU ÷ this |\n|---|---|---|---|---|")
  for row in rows:
    low, high = row["speed_ratio_range"]
    print(
      f"| {row['side']} | {row['images_per_s']:.0f} | {row['cpu_ms_per_image']:.2f} | "
      f"{row['speed_ratio']:.2f} ({low:.2f}-{high:.2f}) | {row['cpu_ratio']:.2f} |"
    )
  if flags.output:
    text = json.dumps({"flags": vars(flags), "cores": os.cpu_count(), "rows": rows}, indent=2)
    pathlib.Path(flags.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
