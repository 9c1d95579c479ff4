"""PNG files that a reader sees whole or not at all: one picture, or a labelled grid of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from gmsrm_jax.files import replacing

MIN_CELL = 128  # pixels: smaller images of a panel are enlarged by a whole factor
_GAP = 4
_HEADER = 22


def save_image(path: str | os.PathLike[str], image: Image.Image) -> None:
  """Writes one picture."""
  with replacing(path) as temporary:
    image.save(temporary, format="PNG")


def save_panel(path: str | os.PathLike[str], columns: Mapping[str, UInt8[np.ndarray, "n h w 3"]]) -> None:
  """Writes a row per image and a column per entry under its name; small images are enlarged.

  Raises:
    ValueError: there is no column, or two columns differ in shape.
  """
  shapes = {name: pixels.shape for name, pixels in columns.items()}
  if len(set(shapes.values())) != 1:
    raise ValueError(f"the columns of a panel must have one shape, got {shapes}")
  count, height, width, _ = next(iter(shapes.values()))
  factor = max(1, math.ceil(MIN_CELL / min(height, width)))
  high, wide = height * factor, width * factor

  panel = Image.new("RGB", (len(columns) * (wide + _GAP) - _GAP, _HEADER + count * (high + _GAP) - _GAP), "white")
  draw = ImageDraw.Draw(panel)
  font = ImageFont.load_default()
  for column, (name, pixels) in enumerate(columns.items()):
    left = column * (wide + _GAP)
    while name and draw.textlength(name, font=font) > wide:
      name = name[:-1]
    draw.text((left + 2, _HEADER // 2), name, fill="black", font=font, anchor="lm")
    for row, image in enumerate(pixels):
      enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
      panel.paste(Image.fromarray(enlarged), (left, _HEADER + row * (high + _GAP)))
  save_image(path, panel)
