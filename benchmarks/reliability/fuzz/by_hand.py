"""Pictures written byte by byte: PNG, BMP and PPM of every kind, and EXIF."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ImageCms

Random = np.random.Generator
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@dataclasses.dataclass(frozen=True)
class Made:
  """A file."""

  data: bytes
  suffix: str
  kind: str  # how it was made
  whole: bool = True  # not damaged


def colours(rng: Random, height: int, width: int, channels: int, dtype: Any = np.uint8) -> np.ndarray:
  """Smooth waves with a little noise, so that turned or shifted pixels are far off and JPEG is near."""
  rows, columns = np.mgrid[:height, :width][..., None] / 12.0
  phases, steps = rng.uniform(0, 6.28, (2, channels)), rng.uniform(0.5, 1.5, (2, channels))
  waves = 0.5 + 0.22 * np.sin(rows * steps[0] + phases[0]) + 0.22 * np.sin(columns * steps[1] + phases[1])
  waves = (waves + rng.normal(0, 0.01, waves.shape)).clip(0, 1)
  if np.dtype(dtype).kind == "f":
    return waves.astype(dtype)
  return np.round(waves * np.iinfo(dtype).max).astype(dtype)


def choice(rng: Random, *options: Any) -> Any:
  return options[rng.integers(len(options))]


def maybe(rng: Random, share: float = 0.3) -> bool:
  return bool(rng.random() < share)


def exif(rng: Random) -> bytes:
  """EXIF, by hand: an orientation from 1 to 8 or one that is none, other tags, broken counts and offsets."""
  order = choice(rng, "<", ">")
  orientation = choice(rng, *range(1, 9), *range(1, 9), 0, 9, 65535)
  make = b"a maker with a name\0"
  entries = [(0x010F, 2, len(make), None), (0x0112, 3, 1, struct.pack(order + "HH", orientation, 0))]
  if maybe(rng):
    entries.append((0x0131, choice(rng, 2, 7, 13, 99), choice(rng, 4, 2**31), b"soft"))
  if maybe(rng):
    entries.append((0x8769, 4, 1, struct.pack(order + "I", choice(rng, 8, 5000, 2**32 - 1))))  # the EXIF part: nowhere
  head = 8 + 2 + 12 * len(entries) + 4
  body = struct.pack(order + "H", len(entries))
  for tag, kind, count, value in entries:
    body += struct.pack(order + "HHI", tag, kind, count) + (value or struct.pack(order + "I", head))
  whole = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + body + bytes(4) + make
  return b"Exif\0\0" + (whole[: rng.integers(len(whole))] if maybe(rng, 0.1) else whole)


def chunk(name: bytes, data: bytes) -> bytes:
  return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(rng: Random, size: tuple[int, int]) -> Made:
  """A PNG by hand: every colour type and depth, interlaced or not, with chunks that viewers meet."""
  kind = choice(rng, 0, 2, 3, 4, 6)
  depth = choice(rng, *{0: (1, 2, 4, 8, 16), 3: (1, 2, 4, 8)}.get(kind, (8, 16)))
  channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
  entries = min(2**depth, choice(rng, 1, 2, 3, 200, 256)) if kind == 3 else 0
  values = colours(rng, *size, channels, np.uint16) >> (16 - depth)
  values = values % entries if entries else values
  interlaced = maybe(rng, 0.25)
  steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
  raw = b""
  for top, left, down, right in steps if interlaced else [(0, 0, 1, 1)]:
    part = values[top::down, left::right]
    for row in part if part.size else ():
      flat = row.reshape(-1)
      bits = (flat[:, None] >> np.arange(depth - 1, -1, -1)) & 1
      raw += b"\0" + np.packbits(bits.astype(np.uint8)).tobytes()
  extra = b""
  if maybe(rng):
    extra += chunk(b"gAMA", struct.pack(">I", choice(rng, 45455, 100000, 0, 2**31 - 1)))
  if maybe(rng, 0.2):
    extra += chunk(b"iCCP", b"icc\0\0" + choice(rng, zlib.compress(PROFILE), b"broken", b""))
  if maybe(rng, 0.2):
    extra += chunk(b"sRGB", b"\0")
  if maybe(rng):
    extra += chunk(b"pHYs", struct.pack(">IIB", choice(rng, 0, 2835, 2**32 - 1), 2835, choice(rng, 0, 1, 7)))
  if kind == 3:
    extra += chunk(b"PLTE", rng.integers(0, 256, 3 * entries, dtype=np.uint8).tobytes())
  if kind in (0, 2, 3) and maybe(rng):
    key = (
      values[0, 0].astype(">u2").tobytes() if kind != 3 else rng.integers(0, 256, choice(rng, 1, entries)).astype("u1")
    )
    extra += chunk(b"tRNS", bytes(key))
  if maybe(rng):
    extra += chunk(b"tEXt", b"Title\0" + choice(rng, b"a title", b"\xe9\xff", b""))
  if maybe(rng, 0.2):
    extra += chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
  if maybe(rng, 0.2):
    extra += chunk(b"zTXt", b"Comment\0\0" + choice(rng, zlib.compress(b"text"), b"broken"))
  if maybe(rng):
    extra += chunk(b"eXIf", exif(rng)[6:])
  head = struct.pack(">IIBBBBB", size[1], size[0], depth, kind, 0, 0, interlaced)
  pieces = [raw[: len(raw) // 2], raw[len(raw) // 2 :]] if maybe(rng) else [raw]
  packer = zlib.compressobj()
  data = [packer.compress(piece) for piece in pieces] + [packer.flush()]
  body = b"".join(chunk(b"IDAT", piece) for piece in data) + chunk(b"IEND", b"")
  return Made(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + body, ".png", f"PNG type {kind}, {depth} bit")


def bmp(rng: Random, size: tuple[int, int]) -> Made:
  """A BMP by hand: top-down or not, 16, 24 or 32 bits, bit fields, run lengths."""
  height, width = size
  kind = choice(rng, "24", "32", "16", "565", "RLE8", "V5")
  pixels = colours(rng, height, width, 4)
  down = kind != "RLE8" and maybe(rng, 0.5)
  masks, table, squeeze = b"", b"", 0
  if kind == "RLE8":
    squeeze, table = 1, bytes(pixels[0, 0, :1]) * 4 + bytes(range(256)) * 4
    table = table[:1024]
    rows = [b"".join(bytes([1, value]) for value in row[:, 0]) + b"\0\0" for row in pixels]
    body, depth = b"".join(rows) + b"\0\1", 8
  elif kind in ("16", "565"):
    levels = pixels[..., :3].astype(np.uint16)
    green, depth = (6, 16) if kind == "565" else (5, 16)
    packed = ((levels[..., 0] >> 3) << (5 + green)) | ((levels[..., 1] >> (8 - green)) << 5) | (levels[..., 2] >> 3)
    body = b"".join(row.astype("<u2").tobytes() + bytes(-2 * width % 4) for row in packed)
    if kind == "565":
      squeeze, masks = 3, struct.pack("<III", 0xF800, 0x07E0, 0x001F)
  else:
    depth = 24 if kind == "24" else 32
    part = pixels[..., : depth // 8]
    body = b"".join(row.tobytes() + bytes(-row.size % 4) for row in part)
    if kind == "V5":
      squeeze, masks = 3, struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(64)
  header = 124 if kind == "V5" else 40
  start = 14 + 40 + len(masks) + len(table)
  dots = choice(rng, 0, 2835, 2**31 - 1, -1)
  colours_used = 256 if table else 0
  info = (header, width, -height if down else height, 1, depth, squeeze, len(body), dots, dots, colours_used, 0)
  head = struct.pack("<IiiHHIIiiII", *info)
  data = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + masks + table + body
  return Made(data, choice(rng, ".bmp", ".BMP"), f"BMP {kind}{' top-down' * down}")


def ppm(rng: Random, size: tuple[int, int]) -> Made:
  """The family of PPM by hand: text or bytes, 1, 8 or 16 bits, odd ranges, comments."""
  kind = choice(rng, 1, 2, 3, 4, 5, 6)
  most = 1 if kind in (1, 4) else choice(rng, 255, 255, 65535, 100, 1)
  channels = 3 if kind in (3, 6) else 1
  values = np.round(colours(rng, *size, channels, np.float64) * most).astype(np.uint16)
  if kind < 4:
    body = " ".join(map(str, values.reshape(-1))).encode()
  elif kind == 4:
    body = np.packbits(values[..., 0].astype(np.uint8), axis=1).tobytes()
  else:
    body = values.astype(">u2" if most > 255 else "u1").tobytes()
  remark = b"# a comment\n" if maybe(rng) else b""
  head = b"P%d\n%s%d %d\n" % (kind, remark, size[1], size[0]) + (b"" if kind in (1, 4) else b"%d\n" % most)
  suffix = {1: ".pbm", 4: ".pbm", 2: ".pgm", 5: ".pgm"}.get(kind, ".ppm")
  return Made(head + body, suffix, f"PPM P{kind} {most}")
