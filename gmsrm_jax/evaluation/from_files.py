"""Anybody's results as files: truth, filled pictures and holes, paired by stem, scored without any model.

Pictures are read upright, as 8-bit RGB: of 16 bits per channel the nearest of 256 levels is taken, and what is
transparent is laid on white, in truth and result alike. The report counts such files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from gmsrm_jax.config import ALL, BUCKETS, bucket_name
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.data.masks.fixed import masks_sha256
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.evaluation.baselines import Fill
from gmsrm_jax.evaluation.scorer import Batch
from gmsrm_jax.inference import file_pairs, photos

_LARGER = "60-100%"  # holes beyond the last bucket
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Case:
  """One picture to score."""

  stem: str
  truth: pathlib.Path
  result: pathlib.Path
  mask: pathlib.Path | None
  size: tuple[int, int]  # width, height, upright
  bucket: str


class FolderResults:
  """Filled pictures in a folder beside the truth in another; see `scoring.Results`.

  Without masks all pictures are in the one bucket 'all', and the whole picture counts as hole.

  Raises:
    ConfigError: a folder is missing or empty, sizes differ, or nothing can be paired.
  """

  def __init__(
    self,
    images: str,
    inpainted: str,
    masks: str | None,
    *,
    invert: bool,
    batch_size: int,
    max_images: int,
    baselines: Mapping[str, Fill],
  ):
    self._invert, self._batch_size = invert, batch_size
    self.has_masks = masks is not None
    self._baselines = dict(baselines) if self.has_masks else {}
    self.name = pathlib.Path(inpainted).name or "inpainted"
    self.methods = (self.name, *(title for title in self._baselines if title != self.name))
    self.notes: list[str] = []
    self._converted: dict[str, set[pathlib.Path]] = {"16 bits per channel": set(), "transparent pixels": set()}
    self._digest = hashlib.sha256()
    self._cases = self._paired(images, inpainted, masks, max_images)

  def _paired(self, images: str, inpainted: str, masks: str | None, limit: int) -> list[Case]:
    truths = file_pairs.files_by_stem("--images", images)
    truths = dict(sorted(truths.items())[: limit or None])
    results = file_pairs.files_by_stem("--inpainted", inpainted)
    holes = {} if masks is None else file_pairs.masks_by_stem(masks, truths)
    self._leave_out(f"no picture of that name in --inpainted={inpainted}", [s for s in truths if s not in results])
    if masks is not None:
      paired = [s for s in truths if s in results]
      self._leave_out(f"no mask of that name in --masks={masks}", [s for s in paired if s not in holes])
    stems = [s for s in truths if s in results and (masks is None or s in holes)]
    require(
      bool(stems),
      f"no picture of --inpainted={inpainted} has the name of one in --images={images}"
      f"{'' if masks is None else f' and in --masks={masks}'}, so nothing can be scored: name results like their truth",
    )
    cases = [
      self._case(stem, truths[stem], results[stem], holes.get(stem))
      for stem in tqdm(stems, desc="pair", unit="image", disable=None)
    ]
    self._leave_out("a mask without a hole", [case.stem for case in cases if case.bucket == ""])
    cases = [case for case in cases if case.bucket]
    require(bool(cases), f"no mask of --masks={masks} has a hole (white is hole): see --mask_invert")
    order = [*map(bucket_name, BUCKETS), _LARGER, ALL]
    return sorted(cases, key=lambda case: (order.index(case.bucket), case.size, case.stem))

  def _leave_out(self, why: str, stems: Sequence[str]) -> None:
    if stems:
      shown = ", ".join(stems[:5]) + (", …" if len(stems) > 5 else "")
      self.notes.append(f"{len(stems)} not scored, {why}: {shown}")
      _log.warning("%s", self.notes[-1])

  def _case(self, stem: str, truth: pathlib.Path, result: pathlib.Path, hole: pathlib.Path | None) -> Case:
    size = _size(truth)
    others = {result: _size(result)}
    bucket = ALL
    if hole is not None:
      mask = hole_files.read_hole(hole, invert=self._invert)
      others[hole] = (mask.shape[1], mask.shape[0])
      bucket = area_bucket(float(mask.mean()))
    for path, other in others.items():
      require(
        other == size,
        f"{path} is {other[0]}x{other[1]} but {truth} is {size[0]}x{size[1]}: a result and its mask must be as "
        "large as the truth; make all of one size",
      )
    self._digest.update(stem.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(result.read_bytes()).digest())
    return Case(stem, truth, result, hole, size, bucket)

  def least_size(self) -> tuple[int, int]:
    """Height and width of the picture with the shortest side."""
    width, height = min((case.size for case in self._cases), key=min)
    return height, width

  def count(self) -> int:
    return len(self._cases)

  def batches(self) -> Iterator[Batch]:
    for _, cases in itertools.groupby(self._cases, key=lambda case: (case.bucket, case.size)):
      group = list(cases)
      for start in range(0, len(group), self._batch_size):
        yield self._read(group[start : start + self._batch_size])

  def example(self, bucket: str, name: str) -> Batch:
    return self._read([next(case for case in self._cases if case.stem == name and case.bucket == bucket)])

  def _read(self, cases: Sequence[Case]) -> Batch:
    images = np.stack([self._pixels(case.truth) for case in cases])
    masks = np.stack([self._mask(case) for case in cases])[..., None]
    fills = {title: fill(images, masks) for title, fill in self._baselines.items()}
    fills[self.name] = np.stack([self._pixels(case.result) for case in cases])
    return Batch(cases[0].bucket, [case.stem for case in cases], images, masks, fills)

  def _pixels(self, path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    photo = photos.read_photo(path)
    if photo.mode.endswith(";16"):
      self._converted["16 bits per channel"].add(path)
    if photo.alpha is not None and photo.alpha.min() < 255:
      self._converted["transparent pixels"].add(path)
    return photo.rgb

  def _mask(self, case: Case) -> UInt8[np.ndarray, "h w"]:
    if case.mask is None:
      return np.ones(case.size[::-1], np.uint8)
    return hole_files.read_hole(case.mask, invert=self._invert)

  def conversions(self) -> list[str]:
    """What was converted while reading, one line a kind."""
    rules = {"16 bits per channel": "taken to the nearest of 256 levels", "transparent pixels": "laid on white"}
    return [f"{len(paths)} files have {kind}, {rules[kind]}" for kind, paths in self._converted.items() if paths]

  def masks_hash(self) -> str | None:
    """As in a manifest of masks, over (stem, bucket, hole); None without masks."""
    if not self.has_masks:
      return None
    bounds = {**{bucket_name(bucket): bucket for bucket in BUCKETS}, _LARGER: (BUCKETS[-1][1], 1.0)}
    cases = sorted(self._cases, key=lambda case: case.stem)
    return masks_sha256((case.stem, bounds[case.bucket], self._mask(case)) for case in cases)

  def results_hash(self) -> str:
    """sha256 over the stems and bytes of the filled pictures."""
    return self._digest.hexdigest()


def area_bucket(area: float) -> str:
  """The bucket of a hole's share of the image; empty where there is no hole."""
  if area == 0:
    return ""
  return next((bucket_name(bucket) for bucket in BUCKETS if bucket[0] < area <= bucket[1]), _LARGER)


def _size(path: pathlib.Path) -> tuple[int, int]:
  """Width and height, upright, from the file's header."""
  try:
    with Image.open(path) as file:
      width, height = file.size
      return (height, width) if file.getexif().get(0x0112) in _ROTATED else (width, height)
  except MemoryError:
    raise
  except Exception as error:  # Pillow raises what it likes on a broken file.
    raise ConfigError(f"{path} cannot be decoded ({error}): replace the file") from error
