"""The files of an evaluation: report.json, report.md, report.csv and the picture page."""

from __future__ import annotations

import csv
import io
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from gmsrm_jax.config import ALL
from gmsrm_jax.evaluation.distances import FULL_SIZE
from gmsrm_jax.evaluation.picture_page import save_picture_page
from gmsrm_jax.evaluation.scorer import Results, Scores
from gmsrm_jax.evaluation.summary import counts, self_check, summarise
from gmsrm_jax.files import write_json, write_text
from gmsrm_jax.training.run_folder import REPORT

_MORE, _LESS = "higher is better", "lower is better"
METRICS: dict[str, tuple[str, int]] = {
  "psnr": (f"PSNR (dB, {_MORE})", 2),
  "ssim": (f"SSIM ({_MORE})", 4),
  "ms_ssim": (f"MS-SSIM ({_MORE})", 4),
  "l1": (f"L1 ({_LESS})", 4),
  "mae": (f"MAE, relative ({_LESS})", 4),
  "lpips": (f"LPIPS ({_LESS})", 4),
  "lpips_vgg": (f"LPIPS on VGG16 ({_LESS})", 4),
  "psnr_hole": (f"PSNR over the hole (dB, {_MORE})", 2),
  "l1_hole": (f"L1 over the hole ({_LESS})", 4),
  "lpips_hole": (f"LPIPS over the hole ({_LESS})", 4),
  "boundary_error": (f"Seam: error of the steps across the hole's boundary ({_LESS})", 4),
}
"""Titles and digits, in the order of the report; any other metric follows under its own name."""

_DISTRIBUTION: dict[str, tuple[str, int]] = {
  "fid": (f"FID, Inception ({_LESS})", 2),
  "kid": (f"KID x 1000, Inception ({_LESS})", 2),
  "p_ids": (f"P-IDS, Inception ({_MORE})", 3),
  "u_ids": (f"U-IDS, Inception ({_MORE})", 3),
  "fd_vgg16": (f"Fréchet distance of VGG16 features, which is no FID ({_LESS})", 2),
  "kid_vgg16": (f"Kernel distance x 1000 of VGG16 features ({_LESS})", 2),
  "p_ids_vgg16": (f"P-IDS on VGG16 features ({_MORE})", 3),
  "u_ids_vgg16": (f"U-IDS on VGG16 features ({_MORE})", 3),
}


def make_report(about: Mapping[str, Any], scores: Scores, seed: int) -> dict[str, Any]:
  """The report as a tree: `about` (experiment, step, protocol, notes …) and the numbers."""
  means, intervals = summarise(scores, seed)
  return {
    **about,
    "images": counts(scores),
    "scores": means,
    "intervals": intervals,
    "distribution": scores.distances,
    "outside_hole": {
      method: {"images": found.images, "pixels": found.pixels, "most": found.most}
      for method, found in scores.outside.items()
    },
    "self_check": self_check(scores.check),
  }


def write_report(root: pathlib.Path, report: Mapping[str, Any], results: Results, scores: Scores) -> str:
  """Writes the four files and returns the Markdown."""
  text = markdown(report)
  write_json(root / f"{REPORT}.json", report)
  write_text(root / f"{REPORT}.csv", table(scores))
  save_picture_page(root / f"{REPORT}.png", results, scores)
  write_text(root / f"{REPORT}.md", text)
  return text


def table(scores: Scores) -> str:
  """CSV, a row per method, bucket and image, a column per metric; 'inf' is a PSNR of equal pictures."""
  metrics = list(next(iter(next(iter(scores.values.values())).values())))
  text = io.StringIO()
  rows = csv.writer(text, lineterminator="\n")
  rows.writerow(["method", "bucket", "image", *metrics])
  for method, buckets in scores.values.items():
    for bucket, values in buckets.items():
      for row, name in enumerate(scores.names[bucket]):
        rows.writerow([method, bucket, name, *(f"{values[metric][row]:.9g}" for metric in metrics)])
  return text.getvalue()


def markdown(report: Mapping[str, Any]) -> str:
  """The report as a page: one table per metric, a row per method, a column per bucket."""
  buckets = list(report["images"])
  lines = [
    f"# {report['title']}",
    "",
    report["summary"],
    "",
    f"Protocol {report['protocol']['name']}: {report['protocol']['source']}.",
  ]
  lines += ["", *(f"- {note}" for note in (*report["notes"], *_outside_notes(report), _check_line(report)))]
  lines += ["", "Numbers that papers print, under other protocols: docs/published.md of the project."]
  lines += ["", "Pictures: " + ", ".join(f"{report['images'][bucket]} in {bucket}" for bucket in buckets) + "."]
  methods = report["scores"]
  first = next(iter(methods))
  names = [name for name in methods[first][ALL] if name != "hole_area" and not name.endswith("_infinite")]
  for name in sorted(names, key=lambda name: [*METRICS, name].index(name)):
    title, digits = METRICS.get(name, (name, 4))
    lines += ["", f"## {title}", "", report["protocol"].get(name, ""), "", *_header(buckets)]
    for method, rows in methods.items():
      lines.append(f"| {method} | " + " | ".join(_number(rows[bucket][name], digits) for bucket in buckets) + " |")
      if method == first:
        bounds = [report["intervals"][method][bucket][name] for bucket in buckets]
        shown = [" – ".join(_number(bound, digits) for bound in pair) if pair else "–" for pair in bounds]
        lines.append("| *95 % interval* | " + " | ".join(shown) + " |")
  lines += _distribution_lines(report, buckets)
  if "memory" in report:
    health = report["memory"]
    lines += [
      "",
      "## Memory",
      "",
      f"Perplexity {health['perplexity']:.0f} of {health['slots']} slots, {health['used_slots']:.0f} in use; whole "
      f"held-out images drawn from their read alone: {health['reconstruction_psnr']:.2f} dB.",
    ]
  return "\n".join(lines) + "\n"


def _header(buckets: list[str]) -> list[str]:
  return ["| | " + " | ".join(buckets) + " |", "|---" * (len(buckets) + 1) + "|"]


def _number(value: float | None, digits: int) -> str:
  if value is None or math.isnan(value):
    return "–"
  return "inf" if math.isinf(value) else f"{value:.{digits}f}"


def _outside_notes(report: Mapping[str, Any]) -> list[str]:
  if not report["protocol"]["composite"]:
    return ["Without masks nothing was composited: the whole pictures were compared."]
  notes = []
  for method, found in report["outside_hole"].items():
    if found["images"]:
      notes.append(
        f"{method}: {found['images']} pictures differed from the truth outside the hole, in {found['pixels']} pixels, "
        f"by at most {found['most']} levels; the truth was put back there before scoring."
      )
  return notes or ["All pictures equalled the truth outside the hole already."]


def _check_line(report: Mapping[str, Any]) -> str:
  check = report["self_check"]
  lpips = "".join(f", {name} {value:.0e}" for name, value in check["off_by"].items() if name.startswith("lpips"))
  frechet = "".join(f", {name} {value:.0e}" for name, value in check["frechet_distance"].items())
  psnr = check["psnr"] if isinstance(check["psnr"], str) else f"{check['psnr']:.0f}"
  return (
    f"Self-check, the truth of {check['images']} pictures scored against itself: PSNR {psnr}{lpips}, all within "
    f"{max(check['off_by'].values()):.0e} of perfect{frechet}: {'passed' if check['passed'] else 'FAILED'}."
  )


def _distribution_lines(report: Mapping[str, Any], buckets: list[str]) -> list[str]:
  found = report["distribution"]
  names = [name for name in _DISTRIBUTION if any(name in row for rows in found.values() for row in rows.values())]
  lines = ["", "## Distances of sets", "", _set_sizes(report["images"])]
  for name in names:
    title, digits = _DISTRIBUTION[name]
    scale = 1000.0 if name.startswith("kid") else 1.0
    lines += ["", f"### {title}", "", *_header(buckets)]
    for method, rows in found.items():
      cells = []
      for bucket in buckets:
        row = rows.get(bucket, {})
        cell = _number(row[name] * scale if name in row else None, digits)
        error = row.get(f"{name}_standard_error")
        cells.append(cell if error is None else f"{cell} ± {_number(error * scale, digits)}")
      lines.append(f"| {method} | " + " | ".join(cells) + " |")
  return lines


def _set_sizes(images: Mapping[str, int]) -> str:
  """What the numbers of pictures allow to conclude."""
  most = images[ALL]
  if most < 2:
    return "None: one picture is no set; score at least 2 for a Fréchet distance and 3 for a kernel distance."
  lines = "A bucket needs 2 pictures for a Fréchet distance, 3 for a kernel distance, more than features for the IDS."
  if min(images.values()) < FULL_SIZE:
    lines += f" Below {FULL_SIZE} pictures the Fréchet distance is biased upwards: prefer the kernel distance."
  return lines
