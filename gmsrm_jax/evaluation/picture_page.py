"""The picture page of a report: the best, the median and the worst image of each bucket, with their numbers."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from gmsrm_jax.evaluation.scorer import Results, Scores
from gmsrm_jax.panels import save_image

_CELL = 176  # pixels, longest side of a picture
_GAP = 4
_TEXT = 13  # pixels, a line
_GREY = 110  # what a hole is shown in

_RANKED_BY = ("lpips_hole", "lpips", "psnr_hole", "psnr")  # the first that the protocol has
_CAPTION = ("psnr", "lpips", "lpips_hole")


class Chosen(NamedTuple):
  """One image of a bucket and why it is shown."""

  rank: str  # best, median or worst
  name: str
  row: int  # in the values of its bucket


def choose(scores: Scores, method: str, bucket: str) -> list[Chosen]:
  """Best, median and worst image of a method by LPIPS over the hole; fewer where there are not three."""
  values = scores.values[method][bucket]
  metric = next((name for name in _RANKED_BY if name in values), next(iter(values)))
  better_is_more = metric.startswith(("psnr", "ssim"))
  # Ties in name order, which is the order of the values.
  order = np.argsort(-values[metric] if better_is_more else values[metric], kind="stable")
  count = len(order)
  rows = {"best": order[0], "worst": order[-1], "median": order[(count - 1) // 2]}
  chosen = [Chosen(rank, scores.names[bucket][rows[rank]], int(rows[rank])) for rank in ("best", "median", "worst")]
  return chosen if count > 2 else [chosen[0], chosen[-1]][:count]


def save_picture_page(path: pathlib.Path, results: Results, scores: Scores) -> None:
  """Draws truth, masked, filled and the first baseline; a row per bucket."""
  method, *others = results.methods
  shown = [method, *others[:1]]
  titles = ["truth", *(["masked"] if results.has_masks else []), *shown]
  buckets = list(scores.names)
  wide, high = _CELL + _GAP, _CELL + 2 * _TEXT + _GAP
  block = len(titles) * wide + 2 * _GAP
  page = Image.new("RGB", (3 * block - 3 * _GAP, len(buckets) * (high + 2 * _TEXT + _GAP)), "white")
  draw, font = ImageDraw.Draw(page), ImageFont.load_default()
  for line, bucket in enumerate(buckets):
    top = line * (high + 2 * _TEXT + _GAP)
    for column, chosen in enumerate(choose(scores, method, bucket)):
      left = column * block
      example = results.example(bucket, chosen.name)
      image, mask = example.images[0], example.masks[0]
      pictures = [image, *([np.where(mask > 0, np.uint8(_GREY), image)] if results.has_masks else [])]
      pictures += [np.where(mask > 0, example.fills[name][0], image) for name in shown]
      heading = f"{bucket} {chosen.rank}: {chosen.name}"
      draw.text((left + 2, top), _cut(draw, font, heading, block - 3 * _GAP), fill="black", font=font)
      for place, (title, picture) in enumerate(zip(titles, pictures, strict=True)):
        x, y = left + place * wide, top + _TEXT + _GAP
        page.paste(_fitted(picture), (x, y))
        lines = [title]
        if title in shown:
          row = {name: scores.values[title][bucket][name][chosen.row] for name in _CAPTION if name in _names(scores)}
          lines.append(
            "  ".join(f"{_short(name)} {value:.{2 if name == 'psnr' else 3}f}" for name, value in row.items())
          )
        for number, text in enumerate(lines):
          place_of = (x + 2, y + _CELL + number * _TEXT)
          draw.text(place_of, _cut(draw, font, text, _CELL), fill="black", font=font)
  save_image(path, page)


def _names(scores: Scores) -> list[str]:
  return list(next(iter(next(iter(scores.values.values())).values())))


def _short(name: str) -> str:
  return {"psnr": "PSNR", "lpips": "LPIPS", "lpips_hole": "hole"}[name]


def _fitted(picture: UInt8[np.ndarray, "h w 3"]) -> Image.Image:
  """As large as a cell allows: pixels stay squares where it is enlarged."""
  image = Image.fromarray(picture)
  scale = _CELL / max(image.size)
  size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
  return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def _cut(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width: int) -> str:
  while text and draw.textlength(text, font=font) > width:
    text = text[:-1]
  return text
