"""Pictures with masks of every form, and what is wrong with the files that come back."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.reliability.fuzz import reading
from benchmarks.reliability.fuzz.by_hand import PROFILE, Made, Random, choice, maybe
from benchmarks.reliability.fuzz.pictures import SHAPES, damaged, picture

BATCH = 8  # inputs that share a folder
_NOISE = re.compile(r"^.*(Traceback|\.py:\d+|Warning:|libpng|\[ ?WARN|\[ERROR|OpenCV|Corrupt|Premature).*$", re.M)


@dataclasses.dataclass(frozen=True)
class Fault:
  """A fault, with what repeats it."""

  batch: int
  interface: str
  what: str
  detail: str = ""


@dataclasses.dataclass(frozen=True)
class Pair:
  """A picture, its hole as drawn, upright, and a mask file of it."""

  picture: Made
  hole: np.ndarray
  mask: Made
  exact: bool  # the mask says this hole, to the pixel but for a margin


_FORMS = "L L 1 P RGB LA alpha opaque 16 soft turned 01 bmp tiff gif webp pbm"


def draw(rng: Random, size: tuple[int, int]) -> np.ndarray:
  """A hole: none, all, a box, a few, or the left edge."""
  hole, (height, width) = np.zeros(size, bool), size
  for _ in range(choice(rng, 0, 1, 1, 1, 1, 2)):
    top, left = rng.integers(height), rng.integers(width)
    hole[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = True
  return ~hole if maybe(rng, 0.04) else hole


def mask_file(rng: Random, hole: np.ndarray, invert: bool) -> tuple[Made, bool]:
  """A file of the hole in one of the forms that masks have; true if it says the hole exactly."""
  hole = hole != invert
  white, file, height, width = hole.astype(np.uint8) * 255, io.BytesIO(), *hole.shape
  kind = choice(rng, *_FORMS.split() * 2, "other size", "empty", "text", "damaged")
  options: dict[str, Any] = {}
  image, form, suffix = Image.fromarray(white), "PNG", ".png"
  if kind == "alpha":
    image = Image.fromarray(np.dstack([np.full((height, width, 3), 90, np.uint8), 255 - white]))
  elif kind in ("RGB", "opaque", "P", "1", "LA"):
    image = image.convert({"opaque": "RGBA"}.get(kind, kind))
  elif kind == "16":
    image = Image.fromarray(hole.astype(np.uint16) * choice(rng, 65535, 40000))
  elif kind == "soft":
    form, suffix, options = "JPEG", ".jpg", {"quality": 85}
  elif kind == "turned":
    turn: int = choice(rng, 3, 6, 8)
    image = Image.fromarray(np.ascontiguousarray(reading.TURNS[{6: 8, 8: 6}.get(turn, turn)](white)))
    options["exif"] = tagged = Image.Exif()
    tagged[274] = turn
  elif kind == "01":
    image = Image.fromarray(hole.astype(np.uint8))
  elif kind in ("bmp", "tiff", "gif", "webp"):
    form, suffix, options = kind.upper(), f".{kind}", {"lossless": True} if kind == "webp" else {}
  elif kind == "pbm":
    image, form, suffix = image.convert("1"), "PPM", ".pbm"
  elif kind == "other size":
    image = Image.fromarray(np.pad(white, ((0, 3), (0, 0))))
  image.save(file, form, **options)
  result = Made(file.getvalue(), suffix, f"mask {kind}")
  if kind in ("empty", "text"):
    result = dataclasses.replace(result, data=b"" if kind == "empty" else b"no picture")
  elif kind == "damaged":
    result = damaged(rng, result)
  vague = kind == "alpha" and white.min() == white.max()  # an alpha channel that does not vary says nothing
  return result, not vague and kind not in ("other size", "empty", "text", "damaged")


def pair(rng: Random, invert: bool = False) -> Pair:
  """A picture with a mask of it."""
  size = choice(rng, *SHAPES)
  file = picture(rng, size)
  with contextlib.suppress(Exception):  # damaged: its mask may be of any size
    size = reading.show(file.data).pixels.shape[:2]
  hole = draw(rng, size if max(size) < 1000 else (8, 8))
  return Pair(file, hole, *mask_file(rng, hole, invert))


def margin(mask: Made, hole: np.ndarray) -> np.ndarray:
  """The pixels outside the hole, and off its soft edges where the mask is a JPEG."""
  if "soft" not in mask.kind:
    return ~hole
  padded = np.pad(hole, 8)
  near = [np.roll(padded, (y, x), (0, 1)) for y in range(-8, 9) for x in range(-8, 9)]
  return ~np.any(near, axis=0)[8:-8, 8:-8]


def judge(picture: Pair, after: bytes, grown: bool, own: bool = False) -> str:
  """The fault of a filled file, in words; '' where there is none."""
  known = margin(picture.mask, picture.hole) if picture.exact and not grown else np.zeros((0, 0), bool)
  try:
    shown = reading.show(picture.picture.data)
  except Exception as error:  # noqa: BLE001 - whatever a decoder raises
    return "" if not picture.picture.whole else f"was filled though its reader refuses it ({error})"
  if own:
    known = shown.pixels[..., 3] > 0x8080 if shown.space == "RGB" else np.zeros((0, 0), bool)
  fault = reading.changed(picture.picture.data, after, known)
  if fault or own or not picture.exact or grown:
    return fault
  new = reading.show(after)
  inside = margin(picture.mask, ~picture.hole)
  if shown.space == new.space == "RGB" and inside.sum() > 40 and shown.bits >= 8:
    same = (shown.pixels[..., :3] == new.pixels[..., :3]).all(-1)[inside].mean()
    if same > 0.5:
      return f"{same:.0%} of the hole was not filled ({picture.mask.kind})"
  return ""


def dropped(before: bytes, after: bytes, named: bool) -> str:
  """Names the losses of a written file beside its pixels: its colour profile, or, without a word, further pages."""
  try:
    old, new = reading.show(before), reading.show(after)
  except Exception:  # noqa: BLE001 - damaged, and seen by `judge`
    return ""
  if old.profile == PROFILE and old.space == new.space == "RGB" and new.profile != old.profile:
    return f"the colour profile of a {old.form} is lost in a {new.form}"
  return "further pages or frames were dropped without a word" if old.frames > new.frames and not named else ""


def kind_of(line: str) -> str:
  """A line without what differs from run to run."""
  return re.sub(r"/\S*/|tempfile\S*|0x\w+|\d[\d.]*", "#", line)[:120]


def last_line(trace: str) -> str:
  """The kind of a traceback."""
  return f"traceback: {kind_of(trace.strip().splitlines()[-1])}"


def noise(errors: str, warnings: bool = True) -> str:
  """The kind of the first line on standard error that is a library's and not ours; '' where there is none.

  libtiff's are not counted: Pillow gives no means to hold them back. Python's `warnings` a caller filters himself.
  """
  found = _NOISE.search(errors if warnings else re.sub(r"^.*Warning: .*\n.*\n", "", errors, flags=re.M))
  return f"noise: {kind_of(found[0])}" if found else ""


@contextlib.contextmanager
def captured(folder: pathlib.Path) -> Iterator[dict[str, str]]:
  """Catches both streams, those of C libraries too, in files as strict as a terminal; gives the texts at the end."""
  texts: dict[str, str] = {}
  saved = {1: os.dup(1), 2: os.dup(2)}
  sys.stdout.flush()
  sys.stderr.flush()
  try:
    with contextlib.ExitStack() as stack:
      for number, name in ((1, "out"), (2, "err")):
        file = stack.enter_context(open(folder / name, "w+b", buffering=0))
        os.dup2(file.fileno(), number)
      out = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "strict", write_through=True)
      err = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
      log, handler = logging.getLogger("gmsrm_jax"), logging.StreamHandler(err)
      log.addHandler(handler)
      log.propagate = False
      try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
          yield texts
      finally:
        log.removeHandler(handler)
        log.propagate = True
  finally:
    for number, old in saved.items():
      os.dup2(old, number)
      os.close(old)
    for name in ("out", "err"):
      texts[name] = (folder / name).read_bytes().decode("utf-8", "replace")
