"""Files that belong together by their names: a picture, its mask, and what was made of both.

A mask is called like its picture, or STEM_mask*, and then may lie in the same folder, as LaMa has it. Names are
compared in Unicode's composed form: those of a Mac may look like others and differ in their bytes.
"""

from __future__ import annotations

import glob
import os
import pathlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gmsrm_jax.data import datasets, pictures
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import identity

Files = dict[str, pathlib.Path]

_FOR_ALL = ""  # no file has this stem


class Pair(NamedTuple):
  """A picture and its mask; without one, its own transparency is the hole."""

  image: pathlib.Path
  mask: pathlib.Path | None
  stem: str  # of what is made of them: the image's, or that of the mask where an image has several


def pair_files(images: Sequence[str], masks: Sequence[str] | None, output: str) -> list[Pair]:
  """Pairs the files of --images and --masks, in the order of the images; a single mask file goes with all of them.

  Raises:
    ConfigError: a path is missing or holds no image, two files share a stem, or an image has no mask.
  """
  image_files, mask_files = find_files(images, masks, [output])
  if mask_files is None:
    return [Pair(image, None, image.stem) for image in image_files.values()]
  pairs, missing = pair(image_files, mask_files)
  names = ", ".join(image_files[stem].name for stem in missing[:5])
  require(
    not missing,
    f"--masks={shown(masks or ())} has no mask for {len(missing)} of {len(image_files)} images ({names}): name each "
    "mask like its image or STEM_mask, or give one mask file for all",
  )
  return pairs


def find_files(images: Sequence[str], masks: Sequence[str] | None, others: Sequence[str]) -> tuple[Files, Files | None]:
  """Images and masks by their stems, a single mask file by none; `others` are folders with neither of them.

  Of files that both flags name, those called STEM_mask* are masks.

  Raises:
    ConfigError: a path is missing or holds no image, two files share a stem, a file would be its own mask, or masks lie
      there and no flag says so.
  """
  if masks is None:
    found = by_stem("--images", list_files("--images", images, others))
    masking = ", ".join([path.name for path in found.values() if _of_mask(path.stem) in found][:3])
    way_out = f"give --masks={shown(images)}, too, or rename them"
    require(not masking, f"--images={shown(images)} holds {masking}, called like masks of others: {way_out}")
    return found, None
  pictured = list_files("--images", images, [*filter(os.path.isdir, others), *masks])
  masking = list_files("--masks", masks, filter(os.path.isdir, [*others, *images]))
  identities = {identity(mask) for mask in masking}
  both = {path for path in pictured if identity(path) in identities}
  if len(masking) == 1 and not any(map(os.path.isdir, masks)):
    pictured = [path for path in pictured if path not in both]
    mask_files = {_FOR_ALL: masking[0]}
  else:
    stems = {_composed(path.stem) for path in pictured}
    own = {path for path in both if _of_mask(path.stem) in stems}
    known = {identity(path) for path in both - own}
    pictured = [path for path in pictured if path not in own]
    mask_files = by_stem("--masks", [path for path in masking if identity(path) not in known])
  require(
    bool(pictured and mask_files),
    f"--masks={shown(masks)} names the files of --images, and no picture is its own mask: call masks STEM_mask.png "
    "beside STEM.png, or give them a folder of their own",
  )
  return by_stem("--images", pictured), mask_files


def pair(images: Files, masks: Files) -> tuple[list[Pair], list[str]]:
  """Each image with its mask, or with each of several; and the stems of those that have none."""
  of_image: dict[str, list[pathlib.Path]] = {}
  for name, mask in masks.items():
    if name not in images:
      of_image.setdefault(_of_mask(name), []).append(mask)
  pairs, missing = [], []
  for stem, image in images.items():
    mask = masks.get(stem) or masks.get(_FOR_ALL)
    found = [mask] if mask else of_image.get(stem, [])
    pairs += [Pair(image, mask, image.stem if len(found) == 1 else mask.stem) for mask in found]
    missing += [] if found else [stem]
  return pairs, missing


def result_of(pair: Pair, results: Files) -> pathlib.Path | None:
  """The result made of a pair: it is called like the image, or, as LaMa has it, like the image's own mask.

  Raises:
    ConfigError: it is the image itself.
  """
  names = [_composed(pair.stem)]
  if pair.mask is not None and _of_mask(pair.mask.stem) == _composed(pair.image.stem):
    names.append(_composed(pair.mask.stem))
  result = next((results[name] for name in names if name in results), None)
  itself = result is not None and identity(result) == identity(pair.image)
  require(not itself, f"{result} is in --images and in --inpainted: it would be compared with itself")
  return result


def list_files(flag: str, paths: Sequence[str], without: Iterable[str]) -> list[pathlib.Path]:
  """The files that the paths name, and the image files below the folders, but for what lies in `without`.

  Raises:
    ConfigError: there is none.
  """
  files, without = [], list(without)
  for path in paths:
    # A shell leaves a pattern alone where it follows '='.
    found = [path] if os.path.exists(path) else sorted(glob.glob(path))
    require(bool(found), f"{flag}={path} does not exist: give an image file or a folder of images")
    for root in map(pathlib.Path, found):
      files += _below(root, without) if root.is_dir() else [root]
  known = ", ".join(pictures.FORMATS)
  require(bool(files), f"{flag}={shown(paths)} holds no image ({known}): give a folder that does")
  return list(dict.fromkeys(files))


def _below(root: pathlib.Path, without: Sequence[str]) -> list[pathlib.Path]:
  real = os.path.realpath(root)
  apart = {os.path.relpath(os.path.realpath(path), real).replace(os.sep, "/"): os.path.isdir(path) for path in without}
  folders = tuple(f"{path}/" for path, is_folder in apart.items() if is_folder and path != ".")
  names = datasets.image_names(root)
  return [root / name for name in names if name not in apart and not name.startswith(folders)]


def by_stem(flag: str, files: Iterable[pathlib.Path]) -> Files:
  """Maps composed stems to files. Raises ConfigError where two share one: their results would have one name."""
  named: Files = {}
  for file in files:
    other = named.setdefault(_composed(file.stem), file)
    if other is not file:
      alike = f"{other} and {file}" if other.stem == file.stem else f"{ascii(str(other))} and {ascii(str(file))}"
      raise ConfigError(f"{flag}: {alike} share the name {file.stem!r}: rename one")
  return named


def _of_mask(name: str) -> str:
  """The stem of the image that a mask STEM_mask* belongs to; empty for another name."""
  return _composed(name).rpartition("_mask")[0]


def _composed(name: str) -> str:
  return unicodedata.normalize("NFC", name)


def shown(paths: Sequence[str]) -> str:
  """The paths of a flag, cut short for a message."""
  return " ".join(paths[:3]) + " …" * (len(paths) > 3)
