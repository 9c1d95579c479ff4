"""Anybody's results as files: truth, filled pictures and holes, paired by stem, scored without any model.

Pictures are read upright, as 8-bit RGB: of 16 bits per channel the nearest of 256 levels is taken, and what is
transparent is laid on white, in truth and result alike. The report counts such files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.data import pictures
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.data.masks.fixed import BUCKETS, Bucket, bucket_name, mask_bytes
from gmsrm_jax.errors import require
from gmsrm_jax.evaluation.scorer import ALL, Picture
from gmsrm_jax.inference import file_pairs, photos

_BOUNDS = (*BUCKETS, (BUCKETS[-1][1], 1.0))  # holes beyond the last bucket are scored, too

_log = logging.getLogger(__name__)


class FolderPictures:
  """Filled pictures in a folder beside the truth in another; to be scored.

  Without masks all pictures are in the one bucket 'all'. Headers are read at once, so that sizes that differ are
  refused before anything is scored; the files themselves once, in the order of their stems.

  Raises:
    ConfigError: a folder is missing or empty, sizes differ, or nothing can be paired.
  """

  def __init__(
    self,
    images: Sequence[str],
    inpainted: Sequence[str],
    masks: Sequence[str] | None,
    *,
    invert: bool = False,
    limit: int = 0,
  ):
    self._images, self._inpainted = file_pairs.shown(images), file_pairs.shown(inpainted)
    self._masks, self._invert = file_pairs.shown(masks) if masks else None, invert
    self.method = (len(inpainted) == 1 and pathlib.Path(inpainted[0]).name) or "inpainted"
    self._notes: list[str] = []
    self._deep: set[pathlib.Path] = set()
    self._transparent: set[pathlib.Path] = set()
    self._several: set[pathlib.Path] = set()
    self._digest, self._masks_digest = hashlib.sha256(), hashlib.sha256()
    truths, holes = file_pairs.find_files(images, masks, inpainted)
    truths = {stem: truths[stem] for stem in sorted(truths)[: limit or None]}
    found = file_pairs.list_files("--inpainted", inpainted, filter(os.path.isdir, [*images, *(masks or ())]))
    results = file_pairs.by_stem("--inpainted", found)
    pairs = [file_pairs.Pair(truth, None, truth.stem) for truth in truths.values()]
    without_mask: list[str] = []
    if holes is not None:
      pairs, without_mask = file_pairs.pair(truths, holes)
    self._files: dict[str, tuple[pathlib.Path, pathlib.Path, pathlib.Path | None]] = {}
    without_result = []
    for pair in pairs:
      result = file_pairs.result_of(pair, results)
      if result is None:
        without_result.append(pair.stem)
      else:
        self._files[pair.stem] = (pair.image, result, pair.mask)
    self._leave_out(without_result, f"no picture of that name in --inpainted={self._inpainted}")
    self._leave_out(without_mask, f"no mask of that name in --masks={self._masks}")
    require(
      bool(self._files),
      f"no picture of --inpainted={self._inpainted} has the name of one in --images={self._images}"
      f"{f' and in --masks={self._masks}' if masks else ''}, so nothing can be scored: name results like their truth",
    )
    self.least_size = min((_common_size(*files) for files in self._files.values()), key=min)  # height, width

  def _leave_out(self, stems: Sequence[str], why: str) -> None:
    if stems:
      shown = ", ".join(stems[:5]) + (", …" if len(stems) > 5 else "")
      self._note(f"{len(stems)} not scored, {why}: {shown}")

  def _note(self, note: str) -> None:
    self._notes.append(note)
    _log.warning("%s", note)

  def files(self) -> list[pathlib.Path]:
    """All that is read."""
    return [path for files in self._files.values() for path in files if path is not None]

  def __len__(self) -> int:
    return len(self._files)

  def __iter__(self) -> Iterator[Picture]:
    without_hole, large = [], 0
    for stem, (_, result, _) in self._files.items():
      data = result.read_bytes()
      self._digest.update(stem.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(data).digest())
      picture = self._read(stem, data)
      large += picture.mask.mean() > hole_files.LARGE
      if picture.mask.any():
        self._masks_digest.update(mask_bytes(stem, area_bounds(picture.mask), picture.mask[..., 0]))
        yield picture
      else:
        without_hole.append(stem)
    white = f"white is hole, above {hole_files.THRESHOLD} of 255"
    self._leave_out(without_hole, f"a mask without a hole ({white})")
    scored = len(self._files) - len(without_hole)
    require(scored > 0, f"no mask of --masks={self._masks} has a hole ({white}): see --mask_invert")
    if self._masks and large > scored / 2:
      share = f"more than {hole_files.LARGE:.0%} of the picture"
      self._note(f"{large} of {scored} masks make {share} hole: are they inverted? {white}; see --mask_invert")

  def read_again(self, bucket: str, name: str) -> Picture:
    """Reads one picture and its hole again, for the pictures of the report."""
    return self._read(name, self._files[name][1].read_bytes())

  def _read(self, stem: str, data: bytes) -> Picture:
    truth, result, hole = self._files[stem]
    image, fill = self._pixels(truth, truth.read_bytes()), self._pixels(result, data)
    if hole is None:
      return Picture(ALL, stem, image, np.ones_like(image[..., :1]), {self.method: fill})
    mask = hole_files.read_hole(hole, invert=self._invert)[..., None]
    return Picture(bucket_name(area_bounds(mask)), stem, image, mask, {self.method: fill})

  def _pixels(self, path: pathlib.Path, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    photo = photos.read_photo(data, str(path))
    if photo.mode.endswith(";16"):
      self._deep.add(path)
    if photo.alpha is not None and photo.alpha.min() < 255:
      self._transparent.add(path)
    if photo.frames > 1:
      self._several.add(path)
    return photo.rgb

  def describe(self) -> dict[str, Any]:
    """The head of a report, with the hashes of pictures and masks; whole after the iteration."""
    notes = list(self._notes)
    if self._deep:
      notes.append(f"{len(self._deep)} files have 16 bits per channel, taken to the nearest of 256 levels")
    if self._transparent:
      notes.append(f"{len(self._transparent)} files have transparent pixels, laid on white")
    if self._several:
      notes.append(f"{len(self._several)} files hold several pictures or pages, of which the first is scored")
    return {
      "title": f"{self._inpainted} against {self._images}",
      "notes": notes,
      "protocol": {
        "truth": self._images,
        "inpainted": self._inpainted,
        "inpainted_sha256": self._digest.hexdigest(),
        "masks": self._masks,
        "masks_sha256": self._masks_digest.hexdigest() if self._masks else None,
        "composite": self._masks is not None,
      },
    }


def area_bounds(mask: UInt8[np.ndarray, "h w 1"]) -> Bucket:
  """The bucket of a hole by its share of the image; the lowest where there is none."""
  return next(bounds for bounds in _BOUNDS if mask.mean() <= bounds[1])


def _common_size(truth: pathlib.Path, *others: pathlib.Path | None) -> tuple[int, int]:
  size = _size(truth)
  for path in filter(None, others):
    other = _size(path)
    require(
      other == size,
      f"{path} is {other[1]}x{other[0]} but {truth} is {size[1]}x{size[0]}: a result and its mask must be as large as "
      "the truth; make all of one size",
    )
  return size


def _size(path: pathlib.Path) -> tuple[int, int]:
  """Height and width, upright, from the file's header."""
  with pictures.open_picture(path) as file:
    return pictures.upright_size(file)
