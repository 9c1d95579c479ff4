"""The modes in which files store pixels: which formats hold them, how they are read, how a fill gets into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from gmsrm_jax.data import pictures


class Mode(NamedTuple):
  """The formats that hold a mode, all but JPEG to the bit, and how RGB becomes its channels but alpha."""

  formats: str
  photometric: int  # TIFF's name for the colours
  from_rgb: Callable[[UInt8[np.ndarray, "h w 3"]], np.ndarray]


def _grey(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
  return np.asarray(Image.fromarray(rgb).convert("L"))


# Pillow's names; 'RGB;16' and 'RGBA;16' are 16 bits per colour, which Pillow lacks and OpenCV reads and writes.
MODES = {
  "1": Mode("PNG TIFF BMP PPM", 1, lambda rgb: _grey(rgb) > 127),
  "L": Mode("PNG TIFF BMP PPM TGA JPEG2000 JPEG MPO", 1, _grey),
  "LA": Mode("PNG TIFF TGA JPEG2000", 1, lambda rgb: _grey(rgb)[..., None]),
  "I;16": Mode("PNG TIFF PPM", 1, lambda rgb: _grey(rgb) * np.uint16(257)),
  "RGB": Mode("PNG TIFF WEBP BMP PPM TGA JPEG2000 JPEG MPO", 2, lambda rgb: rgb),
  "RGBA": Mode("PNG TIFF WEBP TGA JPEG2000", 2, lambda rgb: rgb),
  "RGB;16": Mode("PNG TIFF", 2, lambda rgb: rgb * np.uint16(257)),
  "RGBA;16": Mode("PNG TIFF", 2, lambda rgb: rgb * np.uint16(257)),
  "CMYK": Mode("TIFF JPEG MPO", 5, lambda rgb: np.asarray(Image.fromarray(rgb).convert("CMYK"))),
}
DEEP = ("RGB;16", "RGBA;16")


class Stored(NamedTuple):
  """A file's pixels, upright."""

  pixels: np.ndarray  # [h w] or [h w c], bool, uint8 or uint16
  mode: str  # one of MODES
  rgb: UInt8[np.ndarray, "h w 3"]  # what is transparent is white
  changed: str  # what of the file these pixels cannot hold, in words


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


def turned_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Upright pixels in the order in which a file of this EXIF orientation stores them."""
  return np.ascontiguousarray(_UPRIGHT[_INVERSE.get(orientation, orientation)](pixels))


def read_pixels(file: Image.Image, data: bytes, orientation: int) -> Stored:
  """Decodes a file that Pillow has opened, and its bytes, in the mode and depth that it has."""
  changed, deep = _beyond_modes(file), _is_deep(file, data)
  upright = ImageOps.exif_transpose(file)
  rgb, mode = pictures.as_rgb(upright), upright.mode
  transparent = upright.info.get("transparency")
  if mode.startswith("I"):
    grey = np.array(upright).astype(np.uint16)
    if transparent is None:
      return Stored(grey, "I;16", rgb, changed)
    colours = np.dstack([grey, grey, grey, np.where(grey == transparent, 0, 65535)]).astype(np.uint16)
    return Stored(colours, "RGBA;16", _rgb_of_16_bits(colours), changed)
  if deep and not changed:
    pixels = _read_deep(data, 1 if file.format == "TIFF" else orientation)  # OpenCV turns TIFF files itself
    # Pillow takes the high byte: a decoder that disagrees has misread the file.
    if pixels is not None and (np.abs(pixels[..., :3] / 257.0 - np.asarray(upright.convert("RGB"))) <= 1).all():
      return Stored(pixels, DEEP[pixels.shape[2] - 3], _rgb_of_16_bits(pixels), "")
    changed = "more than 8 bits per colour in a form that cannot be read whole"
  if mode not in MODES:
    # Palettes and colour spaces that a fill cannot be written in: equal colours, more bytes.
    mode = "RGBA" if upright.has_transparency_data else "RGB"
  elif transparent is not None:
    mode = {"1": "LA", "L": "LA", "RGB": "RGBA"}.get(mode, mode)
  return Stored(np.array(upright if upright.mode == mode else upright.convert(mode)), mode, rgb, changed)


def _is_deep(file: Image.Image, data: bytes) -> bool:
  """True where a colour of the file has more than 8 bits, which Pillow would cut."""
  match file.format:
    case "PNG":
      return data[24] == 16
    case "PPM":
      codec, _, _, arguments = file.tile[0]  # pyright: ignore
      return codec != "raw" and file.mode == "RGB" and arguments[1] > 255
    case "JPEG2000":
      size = data.find(b"\xff\x4f\xff\x51")  # the head of the coded pixels
      return data[size + 42] & 127 > 7
  return max(_tag(file, 258, 8)) > 8


def _read_deep(data: bytes, orientation: int) -> np.ndarray | None:
  """RGB or RGBA in 16 bits, upright; None where OpenCV reads something else."""
  data = _without_remarks(data) if data.startswith(b"\x89PNG") else data + b"\n"  # a last number needs an end in PPM
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
    return None
  return np.ascontiguousarray(_UPRIGHT[orientation](swap_red_and_blue(pixels)))


def _without_remarks(data: bytes) -> bytes:
  """A PNG file with its pixels alone: libpng prints what it thinks of the other chunks."""
  kept, at = data[:8], 8
  while at < len(data):
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    kept += data[at:end] * (data[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))
    at = end
  return kept


def swap_red_and_blue(pixels: np.ndarray) -> np.ndarray:
  """From OpenCV's order of colours to ours, and back."""
  return np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])


def _rgb_of_16_bits(pixels: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
  """The nearest of 256 levels, where Pillow takes the high byte; what is transparent becomes white."""
  colours, alpha = pixels[..., :3] / np.float32(257), pixels[..., 3:] / np.float32(65535)
  if alpha.size:
    colours = colours * alpha + 255 * (1 - alpha)
  return np.round(colours).astype(np.uint8)


def _tag(file: Image.Image, tag: int, default: int) -> tuple[int, ...]:
  """The values of a TIFF file's tag."""
  value = getattr(file, "tag_v2", {}).get(tag, default)
  return value if isinstance(value, tuple) else (value,)


def _beyond_modes(file: Image.Image) -> str:
  """Says what a TIFF file has that none of MODES holds; empty for most."""
  photometric, compression, bits = _tag(file, 262, 1)[0], _tag(file, 259, 1)[0], max(_tag(file, 258, 8))
  extra, kinds = _tag(file, 338, 2), {*_tag(file, 339, 1)}
  if photometric > 5 and not (photometric == 6 and compression in (6, 7)):  # JPEG inside is decoded to RGB
    return "colours of another kind (YCbCr, LAB or the like)"
  if bits not in (1, 2, 4, 8, 16) or kinds != {1} or (bits == 16 and photometric == 5):
    return f"values of {bits} bits in {file.mode}, or with a sign"
  if extra == (1,):
    return "colours that are multiplied by their alpha"
  return "" if extra == (2,) else "channels beside colour and alpha"
