"""TIFF's directories of tags: read from a file, and written with a picture's pixels or as EXIF.

A tag keeps its type and its bytes as they were, so that nothing is understood that need not be. Only tags that describe
the picture are read; the layout of a file is its writer's own.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_UNIT = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}  # bytes of a value, by its type
_EXIF, _GPS, _INTEROP = 34665, 34853, 40965  # tags that point to a directory of their own
_DESCRIPTION, _XMP, _IPTC, _PHOTOSHOP, _ICC = 270, 700, 33723, 34377, 34675
_DESCRIBING = {
  *(269, _DESCRIPTION, 271, 272, 285, 305, 306, 315, 316, 33432),  # names, texts, camera, program, time, author, rights
  *(274, 282, 283, 296),  # orientation, resolution
  *(301, 318, 319, _ICC),  # what the values mean as colours
  *(18246, 18249, 40091, 40092, 40093, 40094, 40095, _XMP, _IPTC, _PHOTOSHOP),  # ratings, keywords, editors' notes
  *(33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113),  # the place on a map
}


@dataclasses.dataclass(frozen=True)
class Tags:
  """Descriptions of a picture: tag to type and bytes, or to a directory of such."""

  order: str = "<"  # of the bytes of a number: < or >
  entries: dict[int, Any] = dataclasses.field(default_factory=dict)


def read_tags(data: bytes) -> Tags:
  """Reads the describing tags of a TIFF or BigTIFF file's first picture; damaged ones are left out."""
  order = "<" if data.startswith(b"II") else ">"
  big = data[2:4] in (b"+\0", b"\0+")
  if len(data) < 16:
    return Tags()
  found = dict(_directory(data, order, big, _number(data, order, big, 8 if big else 4)))
  entries: dict[int, Any] = {tag: entry for tag, entry in found.items() if tag in _DESCRIBING}
  if entries.get(_DESCRIPTION, (2, b""))[1].startswith(b'{"shape"'):  # tifffile's note on the layout
    del entries[_DESCRIPTION]
  for tag in {_EXIF, _GPS} & found.keys():
    start = int.from_bytes(found[tag][1], "little" if order == "<" else "big")
    below = {tag: entry for tag, entry in _directory(data, order, big, start) if tag != _INTEROP}
    if below:
      entries[tag] = below
  return Tags(order, entries)


def _number(data: bytes | bytearray, order: str, big: bool, start: int) -> int:
  """The offset or count at `start`."""
  return struct.unpack_from(order + ("Q" if big else "I"), data, start)[0]


def _directory(data: bytes, order: str, big: bool, start: int) -> Iterator[tuple[int, tuple[int, bytes]]]:
  """The tags of the directory at `start`, each with its type and bytes, as far as they lie in the file."""
  try:
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    for at in range(start + (8 if big else 2), len(data) - entry.size + 1, entry.size)[:count]:
      tag, kind, number, value = entry.unpack_from(data, at)
      length = _UNIT.get(kind, 0) * number
      if length > len(value):
        offset = _number(value, order, big, 0)
        value = data[offset : offset + length]
      if 0 < length <= len(value):
        yield tag, (kind, value[:length])
  except struct.error:  # the directory lies outside the file
    return


def _packed(order: str, entries: dict[int, Any], start: int) -> bytes:
  """A directory that will lie at `start`, followed by the values that do not fit into it."""
  directory, values = struct.pack(order + "H", len(entries)), b""
  free = start + len(directory) + 12 * len(entries) + 4
  for tag, entry in sorted(entries.items()):
    offset = free + len(values)
    field = struct.pack(order + "I", offset)
    if isinstance(entry, dict):
      kind, count = 4, 1
      values += _packed(order, entry, offset)
    else:
      kind, value = entry
      count = len(value) // _UNIT[kind]
      if len(value) > 4:
        values += value
      else:
        field = value.ljust(4, b"\0")
    values += b"\0" * (len(values) % 2)  # offsets are even
    directory += struct.pack(order + "HHI4s", tag, kind, count, field)
  return directory + b"\0" * 4 + values


def _header(order: str, start: int) -> bytes:
  return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)


def exif_of(tags: Tags) -> bytes:
  """The tags as the EXIF of a file of another format, which has places of its own for profile and XMP."""
  entries = {tag: entry for tag, entry in tags.entries.items() if tag not in (_XMP, _IPTC, _PHOTOSHOP, _ICC)}
  return _header(tags.order, 8) + _packed(tags.order, entries, 8) if entries else b""


def tags_of(exif: bytes, icc_profile: bytes, xmp: bytes, dpi: tuple[float, float] | None) -> Tags:
  """The tags that say what another format says in places of its own."""
  tags = read_tags(exif)
  entries = dict(tags.entries)
  if dpi:
    for tag, value in zip((282, 283), dpi, strict=True):
      entries[tag] = 5, struct.pack(tags.order + "II", round(1000 * value), 1000)
    entries[296] = 3, struct.pack(tags.order + "H", 2)  # per inch
  if icc_profile:
    entries[_ICC] = 7, icc_profile
  if xmp:
    entries[_XMP] = 1, xmp
  return Tags(tags.order, entries)


def encode_tiff(pixels: np.ndarray, photometric: int, tags: Tags) -> bytes:
  """A TIFF file without loss: bool, uint8 or uint16 [h w] or [h w c], the last of 2 or 4 RGB channels being alpha."""

  def shorts(*values: int) -> tuple[int, bytes]:
    return 3, np.array(values, tags.order + "u2").tobytes()

  def long(value: int) -> tuple[int, bytes]:
    return 4, struct.pack(tags.order + "I", value)

  height, width, *rest = pixels.shape
  channels = rest[0] if rest else 1
  bits = 1 if pixels.dtype == bool else 8 * pixels.dtype.itemsize
  stored = np.packbits(pixels, axis=1) if bits == 1 else pixels.astype(f"{tags.order}u{bits // 8}")
  strip = zlib.compress(stored.tobytes())
  strip += b"\0" * (len(strip) % 2)
  layout = {256: long(width), 257: long(height), 258: shorts(*[bits] * channels), 259: shorts(8)}
  layout |= {262: shorts(photometric), 273: long(8), 277: shorts(channels), 278: long(height), 279: long(len(strip))}
  if photometric != 5 and channels in (2, 4):
    layout[338] = shorts(2)  # alpha that the colours are not multiplied by
  start = 8 + len(strip)
  return _header(tags.order, start) + strip + _packed(tags.order, {**tags.entries, **layout}, start)


def without_preview(exif: bytes) -> bytes:
  """EXIF without its small picture, which would still show what was in the hole; nothing else moves."""
  body = bytearray(exif)
  order = "<" if body.startswith(b"II") else ">"
  try:
    start = _number(body, order, False, 4)
    link = start + 2 + 12 * struct.unpack_from(order + "H", body, start)[0]
    second = _number(body, order, False, link)
    struct.pack_into(order + "I", body, link, 0)
    places = dict(_directory(bytes(body), order, False, second)) if second else {}
    offset, length = (_number(places[tag][1], order, False, 0) for tag in (513, 514))
    body[offset : offset + length] = bytes(len(body[offset : offset + length]))
  except (struct.error, KeyError):  # there is none, or no EXIF that can be followed
    pass
  return bytes(body)
