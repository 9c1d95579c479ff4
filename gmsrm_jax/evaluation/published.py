"""Numbers that papers print for the three benchmarks, to be seen beside ours and not to be compared closely.

Each table keeps the protocol of its paper: images, masks, windows, networks and weights differ from ours and from each
other, and one evaluator's numbers for the same weights lie 1 to 1.7 dB above another's.
"""

from __future__ import annotations

from typing import NamedTuple

CAUTION = (
  "Printed by their papers under **other protocols**: other images, masks, crops, windows and feature weights. They "
  "show the range of the field; never compare them with ours, or with each other, at the level of 0.5 dB. No published "
  "number of GM-SRM itself was available."
)


class Table(NamedTuple):
  """One paper's table: rows are (metric, method, a value per column)."""

  source: str
  protocol: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, str, tuple[str, ...]], ...]


def _row(metric: str, method: str, values: str) -> tuple[str, str, tuple[str, ...]]:
  return metric, method, tuple(values.split())


_SIX = ("0-10%", "10-20%", "20-30%", "30-40%", "40-50%", "50-60%")
_THREE = ("0-20%", "20-40%", "40-60%")

PUBLISHED: dict[str, tuple[Table, ...]] = {
  "paris": (
    Table(
      "StrDiffusion (CVPR 2024)",
      "Paris StreetView, 256x256, 100 test images, irregular masks",
      _SIX[1:5],
      (
        _row("PSNR", "StrDiffusion", "33.17 29.94 27.63 25.71"),
        _row("SSIM", "StrDiffusion", ".960 .936 .899 .851"),
        _row("FID", "StrDiffusion", "11.38 22.04 34.41 44.31"),
      ),
    ),
    Table(
      "DSNet (TIP 2021)",
      "Paris StreetView, 256x256, 100 test images with 10 irregular masks each per bucket",
      _SIX,
      (
        _row("LPIPS", "PConv", ".0171 .0457 .0804 .1189 .1644 .2369"),
        _row("LPIPS", "EdgeConnect", ".0176 .0469 .0845 .1290 .1813 .2694"),
        _row("LPIPS", "DSNet", ".0159 .0425 .0752 .1117 .1535 .2200"),
        _row("MS-SSIM", "PConv", ".9843 .9518 .9035 .8393 .7605 .5947"),
        _row("MS-SSIM", "EdgeConnect", ".9822 .9473 .8943 .8253 .7424 .5660"),
        _row("MS-SSIM", "DSNet", ".9852 .9548 .9092 .8492 .7747 .6219"),
        _row("MAE %", "PConv", ".314 .839 1.492 2.246 3.109 4.597"),
        _row("MAE %", "EdgeConnect", ".323 .847 1.506 2.267 3.131 4.645"),
        _row("MAE %", "DSNet", ".305 .814 1.451 2.179 3.015 4.425"),
      ),
    ),
  ),
  "celebahq": (
    Table(
      "DSNet (TIP 2021)",
      "CelebA (not HQ), 256x256, 2,000 test images, irregular masks",
      _SIX,
      (
        _row("LPIPS", "DSNet", ".0086 .0232 .0415 .0622 .0863 .1266"),
        _row("MAE %", "DSNet", ".226 .614 1.113 1.699 2.397 3.690"),
      ),
    ),
    Table(
      "Cross-Image Context Memory, CICM (NeurIPS 2022)",
      "CelebA, irregular masks",
      _THREE,
      (
        _row("PSNR", "MISF", "34.30 26.39 21.29"),
        _row("PSNR", "MISF+CICM", "34.70 27.85 23.34"),
        _row("LPIPS", "MISF", ".0336 .0981 .2137"),
        _row("LPIPS", "MISF+CICM", ".0317 .0925 .1921"),
        _row("FID", "MISF", "6.84 30.11 55.75"),
        _row("FID", "MISF+CICM", "5.02 27.99 47.12"),
      ),
    ),
    Table(
      "as quoted for CTSDG, MISF and DRDD",
      "CelebA-HQ, 256x256, 28,000 for training, 2,000 scored, irregular masks pooled",
      ("LPIPS", "FID"),
      (
        _row("", "CTSDG", ".0722 7.87"),
        _row("", "MISF", ".0803 7.68"),
        _row("", "DRDD", ".0528 7.15"),
      ),
    ),
    Table(
      "LaMa (WACV 2022)",
      "CelebA-HQ, 256x256, LaMa's masks",
      ("FID, narrow", "FID, wide", "LPIPS, narrow", "LPIPS, wide"),
      (
        _row("", "LaMa", "7.26 6.96 .085 .098"),
        _row("", "CoModGAN", "16.8 24.4 .079 .102"),
      ),
    ),
    Table(
      "MAT (CVPR 2022)",
      "CelebA-HQ, 512x512, MAT's masks",
      ("FID", "LPIPS"),
      (
        _row("", "MAT", "4.86 .125"),
        _row("", "CoModGAN", "5.65 .140"),
        _row("", "LaMa", "8.15 .143"),
      ),
    ),
  ),
  "places2": (
    Table(
      "DSNet (TIP 2021)",
      "Places2, 256x256, first 2,000 validation images, irregular masks",
      _SIX,
      (
        _row("LPIPS", "DSNet", ".0186 .0499 .0883 .1284 .1754 .2462"),
        _row("MAE %", "DSNet", ".454 1.198 2.132 3.122 4.288 6.093"),
      ),
    ),
    Table(
      "Cross-Image Context Memory, CICM (NeurIPS 2022)",
      "Places2, irregular masks",
      _THREE,
      (
        _row("PSNR", "MISF", "31.04 23.80 19.31"),
        _row("PSNR", "MISF+CICM", "31.52 24.86 21.27"),
        _row("SSIM", "MISF", ".944 .831 .674"),
        _row("SSIM", "MISF+CICM", ".949 .841 .703"),
        _row("LPIPS", "MISF", ".0537 .1721 .2821"),
        _row("LPIPS", "MISF+CICM", ".0501 .1498 .2389"),
      ),
    ),
    Table(
      "AOT-GAN (TVCG 2022)",
      "Places2, 512x512, NVIDIA's masks; another evaluator gives the same weights 1-1.7 dB more",
      ("1-10%", *_SIX[1:]),
      (
        _row("PSNR", "AOT-GAN", "34.79 29.49 26.03 23.58 21.65 19.01"),
        _row("SSIM", "AOT-GAN", ".976 .940 .890 .835 .773 .682"),
      ),
    ),
    Table(
      "as quoted for MI-GAN and SH-GAN",
      "Places2, 256x256, very large free-form holes",
      ("FID", "LPIPS"),
      (
        _row("", "CoModGAN", "9.32 .397"),
        _row("", "SH-GAN", "7.40 .392"),
        _row("", "MAT", "14.38 .394"),
        _row("", "MI-GAN", "11.83 .394"),
        _row("", "LaMa", "22.00 .378"),
      ),
    ),
    Table(
      "MAT (CVPR 2022)",
      "Places2, 512x512, MAT's small and large masks",
      ("FID, small", "FID, large"),
      (
        _row("", "MAT, 8 M training images", ".78 1.96"),
        _row("", "MAT, 1.8 M", "1.07 2.90"),
        _row("", "LaMa-Big", ".99 2.97"),
      ),
    ),
  ),
}
"""By experiment. The facts were gathered once from the papers; a row without a metric has it in its column."""


def published_markdown(experiment: str | None) -> list[str]:
  """The tables of an experiment as lines of Markdown; none for an experiment without published numbers."""
  tables = PUBLISHED.get(experiment or "", ())
  lines = ["", "## Published rows, other protocols", "", CAUTION] if tables else []
  for table in tables:
    lines += ["", f"{table.source}: {table.protocol}.", ""]
    lines += ["| | " + " | ".join(table.columns) + " |", "|---" * (len(table.columns) + 1) + "|"]
    for metric, method, values in table.rows:
      lines.append(f"| {method}{', ' if metric else ''}{metric} | " + " | ".join(values) + " |")
  return lines
