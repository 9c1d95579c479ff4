"""Masks from files: any image file, a folder of them, or NVIDIA's irregular test set.

White is hole: a pixel is hole where its grey level exceeds THRESHOLD, so the soft edges of a JPEG are cut in the
middle. In a file whose alpha channel varies, what is transparent is hole, and its colours do not count.
"""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from gmsrm_jax.data import sources
from gmsrm_jax.errors import ConfigError, require

THRESHOLD = 127
"""A mask pixel above this is hole, of 0..255."""

LARGE = 0.7
"""A mask that covers more than this share of its image may be upside down: white and black exchanged."""

NVIDIA_MASKS = 12_000
NVIDIA_PER_BUCKET = 2_000
_NVIDIA_SIDE = 256  # pixels, of the packed file

_log = logging.getLogger(__name__)


def read_mask(path: Path, *, invert: bool = False, dilate: int = 0) -> UInt8[np.ndarray, "h w"]:
  """Reads a mask of any format and mode, upright, 1 in the hole.

  Args:
    path: the file.
    invert: black (or opaque) is hole instead.
    dilate: pixels by which the hole is then widened all round.

  Raises:
    ConfigError: it cannot be decoded.
  """
  try:
    alpha = _alpha(path)
    # Grey levels come from RGB, as a picture viewer shows them, whatever the file's own mode.
    mask = alpha <= THRESHOLD if alpha is not None else _grey(path) > THRESHOLD
  except MemoryError:
    raise
  except Exception as error:  # Pillow raises what it likes on a broken file.
    raise ConfigError(f"{path} cannot be decoded ({error}): replace the file") from error
  hole = (mask != invert).astype(np.uint8)
  return dilated(hole, dilate) if dilate else hole


def _alpha(path: Path) -> UInt8[np.ndarray, "h w"] | None:
  """The alpha channel of a file where it varies."""
  with Image.open(path) as file:
    # Sixteen bits with a transparent level exist on paper; Pillow does not convert them.
    if not file.has_transparency_data or file.mode.startswith("I"):
      return None
    file.load()
    alpha = np.asarray(ImageOps.exif_transpose(file).convert("RGBA"))[..., 3]
  return alpha if alpha.min() != alpha.max() else None


def _grey(path: Path) -> UInt8[np.ndarray, "h w"]:
  with Image.open(path) as file:
    if file.mode in ("RGBA", "LA"):  # alpha is the same everywhere, and `decode` would fade the colours by it
      file.load()
      return cv2.cvtColor(np.array(ImageOps.exif_transpose(file).convert("RGB")), cv2.COLOR_RGB2GRAY)
  return cv2.cvtColor(sources.decode(path), cv2.COLOR_RGB2GRAY)


def dilated(mask: UInt8[np.ndarray, "h w"], radius: int) -> UInt8[np.ndarray, "h w"]:
  """Widens the hole by `radius` pixels all round."""
  return cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)))


def resize_mask(mask: UInt8[np.ndarray, "h w"], height: int, width: int) -> UInt8[np.ndarray, "{height} {width}"]:
  """Takes the nearest pixel, so that a mask stays 0 and 1 and does not grow."""
  if mask.shape == (height, width):
    return mask
  return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def warn_area(mask: UInt8[np.ndarray, "h w"], name: str) -> None:
  """Logs a warning where the hole is empty, or so large that white and black may be exchanged."""
  share = float(mask.mean())
  if share == 0:
    _log.warning("%s has no hole, so nothing is filled: paint the hole white (above %d of 255)", name, THRESHOLD)
  elif share > LARGE:
    _log.warning("%s makes %.0f %% of the image hole: is it inverted? white is hole", name, 100 * share)


def mask_paths(folder: str, setting: str) -> tuple[Path, ...]:
  """The image files below a folder, in name order.

  Raises:
    ConfigError: the folder is missing, is a file, or holds no image.
  """
  root = Path(os.path.expanduser(folder))
  require(folder != "", f"{setting}='' names no folder: give a folder of mask files, white in the hole")
  require(root.exists(), f"{setting}={folder!r} does not exist: give a folder of mask files, white in the hole")
  require(root.is_dir(), f"{setting}={folder!r} is a file, not a folder: give a folder of mask files")
  paths = tuple(root / name for name in sources.image_names(root))
  require(bool(paths), f"{setting}={folder!r} holds no image ({' '.join(sources.SUFFIXES)}): give a folder that does")
  return paths


class FolderMasks:
  """The mask files below a folder, in name order, each read as `read_mask` does."""

  def __init__(self, folder: str, setting: str, *, invert: bool = False, dilate: int = 0):
    self._paths = mask_paths(folder, setting)
    self._invert, self._dilate = invert, dilate

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w"]:
    return read_mask(self._paths[index], invert=self._invert, dilate=self._dilate)


class PackedMasks:
  """NVIDIA's 12,000 test masks in one file: `bits`, a row of packed bits per mask of 256x256."""

  def __init__(self, path: str, setting: str):
    try:
      with np.load(os.path.expanduser(path), allow_pickle=False) as file:
        bits = file["bits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
      reason = f"{setting}={path!r} holds no packed masks ({error})"
      raise ConfigError(f"{reason}: give an .npz file with `bits`, uint8 rows of {_NVIDIA_SIDE**2 // 8}") from error
    require(
      bits.ndim == 2 and bits.dtype == np.uint8 and bits.shape[1] == _NVIDIA_SIDE**2 // 8 and len(bits) > 0,
      f"{setting}={path!r}: bits is {bits.dtype} {bits.shape}, not uint8 rows of {_NVIDIA_SIDE**2 // 8}: "
      f"pack each mask of {_NVIDIA_SIDE}x{_NVIDIA_SIDE} with np.packbits",
    )
    self._bits = bits

  def __len__(self) -> int:
    return len(self._bits)

  def __getitem__(self, index: int) -> UInt8[np.ndarray, "256 256"]:
    return np.unpackbits(self._bits[index]).reshape(_NVIDIA_SIDE, _NVIDIA_SIDE)


def nvidia_folder(folder: str) -> Path | None:
  """Where NVIDIA's test masks lie in, at or below a folder: 00000.png … 11999.png; None where they do not."""
  root = Path(os.path.expanduser(folder))
  places = (root, root / "testing_mask_dataset", root / "mask" / "testing_mask_dataset")
  last = f"{NVIDIA_MASKS - 1:05d}.png"
  return next((place for place in places if (place / "00000.png").exists() and (place / last).exists()), None)


def index_bucket(index: int) -> int:
  """The position in BUCKETS that NVIDIA's numbering gives to a test mask."""
  return index // NVIDIA_PER_BUCKET
