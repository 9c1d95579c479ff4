"""Picture files of every kind, whole ones, odd ones and damaged ones, by the libraries that people use."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from benchmarks.reliability.fuzz.by_hand import (
  PROFILE,
  Made,
  Random,
  bmp,
  choice,
  chunk,
  colours,
  exif,
  maybe,
  png,
  ppm,
)

SHAPES = ((24, 40), (40, 24), (32, 32), (33, 47), (64, 70), (1, 1), (1, 20), (9, 16))
DAMAGE = 0.1  # share of files that are damaged


def saved(rng: Random, image: Image.Image, form: str, suffix: str, **options: Any) -> Made:
  """Files as Pillow writes them, with metadata that may be nonsense."""
  if form in ("PNG", "JPEG", "WEBP", "MPO", "AVIF") and maybe(rng):
    options["exif"] = exif(rng)
  if form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") and maybe(rng):
    options["icc_profile"] = choice(rng, PROFILE, PROFILE, PROFILE[:100], b"junk", bytes(128))
  if form in ("PNG", "JPEG", "TIFF", "BMP") and maybe(rng):
    options["dpi"] = choice(rng, (72, 72), (300, 150), (1, 1), (0.1, 0.1))
  if form == "WEBP" and maybe(rng):
    options["xmp"] = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
  if form == "JPEG" and maybe(rng):
    options["comment"] = b"a comment\xff\0"
  file = io.BytesIO()
  image.save(file, form, **options)
  return Made(file.getvalue(), suffix, f"{form} {image.mode}")


def of_mode(rng: Random, size: tuple[int, int], mode: str) -> Image.Image:
  """A picture of Pillow's mode."""
  if mode == "I;16":
    return Image.fromarray(colours(rng, *size, 1, np.uint16)[..., 0])
  if mode == "P":
    return Image.fromarray(colours(rng, *size, 3)).quantize(choice(rng, 2, 3, 17, 256))
  if mode in ("1", "L"):
    return Image.fromarray(colours(rng, *size, 1)[..., 0]).convert(mode)
  channels = {"LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3}[mode]
  if mode in ("LA", "RGBA") and maybe(rng):
    pixels = colours(rng, *size, channels)
    pixels[..., -1] = choice(rng, 255, 0, 127, 128)
    return Image.frombytes(mode, (size[1], size[0]), pixels.tobytes())
  return Image.frombytes(mode, (size[1], size[0]), colours(rng, *size, channels).tobytes())


def tiff(rng: Random, size: tuple[int, int]) -> Made:
  """A TIFF by tifffile: photometric kinds, layouts, byte orders, several pages."""
  kind = choice(rng, "minisblack", "miniswhite", "rgb", "rgb", "rgb", "rgba", "palette", "separated", "cielab", "ycbcr")
  dtype = np.uint8
  if kind in ("minisblack", "rgb", "rgba"):
    dtype = choice(rng, np.uint8, np.uint8, np.uint16, np.uint16, np.float32, np.uint32)
  if kind in ("minisblack", "miniswhite") and maybe(rng, 0.2):
    dtype = np.bool_
  channels = {"rgb": 3, "rgba": 4, "separated": 4, "cielab": 3, "ycbcr": 3}.get(kind, 1)
  pixels = colours(rng, *size, channels, np.uint8 if dtype == np.bool_ else dtype)
  pixels = pixels > 127 if dtype == np.bool_ else pixels
  options: dict[str, Any] = {"photometric": kind.removesuffix("a"), "metadata": None}
  if kind == "palette":
    options["colormap"] = rng.integers(0, 256, (3, 256)).astype(np.uint16) * choice(rng, 256, 257)
  if kind == "rgba":
    options["extrasamples"] = [choice(rng, "unspecified", "assocalpha", "unassalpha")]
  if channels == 1:
    pixels = pixels[..., 0]
  elif maybe(rng):
    pixels, options["planarconfig"] = np.moveaxis(pixels, -1, 0), "separate"
  if dtype != np.bool_:
    options["compression"] = choice(rng, None, None, "zlib", "lzw", "packbits")
    if maybe(rng, 0.2):
      options["tile"] = (16, 16)
    if options["compression"] in ("zlib", "lzw") and np.dtype(dtype).kind == "u" and maybe(rng):
      options["predictor"] = True
  tags: list[Any] = []
  if maybe(rng):
    tags.append((274, "H", 1, choice(rng, *range(1, 9), 0, 9), True))
  if maybe(rng):
    tags.append((34675, "B", len(PROFILE), PROFILE, True))
  if maybe(rng, 0.2):
    tags.append((700, "B", 4, b"<x/>", True))
  if maybe(rng, 0.1):
    tags.append((65000, "s", 0, "a tag of somebody's own", True))
  if maybe(rng):
    options |= {"resolution": choice(rng, (300, 300), (72.5, 10), (4_000_000_000, 1)), "resolutionunit": 2}
  if maybe(rng):
    options |= {"description": "a description", "software": "some software"}
  pages, file = choice(rng, 1, 1, 1, 1, 2, 3), io.BytesIO()
  order, big = choice(rng, "<", ">"), maybe(rng, 0.15)
  with tifffile.TiffWriter(file, byteorder=order, bigtiff=big) as writer:
    for _ in range(pages):
      writer.write(pixels, extratags=tags, **options)
  form = "BigTIFF" if big else "TIFF"
  depth = "" if dtype == np.uint8 else f" {np.dtype(dtype).name}"
  layout = f" {options.get('planarconfig', '')}" * ("planarconfig" in options)
  extra = f" {options.get('extrasamples', [''])[0]}" * ("extrasamples" in options)
  return Made(file.getvalue(), choice(rng, ".tif", ".tiff"), f"{form} {kind}{extra}{depth}{layout}")


def pillow_tiff(rng: Random, size: tuple[int, int]) -> Made:
  mode = choice(rng, "1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16")
  squeeze = choice(rng, None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg" if mode in ("L", "RGB") else None)
  squeeze = "group4" if mode == "1" and maybe(rng) else squeeze
  made = saved(rng, of_mode(rng, size, mode), "TIFF", ".tif", compression=squeeze)
  return dataclasses.replace(made, kind=f"{made.kind} {squeeze or ''}".strip())


def pillow_png(rng: Random, size: tuple[int, int]) -> Made:
  image = of_mode(rng, size, choice(rng, "1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
  if maybe(rng, 0.15):
    return saved(rng, image, "PNG", ".png", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)])
  return saved(rng, image, "PNG", choice(rng, ".png", ".png", ".PNG"))


def jpeg(rng: Random, size: tuple[int, int]) -> Made:
  mode = choice(rng, "L", "RGB", "RGB", "RGB", "CMYK")
  options: dict[str, Any] = {"quality": choice(rng, 60, 90, 100), "progressive": maybe(rng)}
  if mode == "RGB":
    options["subsampling"] = choice(rng, 0, 1, 2)
    options |= choice(rng, {}, {}, {"keep_rgb": True, "subsampling": 0})
  if maybe(rng, 0.2):
    options["restart_marker_rows"] = 1
  return saved(rng, of_mode(rng, size, mode), "JPEG", choice(rng, ".jpg", ".jpeg", ".JPG", ".jfif"), **options)


def lossless_jpeg(rng: Random, size: tuple[int, int]) -> Made:
  data = imagecodecs.jpeg8_encode(colours(rng, *size, 3), lossless=True)
  return Made(bytes(data), ".jpg", "JPEG lossless")


def mpo(rng: Random, size: tuple[int, int]) -> Made:
  image = of_mode(rng, size, "RGB")
  return saved(rng, image, "MPO", choice(rng, ".mpo", ".jpg"), save_all=True, append_images=[image] * choice(rng, 1, 2))


def gif(rng: Random, size: tuple[int, int]) -> Made:
  options: dict[str, Any] = {"transparency": 0} if maybe(rng) else {}
  images = [of_mode(rng, size, choice(rng, "P", "L", "1")) for _ in range(choice(rng, 1, 1, 3))]
  if len(images) > 1:
    options |= {"save_all": True, "append_images": images[1:], "duration": 40}
  return saved(rng, images[0], "GIF", ".gif", interlace=maybe(rng), **options)


def webp(rng: Random, size: tuple[int, int]) -> Made:
  images = [of_mode(rng, size, choice(rng, "RGB", "RGBA"))] * choice(rng, 1, 1, 1, 2)
  options: dict[str, Any] = {"lossless": maybe(rng, 0.5), "exact": maybe(rng, 0.5)}
  if len(images) > 1:
    options |= {"save_all": True, "append_images": [images[0].transpose(Image.Transpose.ROTATE_180)]}
  return saved(rng, images[0], "WEBP", ".webp", **options)


def pillow_bmp(rng: Random, size: tuple[int, int]) -> Made:
  return saved(rng, of_mode(rng, size, choice(rng, "1", "L", "P", "RGB", "RGBA")), "BMP", ".bmp")


def other(rng: Random, size: tuple[int, int]) -> Made:
  """Formats of which Pillow has one way to write them."""
  form, suffix, modes = choice(
    rng,
    ("TGA", ".tga", ("L", "LA", "RGB", "RGBA", "P")),
    ("JPEG2000", ".jp2", ("L", "LA", "RGB", "RGBA", "I;16")),
    ("AVIF", ".avif", ("RGB", "RGBA")),
    ("ICO", ".ico", ("RGB", "RGBA")),
    ("PCX", ".pcx", ("L", "RGB", "P")),
    ("SGI", ".sgi", ("L", "RGB", "RGBA")),
    ("DIB", ".dib", ("RGB",)),
    ("DDS", ".dds", ("RGBA",)),
  )
  options: dict[str, Any] = {"compression": choice(rng, None, "tga_rle")} if form == "TGA" else {}
  if form == "TGA":
    options["orientation"] = choice(rng, 1, -1)
  if form == "JPEG2000":
    options |= {"irreversible": maybe(rng), "no_jp2": maybe(rng)}
  if form == "ICO":
    options["sizes"] = [size[::-1]]
  return saved(rng, of_mode(rng, size, choice(rng, *modes)), form, suffix, **options)


def opencv(rng: Random, size: tuple[int, int]) -> Made:
  suffix, channels, dtype = choice(
    rng,
    *[(s, c, t) for s in (".png", ".tiff") for c in (1, 3, 4) for t in (np.uint8, np.uint16)],
    (".hdr", 3, np.float32),
  )
  _, data = cv2.imencode(suffix, colours(rng, *size, channels, dtype))
  return Made(data.tobytes(), suffix, f"OpenCV {suffix} {channels}x{np.dtype(dtype).name}")


Maker = Callable[[Random, tuple[int, int]], Made]
MAKERS: tuple[Maker, ...] = (
  *(png, png, png, pillow_png, tiff, tiff, tiff, pillow_tiff, jpeg, jpeg, jpeg, lossless_jpeg, mpo),
  *(gif, webp, webp, bmp, pillow_bmp, ppm, ppm, other, other, opencv),
)


def picture(rng: Random, size: tuple[int, int]) -> Made:
  """A picture file; some are damaged or have another format's suffix."""
  made = choice(rng, *MAKERS)(rng, size)
  return damaged(rng, made) if maybe(rng, DAMAGE) else made


def damaged(rng: Random, made: Made) -> Made:
  """Cut, emptied, with flipped bits, under a wrong suffix, or with a header that promises gigabytes."""
  data, how = bytearray(made.data), choice(rng, "cut", "flipped", "flipped", "empty", "suffix", "huge", "text")
  if how == "cut":
    data = data[: rng.integers(len(data))]
  elif how == "flipped":
    for _ in range(choice(rng, 1, 3, 20)):
      data[rng.integers(len(data))] ^= 1 << rng.integers(8)
  elif how == "empty":
    data = bytearray()
  elif how == "text":
    data = bytearray(b"<html>404 not found</html>")
  elif how == "huge":
    size, start = (
      struct.pack(">II", *choice(rng, (2**31 - 1, 2**31 - 1), (60_000, 60_000), (2**31 - 1, 1), (0, 0))),
      b"\x89PNG\r\n\x1a\n",
    )
    data = bytearray(
      start + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )
  suffix = choice(rng, ".png", ".jpg", ".tif", ".gif", ".webp", ".bmp") if how == "suffix" else made.suffix
  return Made(bytes(data), suffix, f"{made.kind}, {how}", whole=how == "suffix")
