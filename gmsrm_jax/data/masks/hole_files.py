"""Masks from files: any image file, a folder of them, or NVIDIA's irregular test set."""

from __future__ import annotations

import logging
import math
import zipfile
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from gmsrm_jax.data import datasets, pictures
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import local_path, printable

THRESHOLD = 127
"""A mask pixel above this is hole, of 0..255, so the soft edges of a JPEG are cut in the middle."""

LARGE = 0.7
"""A mask that covers more than this share of its image may be upside down: white and black exchanged."""

NVIDIA_PER_BUCKET = 2_000  # test masks, in the order of their numbers
_NVIDIA_SIDE = 256  # pixels, of the packed file

_log = logging.getLogger(__name__)


def read_hole(
  source: Path | bytes | Image.Image | np.ndarray, *, invert: bool = False, dilate: int = 0
) -> UInt8[np.ndarray, "h w"]:
  """Reads which pixels are hole, upright, 1 in the hole: what is white, or what is transparent where alpha varies.

  White is above the middle of the range: 127 of 255, 32767 of 65535, 0.5 of 1. Whole numbers of which none is above 1
  are zeros and ones.

  Args:
    source: a file or its bytes, Pillow's picture, or an array [h w] or [h w c]; bytes alone have 2 to 4 channels.
    invert: black (or opaque) is hole instead.
    dilate: pixels by which the hole is then widened all round.

  Raises:
    ConfigError: it cannot be decoded, or the array is of another kind.
  """
  if isinstance(source, np.ndarray):
    hole = _hole_of_array(source)
  elif isinstance(source, Image.Image):
    hole = _hole_of_picture(source)
  else:
    with pictures.open_picture(source) as file:
      hole = _hole_of_picture(file)
  hole = (hole != invert).astype(np.uint8)
  return _dilated(hole, dilate) if dilate else hole


def _hole_of_picture(picture: Image.Image) -> Bool[np.ndarray, "h w"]:
  upright = ImageOps.exif_transpose(picture)
  if upright.mode.startswith("I"):
    return _hole_of_array(np.clip(np.asarray(upright), 0, 65535).astype(np.uint16))
  if upright.mode == "F":
    return _hole_of_array(np.asarray(upright))
  if upright.has_transparency_data:
    alpha = np.asarray(upright.convert("RGBA"))[..., 3]
    if alpha.min() != alpha.max():
      return alpha <= THRESHOLD
  # Grey levels come from RGB, as a picture viewer shows them, whatever the file's own mode.
  return _hole_of_array(cv2.cvtColor(np.asarray(upright.convert("RGB")), cv2.COLOR_RGB2GRAY))


def _hole_of_array(array: np.ndarray) -> Bool[np.ndarray, "h w"]:
  if array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in (2, 3, 4):
    return _hole_of_picture(Image.fromarray(array))
  levels = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
  whole = levels.dtype.kind in "iu"
  largest = levels.max(initial=0).item() if levels.dtype.kind in "biuf" else math.nan
  limit = (65535 if levels.dtype == np.uint16 else 255) if whole else 1
  require(
    levels.ndim == 2 and largest <= limit,
    f"mask is an array of {array.dtype} {'x'.join(map(str, array.shape))} up to {largest}: give [h w] of bools, of "
    "0 and 1, or of grey levels up to 255 (uint16: 65535; floating point: 1)",
  )
  return levels > (limit // 2 if whole and largest > 1 else 0.5)


def _dilated(mask: UInt8[np.ndarray, "h w"], radius: int) -> UInt8[np.ndarray, "h w"]:
  """Widens the hole by `radius` pixels all round."""
  return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)))


def resize_mask(mask: UInt8[np.ndarray, "h w"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
  """Takes the nearest pixel, so that a mask stays 0 and 1 and does not grow."""
  if mask.shape == (height, width):
    return mask
  return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def warn_area(mask: UInt8[np.ndarray, "h w"], name: str) -> None:
  """Logs a warning where the hole is empty, or so large that white and black may be exchanged."""
  share, name = float(mask.mean()), printable(name)
  if share == 0:
    _log.warning("%s has no hole, so nothing is filled: paint the hole white (above %d of 255)", name, THRESHOLD)
  elif share > LARGE:
    _log.warning("%s makes %.0f %% of the image hole: is it inverted? white is hole", name, 100 * share)


def mask_paths(folder: str, setting: str) -> tuple[Path, ...]:
  """The image files below a folder, in name order.

  Raises:
    ConfigError: the folder is missing, is a file, or holds no image.
  """
  way_out = "give a folder of mask files, white in the hole"
  root = datasets.check_folder(folder, setting, way_out)
  paths = tuple(root / name for name in datasets.image_names(root))
  require(bool(paths), f"{setting}={folder!r} holds no image ({', '.join(pictures.FORMATS)}): {way_out}")
  return paths


class MaskFiles:
  """The mask files below a folder, in name order, or NVIDIA's test masks: in their folder, or packed in one file.

  Raises:
    ConfigError: there are none.
  """

  def __init__(self, path: str, setting: str, *, invert: bool = False, dilate: int = 0):
    root = local_path(path, setting)
    if root.is_file():
      self._files = _packed(root, f"{setting}={path!r}")
    else:
      below = (root / "testing_mask_dataset", root / "mask" / "testing_mask_dataset")  # as NVIDIA's archive has them
      self._files = mask_paths(next((str(folder) for folder in below if folder.is_dir()), path), setting)
    self._invert, self._dilate = invert, dilate

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w"]:
    file = self._files[index]
    if isinstance(file, np.ndarray):
      file = np.unpackbits(file).reshape(_NVIDIA_SIDE, _NVIDIA_SIDE)
    return read_hole(file, invert=self._invert, dilate=self._dilate)


def _packed(path: Path, setting: str) -> UInt8[np.ndarray, "n _"]:
  """Rows of packed bits, one per mask."""
  way_out = f"give an .npz file with `bits`, uint8 rows of {_NVIDIA_SIDE**2 // 8}, each a mask under np.packbits"
  try:
    with np.load(path, allow_pickle=False) as file:
      bits = file["bits"]
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
    raise ConfigError(f"{setting} holds no packed masks ({error}): {way_out}") from error
  whole = bits.ndim == 2 and bits.dtype == np.uint8 and bits.shape[1] == _NVIDIA_SIDE**2 // 8 and len(bits) > 0
  require(whole, f"{setting}: bits is {bits.dtype} {bits.shape}: {way_out}")
  return bits
