"""Every path that a filling will write, settled and checked before anything is written.

An output is never an input, no two outputs are one file, and no file beside an input is replaced.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence

from PIL import Image

from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import TEMPORARY, identity, nearest
from gmsrm_jax.inference import photos
from gmsrm_jax.inference.file_pairs import Pair

_LONGEST = 255  # bytes of a name, in all common file systems


@dataclasses.dataclass(frozen=True)
class Job:
  """The files that one pair is made into."""

  pair: Pair
  folder: pathlib.Path
  stem: str
  num_samples: int
  has_sheet: bool
  wanted: str  # the format, as `photos.output_format` takes it
  suffixes: tuple[str, ...]  # one of them, which only the picture itself tells

  def suffix(self, photo: photos.Photo) -> str:
    """That of the picture's results."""
    kept = photos.output_format(photo, self.wanted) in (photo.format, "JPEG")
    return self.suffixes[0] if kept else self.suffixes[-1]

  def samples(self, suffix: str) -> list[pathlib.Path]:
    """A path per sample."""
    numbers = [""] if self.num_samples == 1 else [f"_{sample}" for sample in range(self.num_samples)]
    return [self.folder / f"{self.stem}{number}{suffix}" for number in numbers]

  @property
  def sheet(self) -> pathlib.Path:
    """The contact sheet."""
    return self.folder / f"{self.stem}_sheet.png"

  def paths(self) -> list[pathlib.Path]:
    """All that may be written."""
    return [path for suffix in self.suffixes for path in self.samples(suffix)] + [self.sheet] * self.has_sheet


def plan(pairs: Sequence[Pair], output: str, wanted: str, *, num_samples: int, has_sheet: bool) -> list[Job]:
  """A job per pair, in a folder, or in one file if `output` is called like a picture.

  Args:
    pairs: what is filled.
    output: folder or file.
    wanted: 'keep' or 'png', the format.
    num_samples: fills per pair.
    has_sheet: a contact sheet is written for each.

  Raises:
    ConfigError: the output is a file where there are several pictures, or has a suffix that is not written; or a path
      is an input, is there already beside one, or is that of two outputs.
  """
  where = pathlib.Path(output)
  suffix = where.suffix.lower()
  named = None
  of_pictures = suffix in {*Image.registered_extensions(), ".heic", ".heif"}
  if where.is_dir() or not (of_pictures or (len(pairs) == 1 and suffix[1:].isalpha())):  # results.v2 is a folder
    require(where.is_dir() or not os.path.lexists(where), f"--output={output} is a file: name a folder, or FILE.png")
    ends = [(".png",) if wanted == "png" else (pair.image.suffix, ".png") for pair in pairs]
    jobs = [
      Job(pair, where, pair.stem, num_samples, has_sheet, wanted, end) for pair, end in zip(pairs, ends, strict=True)
    ]
  else:
    require(len(pairs) == 1, f"--output={output} names one file, but {len(pairs)} pictures are filled: name a folder")
    formats, way_out = ", ".join(sorted({*photos.WRITTEN.values()} - {"MPO"})), "name a .png, or a folder that is there"
    require(suffix in photos.WRITTEN, f"--output={output}: no {suffix} files are written, but {formats}: {way_out}")
    require(wanted == "keep" or suffix == ".png", f"--output={output} is no PNG: leave out --format={wanted}")
    named, wanted = where, photos.WRITTEN[suffix]
    jobs = [Job(pairs[0], where.parent, where.stem, num_samples, has_sheet, wanted, (where.suffix,))]
  inputs = {path for pair in pairs for path in (pair.image, pair.mask) if path is not None}
  doubtful = {job.pair for among, _ in _clashes(jobs, inputs, named) for job in among}
  jobs = [_settled(job) if job.pair in doubtful else job for job in jobs]
  for _, clash in _clashes(jobs, inputs, named):
    raise ConfigError(clash)
  return jobs


def _settled(job: Job) -> Job:
  """The job with the one suffix that its picture gets; with none where the picture cannot be read."""
  try:
    return dataclasses.replace(job, suffixes=(job.suffix(photos.read_photo(job.pair.image)),))
  except (ConfigError, OSError):
    return dataclasses.replace(job, suffixes=(), has_sheet=False)


def _clashes(
  jobs: Sequence[Job], inputs: set[pathlib.Path], named: pathlib.Path | None
) -> Iterator[tuple[tuple[Job, ...], str]]:
  """Jobs that cannot be done together, or at all, and why."""
  identities = {identity(path) for path in inputs}
  folders = {os.path.realpath(path.parent) for path in inputs}
  beside = os.path.realpath(jobs[0].folder) in folders
  taken: dict[str, tuple[Job, pathlib.Path]] = {}
  for job in jobs:
    for path in job.paths():
      other, there = taken.setdefault(unicodedata.normalize("NFC", path.name).casefold(), (job, path))
      if other is not job and _are_one(path, there):
        what = f"{other.pair.image} and {job.pair.image} would both be written to {ascii(str(path))}"
        yield (other, job), f"{what}: rename one of them"
      if len(os.fsencode(path.name)) > _LONGEST:
        yield (job,), f"{path}: a name of more than {_LONGEST} bytes cannot be written: shorten that of the image"
      elif identity(path) in identities:
        yield (job,), f"{path} is an input and would be overwritten: choose another --output"
      elif path.is_dir() or (beside and path != named and os.path.lexists(path)):
        yield (job,), f"{path} is there already and would be overwritten: choose another --output"


def _are_one(path: pathlib.Path, other: pathlib.Path) -> bool:
  """True where the file system has one file for both names, which may differ in case or accents."""
  if path.name == other.name:
    return True
  with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=nearest(path.parent)) as scratch:
    (pathlib.Path(scratch) / path.name).touch()
    return os.path.lexists(pathlib.Path(scratch) / other.name)
