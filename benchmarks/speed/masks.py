"""Times the drawing of holes, checks their areas, and measures what NVIDIA's test masks cover.

  python -m benchmarks.speed.masks                   masks per second of processor time, by kind, at 256x256
  python -m benchmarks.speed.masks --check=10000     that many per kind and bucket at 64x64, each inside its range
  python -m benchmarks.speed.masks --nvidia=PATH     areas of the test masks, by the bucket of their index

Each prints a table, then one line of JSON. Rates are of one thread's own processor time, the best of several rounds.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from gmsrm_jax.config import MASK_KINDS, MaskConfig
from gmsrm_jax.data.masks import draw, hole_files
from gmsrm_jax.data.masks.fixed import BUCKETS

SIZE = 256
RANGES = ((0.05, 0.6), (0.2, 0.3))  # the default of training, and one bucket
PLAIN = "plain strokes, no range"


def plain_strokes(rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
  """A free-form mask as the field draws it, without a wanted area: after LaMa's procedure, in our words.

  One to ten brushes, each of one to nine straight segments of random direction, length (10 to 60 pixels) and one
  thickness (5 to 25 pixels) per segment, drawn one by one into a float mask.
  """
  mask = np.zeros((size, size), np.float32)
  for _ in range(int(rng.integers(1, 11))):
    x, y = int(rng.integers(size)), int(rng.integers(size))
    for segment in range(int(rng.integers(1, 10))):
      angle = 0.01 + float(rng.integers(4)) + (math.pi if segment % 2 else 0.0)
      length, thickness = 10 + int(rng.integers(50)), 5 + int(rng.integers(20))
      end_x = min(max(int(x + length * math.sin(angle)), 0), size)
      end_y = min(max(int(y + length * math.cos(angle)), 0), size)
      cv2.line(mask, (x, y), (end_x, end_y), 1.0, thickness)
      x, y = end_x, end_y
  return mask


def file_settings(root: Path) -> MaskConfig:
  """Settings for the kinds that draw from files, with a few files made for the purpose."""
  rng = np.random.default_rng(0)
  for kind in ("objects", "occlusions"):
    (root / kind).mkdir()
    for index in range(8):
      picture = np.zeros((384, 512), np.uint8)
      if kind == "objects":
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radii = rng.uniform(60, 180, 12)
        corners = np.stack([256 + radii * np.cos(angles), 192 + radii * np.sin(angles)], -1).astype(np.int32)
        cv2.fillPoly(picture, [corners], 255)
      else:
        cv2.polylines(picture, [rng.integers(0, (512, 384), (20, 2)).astype(np.int32)], False, 255, 3)
      Image.fromarray(picture).save(root / kind / f"{index}.png")
  return MaskConfig(objects_folder=str(root / "objects"), occlusions_folder=str(root / "occlusions"))


def rate(draw: Callable[[np.random.Generator], object], seconds: float) -> float:
  """Calls per second of processor time: the best of five rounds."""
  rng = np.random.default_rng(0)
  start, count = time.process_time(), 0
  while time.process_time() - start < seconds / 5:
    draw(rng)
    count += 1
  best = 0.0
  for _ in range(5):
    start = time.process_time()
    for _ in range(count):
      draw(rng)
    best = max(best, count / (time.process_time() - start))
  return best


def measure_rates(config: MaskConfig, seconds: float) -> dict[str, dict[str, float]]:
  """Masks per second by range and kind, and of the plain strokes in the same run."""
  table = {}
  for low, high in RANGES:
    column = {PLAIN: rate(plain_strokes, seconds)}
    for kind in MASK_KINDS:
      drawn = functools.partial(draw.draw_kind, kind, height=SIZE, width=SIZE, area=(low, high), config=config)
      column[kind] = rate(drawn, seconds)
    table[f"{low:g}-{high:g}"] = column
  return table


def count_misses(kind: str, config: MaskConfig, draws: int, size: int) -> int:
  """How many of `draws` masks per bucket lie outside it."""
  misses = 0
  for low, high in tqdm(BUCKETS, desc=kind, unit="bucket", disable=None):
    rng = np.random.default_rng(0)
    for _ in range(draws):
      area = np.count_nonzero(draw.draw_kind(kind, rng, size, size, (low, high), config)) / size**2
      misses += not low <= area <= high
  return misses


def nvidia_areas(path: str) -> list[dict[str, float]]:
  """Measured areas of the test masks, by the bucket of their index."""
  opened = hole_files.MaskFiles(path, "--nvidia")
  areas = np.array([opened[index].mean() for index in tqdm(range(len(opened)), unit="mask", disable=None)])
  rows = []
  for position, (low, high) in enumerate(BUCKETS):
    inside = areas[np.arange(len(areas)) // hole_files.NVIDIA_PER_BUCKET == position]
    outside = np.mean((inside <= low) | (inside > high))
    by_area = int(np.sum((areas > low) & (areas <= high)))
    row = {"n": len(inside), "min": inside.min(), "mean": inside.mean(), "max": inside.max(), "outside": outside}
    rows.append({"low": low, "high": high} | {key: round(float(value), 4) for key, value in row.items()})
    rows[-1]["n_by_area"] = by_area
  return rows


def main() -> None:
  """Prints what the flags ask for."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seconds", type=float, default=1.0, help="processor time per round of a measured rate")
  parser.add_argument("--check", type=int, metavar="N", help="draw N masks per kind and bucket and check every area")
  parser.add_argument("--size", type=int, default=64, help="side of the checked masks (default: 64)")
  parser.add_argument("--nvidia", metavar="PATH", help="NVIDIA's test masks: the folder or the packed .npz")
  flags = parser.parse_args()
  cv2.setNumThreads(1)
  if flags.nvidia:
    rows = nvidia_areas(flags.nvidia)
    print("bucket      n    min    mean   max    outside   n by area")
    for row in rows:
      print(
        f"{row['low'] * 100:.0f}-{row['high'] * 100:.0f} %  {row['n']:6.0f}  {row['min']:.4f} {row['mean']:.4f} "
        f"{row['max']:.4f} {row['outside']:7.2%} {row['n_by_area']:8.0f}"
      )
    print(json.dumps({"nvidia": rows}))
    return
  with tempfile.TemporaryDirectory() as root:
    config = file_settings(Path(root))
    if flags.check:
      misses = {}
      for kind in MASK_KINDS:
        misses[kind] = count_misses(kind, config, flags.check, flags.size)
        print(f"{kind:12s} {misses[kind]} of {flags.check * len(BUCKETS)} outside their range", flush=True)
      print(json.dumps({"draws_per_bucket": flags.check, "size": flags.size, "misses": misses}))
      raise SystemExit(any(misses.values()))
    table = measure_rates(config, flags.seconds)
  print(f"masks/s of one core, {SIZE}x{SIZE}, and times the plain strokes")
  print(f"{'':24s}" + "".join(f"{name:>18s}" for name in table))
  for kind in (PLAIN, *MASK_KINDS):
    cells = [f"{column[kind]:9.0f} {column[kind] / column[PLAIN]:6.2f} x" for column in table.values()]
    print(f"{kind:24s}" + "".join(f"{cell:>18s}" for cell in cells))
  print(json.dumps({"size": SIZE, "masks_per_second": table}))


if __name__ == "__main__":
  main()
