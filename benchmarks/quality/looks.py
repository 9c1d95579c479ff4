"""Scores what users see: the fills of photographs at 256x256, of one or several weights, with and without detail.

  python -m benchmarks.quality.looks --images=DIR --masks=NVIDIA.npz --output=DIR \
    [--checkpoint=DIR ...] [--detail 0 1] [--count=100] [--sets 40-50 50-60 rectangles]

`--mode=evaluate` scores the network at its own size; this goes through windows, seams and detail. Each photograph has
one hole per set: NVIDIA's test mask 2000 bucket + 20 i + 7 for the i-th photograph, or a rectangle with sides of 80 to
130 pixels. The report is that of an evaluation, with a page of pictures.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from gmsrm_jax import Inpainter, files
from gmsrm_jax.config import EvalConfig
from gmsrm_jax.data import datasets, pictures
from gmsrm_jax.data.masks.hole_files import MaskFiles
from gmsrm_jax.data.pipeline import resized_square
from gmsrm_jax.evaluation.baselines import Fill, telea_fill
from gmsrm_jax.evaluation.protocols import PROTOCOLS
from gmsrm_jax.evaluation.report import make_report, write_report
from gmsrm_jax.evaluation.scorer import Picture, make_measure, score
from gmsrm_jax.files import SHIPPED

SIZE = 256
BUCKETS = ("0-10", "10-20", "20-30", "30-40", "40-50", "50-60")
RECTANGLES = "rectangles"


def rectangle(index: int) -> UInt8[np.ndarray, "h w"]:
  """One hole with sides of 80 to 130 pixels, 1 in it: a function of the photograph's place in the list."""
  rng = np.random.default_rng((5, index))
  height, width = rng.integers(80, 131, 2)
  top, left = rng.integers(0, SIZE - height + 1), rng.integers(0, SIZE - width + 1)
  mask = np.zeros((SIZE, SIZE), np.uint8)
  mask[top : top + height, left : left + width] = 1
  return mask


def squared(path: pathlib.Path) -> UInt8[np.ndarray, "256 256 3"]:
  """The largest centred square of a photograph, at 256x256."""
  image = pictures.decode(path)
  height, width = image.shape[:2]
  side = min(height, width)
  return np.ascontiguousarray(resized_square(image, (height - side) // 2, (width - side) // 2, side, SIZE))


def spread(folder: pathlib.Path, count: int) -> list[str]:
  """Names of so many photographs of a folder, at equal distances in name order."""
  names = datasets.image_names(folder)
  return [names[number * len(names) // count] for number in range(min(count, len(names)))]


class Photographs:
  """The largest centred squares of the photographs in a folder, at 256x256, with a hole for each set."""

  def __init__(self, folder: str, masks: str, sets: Sequence[str], count: int):
    self._root = pathlib.Path(folder)
    self._names, self._chosen = datasets.image_names(self._root), spread(self._root, count)
    self._sets, self._masks = sets, MaskFiles(masks, "--masks")

  def __len__(self) -> int:
    return len(self._chosen) * len(self._sets)

  def __iter__(self) -> Iterator[Picture]:
    for name, bucket in itertools.product(self._chosen, self._sets):
      yield self.read(bucket, name)

  def read(self, bucket: str, name: str) -> Picture:
    """One photograph with its hole of a set."""
    place = self._names.index(name)
    mask = (
      rectangle(place) if bucket == RECTANGLES else self._masks[2000 * BUCKETS.index(bucket) + 20 * (place % 100) + 7]
    )
    return Picture(bucket, name, squared(self._root / name), mask[..., None])


def fills(checkpoints: Sequence[str], details: Sequence[float], strategy: str) -> dict[str, Fill]:
  """Fills by title: those of each weights with each amount of detail, then Telea's."""

  def fill(inpainter: Inpainter, detail: float, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return inpainter(images, masks, detail=detail, strategy=strategy)

  methods: dict[str, Fill] = {}
  for checkpoint in checkpoints:
    inpainter, name = Inpainter(checkpoint), pathlib.Path(checkpoint).name
    for detail in details:
      title = f"{name}, detail {detail:g}"
      # Two runs may be called alike.
      methods[title if title not in methods else f"{checkpoint}, detail {detail:g}"] = functools.partial(
        fill, inpainter, detail
      )
  return methods | {"Telea": telea_fill}


def main(argv: Sequence[str] | None = None) -> None:
  """Scores, prints and writes the report."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--checkpoint", action="append", metavar="DIR", help="default: the weights that come along")
  parser.add_argument("--images", required=True, metavar="DIR", help="photographs")
  parser.add_argument("--masks", required=True, metavar="NPZ", help="NVIDIA's test masks")
  parser.add_argument("--sets", nargs="+", choices=[*BUCKETS, RECTANGLES], default=[*BUCKETS, RECTANGLES])
  parser.add_argument("--detail", nargs="+", type=float, default=[0.0, 1.0], metavar="X", help="default: 0 1")
  parser.add_argument("--strategy", default="auto")
  parser.add_argument("--count", type=int, default=100, help="photographs, spread over the folder (default: 100)")
  parser.add_argument("--output", required=True, metavar="DIR")
  flags = parser.parse_args(argv)

  config = EvalConfig()
  measure, protocol = make_measure(config), PROTOCOLS[config.protocol]
  photographs = Photographs(flags.images, flags.masks, flags.sets, flags.count)
  methods = fills(flags.checkpoint or [str(SHIPPED)], flags.detail, flags.strategy)
  scores = score(photographs, methods, measure.program, config.batch_size)
  head = {
    "title": "Fills of photographs at 256x256",
    "notes": [measure.note],
    "protocol": {**protocol.describe(SIZE, SIZE), "images": len(photographs), "composite": True, "masks": flags.masks},
    "weights": measure.weights,
    "commit": files.git_commit(),
    "versions": files.versions(),
  }
  print(write_report(pathlib.Path(flags.output), make_report(head, scores), photographs.read, methods, scores))


if __name__ == "__main__":
  main()
