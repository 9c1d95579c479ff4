"""The user's picture files: read so that a filled hole can be written back and nothing else changes.

A `Photo` keeps the pixels in the file's own mode and bit depth, beside an 8-bit RGB view for the model. A fill is
converted to the file's mode and put into the hole alone.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, ImageOps, JpegImagePlugin, PngImagePlugin
from PIL import Image as PilImage

from gmsrm_jax.data import pictures
from gmsrm_jax.data.masks.hole_files import read_hole
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import replacing

MAX_DPI = 100_000
"""A resolution beyond this is nonsense and is not written again."""


class _Mode(NamedTuple):
  """A mode of stored pixels: the formats that hold it, all but JPEG to the bit, and RGB in its channels but alpha."""

  formats: str
  from_rgb: Callable[[UInt8[np.ndarray, "h w 3"]], np.ndarray]


def _grey(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
  return np.asarray(PilImage.fromarray(rgb).convert("L"))


# Pillow's names; 'RGB;16' and 'RGBA;16' are 16 bits per colour, which Pillow lacks and OpenCV reads and writes.
_MODES = {
  "1": _Mode("PNG TIFF BMP PPM", lambda rgb: _grey(rgb) > 127),
  "L": _Mode("PNG TIFF BMP PPM TGA JPEG2000 JPEG MPO", _grey),
  "LA": _Mode("PNG TIFF TGA JPEG2000", lambda rgb: _grey(rgb)[..., None]),
  "I;16": _Mode("PNG TIFF PPM", lambda rgb: _grey(rgb) * np.uint16(257)),
  "RGB": _Mode("PNG TIFF WEBP BMP PPM TGA JPEG2000 JPEG MPO", lambda rgb: rgb),
  "RGBA": _Mode("PNG TIFF WEBP TGA JPEG2000", lambda rgb: rgb),
  "RGB;16": _Mode("PNG TIFF", lambda rgb: rgb * np.uint16(257)),
  "RGBA;16": _Mode("PNG TIFF", lambda rgb: rgb * np.uint16(257)),
  "CMYK": _Mode("TIFF JPEG MPO", lambda rgb: np.asarray(PilImage.fromarray(rgb).convert("CMYK"))),
}
WRITTEN = {suffix: name for suffix, name in PilImage.registered_extensions().items() if name in _MODES["RGB"].formats}
"""Suffix, in lower case, to the format that a file of that name is written in."""

_DEEP = ("RGB;16", "RGBA;16")
_OPTIONS: dict[str, dict[str, Any]] = {
  "JPEG": {"quality": 95},
  "WEBP": {"lossless": True, "exact": True},
  "TIFF": {"compression": "tiff_adobe_deflate"},
  "JPEG2000": {"irreversible": False},
}

# EXIF orientation to the operation that makes the stored pixels upright. Each undoes itself, but 6 and 8 each other.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: a.swapaxes(0, 1)[:, ::-1],
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: a.swapaxes(0, 1)[::-1],
}
_INVERSE = {6: 8, 8: 6}


@dataclasses.dataclass(frozen=True)
class Photo:
  """A decoded picture file, upright."""

  pixels: np.ndarray  # [h w] or [h w c], bool, uint8 or uint16
  mode: str  # one of _MODES
  rgb: UInt8[np.ndarray, "h w 3"]  # what is transparent is white
  format: str  # of the file, as Pillow names it
  orientation: int  # EXIF tag of the file, 1 where there is none
  metadata: dict[str, Any]  # what is saved again: exif, icc_profile, dpi, subsampling

  @property
  def alpha(self) -> UInt8[np.ndarray, "h w"] | None:
    """The alpha channel in 8 bits, None where the file has none."""
    if "A" not in self.mode:
      return None
    alpha = self.pixels[..., -1]
    return np.round(alpha / np.float32(257)).astype(np.uint8) if self.mode in _DEEP else alpha


def read_photo(
  source: pathlib.Path | bytes,
  name: str = "",
  most_pixels: int = pictures.MAX_PIXELS,
) -> Photo:
  """Reads a picture file, or its bytes; the arguments are those of `open_picture`.

  Raises:
    PictureError: it cannot be decoded to the end, or is too large.
  """
  with pictures.open_picture(source, name, most_pixels) as file:
    file.load()
    orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    orientation = orientation if orientation in _UPRIGHT else 1
    pixels, mode = _stored(file, source)
    pixels = np.ascontiguousarray(_UPRIGHT[orientation](pixels))
    rgb = _rgb_of_16_bits(pixels) if mode in _DEEP else pictures.as_rgb(ImageOps.exif_transpose(file))
    return Photo(pixels, mode, rgb, file.format or "PNG", orientation, _metadata(file))


def _stored(file: PilImage.Image, source: pathlib.Path | bytes) -> tuple[np.ndarray, str]:
  """The pixels as the file has them, and their mode."""
  if file.mode.startswith("I"):
    return np.array(file).astype(np.uint16), "I;16"
  mode = file.mode
  if mode not in _MODES:
    # Palettes and colour spaces that a fill cannot be written in: equal colours, more bytes.
    mode = "RGBA" if file.has_transparency_data else "RGB"
  elif "transparency" in file.info:
    mode = {"1": "LA", "L": "LA", "RGB": "RGBA"}.get(mode, mode)
  if mode in ("RGB", "RGBA") and file.format in ("PNG", "TIFF"):
    data = source if isinstance(source, bytes) else source.read_bytes()
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is not None and deep.dtype == np.uint16 and deep.ndim == 3 and deep.shape[1::-1] == file.size:
      return _swap_red_and_blue(deep), _DEEP[deep.shape[2] - 3]
  return np.array(file if file.mode == mode else file.convert(mode)), mode


def _swap_red_and_blue(pixels: np.ndarray) -> np.ndarray:
  """From OpenCV's order of colours to ours, and back."""
  return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _rgb_of_16_bits(pixels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
  """The nearest of 256 levels, where Pillow takes the high byte; what is transparent becomes white."""
  colours, alpha = pixels[..., :3] / np.float32(257), pixels[..., 3:] / np.float32(65535)
  if alpha.size:
    colours = colours * alpha + 255 * (1 - alpha)
  return np.round(colours).astype(np.uint8)


def _metadata(file: PilImage.Image) -> dict[str, Any]:
  metadata = {key: file.info[key] for key in ("exif", "icc_profile", "dpi") if file.info.get(key)}
  if not all(1 <= value <= MAX_DPI for value in metadata.get("dpi", ())):
    del metadata["dpi"]  # nonsense, and too large a number for other formats
  if "exif" not in metadata and len(file.getexif()):
    metadata["exif"] = file.getexif().tobytes()
  if file.format in ("JPEG", "MPO"):
    metadata["subsampling"] = max(0, JpegImagePlugin.get_sampling(file))
  return metadata


def hole_of(
  photo: Photo,
  mask: pathlib.Path | PilImage.Image | None,
  names: tuple[str, str],
  *,
  invert: bool = False,
  dilate: int = 0,
) -> UInt8[np.ndarray, "h w"]:
  """Reads a photo's hole from its mask, or, without one, where the photo itself is less than half opaque.

  Raises:
    ConfigError: the mask cannot be decoded or is not of the photo's size, or the photo has no transparency; it calls
      photo and mask by their names.
  """
  if mask is None:
    if photo.alpha is None:
      raise ConfigError(f"{names[0]} has no transparency to take as its hole: give a mask")
    return read_hole(PilImage.fromarray(photo.alpha), invert=not invert, dilate=dilate)
  hole = read_hole(mask, invert=invert, dilate=dilate)
  (rows, columns), (height, width) = hole.shape, photo.rgb.shape[:2]
  misfit = f"{names[1]} is {columns}x{rows} but {names[0]} is {width}x{height}: make the mask as large as its image"
  require((rows, columns) == (height, width), misfit)
  return hole


def fill_hole(
  photo: Photo, fill: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], *, opaque: bool = False
) -> Photo:
  """Puts an upright fill into the photo's hole, in its own mode; all other pixels stay as they were.

  `opaque` makes the hole opaque, for a mask that was the photo's own transparency.
  """
  hole = mask > 0
  pixels, colours = photo.pixels.copy(), _MODES[photo.mode].from_rgb(fill)
  if "A" in photo.mode:
    pixels[..., :-1][hole] = colours[hole]
    if opaque:
      pixels[..., -1][hole] = np.iinfo(pixels.dtype).max
  else:
    pixels[hole] = colours[hole]
  return dataclasses.replace(photo, pixels=pixels, rgb=np.where(hole[..., None], fill, photo.rgb))


def output_format(photo: Photo, wanted: str) -> str:
  """Names the format a photo is written in: with 'keep' its own, where that holds its mode, else PNG.

  Raises:
    ConfigError: `wanted` is a format that does not hold the photo's mode.
  """
  formats = _MODES[photo.mode].formats.split()
  if wanted == "keep":
    named = photo.format if photo.format in formats else "PNG"
    return "JPEG" if named == "MPO" else named
  named = wanted.upper()
  held = named in (*formats, "PNG")
  require(held, f"{named} cannot hold pixels of {photo.mode}: name a .png file, or a folder")
  return named


def write_photo(photo: Photo, path: pathlib.Path, wanted: str = "keep") -> None:
  """Writes the photo whole or not at all: a half-written file never gets its name."""
  with replacing(path) as temporary:
    temporary.write_bytes(encode_photo(photo, output_format(photo, wanted)))


def encode_photo(photo: Photo, image_format: str) -> bytes:
  """The file's bytes, with EXIF, ICC profile and resolution as they were; CMYK becomes RGB where it must."""
  pixels, mode, metadata = photo.pixels, photo.mode, dict(photo.metadata)
  if mode == "CMYK" and image_format not in ("JPEG", "TIFF"):
    pixels, mode = photo.rgb, "RGB"
    metadata.pop("icc_profile", None)  # it describes inks
  pixels = np.ascontiguousarray(_UPRIGHT[_INVERSE.get(photo.orientation, photo.orientation)](pixels))
  if mode in _DEEP:
    _, encoded = cv2.imencode(".png" if image_format == "PNG" else ".tif", _swap_red_and_blue(pixels))
    return _with_png_metadata(encoded.tobytes(), metadata) if image_format == "PNG" else encoded.tobytes()
  buffer = io.BytesIO()
  image = PilImage.fromarray(pixels, "CMYK" if mode == "CMYK" else None)
  image.save(buffer, image_format, **_OPTIONS.get(image_format, {}), **metadata)
  return buffer.getvalue()


def _with_png_metadata(data: bytes, metadata: dict[str, Any]) -> bytes:
  """Adds the ICC profile and EXIF chunks that OpenCV leaves out, right after the header chunk."""
  chunks = io.BytesIO()
  if "icc_profile" in metadata:
    PngImagePlugin.putchunk(chunks, b"iCCP", b"icc\0\0", zlib.compress(metadata["icc_profile"]))
  if "exif" in metadata:
    PngImagePlugin.putchunk(chunks, b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0"))
  header = 8 + 25  # signature, and IHDR: length, name, 13 bytes, checksum
  return data[:header] + chunks.getvalue() + data[header:]
