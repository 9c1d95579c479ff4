"""Words of a picture file about its picture: carried over to the file that is written, never the layout of pixels.

A file of the same format gets the very bytes: PNG's chunks, JPEG's segments, TIFF's tags, JPEG 2000's profile and XMP.
A PNG made of another file gets EXIF, colour profile, XMP, comment and resolution where PNG has a place for them.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image, JpegImagePlugin

from gmsrm_jax.inference import tiff_files

MAX_DPI = 100_000
"""A resolution beyond this is nonsense and is not written again."""

_EXIF = b"Exif\0\0"  # before it in a JPEG
_PNG_HEADER = 8 + 25  # signature, and IHDR: length, name, 13 bytes, checksum
_PNG_COLOURS = (b"cHRM", b"gAMA", b"iCCP", b"sRGB", b"cICP", b"mDCV", b"cLLI")
_JP2_PROFILE = b"\2\0\0"  # before it in JPEG 2000's box colr: method, precedence, approximation
_JP2_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # before it in a box uuid
_JPEG_SEGMENTS = {"APP1": b"", "APP2": b"ICC_PROFILE\0", "APP13": b"", "COM": b""}  # and how their data begins


@dataclasses.dataclass(frozen=True)
class Metadata:
  """Descriptions of a picture; empty where the file has none."""

  exif: bytes = b""  # from the byte order on
  icc_profile: bytes = b""
  xmp: bytes = b""
  comment: bytes = b""
  dpi: tuple[float, float] | None = None
  subsampling: int = 0  # of a JPEG's colours, as Pillow counts
  # The same and more, as the file's own format has it.
  png: bytes | None = None
  jpeg: bytes | None = None
  tiff: tiff_files.Tags | None = None

  def for_other_format(self, mode: str) -> Metadata:
    """The part that fits a file of another format; a profile of inks does not fit colours, nor the other way round."""
    fits = self.icc_profile[16:20] in ((b"CMYK",) if mode == "CMYK" else (b"RGB ", b"GRAY"))
    icc_profile = self.icc_profile if fits else b""
    return dataclasses.replace(self, icc_profile=icc_profile, subsampling=0, png=None, jpeg=None, tiff=None)

  def tiff_tags(self) -> tiff_files.Tags:
    """The same as tags."""
    return self.tiff or tiff_files.tags_of(self.exif, self.icc_profile, self.xmp, self.dpi)


def read_metadata(file: Image.Image, data: bytes) -> Metadata:
  """Takes what describes the picture from a file that Pillow has opened, and its bytes."""
  info = file.info
  found = {key: info[key] for key in ("icc_profile", "xmp", "comment") if isinstance(info.get(key), bytes)}
  found["exif"] = tiff_files.without_preview((info.get("exif") or b"").removeprefix(_EXIF))
  if info.get("dpi") and all(1 <= value <= MAX_DPI for value in info["dpi"]):
    found["dpi"] = tuple(map(float, info["dpi"]))
  if file.format == "PNG":
    found["png"] = _png_chunks(data)
  elif file.format == "TIFF":
    found["tiff"] = tiff_files.read_tags(data)
    found["exif"] = tiff_files.exif_of(found["tiff"])
  elif isinstance(file, JpegImagePlugin.JpegImageFile):  # MPO as well
    found["jpeg"] = _jpeg_segments(file.applist)
    found["subsampling"] = max(0, JpegImagePlugin.get_sampling(file))
  elif file.format == "JPEG2000":
    boxes = [*_jp2_boxes(data)]
    boxes += [inner for name, content in boxes if name == b"jp2h" for inner in _jp2_boxes(content)]
    for name, content in boxes:
      if name == b"colr" and content.startswith(_JP2_PROFILE):
        found["icc_profile"] = content.removeprefix(_JP2_PROFILE)
      if name == b"uuid" and content.startswith(_JP2_XMP):
        found["xmp"] = content.removeprefix(_JP2_XMP)
  return Metadata(**found)


def _png_chunks(data: bytes) -> bytes:
  """The chunks that PNG's own naming calls safe to copy, and those about colour."""
  chunks, at = b"", _PNG_HEADER
  while at + 12 <= len(data):
    (length,) = struct.unpack_from(">I", data, at)
    name, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
    ancillary, safe = (name[byte] & 32 for byte in (0, 3))
    if ancillary and (safe or name in _PNG_COLOURS):
      chunks += _chunk(name, tiff_files.without_preview(content) if name == b"eXIf" else content)
    at += 12 + length
  return chunks


def _chunk(name: bytes, content: bytes) -> bytes:
  return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _jpeg_segments(segments: list[tuple[str, bytes]]) -> bytes:
  """EXIF, XMP, colour profile, editors' notes and comments; what describes the coding is left out."""
  kept = b""
  for name, content in segments:
    if name in _JPEG_SEGMENTS and content.startswith(_JPEG_SEGMENTS[name]):
      marker = 0xFE if name == "COM" else 0xE0 + int(name[3:])
      if content.startswith(_EXIF):
        content = _EXIF + tiff_files.without_preview(content.removeprefix(_EXIF))
      kept += struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
  return kept


def with_png_chunks(data: bytes, metadata: Metadata) -> bytes:
  """Puts what describes the picture into a PNG file that has no such chunks, right after its header."""
  chunks = metadata.png
  if chunks is None:
    chunks = b""
    if metadata.icc_profile:
      chunks += _chunk(b"iCCP", b"icc\0\0" + zlib.compress(metadata.icc_profile))
    if metadata.dpi:
      chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in metadata.dpi), 1))
    if metadata.exif:
      chunks += _chunk(b"eXIf", metadata.exif)
    if metadata.xmp:
      chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp" + b"\0" * 5 + metadata.xmp)
    if metadata.comment:
      chunks += _chunk(b"tEXt", b"Comment\0" + metadata.comment.rstrip(b"\0"))
  return data[:_PNG_HEADER] + chunks + data[_PNG_HEADER:]


def _jp2_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """Name and content of each box; a bare stream of pixels has none."""
  at = 0
  while at + 8 <= len(data) and data[:2] != b"\xff\x4f":
    length, name = struct.unpack_from(">I4s", data, at)
    head = 8
    if length == 1 and at + 16 <= len(data):
      head, (length,) = 16, struct.unpack_from(">Q", data, at + 8)
    end = at + length if length >= head else len(data)  # 0: to the end
    yield name, data[at + head : end]
    at = end


def with_jp2_boxes(data: bytes, metadata: Metadata) -> bytes:
  """Puts colour profile and XMP into a JPEG 2000 file that has none, of which Pillow knows nothing."""

  def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content

  written = b""
  for name, content in _jp2_boxes(data):
    if name == b"jp2h" and metadata.icc_profile:
      content = b"".join(box(*inner) for inner in _jp2_boxes(content) if inner[0] != b"colr")
      content += box(b"colr", _JP2_PROFILE + metadata.icc_profile)
    if name == b"jp2c" and metadata.xmp:
      written += box(b"uuid", _JP2_XMP + metadata.xmp)
    written += box(name, content)
  return written


def save_options(metadata: Metadata, image_format: str) -> dict[str, Any]:
  """Pillow's arguments that write what describes the picture, as far as the format has a place for it."""
  described = ("exif", "icc_profile", "xmp")
  if image_format == "JPEG":
    keys = ("dpi", "subsampling") if metadata.jpeg is not None else (*described, "comment", "dpi", "subsampling")
  else:
    keys = described if image_format == "WEBP" else ("dpi", "comment")
  options = {key: getattr(metadata, key) for key in keys} | {"extra": metadata.jpeg}
  if image_format == "JPEG" and options.get("exif"):
    options["exif"] = _EXIF + metadata.exif
  return {key: value for key, value in options.items() if value not in (None, b"")}
