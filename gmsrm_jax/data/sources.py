"""Where images come from: a folder read recursively, or the photographs inside the scikit-image wheel.

A source is random access, as grain wants it: `len(source)`, and `source[i]` gives an `Example`. What it gives
depends on the files alone, never on the order of the calls, so it may be read from many threads.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from gmsrm_jax.config import ConfigError, DataConfig, require
from gmsrm_jax.data.jpeg import decode_jpeg

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# Photographs of things, and one of a stereo pair only: the other would show the held-out region again.
_DEMO_PHOTOS = (
  "astronaut.png",
  "brick.png",
  "camera.png",
  "chelsea.png",
  "coffee.png",
  "coins.png",
  "motorcycle_left.png",
  "rocket.jpg",
)
_DEMO_TILE = 128  # largest side of a held-out tile, pixels
_DEMO_GAP = 8  # columns that neither split sees, so that no edge continues from one into the other

_log = logging.getLogger(__name__)


class Example(NamedTuple):
  """One image at its own size, and its path relative to the folder, with forward slashes."""

  image: UInt8[np.ndarray, "h w 3"]
  name: str


def _scaled_16_bit(values: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
  """Maps one channel of 0..65535 to 0..255 by division, where Pillow's `convert` would clip at 255."""
  if values.min() < 0 or values.max() > 65535:
    raise ValueError(f"pixel values from {values.min()} to {values.max()} are not 16 bits")
  grey = np.round(values.astype(np.float32) / 257.0).astype(np.uint8)
  return np.repeat(grey[:, :, None], 3, axis=2)


def decode(path: Path) -> UInt8[np.ndarray, "h w 3"]:
  """Reads an image file of any mode as RGB, upright by its EXIF tag; what is transparent becomes white.

  Pillow decodes every format, because it refuses a truncated JPEG, which OpenCV returns half grey; plain whole JPEG
  files, most of all data, take a faster way to the same pixels.

  Raises:
    Exception: whatever Pillow raises on a file that it cannot decode to the end.
  """
  with Image.open(path) as file:
    pixels = decode_jpeg(file, path)
    if pixels is not None:
      return pixels
    file.load()
    return as_rgb(ImageOps.exif_transpose(file))


def as_rgb(upright: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
  """A decoded image of any mode as RGB; what is transparent becomes white.

  Raises:
    ValueError: the pixels have no known range.
  """
  if upright.mode.startswith("I"):
    return _scaled_16_bit(np.asarray(upright))
  if upright.mode == "F":
    raise ValueError("floating-point pixels have no known range: save the image with 8 or 16 bits")
  if upright.has_transparency_data:
    upright = upright.convert("RGBA")
    white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
    upright = Image.alpha_composite(white, upright)
  return np.array(upright.convert("RGB"))


def image_names(folder: Path) -> list[str]:
  """Sorted paths of the image files below the folder; hidden ones are left out, a link to a folder is followed once."""
  names, seen = [], set()
  for here, folders, files in os.walk(folder, followlinks=True):
    real = os.path.realpath(here)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    # In place, as os.walk wants it: the order decides which of two links to one folder is followed.
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    for name in files:
      if not name.startswith(".") and name.lower().endswith(SUFFIXES):
        names.append((Path(here) / name).relative_to(folder).as_posix())
  return sorted(names)


def check_bad(setting: str, bad: Sequence[str], files: int, max_bad_share: float) -> None:
  """Raises ConfigError when more of the files are undecodable than the share allows; one always is, unless it is 0."""
  allowed = max(1.0, max_bad_share * files) if max_bad_share > 0 else 0
  require(
    len(bad) <= allowed,
    f"{setting}: {len(bad)} of {files} image files cannot be decoded ({', '.join(bad[:3])}"
    f"{', …' if len(bad) > 3 else ''}), more than data.max_bad_share={max_bad_share} allows: replace or remove them",
  )


class FolderSource:
  """The image files below a folder, by name.

  In place of a file that cannot be decoded stands the next one that can (after the last comes the first). Each such
  file is logged once and listed in `bad_files`. One is always allowed, since one of 40 is more than 1 %, unless
  `max_bad_share` is 0; more than `max(1, max_bad_share * files)` raise ConfigError.
  """

  def __init__(self, folder: str, setting: str, max_bad_share: float):
    self._folder = Path(os.path.expanduser(folder))
    self._setting = f"{setting}={folder!r}"
    self._max_bad_share = max_bad_share
    self._bad: dict[str, str] = {}
    self._lock = threading.Lock()
    way_out = f"give {setting} a folder of images, or 'skimage' for the demo's photographs"
    require(folder != "", f"{setting}='' names no folder of images: {way_out}")
    require(os.path.exists(self._folder), f"{self._setting} does not exist: {way_out}")
    require(os.path.isdir(self._folder), f"{self._setting} is a file, not a folder: {way_out}")
    require(os.access(self._folder, os.R_OK | os.X_OK), f"{self._setting} may not be read: change its permissions")
    self.names = image_names(self._folder)
    require(bool(self.names), f"{self._setting} holds no image ({' '.join(SUFFIXES)}): {way_out}")

  def __getstate__(self) -> dict[str, Any]:
    """For worker processes, each of which locks for itself."""
    return {name: value for name, value in self.__dict__.items() if name != "_lock"}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> Example:
    start = range(len(self.names))[index]
    for offset in range(len(self.names)):
      name = self.names[(start + offset) % len(self.names)]
      if name in self._bad:
        continue
      try:
        image = decode(self._folder / name)
      except MemoryError:
        raise
      except Exception as error:  # noqa: BLE001 - damaged files make decoders raise nearly anything
        self._add_bad(name, f"{type(error).__name__}: {error}")
      else:
        return Example(image, name)
    raise ConfigError(f"{self._setting}: none of its {len(self.names)} image files can be decoded: replace them")

  def path(self, index: int) -> Path:
    """Where file `index` lies."""
    return self._folder / self.names[index]

  @property
  def bad_files(self) -> list[str]:
    """Names of the files found undecodable so far."""
    with self._lock:
      return sorted(self._bad)

  def file_sizes(self) -> list[int]:
    """Bytes of each file; -1 where there is no file any more."""
    paths = [self._folder / name for name in self.names]
    return [path.stat().st_size if path.exists() else -1 for path in paths]

  def _add_bad(self, name: str, reason: str) -> None:
    with self._lock:
      if name not in self._bad:
        self._bad[name] = reason
        _log.warning("%s: skipping %s, which cannot be decoded (%s)", self._setting, name, reason)
      bad = sorted(self._bad)
    check_bad(self._setting, bad, len(self.names), self._max_bad_share)


def demo_regions(name: str, height: int, width: int, split: str) -> dict[str, tuple[int, int, int, int]]:
  """The split's part of a demo photograph: example names to (top, left, height, width).

  The left three quarters are for training; the right quarter, beyond a gap, is cut into square held-out tiles.
  """
  stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
  strip = width // 4
  if split == "train":
    return {f"{stem}{suffix}": (0, 0, height, width - strip - _DEMO_GAP)}
  tile = min(_DEMO_TILE, strip)
  return {
    f"{stem}_r{row}_c{column}{suffix}": (row * tile, width - strip + column * tile, tile, tile)
    for row in range(height // tile)
    for column in range(strip // tile)
  }


class DemoSource:
  """Photographs that scikit-image ships inside its wheel; the splits see different regions of each."""

  def __init__(self, split: str, setting: str):
    package = importlib.util.find_spec("skimage")
    way_out = f"pip install scikit-image, or give {setting} a folder of images"
    if package is None or not package.submodule_search_locations:
      raise ConfigError(f"{setting}='skimage' needs scikit-image, which is not installed: {way_out}")
    folder = Path(package.submodule_search_locations[0]) / "data"
    self._examples = {}
    for photo in _DEMO_PHOTOS:
      require((folder / photo).is_file(), f"{setting}='skimage': this scikit-image has no {photo}: {way_out}")
      pixels = decode(folder / photo)
      for name, (top, left, height, width) in demo_regions(photo, pixels.shape[0], pixels.shape[1], split).items():
        self._examples[name] = pixels[top : top + height, left : left + width].copy()
    self.names = sorted(self._examples)
    self.bad_files: list[str] = []

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> Example:
    name = self.names[index]
    return Example(self._examples[name].copy(), name)

  def file_sizes(self) -> list[int]:
    """Bytes of each region's pixels, which are no files of their own."""
    return [self._examples[name].nbytes for name in self.names]


Source = FolderSource | DemoSource


def open_source(data: DataConfig, split: str) -> Source:
  """The images of `data.train` or `data.val`: 'skimage' for the demo's photographs, else a folder.

  Raises:
    ConfigError: the folder is missing, is a file, may not be read or holds no image; or scikit-image is missing.
  """
  if split not in ("train", "val"):
    raise ValueError(f"split {split!r} is neither 'train' nor 'val'")
  setting, spec = f"data.{split}", data.train if split == "train" else data.val
  return DemoSource(split, setting) if spec == "skimage" else FolderSource(spec, setting, data.max_bad_share)


def split_hash(source: Source) -> str:
  """sha256 over the names and file sizes, in name order: equal for equal copies of a split, wherever they lie."""
  digest = hashlib.sha256()
  for name, size in zip(source.names, source.file_sizes(), strict=True):
    digest.update(os.fsencode(name) + b"\0%d\n" % size)
  return digest.hexdigest()
