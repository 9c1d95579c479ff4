"""Files that belong together because their stems are equal: a picture and its mask, a result and its truth."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from gmsrm_jax.data import datasets
from gmsrm_jax.errors import require


def pair_files(images: str, masks: str | None) -> dict[pathlib.Path, pathlib.Path | None]:
  """Maps images to the masks of the same stem, in name order; a single mask file goes with all of them.

  Without masks each image maps to None: its own transparency is the hole.

  Raises:
    ConfigError: a path is missing or holds no image, two files share a stem, or an image has no mask.
  """
  image_files = files_by_stem("--images", images)  # Equal stems would write to one output file.
  if masks is None:
    return dict.fromkeys(image_files.values())
  mask_files = masks_by_stem(masks, image_files)
  missing = [image.name for stem, image in image_files.items() if stem not in mask_files]
  require(
    not missing,
    f"--masks={masks} has no mask for {len(missing)} of {len(image_files)} images ({', '.join(missing[:5])}): "
    "name each mask like its image, or give one mask file for all",
  )
  return {image: mask_files[stem] for stem, image in image_files.items()}


def masks_by_stem(masks: str, stems: Iterable[str]) -> dict[str, pathlib.Path]:
  """Maps stems to mask files: all of `stems` to `masks` where that is a file."""
  by_stem = files_by_stem("--masks", masks)
  return dict.fromkeys(stems, pathlib.Path(masks)) if pathlib.Path(masks).is_file() else by_stem


def files_by_stem(flag: str, path: str) -> dict[str, pathlib.Path]:
  """Maps stems to files: the one at `path`, or the image files below that folder, in name order.

  Raises:
    ConfigError: there is none, or two share a stem.
  """
  root = pathlib.Path(path)
  require(root.exists(), f"{flag}={path} does not exist: give an image file or a folder of images")
  files = [root] if root.is_file() else [root / name for name in datasets.image_names(root)]
  require(bool(files), f"{flag}={path} holds no image ({', '.join(datasets.SUFFIXES)}): give a folder that does")
  by_stem: dict[str, pathlib.Path] = {}
  for file in files:
    other = by_stem.setdefault(file.stem, file)
    require(other is file, f"{flag}: {other} and {file} share the name {file.stem!r}: rename one")
  return by_stem
