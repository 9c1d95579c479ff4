"""Prints the model's lead over another row of a report, image by image: mean difference and its 95 % interval.

  python -m benchmarks.quality.lead --report=runs/mine/report.csv [--over=Telea] [--prefix=spb_]

Paired: the spread of the images drops out. Positive is better in PSNR and SSIM, negative in LPIPS.
"""

from __future__ import annotations

import argparse
import csv
import pathlib
from collections.abc import Sequence

from gmsrm_jax.evaluation.distribution import interval
from gmsrm_jax.evaluation.held_out import METHOD

METRICS = ("psnr", "ssim", "lpips")


def leads(rows: Sequence[dict[str, str]], over: str, prefix: str, metric: str) -> dict[str, list[float]]:
  """bucket -> what the model has more than the other method, for every image whose name begins with the prefix."""
  of = {
    method: {(row["bucket"], row["image"]): float(row[metric]) for row in rows if row["method"] == method}
    for method in (METHOD, over)
  }
  found: dict[str, list[float]] = {}
  for (bucket, image), value in of[METHOD].items():
    if image.startswith(prefix):
      found.setdefault(bucket, []).append(value - of[over][bucket, image])
  return found


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a line per metric and bucket."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--report", required=True, metavar="CSV", help="report.csv of an evaluation")
  parser.add_argument("--over", default="Telea", help="the other method, as the report names it (default: Telea)")
  parser.add_argument("--prefix", default="", help="only images whose names begin so")
  flags = parser.parse_args(argv)
  with pathlib.Path(flags.report).open(encoding="utf-8", newline="") as file:
    rows = list(csv.DictReader(file))
  methods = sorted({row["method"] for row in rows})
  if flags.over not in methods:
    parser.error(f"--over={flags.over} is not in the report: choose from {', '.join(methods)}")
  for metric in METRICS:
    for bucket, values in leads(rows, flags.over, flags.prefix, metric).items():
      low, high = interval(values)
      print(
        f"{metric:6s} {bucket:7s} {sum(values) / len(values):+.3f} ({low:+.3f} to {high:+.3f}), {len(values)} images"
      )


if __name__ == "__main__":
  main()
