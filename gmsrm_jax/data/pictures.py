"""Picture files: opened and decoded in one way, whoever asks, with one limit and one error."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from gmsrm_jax.errors import ConfigError, is_of_a_file, one_line

MAX_PIXELS = 89_000_000
"""Larger pictures are refused by their header, for a small file can expand to gigabytes; Pillow warns from here on."""

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # an error of ours says it in one line
Image.init()
FORMATS = tuple(
  name
  for name in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "TGA")
  if name in Image.OPEN  # AVIF is newer than our oldest Pillow
)
"""Formats that are read, as Pillow names them (MPO counts as JPEG): from files, folders and uploads alike. Others start
programs, or are rarely looked at by those who search for holes in decoders."""

SUFFIXES = tuple(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
"""Of the files of a folder that are pictures, in lower case."""

_JPEG_END = b"\xff\xd9"  # cannot occur inside the coded pixels, where 0 follows every 255


class PictureError(ConfigError):
  """A picture that cannot be decoded to its end; `why` in a few words."""

  def __init__(self, message: str, why: str = ""):
    super().__init__(message)  # alone, so that the error travels between processes
    self.why = why


def _why(error: Exception, most_pixels: int) -> str:
  if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
    return f"it has more than {most_pixels / 1e6:.0f} million pixels"
  if isinstance(error, Image.UnidentifiedImageError):
    return f"no known picture format: it is none of {', '.join(FORMATS)}"
  return " ".join(f"{type(error).__name__}: {error}".split())


@contextlib.contextmanager
def open_picture(source: Path | bytes, name: str = "", most_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
  """Opens a picture file, or its bytes; the pixels are decoded when they are first asked for.

  Args:
    source: the file; its bytes may come from anywhere.
    name: what errors call it; the path when empty.
    most_pixels: by the file's header; a picture with more is refused before it is decoded.

  Raises:
    PictureError: for whatever is raised while the picture is open, with that as its cause.
  """
  try:
    if isinstance(source, Path) and source.exists() and not source.is_file():
      raise OSError(errno.EINVAL, "no regular file", str(source))  # a pipe might never send anything
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as file:
      width, height = file.size
      if width * height > most_pixels:
        raise Image.DecompressionBombError
      _check_tiff(file)
      _scale_transparent_grey(file)
      if file.info.keys() & {"exif", "Raw profile type exif"}:
        with contextlib.suppress(Exception):  # damaged EXIF is not asked for again, and its picture is seen as stored
          file.getexif()
      yield file
  except (ConfigError, MemoryError):
    raise
  except Exception as error:  # noqa: BLE001 - damaged files make decoders raise nearly anything
    if isinstance(error, OSError) and is_of_a_file(error):
      raise PictureError(one_line(error), str(error.strerror)) from error
    why = _why(error, most_pixels)
    name = name or (str(source) if isinstance(source, Path) else "picture")
    way_out = "shrink it" if "million pixels" in why else "save it anew, or replace it"
    raise PictureError(f"{name} cannot be decoded ({why}): {way_out}", why) from error


def _check_tiff(file: Image.Image) -> None:
  """Raises ValueError for the TIFF files that Pillow opens but decodes wrongly."""
  tags = getattr(file, "tag_v2", {})
  bits, planes = max(tags.get(258, (1,))), tags.get(284, 1) == 2 and tags.get(277, 1) > 1
  if planes and (bits == 16 or file.mode not in ("RGB", "RGBA", "CMYK")):
    raise ValueError(f"{bits}-bit {file.mode} in planes, of which only 8-bit RGB, RGBA and CMYK are known")
  if bits == 16 and tags.get(262) == 0:
    raise ValueError("16-bit grey levels of which 0 is white")


def _scale_transparent_grey(file: Image.Image) -> None:
  """Brings the grey that a PNG of 2 or 4 bits calls transparent to 8 bits, as Pillow does with the pixels alone."""
  levels = {"L;2": 3, "L;4": 15}.get(file.tile[0][3] if file.format == "PNG" and file.tile else None)  # pyright: ignore
  if levels and "transparency" in file.info:
    file.info["transparency"] *= 255 // levels


def decode(source: Path | bytes, name: str = "") -> UInt8[np.ndarray, "h w 3"]:
  """Decodes a picture of any mode as RGB, upright by its EXIF tag; what is transparent becomes white.

  Raises:
    PictureError: it cannot be decoded to its end.
  """
  with open_picture(source, name) as file:
    pixels = _decode_plain_jpeg(file, source)
    return as_rgb(ImageOps.exif_transpose(file)) if pixels is None else pixels


def _decode_plain_jpeg(file: Image.Image, source: Path | bytes) -> UInt8[np.ndarray, "h w 3"] | None:
  """The pixels of a whole and upright JPEG file, from OpenCV; None for any other, which is left to Pillow.

  Both call libjpeg-turbo with its defaults, but Pillow takes three times as long. OpenCV fills the missing part of a
  truncated file with grey; Pillow refuses it.
  """
  if file.format != "JPEG" or file.mode not in ("L", "RGB") or orientation(file) != 1:
    return None
  data = source if isinstance(source, bytes) else source.read_bytes()
  if data[-2:] != _JPEG_END:
    return None
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
  return pixels if pixels is not None and pixels.shape == (file.height, file.width, 3) else None


def orientation(file: Image.Image) -> int:
  """EXIF's word on how the stored pixels are turned or mirrored, 1 to 8; 1 for upright, and where there is none."""
  value = file.getexif().get(ExifTags.Base.Orientation, 1)
  return value if value in range(1, 9) else 1


def upright_size(file: Image.Image) -> tuple[int, int]:
  """Height and width of the picture as it is seen, by its header; Pillow has turned TIFF's already."""
  turned = orientation(file) > 4 and file.format != "TIFF"
  return (file.width, file.height) if turned else (file.height, file.width)


def as_rgb(upright: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
  """A picture of any mode as RGB; what is transparent becomes white.

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


def _scaled_16_bit(values: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
  """Maps one channel of 0..65535 to 0..255 by division, where Pillow's `convert` would clip at 255."""
  if values.min() < 0 or values.max() > 65535:
    raise ValueError(f"pixel values from {values.min()} to {values.max()} are not 16 bits")
  grey = np.round(values.astype(np.float32) / 257.0).astype(np.uint8)
  return np.repeat(grey[:, :, None], 3, axis=2)
