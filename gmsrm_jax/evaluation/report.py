"""The files of an evaluation: report.json, report.md, report.csv and a page of pictures."""

from __future__ import annotations

import csv
import io
import pathlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageOps
from tabulate import tabulate

from gmsrm_jax.evaluation.baselines import Fill
from gmsrm_jax.evaluation.distribution import FULL_SIZE, KERNEL_LEAST, interval
from gmsrm_jax.evaluation.metrics import means
from gmsrm_jax.evaluation.scorer import ALL, Picture, Scores, fill_all
from gmsrm_jax.files import printable, write_json, write_text
from gmsrm_jax.panels import save_panel
from gmsrm_jax.training.curves import CURVES
from gmsrm_jax.training.run_folder import REPORT

Again = Callable[[str, str], Picture]  # a picture by bucket and name
Tree = dict[str, dict[str, dict[str, Any]]]  # method, bucket, metric

_MORE, _LESS = "higher is better", "lower is better"
_METRICS: dict[str, tuple[str, int]] = {
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
  "detail": ("Detail in the hole against the truth's (dB, nearer to 0 is better)", 2),
}
"""Titles and digits, in the order of the report."""

_DISTANCES: dict[str, tuple[str, int]] = {
  "fid": (f"FID, Inception ({_LESS})", 2),
  "kid": (f"KID x 1000, Inception ({_LESS})", 2),
  "p_ids": (f"P-IDS, Inception ({_MORE})", 3),
  "u_ids": (f"U-IDS, Inception ({_MORE})", 3),
  "fd_vgg16": (f"Fréchet distance of VGG16 features, which is no FID ({_LESS})", 2),
  "kid_vgg16": (f"Kernel distance x 1000 of VGG16 features ({_LESS})", 2),
  "p_ids_vgg16": (f"P-IDS on VGG16 features ({_MORE})", 3),
  "u_ids_vgg16": (f"U-IDS on VGG16 features ({_MORE})", 3),
}

_BASIS = ("images", "image_size", "images_sha256", "truth", "inpainted", "inpainted_sha256", "masks", "masks_sha256")

_SUMMARY = ("psnr", "lpips", "detail", "kid", "kid_vgg16")

_CELL = 176  # pixels, side of a picture on the page
_GREY = 110  # what a hole is shown in
_CAPTION = ("psnr", "lpips", "lpips_hole")
_RANKED_BY = ("lpips_hole", "lpips", "psnr")  # the first that the protocol has


def make_report(head: Mapping[str, Any], scores: Scores) -> dict[str, Any]:
  """The report as a tree: `head` (experiment, step, protocol, notes …) and the numbers."""
  averages, intervals = summarise(scores)
  counts = {bucket: len(rows) for bucket, rows in scores.buckets.items() if bucket != ALL}
  return {
    **head,
    "images": {**counts, ALL: len(scores.keys)},
    "scores": averages,
    "intervals": intervals,
    "distribution": scores.distances,
    "outside_hole": scores.outside,
    "self_check": scores.check,
  }


def summarise(scores: Scores) -> tuple[Tree, Tree]:
  """Means, and 95 % bootstrap intervals over images (none of one image), by method, bucket (and 'all') and metric."""
  averages: Tree = {method: {} for method in scores.methods}
  intervals: Tree = {method: {} for method in scores.methods}
  for place, method in enumerate(scores.methods):
    for bucket, rows in scores.buckets.items():
      values = {name: array[rows, place] for name, array in scores.values.items()}
      averages[method][bucket] = means(values)
      intervals[method][bucket] = {name: _interval(array) for name, array in values.items()}
    values = {name: array[:, place] for name, array in scores.values.items()}
    averages[method][ALL] = means(values)
    intervals[method][ALL] = {name: _interval(_by_image(scores, array)) for name, array in values.items()}
  return averages, intervals


def _by_image(scores: Scores, values: np.ndarray) -> np.ndarray:
  """Each image's mean over its buckets: holes in one image are no independent samples of images."""
  of_image: dict[str, list[float]] = {}
  for (_, name), value in zip(scores.keys, values, strict=True):
    of_image.setdefault(name, []).append(float(value))
  return np.array([np.mean(of_image[name]) for name in sorted(of_image)])


def _interval(values: np.ndarray) -> list[float] | None:
  return list(interval(values)) if len(values) > 1 else None


def write_report(
  root: pathlib.Path, report: Mapping[str, Any], again: Again, fills: Mapping[str, Fill], scores: Scores
) -> None:
  """Writes the four files, with pictures that `again` reads and `fills` fill.

  `report.json` comes last, for it is what says that an evaluation is done.
  """
  text = markdown(report)
  if (root / CURVES).exists():
    text += f"\n## Training\n\n![losses, held-out samples and learning rates by step]({CURVES})\n"
  write_text(root / f"{REPORT}.csv", table(scores))
  save_panel(root / f"{REPORT}.png", _page(again, fills, scores))
  write_text(root / f"{REPORT}.md", text)
  write_json(root / f"{REPORT}.json", report)


def report_files(root: pathlib.Path) -> list[pathlib.Path]:
  """The four files."""
  return [root / f"{REPORT}.{suffix}" for suffix in ("json", "csv", "png", "md")]


def table(scores: Scores) -> str:
  """CSV, a line per method, bucket and image, a column per metric; 'inf' is a PSNR of equal pictures."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["method", "bucket", "image", *scores.values])
  for place, method in enumerate(scores.methods):
    for row, key in enumerate(scores.keys):
      writer.writerow(
        [
          printable(method),
          key[0],
          printable(key[1]),
          *(f"{array[row, place]:.9g}" for array in scores.values.values()),
        ]
      )
  return text.getvalue()


def markdown(report: Mapping[str, Any]) -> str:
  """The report as a page: one table per metric, a line per method, a column per bucket."""
  protocol, counts = report["protocol"], report["images"]
  sections = [
    f"# {report['title']}",
    f"Protocol {protocol['name']}: {protocol['source']}.",
    "\n".join(f"- {key}: {protocol[key]}" for key in _BASIS if protocol.get(key) is not None),
    "\n".join(f"- {note}" for note in (*report["notes"], *_outside_notes(report), _check_note(report["self_check"]))),
    "Numbers that papers print, under other protocols: docs/published.md of the project.",
    "Pictures: " + ", ".join(f"{count} in {bucket}" for bucket, count in counts.items()) + ".",
    *_metric_sections(report),
    "## Distances of sets",
    f"A bucket needs 2 pictures for a Fréchet distance, {KERNEL_LEAST} for a kernel distance, more than features for "
    f"the IDS. Below {FULL_SIZE} pictures the Fréchet distance is biased upwards: prefer the kernel distance.",
    *_distance_sections(report),
  ]
  if "memory" in report:
    health = report["memory"]
    sections += [
      "## Memory",
      f"Perplexity {health['perplexity']:.0f} of {health['slots']} slots, {health['used_slots']:.0f} in use; whole "
      f"held-out images drawn from their read alone: {health['reconstruction_psnr']:.2f} dB.",
    ]
  return "\n\n".join(sections) + "\n"


def summary(report: Mapping[str, Any]) -> str:
  """Returns what a console shows: PSNR, LPIPS, detail and kernel distance of what is judged, beside Telea's."""
  first, *others = report["scores"]
  lines = []
  for name, (title, digits) in (_METRICS | _DISTANCES).items():
    for method in (first, *(other for other in others if other == "Telea")):
      among = report["scores" if name in _METRICS else "distribution"][method]
      scale = 1000.0 if name.startswith("kid") else 1.0
      numbers = [[among[bucket][name] * scale] if name in among[bucket] else [] for bucket in report["images"]]
      if name in _SUMMARY and any(numbers):
        unit = " (dB)" * ("(dB" in title)
        lines.append([f"{title.partition(' (')[0]}{unit} {method}", *(_number(digits, *number) for number in numbers)])
  return tabulate(lines, headers=["", *report["images"]], tablefmt="simple", disable_numparse=True, stralign="right")


def _metric_sections(report: Mapping[str, Any]) -> Iterator[str]:
  first = next(iter(report["scores"]))
  for name, (title, digits) in _METRICS.items():
    if name in report["scores"][first][ALL]:
      lines = {}
      for method, buckets in report["scores"].items():
        lines[method] = [_number(digits, buckets[bucket][name]) for bucket in report["images"]]
        if method == first:
          bounds = [report["intervals"][method][bucket][name] or () for bucket in report["images"]]
          lines["*95 % interval*"] = [_number(digits, *pair, between=" – ") for pair in bounds]
      yield from (f"## {title}", report["protocol"][name], _table(lines, report))


def _distance_sections(report: Mapping[str, Any]) -> Iterator[str]:
  for name, (title, digits) in _DISTANCES.items():
    scale, lines = 1000.0 if name.startswith("kid") else 1.0, {}
    for method, buckets in report["distribution"].items():
      values = [[buckets[bucket].get(key) for key in (name, f"{name}_standard_error")] for bucket in report["images"]]
      scaled = [[value * scale for value in pair if value is not None] for pair in values]
      lines[method] = [_number(digits, *pair, between=" ± ") for pair in scaled]
    if any(cell != "–" for cells in lines.values() for cell in cells):
      yield from (f"### {title}", _table(lines, report))


def _table(lines: Mapping[str, Sequence[str]], report: Mapping[str, Any]) -> str:
  cells = [[printable(name), *numbers] for name, numbers in lines.items()]
  return tabulate(cells, headers=["", *report["images"]], tablefmt="github", disable_numparse=True)


def _number(digits: int, *values: float, between: str = "") -> str:
  return between.join(f"{value:.{digits}f}" for value in values) or "–"


def _outside_notes(report: Mapping[str, Any]) -> list[str]:
  if not report["protocol"]["composite"]:
    return ["Without masks nothing was composited: the whole pictures were compared."]
  notes = [
    f"{method}: {apart['images']} pictures differed from the truth outside the hole, in {apart['pixels']} pixels, "
    f"by at most {apart['most']} levels; the truth was put back there before scoring."
    for method, apart in report["outside_hole"].items()
    if apart["images"]
  ]
  return notes or ["All pictures equalled the truth outside the hole already."]


def _check_note(check: Mapping[str, Any]) -> str:
  frechet = "".join(f", {name} {value:.0e}" for name, value in check["frechet_distance"].items())
  return (
    f"Self-check, the truth of {check['images']} pictures scored against itself: PSNR {check['psnr']}, all else within "
    f"{max(check['off_by'].values()):.0e} of perfect{frechet}: {'passed' if check['passed'] else 'FAILED'}."
  )


def choose(scores: Scores, bucket: str) -> dict[str, int]:
  """Maps best, median and worst of the first method to rows, by LPIPS over the hole; of one or two rows, to those."""
  rows = scores.buckets[bucket]
  metric = next(name for name in _RANKED_BY if name in scores.values)
  errors = scores.values[metric][rows, 0] * (-1 if metric == "psnr" else 1)
  order = [rows[place] for place in np.argsort(errors, kind="stable")]  # ties in name order
  median = {"median": order[(len(order) - 1) // 2]} if len(order) > 2 else {}
  return {"best": order[0], **median, **({"worst": order[-1]} if len(order) > 1 else {})}


def _page(again: Again, fills: Mapping[str, Fill], scores: Scores) -> dict[str, np.ndarray]:
  """Columns of the page: numbers, truth, masked, filled and the first baseline; the chosen images of each bucket."""
  fills = {method: fill for method, fill in fills.items() if method in scores.methods[:2]}
  columns: dict[str, list[np.ndarray]] = {}
  for bucket in scores.buckets:
    for rank, row in choose(scores, bucket).items():
      picture = again(*scores.keys[row])
      hole, filled = picture.mask > 0, fill_all([picture], fills)
      cells = {"": _caption(rank, scores, row), "truth": _fitted(picture.image)}
      cells["masked"] = _fitted(np.where(hole, np.uint8(_GREY), picture.image))
      cells |= {method: _fitted(np.where(hole, fill[0], picture.image)) for method, fill in filled.items()}
      for title, cell in cells.items():
        columns.setdefault(title, []).append(cell)
  return {title: np.stack(cells) for title, cells in columns.items()}


def _caption(rank: str, scores: Scores, row: int) -> UInt8[np.ndarray, "side side 3"]:
  bucket, name = scores.keys[row]
  lines = [f"{bucket} {rank}", *textwrap.wrap(printable(name), 24)]
  for place, method in enumerate(scores.methods[:2]):
    shown = [metric for metric in _CAPTION if metric in scores.values]
    lines += ["", method]
    lines += [f"  {metric} {scores.values[metric][row, place]:.{_METRICS[metric][1]}f}" for metric in shown]
  cell = Image.new("RGB", (_CELL, _CELL), "white")
  ImageDraw.Draw(cell).multiline_text((4, 2), "\n".join(lines), fill="black")
  return np.array(cell)


def _fitted(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "side side 3"]:
  """On a square cell; pixels stay squares where they are enlarged."""
  method = Image.Resampling.NEAREST if max(picture.shape) <= _CELL else Image.Resampling.BOX
  return np.array(ImageOps.pad(Image.fromarray(picture), (_CELL, _CELL), method, color="white"))
