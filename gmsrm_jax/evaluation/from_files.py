"""Anybody's results as files: truth, filled pictures and holes, paired by stem, scored without any model.

Pictures are read upright, as 8-bit RGB: of 16 bits per channel the nearest of 256 levels is taken, and what is
transparent is laid on white, in truth and result alike. The report counts such files.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags

from gmsrm_jax.config import EvalConfig
from gmsrm_jax.data import pictures
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name, mask_bytes
from gmsrm_jax.errors import require
from gmsrm_jax.evaluation.baselines import baselines
from gmsrm_jax.evaluation.scorer import ALL, Batch
from gmsrm_jax.inference import file_pairs, photos

_BOUNDS = (*BUCKETS, (BUCKETS[-1][1], 1.0))  # holes beyond the last bucket are scored, too
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_DEEP, _TRANSPARENT = "16 bits per channel, taken to the nearest of 256 levels", "transparent pixels, laid on white"

_log = logging.getLogger(__name__)


class Case(NamedTuple):
  """The files of one picture."""

  truth: pathlib.Path
  result: pathlib.Path
  mask: pathlib.Path | None
  size: tuple[int, int]  # width, height, upright


class FolderResults:
  """Filled pictures in a folder beside the truth in another; see `scorer.Results`.

  Without masks all pictures are in the one bucket 'all', and the whole picture counts as hole. The hashes and notes are
  whole after the batches. Headers are read at once, so that sizes that differ are refused before anything is scored.

  Raises:
    ConfigError: a folder is missing or empty, sizes differ, or nothing can be paired.
  """

  def __init__(self, config: EvalConfig, images: str, inpainted: str, masks: str | None, *, invert: bool = False):
    self._images, self._inpainted, self._masks, self._invert = images, inpainted, masks, invert
    self.has_masks = masks is not None
    self._batch_size = config.batch_size
    self._own = pathlib.Path(inpainted).name or "inpainted"
    self._baselines = baselines(config.baselines) if self.has_masks else {}
    self._baselines.pop(self._own, None)
    self._notes: list[str] = []
    self._converted: dict[str, set[pathlib.Path]] = {_DEEP: set(), _TRANSPARENT: set()}
    self._results_digest, self._masks_digest = hashlib.sha256(), hashlib.sha256()
    self._scored = 0
    self._cases = self._paired(images, inpainted, config.max_images)

  def _paired(self, images: str, inpainted: str, limit: int) -> dict[str, Case]:
    truths = file_pairs.files_by_stem("--images", images)
    stems = sorted(truths)[: limit or None]
    results = file_pairs.files_by_stem("--inpainted", inpainted)
    stems = self._known(stems, results, f"no picture of that name in --inpainted={inpainted}")
    holes: dict[str, pathlib.Path] = {}
    if self._masks is not None:
      holes = file_pairs.masks_by_stem(self._masks, stems)
      stems = self._known(stems, holes, f"no mask of that name in --masks={self._masks}")
    require(
      bool(stems),
      f"no picture of --inpainted={inpainted} has the name of one in --images={images}"
      f"{'' if self._masks is None else f' and in --masks={self._masks}'}, so nothing can be scored: name results like "
      "their truth",
    )
    return {stem: _case(truths[stem], results[stem], holes.get(stem)) for stem in stems}

  def _known(self, stems: Sequence[str], others: Mapping[str, pathlib.Path], why: str) -> list[str]:
    self._leave_out(why, [stem for stem in stems if stem not in others])
    return [stem for stem in stems if stem in others]

  def _leave_out(self, why: str, stems: Sequence[str]) -> None:
    if stems:
      shown = ", ".join(stems[:5]) + (", …" if len(stems) > 5 else "")
      self._notes.append(f"{len(stems)} not scored, {why}: {shown}")
      _log.warning("%s", self._notes[-1])

  def least_size(self) -> tuple[int, int]:
    """Height and width of the picture with the shortest side."""
    width, height = min((case.size for case in self._cases.values()), key=min)
    return height, width

  def count(self) -> int:
    return len(self._cases)

  def batches(self) -> Iterator[Batch]:
    for _, of_a_size in itertools.groupby(self._pictures(), lambda picture: picture.images.shape):
      while group := list(itertools.islice(of_a_size, self._batch_size)):
        self._scored += len(group)
        batch = Batch(
          [bucket for picture in group for bucket in picture.buckets],
          [name for picture in group for name in picture.names],
          np.concatenate([picture.images for picture in group]),
          np.concatenate([picture.masks for picture in group]),
          {self._own: np.concatenate([picture.fills[self._own] for picture in group])},
        )
        yield self._with_baselines(batch, list(self._baselines))
    require(self._scored > 0, f"no mask of --masks={self._masks} has a hole (white is hole): see --mask_invert")

  def example(self, bucket: str, name: str, methods: Sequence[str]) -> Batch:
    case = self._cases[name]
    return self._with_baselines(self._picture(name, case.result.read_bytes(), self._mask(case)), methods)

  def _pictures(self) -> Iterator[Batch]:
    """Each picture by itself; what has no hole is left out."""
    without_hole = []
    for stem, case in self._cases.items():
      result, mask = case.result.read_bytes(), self._mask(case)
      self._results_digest.update(stem.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(result).digest())
      if mask.any():
        self._masks_digest.update(mask_bytes(stem, area_bounds(float(mask.mean())), mask))
        yield self._picture(stem, result, mask)
      else:
        without_hole.append(stem)
    self._leave_out("a mask without a hole", without_hole)

  def _picture(self, stem: str, result: bytes, mask: UInt8[np.ndarray, "h w"]) -> Batch:
    case = self._cases[stem]
    bucket = bucket_name(area_bounds(float(mask.mean()))) if self.has_masks else ALL
    truth, fill = (self._pixels(*file) for file in ((case.truth, case.truth.read_bytes()), (case.result, result)))
    return Batch([bucket], [stem], truth[None], mask[None, ..., None], {self._own: fill[None]})

  def _with_baselines(self, batch: Batch, methods: Sequence[str]) -> Batch:
    fills = {method: fill(batch.images, batch.masks) for method, fill in self._baselines.items() if method in methods}
    return batch._replace(fills={**batch.fills, **fills})

  def _pixels(self, path: pathlib.Path, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    photo = photos.read_photo(data, str(path))
    if photo.mode.endswith(";16"):
      self._converted[_DEEP].add(path)
    if photo.alpha is not None and photo.alpha.min() < 255:
      self._converted[_TRANSPARENT].add(path)
    return photo.rgb

  def _mask(self, case: Case) -> UInt8[np.ndarray, "h w"]:
    if case.mask is None:
      return np.ones(case.size[::-1], np.uint8)
    return hole_files.read_hole(case.mask, invert=self._invert)

  def describe(self) -> dict[str, Any]:
    pictures_hash, masks_hash = self._results_digest.hexdigest(), self._masks_digest.hexdigest()
    holes = f"masks of {self._masks}, bucket by measured area" if self.has_masks else "without masks"
    hashes = f"Pictures sha256 {pictures_hash[:12]}" + (f", masks sha256 {masks_hash[:12]}" if self.has_masks else "")
    converted = [f"{len(paths)} files have {what}" for what, paths in self._converted.items() if paths]
    return {
      "step": None,
      "title": f"{self._inpainted} against {self._images}",
      "summary": f"{self._scored} pictures as files, {holes}. {hashes}.",
      "notes": [*self._notes, *converted],
      "protocol": {
        "images": self._scored,
        "truth": self._images,
        "inpainted": self._inpainted,
        "inpainted_sha256": pictures_hash,
        "masks": self._masks,
        "masks_sha256": masks_hash if self.has_masks else None,
        "composite": self.has_masks,
      },
    }


def area_bounds(area: float) -> tuple[float, float]:
  """The bucket of a hole's share of the image."""
  return next(bounds for bounds in _BOUNDS if bounds[0] < area <= bounds[1])


def _case(truth: pathlib.Path, result: pathlib.Path, mask: pathlib.Path | None) -> Case:
  size = _size(truth)
  for path in (result, *([mask] if mask else [])):
    other = _size(path)
    require(
      other == size,
      f"{path} is {other[0]}x{other[1]} but {truth} is {size[0]}x{size[1]}: a result and its mask must be as large as "
      "the truth; make all of one size",
    )
  return Case(truth, result, mask, size)


def _size(path: pathlib.Path) -> tuple[int, int]:
  """Width and height, upright, from the file's header."""
  with pictures.open_picture(path) as file:
    width, height = file.size
    return (height, width) if file.getexif().get(ExifTags.Base.Orientation) in _ROTATED else (width, height)
