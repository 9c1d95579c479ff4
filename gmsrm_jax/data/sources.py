"""Sources of images: files in a folder, or records; `demo` names the photographs that come along.

A source is random access, as grain wants it: `len(source)`, and `source[i]` gives an `Example`. What it gives
depends on the files alone, never on the order of the calls, so many threads may read it, and many processes copies.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.config import DataConfig
from gmsrm_jax.data import datasets, pictures, records
from gmsrm_jax.data.datasets import Files
from gmsrm_jax.data.records import Records
from gmsrm_jax.errors import require

BAD_SHARE = 0.01  # of a split's files: more that cannot be decoded, and more than one, are an error
BAD_RULE = f"one, or {BAD_SHARE:.0%} where that is more"

_LOOKED_AT = 256  # held-out images that are compared with training images before a run
_COMPARED = 16  # training images of its size that one is compared with at most, those of its name first

DEMO = "demo"  # as data.train: the photographs of facades in this folder
_DEMO_FOLDER = Path(__file__).with_name("facades")

_log = logging.getLogger(__name__)


class Example(NamedTuple):
  """One image at its own size, and its path relative to the split's folder, with forward slashes."""

  image: UInt8[np.ndarray, "h w 3"]
  name: str


class ImageSource:
  """The images of a split, from files or from records, by name.

  In place of an image that cannot be decoded stands the next one that can (after the last comes the first). Each such
  image is logged once and listed in `bad_files`; too many raise ConfigError, as `check_bad` has it. Every process
  counts for itself.
  """

  def __init__(self, stored: Files | Records, where: str):
    self.stored = stored
    self.where = where
    self.names = stored.names
    self._bad: dict[str, object] = {}
    self._sizes: list[int] | None = None

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> Example:
    start = range(len(self.names))[index]
    for position in (*range(start, len(self.names)), *range(start)):
      name = self.names[position]
      if name in self._bad:
        continue
      try:
        return Example(pictures.decode(self.stored.open(position), name), name)
      except pictures.PictureError as error:
        self._add_bad(name, error.why)
    check_bad(self.where, self.bad_files, len(self.names))
    raise AssertionError("all are bad, and nobody said so")

  @property
  def bad_files(self) -> list[str]:
    """Names of the images that could not be decoded so far."""
    return sorted(self._bad.copy())

  def file_sizes(self) -> list[int]:
    """Bytes of each image as it was stored when this was first asked; -1 where it was no more."""
    if self._sizes is None:
      self._sizes = self.stored.sizes()  # a question to the disk for every file
    return self._sizes

  def _add_bad(self, name: str, why: str) -> None:
    mine = object()
    if self._bad.setdefault(name, mine) is mine:  # the first of many threads that meet it
      _log.warning("%s: skipping %s, which cannot be decoded (%s)", self.where, name, why)
    check_bad(self.where, self.bad_files, len(self.names))


def check_bad(where: str, bad: Sequence[str], files: int) -> None:
  """Raises ConfigError when all files are undecodable, or more than one and than BAD_SHARE of them."""
  require(len(bad) < files, f"{where}: none of its {files} image files can be decoded: replace them")
  require(
    len(bad) <= max(1, BAD_SHARE * files),
    f"{where}: {len(bad)} of {files} image files cannot be decoded ({', '.join(bad[:10])}"
    f"{', …' if len(bad) > 10 else ''}), more than {BAD_RULE}: replace or remove them",
  )


def open_source(data: DataConfig, split: str) -> ImageSource:
  """The images of a split, as `data.train`, `data.val` and `data.layout` say.

  With `data.val` of its own, both trees give the split that they call so, or all they have. Without it, both splits
  come from `data.train`, by its own folders or by its layout's rule.

  Raises:
    ConfigError: a folder is missing, is a file, may not be read, holds no image or has another layout; or what reads
      it is not installed.
  """
  by_rule = data.val == ""
  if split == "val" and (data.val or not data.train):
    setting, spec, layout = "data.val", data.val, "folder" if data.layout == "folder" else "auto"
  else:
    setting, spec, layout = "data.train", data.train, data.layout
  where = f"{setting}={spec!r}"
  if spec.startswith("tfds:"):
    stored = records.from_tfds(spec, split, data.val_share, by_rule=by_rule, setting=where)
    return ImageSource(stored, where)

  way_out = f"give {setting} a folder of images, or '{DEMO}' for the photographs that come along"
  root = _DEMO_FOLDER if spec == DEMO else datasets.check_folder(spec, setting, way_out)
  layout = datasets.detect_layout(root) if layout == "auto" else layout
  if layout == "arrayrecord":
    stored = records.from_folder(root, split, data.val_share, by_rule=by_rule, setting=where)
  else:
    stored = datasets.split_files(root, layout, split, val_share=data.val_share, by_rule=by_rule, setting=where)
  return ImageSource(stored, where)


def split_hash(source: ImageSource) -> str:
  """sha256 over the names and stored sizes, in order: equal for equal copies of a split, wherever they lie."""
  return files_hash(source.names, source.file_sizes())


def files_hash(names: Sequence[str], sizes: Sequence[int]) -> str:
  """sha256 over names and sizes, in order."""
  digest = hashlib.sha256()
  for name, size in zip(names, sizes, strict=True):
    digest.update(os.fsencode(name) + b"\0%d\n" % size)
  return digest.hexdigest()


def doubts(train: ImageSource | None, val: ImageSource) -> list[str]:
  """Reasons why scores on the held-out images say little: that they are one image, or training images as well."""
  found = []
  if len(val) == 1:
    found.append(f"{val.where} holds out 1 image, whose score says little: give data.val more, or raise data.val_share")
  shared = _stored_twice(train, val) if train else []
  if shared:
    found.append(
      f"{len(shared)} of {min(len(val), _LOOKED_AT)} held-out images that were looked at are training images too "
      f"({', '.join(shared[:3])}{', …' if len(shared) > 3 else ''}), so scores will flatter: give data.val others; "
      "--mode=check finds them all"
    )
  return found


def _stored_twice(train: ImageSource, val: ImageSource) -> list[str]:
  """Names of held-out images, of some spread over all, whose bytes are those of a training image of any name."""
  count = min(len(val), _LOOKED_AT)
  chosen = [index * len(val) // count for index in range(count)]
  sizes, train_sizes = val.file_sizes(), train.file_sizes()
  alike: dict[int, list[int]] = {sizes[index]: [] for index in chosen if sizes[index] >= 0}
  for index, size in enumerate(train_sizes):
    if size in alike:
      alike[size].append(index)

  def is_training_image(index: int) -> bool:
    name = PurePosixPath(val.names[index]).name
    order = sorted(alike.get(sizes[index], ()), key=lambda other: PurePosixPath(train.names[other]).name != name)
    data = _stored_bytes(val, index) if order else b""
    return any(_stored_bytes(train, other) == data for other in order[:_COMPARED])

  return [val.names[index] for index in chosen if is_training_image(index)]


def _stored_bytes(source: ImageSource, index: int) -> bytes:
  stored = source.stored.open(index)
  return stored if isinstance(stored, bytes) else stored.read_bytes()
