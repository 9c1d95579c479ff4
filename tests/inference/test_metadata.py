"""Descriptions travel with a picture: the bytes of the files say so."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from gmsrm_jax.inference import photos

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\0\x04abc\0\0\0\0\0"  # Make, big-endian
IPTC = b"Photoshop 3.0\08BIM\x04\x04\0\0\0\0\0\x04word"
DESCRIBING = {
  b"gAMA": struct.pack(">I", 45455),
  b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
  b"pHYs": struct.pack(">IIB", 11811, 5906, 1),
  b"tEXt": b"Title\0of the picture",
  b"zTXt": b"Parameters\0\0" + zlib.compress(b"steps 20"),
  b"iTXt": b"XML:com.adobe.xmp\0\0\0\0\0" + XMP,
  b"eXIf": EXIF[6:],
}
LAYOUT = {b"bKGD": b"\0" * 6, b"sBIT": b"\x05\x06\x05", b"tIME": b"\x07\xe4\x01\x01\0\0\0"}


def chunk(name, content):
  return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(pixels, **chunks):
  """A PNG file with these chunks, those of text after the pixels."""
  rows = pixels.astype(pixels.dtype.newbyteorder(">"))
  colours = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
  header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8 * pixels.itemsize, colours, 0, 0, 0)
  data = b"".join(b"\0" + row.tobytes() for row in rows)
  more = {name.encode(): content for name, content in chunks.items()}
  early = b"".join(chunk(*item) for item in more.items() if not item[0].endswith(b"Xt"))
  late = b"".join(chunk(*item) for item in more.items() if item[0].endswith(b"Xt"))
  body = chunk(b"IHDR", header) + early + chunk(b"IDAT", zlib.compress(data)) + late + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


def chunks_of(data):
  """All chunks of a PNG file but those of its pixels, each with a right checksum."""
  found, at = {}, 8
  while at < len(data):
    (length,) = struct.unpack_from(">I", data, at)
    name, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
    assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(name + content)
    at += 12 + length
    found[name] = content
  return {name: content for name, content in found.items() if name not in (b"IHDR", b"IDAT", b"IEND")}


def again(data, wanted="keep"):
  photo = photos.read_photo(data)
  return photos.encode_photo(photo, photos.output_format(photo, wanted))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_chunks_of_a_png_travel_but_those_of_its_layout(dtype, channels):
  pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (20, 30, channels), dtype, endpoint=True)
  layout = {name: content for name, content in LAYOUT.items() if name == b"tIME" or channels == 3}
  source = png(pixels, **{name.decode(): content for name, content in {**DESCRIBING, **layout}.items()})
  written = again(source)
  assert chunks_of(written) == DESCRIBING
  with Image.open(io.BytesIO(source)) as before, Image.open(io.BytesIO(written)) as after:
    np.testing.assert_array_equal(np.asarray(after.convert("RGBA")), np.asarray(before.convert("RGBA")))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_stays_transparent(channels):
  pixels = np.random.default_rng(2).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
  pixels[4, 5] = 1000
  pixels[6, 7] = 1001  # the same in 8 bits
  photo = photos.read_photo(again(png(pixels, tRNS=struct.pack(">H", 1000) * channels)))
  assert photo.mode == "RGBA;16"
  np.testing.assert_array_equal(photo.pixels[..., :channels], pixels)
  assert np.argwhere(photo.pixels[..., 3] == 0).tolist() == [[4, 5]] and photo.pixels[6, 7, 3] == 65535


def segments(data):
  """JPEG's segments before the pixels."""
  found, at = [], 2
  while data[at + 1] != 0xDA:
    (length,) = struct.unpack_from(">H", data, at + 2)
    found.append((data[at + 1], data[at + 4 : at + 2 + length]))
    at += 2 + length
  return found


def saved(image_format, **options):
  buffer = io.BytesIO()
  Image.fromarray(PIXELS).save(buffer, image_format, **options)
  return buffer.getvalue()


def test_the_segments_of_a_jpeg_travel():
  iptc = struct.pack(">BBH", 0xFF, 0xED, len(IPTC) + 2) + IPTC
  source = saved("JPEG", extra=iptc, exif=EXIF, xmp=XMP, icc_profile=PROFILE, comment=b"a word", dpi=(300, 150))
  kept = (b"Exif", b"http", b"ICC_PROFILE", b"Photoshop", b"a word", b"JFIF")
  before, after = ({c for _, c in segments(file) if c.startswith(kept)} for file in (source, again(source)))
  assert before == after and len(after) == len(kept)


@pytest.mark.parametrize(
  ("image_format", "written"), [("MPO", "JPEG"), ("TIFF", "TIFF"), ("GIF", "PNG"), ("PNG", "PNG")]
)
def test_of_several_pictures_in_a_file_the_first_is_taken_and_all_are_counted(image_format, written):
  others = [Image.fromarray(PIXELS[::-1]), Image.fromarray(255 - PIXELS)]
  source = saved(image_format, save_all=True, append_images=others)
  photo = photos.read_photo(source)
  assert (photo.frames, photos.output_format(photo, "keep")) == (3, written)
  with Image.open(io.BytesIO(source)) as before, Image.open(io.BytesIO(again(source))) as after:
    assert (after.format, getattr(after, "n_frames", 1)) == (written, 1)
    change = np.asarray(after.convert("RGB")).astype(int) - np.asarray(before.convert("RGB"))
    assert np.abs(change).mean() < (9 if written == "JPEG" else 1e-9)
  assert not any(content.startswith(b"MPF") for _, content in (segments(again(source)) if written == "JPEG" else ()))


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_a_png_of_another_file_says_what_that_said(image_format):
  options = {"dpi": (300, 150), "comment": b"a word"} if image_format == "JPEG" else {"lossless": True}
  source = saved(image_format, exif=EXIF, xmp=XMP, icc_profile=PROFILE, **options)
  found = chunks_of(again(source, "png"))
  assert (found[b"eXIf"], found[b"iTXt"]) == (EXIF[6:], b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
  assert zlib.decompress(found[b"iCCP"][5:]) == PROFILE
  if image_format == "JPEG":
    assert (found[b"tEXt"], found[b"pHYs"]) == (b"Comment\0a word", struct.pack(">IIB", 11811, 5906, 1))
  with Image.open(io.BytesIO(again(source))) as kept:
    assert (kept.info["icc_profile"], kept.info["xmp"], kept.getexif()[271]) == (PROFILE, XMP, "abc")


def jp2(*, profile=b"", xmp=b""):
  """A JPEG 2000 file with these in their boxes."""
  data, box = (
    saved("JPEG2000", irreversible=False),
    lambda name, content: struct.pack(">I4s", 8 + len(content), name) + content,
  )
  head, colours = data.index(b"jp2h") - 4, data.index(b"colr") - 4
  header = data[head + 8 : colours] + (box(b"colr", b"\2\0\0" + profile) if profile else data[colours : colours + 15])
  identity = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
  more = box(b"xml ", b"<other/>") + (box(b"uuid", identity + xmp) if xmp else b"")
  return data[:head] + box(b"jp2h", header) + more + data[colours + 15 :]


@pytest.mark.parametrize("said", [{}, {"profile": PROFILE}, {"xmp": XMP}, {"profile": PROFILE, "xmp": XMP}])
def test_jpeg_2000_keeps_profile_and_xmp_and_a_png_of_it_has_them(said):
  source = jp2(**said)
  written = again(source)
  assert (b"colr\2\0\0" + PROFILE in written, XMP in written) == ("profile" in said, "xmp" in said)
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(written))), np.asarray(Image.open(io.BytesIO(source))))
  assert {b"iCCP", b"iTXt"} & chunks_of(again(source, "png")).keys() == {
    name for name, key in ((b"iCCP", "profile"), (b"iTXt", "xmp")) if key in said
  }
  assert again(written) == written


def test_the_profile_of_inks_does_not_follow_colours_into_a_png():
  ink = bytearray(PROFILE)
  ink[16:20] = b"CMYK"
  buffer = io.BytesIO()
  Image.fromarray(PIXELS).convert("CMYK").save(buffer, "JPEG", icc_profile=bytes(ink))
  assert photos.read_photo(again(buffer.getvalue())).metadata.icc_profile == ink
  assert chunks_of(again(buffer.getvalue(), "png")) == {}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0", b"\0" * 30])
def test_damaged_exif_does_not_lose_the_picture(image_format, exif):
  photo = photos.read_photo(again(saved(image_format, exif=exif)))
  assert photo.orientation == 1 and photo.rgb.shape == PIXELS.shape


@pytest.mark.parametrize("before", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("after", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM", "TGA", "JPEG2000"])
def test_a_file_of_another_format_looks_the_same_and_says_what_it_can(before, after):
  exif = Image.Exif()
  exif[274], exif[271] = 6, "maker"
  options = {"dpi": (300, 150)} if before != "WEBP" else {"lossless": True}
  source = saved(before, exif=exif, icc_profile=PROFILE, **options)
  with Image.open(io.BytesIO(source)) as old, Image.open(io.BytesIO(again(source, after))) as new:
    assert new.format == after
    seen = [np.asarray(ImageOps.exif_transpose(one).convert("L")).astype(int) for one in (old, new)]
    assert np.abs(seen[0] - seen[1]).mean() < (4 if after == "JPEG" else 1e-9)
    if after in ("PNG", "JPEG", "TIFF", "WEBP"):
      assert (new.getexif().get(271), new.info["icc_profile"]) == ("maker", PROFILE)
    if after == "JPEG2000":
      assert photos.read_photo(again(source, after)).metadata.icc_profile == PROFILE
    if after in ("PNG", "JPEG", "TIFF") and before != "WEBP":
      assert [round(value) for value in new.info["dpi"]] == [300, 150]
