"""The user's picture files: read so that a filled hole can be written back and nothing else changes.

A `Photo` keeps the pixels in the file's own mode and bit depth, beside an 8-bit RGB view for the model. A fill is
converted to the file's mode and put into the hole alone.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PilImage

from gmsrm_jax.data import pictures
from gmsrm_jax.data.masks.hole_files import read_hole
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import replacing
from gmsrm_jax.inference.metadata import Metadata, read_metadata, save_options, with_jp2_boxes, with_png_chunks
from gmsrm_jax.inference.modes import DEEP, MODES, read_pixels, swap_red_and_blue, turned_back
from gmsrm_jax.inference.tiff_files import encode_tiff

MAX_JPEG_CHANGE = 16.0
"""Mean change of brightness, of 255, beyond which a JPEG that was written is no longer the picture."""

_BY_SUFFIX = PilImage.registered_extensions().items()
WRITTEN = {suffix: name for suffix, name in _BY_SUFFIX if name in MODES["RGB"].formats.split()}
"""Suffix, in lower case, to the format that a file of that name is written in."""

_UPRIGHT_FORMATS = ("BMP", "PPM", "TGA", "JPEG2000")  # which have no EXIF that could say how they are turned
_OPTIONS: dict[str, dict[str, Any]] = {
  "JPEG": {"quality": 95},
  "WEBP": {"lossless": True, "exact": True},
  "JPEG2000": {"irreversible": False},
}


@dataclasses.dataclass(frozen=True)
class Photo:
  """A decoded picture file, upright."""

  pixels: np.ndarray  # [h w] or [h w c], bool, uint8 or uint16
  mode: str  # one of MODES
  rgb: UInt8[np.ndarray, "h w 3"]  # what is transparent is white
  format: str  # of the file, as Pillow names it
  orientation: int  # EXIF tag of the file, 1 where there is none
  metadata: Metadata = Metadata()  # what is saved again
  name: str = "picture"  # what errors call it
  frames: int = 1  # pictures or pages in the file, of which this is the first
  changed: str = ""  # what of the file the pixels cannot hold, in words

  @property
  def alpha(self) -> UInt8[np.ndarray, "h w"] | None:
    """The alpha channel in 8 bits, None where the file has none."""
    if "A" not in self.mode:
      return None
    alpha = self.pixels[..., -1]
    return np.round(alpha / np.float32(257)).astype(np.uint8) if self.mode in DEEP else alpha


def read_photo(
  source: pathlib.Path | bytes,
  name: str = "",
  most_pixels: int = pictures.MAX_PIXELS,
) -> Photo:
  """Reads a picture file, or its bytes; the arguments are those of `open_picture`.

  Raises:
    PictureError: it cannot be decoded to the end, or is too large.
  """
  name = name or (str(source) if isinstance(source, pathlib.Path) else "picture")
  with pictures.open_picture(source, name, most_pixels) as file:
    data = source if isinstance(source, bytes) else source.read_bytes()
    orientation = pictures.orientation(file)
    frames = getattr(file, "n_frames", 1)
    pixels, mode, rgb, changed = read_pixels(file, data, orientation)
    metadata = read_metadata(file, data)
    return Photo(pixels, mode, rgb, file.format or "PNG", orientation, metadata, name, frames, changed)


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
  pixels, colours = photo.pixels.copy(), MODES[photo.mode].from_rgb(fill)
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
    ConfigError: `wanted` is a format that does not hold the photo's mode, or the photo's own though its pixels cannot
      hold all that its file has.
  """
  named, formats = photo.format if wanted == "keep" else wanted.upper(), MODES[photo.mode].formats.split()
  way_out = "which cannot be written back as it is: --format=png writes what a viewer shows"
  require(
    not photo.changed or (wanted != "keep" and named != photo.format), f"{photo.name} has {photo.changed}, {way_out}"
  )
  if wanted == "keep" and named not in formats:
    return "PNG"
  held = named in (*formats, "PNG")
  require(held, f"{named} cannot hold pixels of {photo.mode}: name a .png file, or a folder")
  return "JPEG" if named == "MPO" else named


def write_photo(photo: Photo, path: pathlib.Path, wanted: str = "keep") -> None:
  """Writes the photo whole or not at all: a half-written file never gets its name."""
  data = encode_photo(photo, output_format(photo, wanted))
  with replacing(path) as temporary:
    temporary.write_bytes(data)


def encode_photo(photo: Photo, image_format: str) -> bytes:
  """The file's bytes, with what described the picture; they are decoded again before anybody gets them.

  CMYK becomes RGB where it must.

  Raises:
    ConfigError: other pixels came back than the photo has.
  """
  if photo.mode == "CMYK" and image_format not in ("JPEG", "TIFF"):
    photo = dataclasses.replace(photo, pixels=photo.rgb, mode="RGB")
  if image_format in _UPRIGHT_FORMATS:
    photo = dataclasses.replace(photo, orientation=1)
  data = _encode(photo, image_format)
  failure = f"{photo.name} does not come back from {image_format} as it was written"
  require(_is_same(photo, read_photo(data), image_format), f"{failure}: --format=png keeps every bit")
  return data


def _encode(photo: Photo, image_format: str) -> bytes:
  pixels = turned_back(photo.pixels, photo.orientation)
  metadata = photo.metadata
  if image_format not in (photo.format, {"MPO": "JPEG"}.get(photo.format)):
    metadata = metadata.for_other_format(photo.mode)
  if image_format == "TIFF":
    return encode_tiff(pixels, MODES[photo.mode].photometric, metadata.tiff_tags())
  if photo.mode in DEEP:
    return with_png_chunks(cv2.imencode(".png", swap_red_and_blue(pixels))[1].tobytes(), metadata)
  buffer = io.BytesIO()
  image = PilImage.fromarray(pixels, "CMYK" if photo.mode == "CMYK" else None)
  if image_format == "PNG":
    image.save(buffer, "PNG")
    return with_png_chunks(buffer.getvalue(), metadata)
  image.save(buffer, image_format, **_OPTIONS.get(image_format, {}), **save_options(metadata, image_format))
  return with_jp2_boxes(buffer.getvalue(), metadata) if image_format == "JPEG2000" else buffer.getvalue()


def _is_same(photo: Photo, again: Photo, image_format: str) -> bool:
  """True if all pixels came back to the bit; from JPEG, if the picture as a whole has kept its brightness."""
  pixels, mode = photo.pixels, photo.mode
  if image_format == "WEBP" and mode == "RGBA" and pixels[..., 3].min() == 255:
    pixels, mode = pixels[..., :3], "RGB"  # WebP leaves out alpha that is opaque
  if again.mode != mode or again.pixels.shape != pixels.shape:
    return False
  if image_format != "JPEG":
    return np.array_equal(again.pixels, pixels)
  before, after = (cv2.cvtColor(one.rgb, cv2.COLOR_RGB2GRAY) for one in (photo, again))
  return float(cv2.absdiff(before, after).mean()) <= MAX_JPEG_CHANGE
