"""Draws 24 fixed photographs with fixed holes, filled with one or several weights, and pairs of them for fresh eyes.

  python -m benchmarks.quality.side_by_side --data=../shared/data --masks=NVIDIA.npz --output=DIR \
    [--checkpoint=DIR ...] [--detail=1] [--pairs]

Eight photographs of `street/val`, `scenes/val` and `faces/val` each, at 256x256; their holes are in turn a rectangle,
the shape of a horse, strokes of a brush and NVIDIA's test masks of 40 to 60 %. A sheet per kind of photograph, and a
line per method with its `streaks`. With `--pairs` also every two methods' fills of a picture beside each other, in an
order that only `pairs.json` tells.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
import skimage.data
from jaxtyping import UInt8

from benchmarks.quality.looks import BUCKETS, SIZE, fills, rectangle, spread, squared
from gmsrm_jax.data.masks.draw import draw_kind
from gmsrm_jax.data.masks.hole_files import MaskFiles
from gmsrm_jax.evaluation.scorer import Picture
from gmsrm_jax.files import SHIPPED, write_text
from gmsrm_jax.panels import save_panel

SETS = ("street", "scenes", "faces")
COUNT = 8  # photographs of each


def hole(index: int, masks: MaskFiles | Mapping[int, UInt8[np.ndarray, "256 256"]]) -> UInt8[np.ndarray, "256 256"]:
  """The hole of the photograph with this number, 1 in it."""
  match index % 4:
    case 0:
      return rectangle(index)
    case 1:
      return horse(index)
    case 2:
      return draw_kind("free_form", np.random.default_rng((6, index)), SIZE, SIZE, (0.15, 0.3))
  return masks[2000 * BUCKETS.index("40-50" if index % 8 < 4 else "50-60") + 20 * index + 7]


@functools.lru_cache
def _silhouette() -> UInt8[np.ndarray, "h w"]:
  shape = np.logical_not(skimage.data.horse()).astype(np.uint8)
  x, y, width, height = cv2.boundingRect(shape)
  return shape[y : y + height, x : x + width]


def horse(index: int) -> UInt8[np.ndarray, "256 256"]:
  """A silhouette of 120 to 180 pixels, which may look to either side."""
  rng = np.random.default_rng((7, index))
  shape = _silhouette()[:, :: rng.choice((-1, 1))]
  scale = rng.integers(120, 181) / max(shape.shape)
  small = cv2.resize(np.ascontiguousarray(shape), None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
  top, left = (rng.integers(0, SIZE - side + 1) for side in small.shape)
  mask = np.zeros((SIZE, SIZE), np.uint8)
  mask[top : top + small.shape[0], left : left + small.shape[1]] = small
  return mask


def fixed_pictures(data: pathlib.Path, masks: MaskFiles) -> Iterator[Picture]:
  """The photographs with their holes."""
  for number, kind in enumerate(SETS):
    folder = data / kind / "val"
    for place, name in enumerate(spread(folder, COUNT)):
      yield Picture(kind, name, squared(folder / name), hole(COUNT * number + place, masks)[..., None])


def streaks(image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"]) -> float:
  """The share of the gradient's energy in the hole that points within 5 degrees of rows or columns (ours)."""
  grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5)
  across, down = (cv2.Sobel(grey, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
  angle = np.abs(np.degrees(np.arctan2(down, across))) % 90
  energy = (across**2 + down**2) * (cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0)
  return float(energy[np.minimum(angle, 90 - angle) < 5].sum() / max(energy.sum(), 1e-6))


def write_pairs(
  output: pathlib.Path, pictures: Sequence[Picture], filled: Mapping[str, UInt8[np.ndarray, "n h w 3"]]
) -> None:
  """Writes NUMBER.png with hole, fill and fill for every picture and two methods, shuffled, and who is who."""
  rng = np.random.default_rng(8)
  cases = [(row, *two) for row in range(len(pictures)) for two in itertools.combinations(filled, 2)]
  told = {}
  for number, place in enumerate(rng.permutation(len(cases))):
    row, *methods = cases[place]
    rng.shuffle(methods)
    picture = pictures[row]
    columns = {"hole": np.where(picture.mask > 0, np.uint8(255), picture.image)[None]}
    columns |= {side: filled[method][row][None] for side, method in zip("AB", methods, strict=True)}
    save_panel(output / "pairs" / f"{number:03d}.png", columns)
    told[f"{number:03d}"] = {"kind": picture.bucket, "name": picture.name, "A": methods[0], "B": methods[1]}
  write_text(output / "pairs.json", json.dumps(told, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
  """Draws the sheets."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--checkpoint", action="append", metavar="DIR", help="default: the weights that come along")
  parser.add_argument("--data", required=True, metavar="DIR", help=f"folder with {', '.join(f'{s}/val' for s in SETS)}")
  parser.add_argument("--masks", required=True, metavar="NPZ", help="NVIDIA's test masks")
  parser.add_argument("--detail", nargs="+", type=float, default=[1.0], metavar="X", help="default: 1")
  parser.add_argument("--pairs", action="store_true", help="also write pairs without names")
  parser.add_argument("--output", required=True, metavar="DIR")
  flags = parser.parse_args(argv)

  output = pathlib.Path(flags.output)
  shown = list(fixed_pictures(pathlib.Path(flags.data), MaskFiles(flags.masks, "--masks")))
  truth, masks = np.stack([p.image for p in shown]), np.stack([p.mask for p in shown])
  methods = fills(flags.checkpoint or [str(SHIPPED)], flags.detail, "auto")
  filled = {title: np.asarray(fill(truth, masks)) for title, fill in methods.items()}
  columns = {"truth": truth, "hole": np.where(masks > 0, np.uint8(255), truth)} | filled
  there = np.mean([streaks(*pair) for pair in zip(truth, masks[..., 0], strict=True)])
  for title, pixels in filled.items():
    more = np.mean([streaks(*pair) for pair in zip(pixels, masks[..., 0], strict=True)]) - there
    print(f"{title}: streaks {more:+.3f} against the truth's {there:.3f}")
  for kind in SETS:
    rows = [row for row, picture in enumerate(shown) if picture.bucket == kind]
    save_panel(output / f"{kind}.png", {title: pixels[rows] for title, pixels in columns.items()})
  if flags.pairs:
    write_pairs(output, shown, filled)


if __name__ == "__main__":
  main()
