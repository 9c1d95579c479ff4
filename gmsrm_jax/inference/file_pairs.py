"""Files that belong together by their stem, as the user's folders name them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from gmsrm_jax.data import datasets
from gmsrm_jax.errors import require


class Pair(NamedTuple):
  """A picture file and its mask file; without one the picture's own transparency is the hole."""

  image: pathlib.Path
  mask: pathlib.Path | None


def pair_files(images: str, masks: str | None) -> list[Pair]:
  """Images with the masks of the same file stem; a single mask file goes with all of them.

  Raises:
    ConfigError: a path is missing or holds no image, two files share a stem, or an image has no mask.
  """
  image_files = files("--images", images)
  by_stem("--images", image_files)  # Equal stems would write to one output file.
  if masks is None:
    return [Pair(image, None) for image in image_files]
  hole_files = files("--masks", masks)
  if pathlib.Path(masks).is_file():
    return [Pair(image, hole_files[0]) for image in image_files]
  holes = by_stem("--masks", hole_files)
  missing = [image.name for image in image_files if image.stem not in holes]
  require(
    not missing,
    f"--masks={masks} has no mask for {len(missing)} of {len(image_files)} images ({', '.join(missing[:5])}): "
    "name each mask like its image, or give one mask file for all",
  )
  return [Pair(image, holes[image.stem]) for image in image_files]


def files(flag: str, path: str) -> list[pathlib.Path]:
  """The file, or the image files below the folder, in name order.

  Raises:
    ConfigError: there is none.
  """
  root = pathlib.Path(path)
  require(root.exists(), f"{flag}={path} does not exist: give an image file or a folder of images")
  if root.is_file():
    return [root]
  found = [root / name for name in datasets.image_names(root)]
  require(bool(found), f"{flag}={path} holds no image ({', '.join(datasets.SUFFIXES)}): give a folder that does")
  return found


def by_stem(flag: str, paths: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
  """Stem to file; raises ConfigError where two files share one."""
  found: dict[str, pathlib.Path] = {}
  for path in paths:
    other = found.setdefault(path.stem, path)
    require(other is path, f"{flag}: {other} and {path} share the name {path.stem!r}: rename one")
  return found
