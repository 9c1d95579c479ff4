"""Filling holes in large photos: seconds, peak memory and the seam, by the photo's size and the hole's.

  python -m benchmarks.speed.photo --checkpoint=runs/demo

The photo is one of scikit-image's, enlarged to each size, with a disc for a hole. The seam is the mean step across the
hole's border, in grey levels: between a hole pixel and its known neighbour, in the filled and in the true photo.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import skimage.data

SIZES = ((512, 768), (1024, 1536), (2048, 3072), (4000, 6000))
DIAMETERS = (60, 240)


def photo(height: int, width: int) -> np.ndarray:
  """A photograph of that size."""
  return cv2.resize(skimage.data.coffee(), (width, height), interpolation=cv2.INTER_CUBIC)


def disc(height: int, width: int, diameter: int) -> np.ndarray:
  """A round hole in the middle."""
  mask = np.zeros((height, width), np.uint8)
  cv2.circle(mask, (width // 2, height // 2), diameter // 2, 1, -1)
  return mask


def seam(image: np.ndarray, mask: np.ndarray) -> float:
  """Mean absolute step between the pixels on both sides of the hole's border, in grey levels."""
  steps = []
  for axis in (0, 1):
    border = np.diff(mask.astype(np.int8), axis=axis) != 0
    steps.append(np.abs(np.diff(image.astype(np.float32), axis=axis))[border])
  return float(np.concatenate(steps).mean())


def measure(checkpoint: str, height: int, width: int, diameter: int) -> dict[str, Any]:
  """Fills one photo twice in this process: the first time compiles."""
  from gmsrm_jax import Inpainter

  image, mask = photo(height, width), disc(height, width, diameter)
  start = time.perf_counter()
  inpainter = Inpainter.from_checkpoint(checkpoint)
  loaded = time.perf_counter()
  inpainter(image, mask)
  first = time.perf_counter()
  filled = inpainter(image, mask)
  second = time.perf_counter()
  assert (filled[mask == 0] == image[mask == 0]).all()
  return {
    "megapixels": height * width / 1e6,
    "hole": diameter,
    "load_s": loaded - start,
    "first_s": first - loaded,
    "second_s": second - first,
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "seam": seam(filled, mask),
    "seam_true": seam(image, mask),
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Measures each size in a process of its own, prints the table, and writes it as JSON if asked to."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder of a trained run")
  parser.add_argument("--json", metavar="FILE", help="where the numbers go as JSON")
  parser.add_argument("--one", metavar="HEIGHTxWIDTHxDIAMETER", help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  if flags.one:
    height, width, diameter = map(int, flags.one.split("x"))
    print(json.dumps(measure(flags.checkpoint, height, width, diameter)))
    return
  rows = []
  print("megapixels  hole px  load s  first s  second s  peak MiB  seam filled / true")
  for height, width in SIZES:
    for diameter in DIAMETERS:
      # The peak of memory belongs to a process, so each case has one.
      command = [sys.executable, "-m", "benchmarks.speed.photo", f"--checkpoint={flags.checkpoint}"]
      done = subprocess.run(
        [*command, f"--one={height}x{width}x{diameter}"], check=True, stdout=subprocess.PIPE, text=True
      )
      row = json.loads(done.stdout.splitlines()[-1])
      rows.append(row)
      print(
        f"{row['megapixels']:10.1f} {row['hole']:8d} {row['load_s']:7.1f} {row['first_s']:8.1f} {row['second_s']:9.2f} "
        f"{row['peak_mib']:9.0f} {row['seam']:12.2f} / {row['seam_true']:.2f}",
        flush=True,
      )
  if flags.json:
    pathlib.Path(flags.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
