"""Draws fills of held-out images, spread over the set or the worst: truth, hole, Telea, the model's fill, samples.

  python -m benchmarks.quality.gallery --images=DIR --bucket=40-50 --output=sheet.png      # spread over the set
  python -m benchmarks.quality.gallery --images=DIR --report=report.csv --output=worst.png  # the ten worst

Holes are those of the evaluation: a function of the image's name, the bucket and eval.mask_seed. The worst are the
highest in LPIPS among all images and buckets of a report that was made with the same holes (`--masks`).
"""

from __future__ import annotations

import argparse
import csv
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.quality.held_out import held_out
from gmsrm_jax import Inpainter
from gmsrm_jax.data import pipeline
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name
from gmsrm_jax.evaluation.baselines import telea_fill
from gmsrm_jax.evaluation.held_out import METHOD
from gmsrm_jax.files import SHIPPED
from gmsrm_jax.panels import save_panel

_BY_NAME = {bucket_name(bucket).rstrip("%"): bucket for bucket in BUCKETS}


class Shown(NamedTuple):
  """A row of the sheet."""

  index: int  # of the held-out image
  bucket: tuple[float, float]


def spread(evaluation: pipeline.EvaluationSet, bucket: tuple[float, float], count: int) -> list[Shown]:
  """Images at equal distances in name order: not chosen by what became of them."""
  count = min(count, len(evaluation))
  return [Shown(row * len(evaluation) // count, bucket) for row in range(count)]


def worst(evaluation: pipeline.EvaluationSet, report: str, count: int) -> list[Shown]:
  """The images and buckets of a report's CSV that the model fills worst by LPIPS, each image once."""
  with pathlib.Path(report).open(encoding="utf-8", newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["method"] == METHOD]
  chosen: dict[str, Shown] = {}
  for row in sorted(rows, key=lambda row: -float(row["lpips"])):
    index = evaluation.names.index(row["image"])
    if row["image"] not in chosen and len(chosen) < count:
      chosen[row["image"]] = Shown(index, _BY_NAME[row["bucket"].rstrip("%")])
      print(f"{row['image']}  {row['bucket']}  PSNR {float(row['psnr']):.2f}  LPIPS {float(row['lpips']):.3f}")
  return list(chosen.values())


def main(argv: Sequence[str] | None = None) -> None:
  """Draws the sheet."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--checkpoint", default=str(SHIPPED), metavar="DIR", help="default: the weights that come along")
  parser.add_argument("--images", required=True, metavar="DIR", help="held-out images")
  parser.add_argument("--masks", default="", help="as eval.masks; packed masks are taken by their index")
  parser.add_argument("--bucket", default="40-50", choices=list(_BY_NAME), help="hole area, percent (default: 40-50)")
  parser.add_argument("--report", metavar="CSV", help="show the worst of this report instead")
  parser.add_argument("--count", type=int, default=10, help="rows (default: 10)")
  parser.add_argument("--num_samples", type=int, default=1, help="fills of each hole, the deterministic one first")
  parser.add_argument("--output", required=True, metavar="PNG")
  flags = parser.parse_args(argv)

  inpainter = Inpainter.from_checkpoint(flags.checkpoint)
  config = inpainter.config
  evaluation = held_out(config, flags.images, flags.masks)
  shown = (
    worst(evaluation, flags.report, flags.count)
    if flags.report
    else spread(evaluation, _BY_NAME[flags.bucket], flags.count)
  )
  truth = np.stack([evaluation[row.index][1] for row in shown])
  masks = np.stack([evaluation.mask(*row) for row in shown])[..., None]
  # One at a time: the pictures of a batch share their noise.
  fills = [inpainter(*pair, num_samples=flags.num_samples, seed=1) for pair in zip(truth, masks, strict=True)]
  fills = np.stack(fills).reshape(len(shown), flags.num_samples, *truth.shape[1:])
  columns = {"truth": truth, "hole": np.where(masks > 0, np.uint8(255), truth), "Telea": telea_fill(truth, masks)}
  columns["GM-SRM"] = fills[:, 0]
  columns |= {f"sample {number}": fills[:, number] for number in range(1, flags.num_samples)}
  save_panel(flags.output, columns)


if __name__ == "__main__":
  main()
