"""Files that a reader sees whole or not at all, and what made a result: code, packages, weights."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from gmsrm_jax.errors import ConfigError

SHIPPED = pathlib.Path(__file__).resolve().parent / "pretrained" / "street"
"""The weights that come with this code, which serve until others are named; the README there describes them."""

_PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
  *("scikit-image", "opencv-python-headless", "dm-pix", "pillow"),
)


def git_commit() -> str | None:
  """The commit of this code, with '+' when files differ from it; None outside a checkout."""
  git = ["git", "-C", str(pathlib.Path(__file__).parent)]
  try:
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit + ("+" if dirty else "")


def versions() -> dict[str, str]:
  """What the numbers depend on."""
  return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


MIN_CELL = 128  # pixels: smaller images of a panel are enlarged by a whole factor


_GAP = 4


_HEADER = 22


def save_panel(path: str | os.PathLike[str], columns: Mapping[str, UInt8[np.ndarray, "n h w 3"]]) -> None:
  """Writes one PNG: a row per image, a column per entry under its name; small images are enlarged.

  Raises:
    ValueError: there is no column, or two columns differ in shape.
  """
  shapes = {name: pixels.shape for name, pixels in columns.items()}
  if len(set(shapes.values())) != 1:
    raise ValueError(f"the columns of a panel must have one shape, got {shapes}")
  count, height, width, _ = next(iter(shapes.values()))
  factor = max(1, math.ceil(MIN_CELL / min(height, width)))
  high, wide = height * factor, width * factor

  panel = PilImage.new("RGB", (len(columns) * (wide + _GAP) - _GAP, _HEADER + count * (high + _GAP) - _GAP), "white")
  draw = ImageDraw.Draw(panel)
  font = ImageFont.load_default()
  for column, (name, pixels) in enumerate(columns.items()):
    left = column * (wide + _GAP)
    while name and draw.textlength(name, font=font) > wide:
      name = name[:-1]
    draw.text((left + 2, _HEADER // 2), name, fill="black", font=font, anchor="lm")
    for row, image in enumerate(pixels):
      enlarged = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
      panel.paste(PilImage.fromarray(enlarged), (left, _HEADER + row * (high + _GAP)))
  save_image(path, panel)


def save_image(path: str | os.PathLike[str], image: PilImage.Image) -> None:
  """Writes a PNG that a reader sees whole or not at all."""
  with _Replacement(path) as temporary:
    image.save(temporary, format="PNG")


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a file that a reader, or a kill at any moment, sees whole or not at all."""
  with _Replacement(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON atomically; NumPy values become plain ones, and numbers that are not finite become null."""
  write_text(path, json.dumps(plain(value), indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads JSON.

  Raises:
    ConfigError: the file is no JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except ValueError as error:
    raise ConfigError(f"{path} is no JSON file ({error}): restore it, or use another folder") from None


class _Replacement:
  """A temporary file beside `path` that takes its place on success and vanishes on failure."""

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)

  def __enter__(self) -> pathlib.Path:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
    os.close(handle)
    self._temporary = pathlib.Path(name)
    return self._temporary

  def __exit__(self, kind, *_) -> None:
    if kind is not None:
      self._temporary.unlink(missing_ok=True)
      return
    mask = os.umask(0)
    os.umask(mask)
    self._temporary.chmod(0o666 & ~mask)  # mkstemp makes a file that nobody else may read
    os.replace(self._temporary, self._path)


def plain(value: Any) -> Any:
  """Returns what JSON can hold: NumPy values become plain ones, and numbers that are not finite None."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if isinstance(value, (np.generic, np.ndarray)):
    return plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
