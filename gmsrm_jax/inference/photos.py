"""The user's picture files: read so that a filled hole can be written back and nothing else changes.

A `Photo` keeps the pixels as the file stores them (mode, bit depth, orientation) beside an upright 8-bit RGB view for
the model. What is filled is converted to the file's own mode and put into the hole alone.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PilImage
from PIL import ImageOps, JpegImagePlugin

from gmsrm_jax.data import pictures
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import replacing

MAX_DPI = 100_000
"""A resolution beyond this is nonsense and is not written again."""

# What holds a mode to the bit. Formats that are not here are written as PNG.
_LOSSLESS = {
  "PNG": {"1", "L", "LA", "RGB", "RGBA", "I;16", "RGB;16", "RGBA;16"},
  "TIFF": {"1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "RGB;16", "RGBA;16"},
  "WEBP": {"RGB", "RGBA"},
  "BMP": {"1", "L", "RGB"},
  "PPM": {"1", "L", "RGB", "I;16"},
  "TGA": {"L", "LA", "RGB", "RGBA"},
  "JPEG2000": {"L", "LA", "RGB", "RGBA"},
}
_LOSSY = {"JPEG": {"L", "RGB", "CMYK"}, "MPO": {"L", "RGB", "CMYK"}}
_EXTENSIONS = {"PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "JPEG": ".jpg"}

# EXIF orientation to the operation that makes the stored pixels upright; and the one that undoes it.
_UPRIGHT = {
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: a.swapaxes(0, 1)[:, ::-1],
  7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
  8: lambda a: a.swapaxes(0, 1)[::-1],
}
_INVERSE = {**_UPRIGHT, 6: _UPRIGHT[8], 8: _UPRIGHT[6]}


@dataclasses.dataclass(frozen=True)
class Photo:
  """A decoded picture file."""

  pixels: np.ndarray  # as stored, not yet upright: [h w] or [h w c], bool, uint8 or uint16
  mode: str  # Pillow's name of the mode; 'RGB;16' and 'RGBA;16' for 16 bits per channel, which Pillow lacks
  rgb: UInt8[np.ndarray, "h w 3"]  # upright, what is transparent is white
  format: str  # of the file, as Pillow names it
  orientation: int  # EXIF tag, 1 when there is none
  metadata: dict[str, Any]  # what is saved again: exif, icc_profile, dpi, quality tables

  @property
  def alpha(self) -> UInt8[np.ndarray, "h w"] | None:
    """The upright alpha channel in 8 bits, None when the file has none."""
    if self.mode not in ("LA", "RGBA", "RGBA;16"):
      return None
    alpha = _upright(self.pixels[..., -1], self.orientation)
    return (alpha / 257.0).round().astype(np.uint8) if alpha.dtype == np.uint16 else alpha


def read_photo(path: pathlib.Path) -> Photo:
  """Reads a picture file.

  Raises:
    ConfigError: it cannot be decoded to the end.
  """
  try:
    data = path.read_bytes()
  except OSError as error:
    raise ConfigError(f"{path} cannot be decoded ({error}): replace the file") from error
  return decode_photo(data, str(path))


def decode_photo(
  data: bytes, name: str, formats: tuple[str, ...] | None = None, most_pixels: int = pictures.MAX_PIXELS
) -> Photo:
  """Decodes the bytes of a picture file; the arguments are those of `open_picture`.

  Raises:
    PictureError: it cannot be decoded to the end.
  """
  with pictures.open_picture(data, name, formats, most_pixels) as file:
    file.load()
    photo = _from_pillow(file)
  if photo.mode in ("RGB", "RGBA") and photo.format in ("PNG", "TIFF"):
    # Pillow reads 16 bits per colour as 8; OpenCV keeps them.
    deep = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if deep is not None and deep.dtype == np.uint16 and deep.ndim == 3 and deep.shape[:2] == photo.pixels.shape[:2]:
      order = [2, 1, 0, 3][: deep.shape[2]]  # OpenCV has blue first
      mode = "RGB;16" if deep.shape[2] == 3 else "RGBA;16"
      return dataclasses.replace(photo, pixels=np.ascontiguousarray(deep[..., order]), mode=mode)
  return photo


def _from_pillow(file: PilImage.Image) -> Photo:
  orientation = file.getexif().get(0x0112, 1)
  orientation = orientation if orientation in _UPRIGHT else 1
  metadata = {key: file.info[key] for key in ("exif", "icc_profile", "dpi") if file.info.get(key)}
  if not all(1 <= value <= MAX_DPI for value in metadata.get("dpi", ())):
    del metadata["dpi"]  # nonsense, and too large a number for other formats
  if "exif" not in metadata and len(file.getexif()):
    metadata["exif"] = file.getexif().tobytes()
  image_format = file.format or "PNG"
  if image_format in _LOSSY:
    metadata["subsampling"] = max(0, JpegImagePlugin.get_sampling(file))
  rgb = pictures.as_rgb(ImageOps.exif_transpose(file))
  stored = file
  if file.mode not in ("1", "L", "LA", "RGB", "RGBA", "CMYK") and not file.mode.startswith("I"):
    # Palettes and colour spaces that a fill cannot be written in: equal colours, more bytes.
    stored = file.convert("RGBA" if file.has_transparency_data else "RGB")
  elif file.mode in ("1", "L", "RGB") and "transparency" in file.info:
    stored = file.convert("LA" if file.mode in ("1", "L") else "RGBA")
  pixels, mode = np.array(stored), stored.mode
  if mode.startswith("I"):
    pixels, mode = pixels.astype(np.uint16), "I;16"
  return Photo(pixels, mode, rgb, image_format, orientation, metadata)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
  return _UPRIGHT.get(orientation, lambda a: a)(array)


def nearest_rgb(photo: Photo) -> UInt8[np.ndarray, "h w 3"]:
  """The upright RGB view with 16 bits per colour rounded; `rgb` has Pillow's high byte, which lies lower."""
  if photo.mode not in ("RGB;16", "RGBA;16"):
    return photo.rgb
  colours = photo.pixels[..., :3] / 257.0
  if photo.mode == "RGBA;16":
    opacity = photo.pixels[..., 3:] / 65535.0
    colours = colours * opacity + 255.0 * (1.0 - opacity)
  return np.ascontiguousarray(_upright(np.round(colours).astype(np.uint8), photo.orientation))


def fill_hole(
  photo: Photo, fill: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], *, opaque: bool = False
) -> Photo:
  """The photo with the upright fill in the upright mask's hole, in its own mode; all other pixels as they were.

  Args:
    photo: what is filled.
    fill: upright RGB; looked at in the hole alone.
    mask: upright, 1 in the hole.
    opaque: the hole becomes opaque, for a mask that was the photo's own transparency.
  """
  stored_fill = np.ascontiguousarray(_INVERSE.get(photo.orientation, lambda a: a)(fill))
  hole = _INVERSE.get(photo.orientation, lambda a: a)(mask) > 0
  pixels = photo.pixels.copy()
  colours = _in_mode(stored_fill, photo.mode)
  if photo.mode in ("LA", "RGBA", "RGBA;16"):
    channels = pixels.shape[-1] - 1
    pixels[hole, :channels] = colours[hole]
    if opaque:
      pixels[hole, channels] = np.iinfo(pixels.dtype).max
  else:
    pixels[hole] = colours[hole]
  rgb = np.where(mask[..., None] > 0, fill, photo.rgb)
  return dataclasses.replace(photo, pixels=pixels, rgb=rgb)


def _in_mode(fill: UInt8[np.ndarray, "h w 3"], mode: str) -> np.ndarray:
  """RGB in the channels of a mode, alpha left out."""
  if mode in ("RGB", "RGBA"):
    return fill
  if mode in ("RGB;16", "RGBA;16"):
    return fill.astype(np.uint16) * 257
  image = PilImage.fromarray(fill)
  if mode == "CMYK":
    return np.asarray(image.convert("CMYK"))
  grey = np.asarray(image.convert("L"))
  if mode == "1":
    return grey > 127
  if mode == "I;16":
    return grey.astype(np.uint16) * 257
  return grey if mode == "L" else grey[..., None]


def output_format(photo: Photo, wanted: str) -> tuple[str, bool]:
  """The format a photo is written in, and whether it keeps every bit.

  Args:
    photo: what is written.
    wanted: 'keep' for the file's own format, or 'png'.
  """
  if wanted == "keep" and photo.mode in _LOSSY.get(photo.format, ()):
    return "JPEG", False
  if wanted == "keep" and photo.mode in _LOSSLESS.get(photo.format, ()):
    return photo.format, True
  return "PNG", True


def output_name(path: pathlib.Path, photo: Photo, wanted: str) -> str:
  """The photo's own name; with another suffix where it is written in another format."""
  image_format, _ = output_format(photo, wanted)
  same = image_format == photo.format or (image_format == "JPEG" and photo.format in _LOSSY)
  return path.name if same else path.stem + _EXTENSIONS[image_format]


def write_photo(photo: Photo, path: pathlib.Path, wanted: str = "keep") -> None:
  """Writes the photo whole or not at all: a half-written file never gets its name."""
  image_format, _ = output_format(photo, wanted)
  with replacing(path) as temporary:
    temporary.write_bytes(encode_photo(photo, image_format))


def encode_photo(photo: Photo, image_format: str) -> bytes:
  """The file's bytes, with EXIF, ICC profile and resolution as they were; CMYK becomes RGB where it must."""
  if photo.mode == "CMYK" and image_format not in ("JPEG", "TIFF"):
    stored = np.ascontiguousarray(_INVERSE.get(photo.orientation, lambda a: a)(photo.rgb))
    kept = {key: value for key, value in photo.metadata.items() if key != "icc_profile"}  # it describes inks
    photo = dataclasses.replace(photo, pixels=stored, mode="RGB", metadata=kept)
  metadata = dict(photo.metadata)
  if photo.mode.endswith(";16") and photo.mode != "I;16":
    order = [2, 1, 0, 3][: photo.pixels.shape[2]]
    done, encoded = cv2.imencode(".png" if image_format == "PNG" else ".tif", photo.pixels[..., order])
    require(done, f"{image_format} cannot hold this picture")
    data = encoded.tobytes()
    return _with_png_metadata(data, metadata) if image_format == "PNG" else data
  pixels = photo.pixels
  image = PilImage.fromarray(pixels, "CMYK") if photo.mode == "CMYK" else PilImage.fromarray(pixels)
  options: dict[str, Any] = {key: metadata[key] for key in ("exif", "icc_profile", "dpi") if key in metadata}
  if image_format == "JPEG":
    options |= {"quality": 95, "subsampling": metadata.get("subsampling", 0)}
  elif image_format == "WEBP":
    options |= {"lossless": True, "exact": True}
  elif image_format == "TIFF":
    options |= {"compression": "tiff_adobe_deflate"}
  elif image_format == "JPEG2000":
    options |= {"irreversible": False}
  elif image_format in ("BMP", "PPM", "TGA"):
    options.pop("exif", None)
  buffer = io.BytesIO()
  image.save(buffer, image_format, **options)
  return buffer.getvalue()


def _with_png_metadata(data: bytes, metadata: dict[str, Any]) -> bytes:
  """Adds the ICC profile and EXIF chunks that OpenCV leaves out, right after the header chunk."""
  chunks = b""
  if "icc_profile" in metadata:
    chunks += _chunk(b"iCCP", b"icc\0\0" + zlib.compress(metadata["icc_profile"]))
  if "exif" in metadata:
    chunks += _chunk(b"eXIf", metadata["exif"].removeprefix(b"Exif\0\0"))
  header = 8 + 25  # signature, and IHDR: length, name, 13 bytes, checksum
  return data[:header] + chunks + data[header:]


def _chunk(name: bytes, body: bytes) -> bytes:
  return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
