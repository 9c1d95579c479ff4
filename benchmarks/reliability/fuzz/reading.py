"""The pixels of a picture file, read without any code of the package: by tifffile, libpng, or Pillow's own decoder."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import re
import struct
import warnings

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)  # of damaged files they have much to say
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

TURNS = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: np.swapaxes(a, 0, 1),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
  8: lambda a: np.rot90(a),
}


@dataclasses.dataclass(frozen=True)
class Shown:
  """A picture as a viewer shows it, upright."""

  pixels: np.ndarray  # [h w 4], 0..65535: red, green, blue, alpha; or the samples of another colour space
  space: str  # RGB, or the name of the other colour space
  bits: int
  form: str
  frames: int
  orientation: int
  profile: bytes | None


def show(data: bytes) -> Shown:
  """Reads a file; raises whatever the decoder does where it is damaged."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    with Image.open(io.BytesIO(data)) as image:
      form, frames = image.format or "", getattr(image, "n_frames", 1)
      orientation = 1
      with contextlib.suppress(struct.error, SyntaxError):  # broken EXIF, and so none
        orientation = image.getexif().get(274, 1)
      orientation = orientation if orientation in TURNS else 1
      profile = image.info.get("icc_profile")
      if form == "PNG":
        pixels, space, bits = *_rgba(imagecodecs.png_decode(data)), 0
        bits = data[24]
      elif form == "TIFF":
        pixels, space, bits = _tiff(data)
      elif form == "PPM" and data[1:2] in b"2356":
        pixels, space, bits = _ppm(data)
      else:
        pixels, space, bits = _pillow(image)
  return Shown(TURNS[orientation](pixels), space, bits, form, frames, orientation, profile)


def _rgba(samples: np.ndarray, alpha: bool = True) -> tuple[np.ndarray, str]:
  """Grey or colours, with alpha last where there is one, of 8 or 16 bits, in 16."""
  samples = samples if samples.ndim == 3 else samples[..., None]
  samples = samples.astype(np.uint16) * 257 if samples.dtype == np.uint8 else samples
  opaque = np.full(samples.shape[:2], 65535, np.uint16)
  shown = samples.shape[2] in (2, 4) and alpha
  colours = samples[..., :3] if samples.shape[2] > 2 else samples[..., [0, 0, 0]]
  return np.concatenate([colours, (samples[..., -1] if shown else opaque)[..., None]], axis=-1), "RGB"


def _tiff(data: bytes) -> tuple[np.ndarray, str, int]:
  with tifffile.TiffFile(io.BytesIO(data)) as file:
    page = file.pages[0]
    assert isinstance(page, tifffile.TiffPage)
    samples, bits, kind = page.asarray(), int(page.bitspersample), tifffile.PHOTOMETRIC(page.photometric).name
    if page.planarconfig == 2 and page.samplesperpixel > 1:
      samples = np.moveaxis(samples, 0, -1)
    samples = samples.reshape(page.imagelength, page.imagewidth, -1)
    whole = samples.dtype.kind in "bu" and bits in (1, 8, 16)
    if samples.dtype == np.bool_ or bits == 1:
      samples = samples.astype(np.uint8) * 255
    if kind == "PALETTE":
      colours = np.moveaxis(np.asarray(page.colormap), 0, -1)[samples[..., 0]]
      return *_rgba((colours >> 8).astype(np.uint8)), 8
    if kind == "YCBCR" and page.compression == 7:  # JPEG, which tifffile gives as RGB
      kind = "RGB"
    if kind in ("MINISBLACK", "MINISWHITE", "RGB") and whole:
      samples = np.iinfo(samples.dtype).max - samples if kind == "MINISWHITE" else samples
      alpha = page.extrasamples[0] == 2 if page.extrasamples else samples.shape[2] in (2, 4)  # as viewers have it
      if not page.extrasamples or alpha or page.extrasamples[0] == 0:
        return *_rgba(samples, alpha), bits
    return samples, f"{kind} {page.dtype} {page.extrasamples}", bits


def _ppm(data: bytes) -> tuple[np.ndarray, str, int]:
  """Grey or colours, as text or as bytes, of which Pillow cuts 16 bits to 8."""
  words = re.match(rb"P(\d)\s+(?:#.*\n)?(\d+)\s+(\d+)\s+(\d+)\s", data)
  assert words is not None
  kind, width, height, most = map(int, words.groups())
  body = data[words.end() :]
  values = np.array(body.split(), int) if kind < 4 else np.frombuffer(body, ">u2" if most > 255 else "u1").astype(int)
  values = np.rint(values.reshape(height, width, -1) / most * (255 if most < 256 else 65535))
  return *_rgba(values.astype(np.uint8 if most < 256 else np.uint16)), 8 if most < 256 else 16


def _pillow(image: Image.Image) -> tuple[np.ndarray, str, int]:
  image.load()
  if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
    return *_rgba(np.asarray(image).astype(np.uint16)), 16
  if image.mode in ("CMYK", "YCbCr", "LAB", "F", "I"):
    return np.asarray(image), image.mode, 8
  return *_rgba(
    np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
  ), 1 if image.mode == "1" else 8


def changed(before: bytes, after: bytes, known: np.ndarray, own: bool = False) -> str:
  """Says what of a picture changed outside the hole; '' where nothing did. JPEG may change a little.

  Args:
    before: the file that was given.
    after: the file that came back.
    known: upright, true where a pixel is not to change; of none if unknown.
    own: the hole was the picture's own transparency.
  """
  try:
    new = show(after)
  except Exception as error:  # noqa: BLE001 - whatever a decoder raises
    return f"cannot be read back ({type(error).__name__}: {error})"
  old = show(before)
  if old.pixels.shape[:2] != new.pixels.shape[:2]:
    return f"upright {old.pixels.shape[:2]} became {new.pixels.shape[:2]}"
  if known.shape != old.pixels.shape[:2]:
    return ""
  lossy = new.form in ("JPEG", "MPO")
  a, b = old.pixels, new.pixels
  if old.space != new.space or a.shape != b.shape:
    a, b = _plain(before), _plain(after)
  elif old.bits > max(8, new.bits) and not lossy:
    return f"{old.bits} bits became {new.bits}"
  difference = np.abs(a[known].astype(np.float64) - b[known].astype(np.float64))
  scale = 65535 if a.dtype == np.uint16 else 255
  if lossy and difference.size and difference.mean() > 0.06 * scale:
    return f"{old.form} {old.space} came back as a JPEG {difference.mean() / scale:.0%} off"
  if not lossy and difference.any():
    count = (difference > 0).reshape(len(difference), -1).any(-1).sum()
    where = f"{old.form} {old.space} -> {new.form} {new.space}"
    return f"{count} of {known.sum()} known pixels changed, up to {difference.max():.0f} of {scale} ({where})"
  return ""


def _plain(data: bytes) -> np.ndarray:
  """The picture in RGBA of 8 bits by Pillow, upright, for comparison across colour spaces."""
  with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
    warnings.simplefilter("ignore")
    image.load()  # which turns a TIFF, and forgets its tag
    turn = TURNS.get(image.getexif().get(274, 1), TURNS[1])
    return turn(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB").convert("RGBA")))
