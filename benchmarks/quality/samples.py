"""Measures how much the samples of one hole differ, and the cost: LPIPS between them, LPIPS and PSNR to the truth.

  python -m benchmarks.quality.samples --checkpoint=runs/mine --images=my/held_out

Every image gets the fixed hole of evaluation for each of two buckets. Sample 0 is the deterministic fill.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.quality.held_out import held_out
from gmsrm_jax import Inpainter
from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.data import pipeline
from gmsrm_jax.data.masks.fixed import BUCKETS
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.pretrained import lpips, weight_files

_BUCKETS = (BUCKETS[2], BUCKETS[4])


@jax.jit
def _lpips(params: weight_files.Params, a: jax.Array, b: jax.Array) -> jax.Array:
  return lpips.lpips(params, image_from_uint8(a[None]), image_from_uint8(b[None]), net="alex")[0]


@jax.jit
def _psnr(a: jax.Array, b: jax.Array) -> jax.Array:
  return metrics.psnr(image_from_uint8(a[None]), image_from_uint8(b[None]))[0]


def measure(
  inpainter: Inpainter, evaluation: pipeline.EvaluationSet, bucket: tuple[float, float], count: int, samples: int
) -> dict[str, float]:
  """Means over `count` images spread over the held-out ones."""
  alexnet = lpips.load_alexnet()
  values: dict[str, list[float]] = {
    name: [] for name in ("pairwise_lpips", "lpips_0", "lpips_others", "psnr_0", "psnr_others")
  }
  for position in tqdm(range(count), unit="image", disable=None):
    index = position * len(evaluation) // count
    truth, mask = evaluation[index][1], evaluation.mask(index, bucket)
    fills = inpainter(truth, mask, num_samples=samples, seed=1)
    values["pairwise_lpips"] += [float(_lpips(alexnet, a, b)) for a, b in itertools.combinations(fills, 2)]
    for number, fill in enumerate(fills):
      which = "0" if number == 0 else "others"
      values[f"lpips_{which}"].append(float(_lpips(alexnet, fill, truth)))
      values[f"psnr_{which}"].append(float(_psnr(fill, truth)))
  return {name: float(np.mean(items)) for name, items in values.items()}


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a table, then one line of JSON."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="folder of a trained run")
  parser.add_argument("--images", required=True, metavar="DIR", help="held-out images")
  parser.add_argument("--count", type=int, default=20, help="images (default: 20)")
  parser.add_argument("--num_samples", type=int, default=4, help="fills of each hole (default: 4)")
  flags = parser.parse_args(argv)

  inpainter = Inpainter.from_checkpoint(flags.checkpoint)
  evaluation = held_out(inpainter.config, flags.images)
  count = min(flags.count, len(evaluation))
  rows = {}
  print(f"{count} images, {flags.num_samples} samples, {inpainter.source}")
  print("hole      LPIPS between samples   LPIPS to truth: sample 0, others   PSNR: sample 0, others")
  for bucket in _BUCKETS:
    name = f"{bucket[0] * 100:.0f}-{bucket[1] * 100:.0f} %"
    rows[name] = row = measure(inpainter, evaluation, bucket, count, flags.num_samples)
    print(
      f"{name:9s} {row['pairwise_lpips']:21.4f} {row['lpips_0']:24.4f} {row['lpips_others']:7.4f} "
      f"{row['psnr_0']:17.2f} {row['psnr_others']:7.2f}"
    )
  print(json.dumps({"images": count, "num_samples": flags.num_samples, "buckets": rows}))


if __name__ == "__main__":
  main()
