"""Trees of image files: which of them are for training and which are held out.

A layout brings its own held-out part (Paris StreetView's `paris_eval_gt`, Places2's `val_256`, a folder `val` beside
`train`) or has a rule that holds images out. A rule looks at names alone, so that every copy of a tree is split alike.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gmsrm_jax.data import pictures
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import local_path, printable

PLAN = "prepare.json"  # in a folder of --mode=prepare: what is prepared there from what
CELEBAHQ_IMAGES = 30_000
CELEBAHQ_SHARE = 1 / 15  # 2,000 of 30,000

EXPECTED = {
  "paris": "paris_train_original/48.842502_2.344968_90_-004.JPG … and paris_eval_gt/001_im.png …",
  "places2": "data_256/a/airfield/00000001.jpg … and val_256/Places365_val_00000001.jpg …",
  "celebahq": "30,000 images with a number for a name, such as 00001.jpg …, or train/… and val/…",
  "arrayrecord": "dataset_info.json, features.json and *.array_record-* files, as --mode=prepare writes them",
}

_PARIS = ("paris_train_original", "paris_eval_gt")
_PLACES2 = ("data_256", "val_256")
# Where the archives of CelebA-HQ put the images; their other folders hold label maps or other sizes.
_CELEBAHQ_FOLDERS = ("CelebA-HQ-img", "data256x256", "data512x512", "data1024x1024")
_DEPTH = 3  # levels below the root at which the folders of a layout are looked for

_log = logging.getLogger(__name__)


class Files(NamedTuple):
  """The image files of a split, unread: paths relative to a folder, in order, and how they were chosen."""

  folder: Path
  names: list[str]
  layout: str
  rule: str

  def open(self, index: int) -> Path:
    """The file of image `index`."""
    return self.folder / self.names[index]

  def sizes(self) -> list[int]:
    """Bytes of each file; -1 where there is no file any more."""
    paths = [os.path.join(self.folder, name) for name in self.names]
    return [os.path.getsize(path) if os.path.exists(path) else -1 for path in paths]

  def between(self, start: int, stop: int) -> Files:
    """The files from `start` to before `stop`."""
    return self._replace(names=self.names[start:stop])


def check_folder(folder: str, setting: str, way_out: str) -> Path:
  """The folder that a setting names.

  Raises:
    ConfigError: it is missing, a file, or may not be read.
  """
  root, where = local_path(folder, setting, way_out), f"{setting}={folder!r}"
  require(root.exists(), f"{where} does not exist: {way_out}")
  require(root.is_dir(), f"{where} is a file, not a folder: {way_out}")
  require(os.access(root, os.R_OK | os.X_OK), f"{where} may not be read: change its permissions")
  return root


def is_image(name: str) -> bool:
  """True for the name of an image file that is not hidden."""
  return not name.startswith(".") and name.lower().endswith(pictures.SUFFIXES)


def image_names(folder: Path) -> list[str]:
  """Sorted paths of the image files below the folder; a link to a folder is followed once.

  What is not read is counted and named in a warning, but for what is hidden.
  """
  names, others, seen = [], [], set()
  closed: list[OSError] = []
  for here, folders, files in os.walk(folder, followlinks=True, onerror=closed.append):
    real = os.path.realpath(here)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    # In place, as os.walk wants it: the order decides which of two links to one folder is followed.
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    # Not with pathlib, which takes ten times as long: there may be millions.
    prefix = os.path.relpath(here, folder).replace(os.sep, "/") + "/"
    prefix = "" if prefix == "./" else prefix
    names += [prefix + name for name in files if is_image(name)]
    others += [prefix + name for name in files if not is_image(name) and not name.startswith(".")]
  left_out = []
  for what, which in (
    (f"files that are none of {', '.join(pictures.FORMATS)} by their names", others),
    ("folders that may not be read", [str(error.filename) for error in closed]),
  ):
    if which:
      shown = ", ".join(map(printable, sorted(which)[:5])) + (", …" if len(which) > 5 else "")
      left_out.append(f"{len(which)} {what}: {shown}")
  if left_out:
    _warn_once(f"{folder}: left out {'; and '.join(left_out)}")
  return sorted(names)


@functools.cache  # a folder is listed for each split
def _warn_once(line: str) -> None:
  _log.warning("%s", line)


def detect_layout(root: Path) -> str:
  """The layout of a tree, by the folders and files that only one layout has; 'folder' where none is there."""
  names = os.listdir(root)
  if any(".array_record" in name or name in (PLAN, "dataset_info.json") for name in names):
    return "arrayrecord"
  near = _folders_by_name(root)
  for layout, marks in (("paris", _PARIS), ("places2", _PLACES2), ("celebahq", _CELEBAHQ_FOLDERS)):
    if any(mark in near for mark in marks):
      return layout
  if _train_and_val(root) is None:
    names = image_names(root)
    if len(names) == CELEBAHQ_IMAGES and all(PurePosixPath(name).stem.isdigit() for name in names):
      return "celebahq"
  return "folder"


def split_files(root: Path, layout: str, split: str, *, val_share: float, by_rule: bool, setting: str) -> Files:
  """The files of one split of a tree.

  Args:
    root: the data set's folder.
    layout: 'folder', 'paris', 'celebahq' or 'places2'.
    split: 'train' or 'val'.
    val_share: what the hash rule holds out.
    by_rule: a tree without a held-out part of its own is split by its rule; else both splits are all of it.
    setting: what names the tree, for messages.

  Raises:
    ConfigError: the tree is not of that layout, or holds too few images.
  """
  if layout in ("paris", "places2"):
    near = _folders_by_name(root)
    pair = zip(("train", "val"), _PARIS if layout == "paris" else _PLACES2, strict=True)
    own = {of: near[name] for of, name in pair if name in near}
  else:
    own = _train_and_val(root)
    if own is None and layout == "celebahq":
      return _celebahq(root, split, by_rule, setting)
    own = own or {"train": root}
  folder = own.get(split) or own.get("train")
  if folder is None:
    raise ConfigError(f"{setting}: {wrong_tree(layout, root)}")
  names = image_names(folder)
  inside = "" if folder == root else f": {folder.name}"
  require(
    bool(names),
    f"{setting}{inside} holds no image ({', '.join(pictures.FORMATS)}): give {setting.partition('=')[0]} a folder of "
    "images, or 'demo' for the photographs that come along",
  )
  if "val" in own or not by_rule:
    return Files(folder, names, layout, f"all of {folder.name}")
  held = held_out(names, _place if layout == "paris" else str, val_share, setting)
  rule = f"{val_share:g} of the {'places' if layout == 'paris' else 'names'} held out by hash"
  return Files(folder, _side(split, names, held), layout, rule)


def held_out(names: Sequence[str], key: Callable[[str], str], share: float, setting: str) -> set[str]:
  """The names whose key has a small hash, about `share` of all: at least one key, and never all of them.

  Which names are held out does not depend on the other names, but for the one that is taken when none is small.

  Raises:
    ConfigError: all names have one key.
  """
  hashes = {k: int.from_bytes(hashlib.sha256(os.fsencode(k)).digest()[:8], "big") for k in map(key, names)}
  require(
    len(hashes) > 1, f"{setting}: {len(names)} image(s) cannot be split in two: give data.val images of their own"
  )
  order = sorted(hashes, key=lambda k: (hashes[k], k))
  small = sum(value < share * 2**64 for value in hashes.values())
  chosen = set(order[: min(max(small, 1), len(order) - 1)])
  return {name for name in names if key(name) in chosen}


def _side(split: str, names: Sequence[str], held: set[str]) -> list[str]:
  return [name for name in names if (name in held) == (split == "val")]


def _place(name: str) -> str:
  """Latitude and longitude of a Paris StreetView file: headings of one place are near copies of each other."""
  place = re.match(r"-?\d+\.\d+_-?\d+\.\d+(?=_)", PurePosixPath(name).name)
  return place[0] if place else name


def _celebahq(root: Path, split: str, by_rule: bool, setting: str) -> Files:
  """The first 14 of 15 images in the order of their numbers are for training: 28,000 and 2,000 of 30,000.

  LaMa's lists draw another 2,000; who wants those gives folders `train` and `val`.
  """
  near = _folders_by_name(root)
  root = next((near[name] for name in _CELEBAHQ_FOLDERS if name in near), root)
  names = image_names(root)
  numbers = [re.findall(r"\d+", PurePosixPath(name).stem) for name in names]
  require(len(names) > 1 and all(numbers), f"{setting}: {wrong_tree('celebahq', root)}")
  if len(names) != CELEBAHQ_IMAGES:
    _log.warning("%s: %d images, where CelebA-HQ has 30,000: is it complete?", setting, len(names))
  if not by_rule:
    return Files(root, names, "celebahq", f"all of {root.name}")
  order = sorted(range(len(names)), key=lambda i: (int(numbers[i][-1]), names[i]))
  held = {names[i] for i in order[len(names) - max(1, round(len(names) * CELEBAHQ_SHARE)) :]}
  return Files(root, _side(split, names, held), "celebahq", "the last 1 of 15 by number held out")


def _folders_by_name(root: Path) -> dict[str, Path]:
  """The root and the folders near below it, by name; of several with one name the nearest, then the first."""
  by_name = {Path(os.path.abspath(root)).name: root}
  level = [root]
  for _ in range(_DEPTH):
    below = []
    for folder in level:
      if os.access(folder, os.R_OK | os.X_OK):
        with os.scandir(folder) as entries:
          below += sorted(Path(item.path) for item in entries if not item.name.startswith(".") and item.is_dir())
    for folder in below:
      by_name.setdefault(folder.name, folder)
    level = below
  return by_name


def _train_and_val(root: Path) -> dict[str, Path] | None:
  """`train` and `val` (or `validation`) where the root holds these and no image itself."""
  held = next((root / name for name in ("val", "validation") if (root / name).is_dir()), None)
  if held is None or not (root / "train").is_dir() or any(is_image(name) for name in os.listdir(root)):
    return None
  return {"train": root / "train", "val": held}


def wrong_tree(layout: str, root: Path) -> str:
  """Says what a layout should have looked like, and what is there."""
  entries = sorted(root.iterdir())
  shown = " ".join([entry.name + "/" * entry.is_dir() for entry in entries[:4]])
  more = f" … ({len(entries)} entries)" if len(entries) > 4 else ""
  return (
    f"data.layout={layout} expects {EXPECTED[layout]}; found {shown or 'nothing'}{more} in {root}: name its root, or "
    "use data.layout=auto"
  )
