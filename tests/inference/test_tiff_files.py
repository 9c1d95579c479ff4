"""TIFF files: what tifffile reads from a filled file is what it wrote into the photo, but for the hole."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference import photos, tiff_files

SHAPE = (37, 45)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
KINDS = {  # dtype, channels, tifffile's arguments
  "grey": ("u1", 0, {"photometric": "minisblack"}),
  "grey16": ("u2", 0, {"photometric": "minisblack"}),
  "grey_alpha": ("u1", 2, {"photometric": "minisblack", "extrasamples": ["unassalpha"]}),
  "rgb": ("u1", 3, {"photometric": "rgb"}),
  "rgb_planes": ("u1", 3, {"photometric": "rgb", "planarconfig": "separate"}),
  "rgb16": ("u2", 3, {"photometric": "rgb"}),
  "rgba": ("u1", 4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
  "rgba_planes": ("u1", 4, {"photometric": "rgb", "extrasamples": ["unassalpha"], "planarconfig": "separate"}),
  "rgba16": ("u2", 4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
  "cmyk": ("u1", 4, {"photometric": "separated"}),
}
STORAGE = [{"bigtiff": True}, {}, {"tile": (16, 16)}, {"compression": "zlib", "predictor": True}]


def tiff(pixels, **options):
  """The bytes of a TIFF file, by tifffile."""
  if options.get("planarconfig") == "separate":
    pixels = np.moveaxis(pixels, -1, 0)
  buffer = io.BytesIO()
  tifffile.imwrite(buffer, pixels, metadata=None, **options)
  return buffer.getvalue()


def noise(dtype, channels):
  shape = (*SHAPE, channels) if channels else SHAPE
  return np.random.default_rng(0).integers(0, 2 ** (8 * np.dtype(dtype).itemsize), shape, dtype=dtype)


def filled(data, hole, wanted="keep"):
  """The file after its hole, upright, was filled with white."""
  photo = photos.read_photo(data, "a.tif")
  fill = np.full((*hole.shape, 3), 255, np.uint8)
  return photos.encode_photo(photos.fill_hole(photo, fill, hole), photos.output_format(photo, wanted))


def page(data):
  with tifffile.TiffFile(io.BytesIO(data)) as file:
    return file.pages[0].asarray(), file.pages[0].tags


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_only_the_hole_changes(kind, order):
  dtype, channels, options = KINDS[kind]
  before, hole = noise(dtype, channels), np.zeros(SHAPE, np.uint8)
  hole[3:9, 20:31] = 1
  for storage in STORAGE[order == ">" :]:  # Pillow does not know a BigTIFF of this order
    after, tags = page(filled(tiff(before, byteorder=order, **options, **storage), hole))
    assert (after.dtype, after.shape) == (before.dtype, before.shape), storage
    np.testing.assert_array_equal(after[hole == 0], before[hole == 0], err_msg=str(storage))
    assert (after[hole > 0] != before[hole > 0]).any()
    assert tags["PhotometricInterpretation"].value.name.lower() == options["photometric"]


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_file_stays_turned_and_is_filled_where_the_viewer_sees_the_hole(orientation, dtype):
  turn = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.fliplr(np.rot90(a, -1)),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.fliplr(np.rot90(a)),
    8: np.rot90,
  }[orientation]
  before = noise(dtype, 3) // 2
  hole = np.zeros(turn(before).shape[:2], np.uint8)
  hole[:5, :11] = 1  # top left, as the viewer sees it
  after, tags = page(filled(tiff(before, photometric="rgb", extratags=[(274, 3, 1, orientation)]), hole))
  assert tags["Orientation"].value == orientation
  np.testing.assert_array_equal(turn(after)[hole == 0], turn(before)[hole == 0])
  assert (turn(after)[:5, :11] == np.iinfo(dtype).max).all()


def test_a_palette_becomes_its_colours():
  colours = np.random.default_rng(1).integers(0, 256, (3, 256)).astype(np.uint16) * 256
  data = tiff(noise("u1", 0), photometric="palette", colormap=colours)
  after, tags = page(filled(data, np.zeros(SHAPE, np.uint8)))
  np.testing.assert_array_equal(after, (colours.T // 256)[noise("u1", 0)])
  assert "ColorMap" not in tags


REFUSED = {
  "associated alpha": (tiff(noise("u1", 4), photometric="rgb", extrasamples=["assocalpha"]), "multiplied"),
  "a fourth channel": (tiff(noise("u1", 4), photometric="rgb", extrasamples=["unspecified"]), "channels beside"),
  "YCbCr": (tiff(noise("u1", 3), photometric="ycbcr", subsampling=(1, 1)), "YCbCr"),
  "LAB": (tiff(noise("u1", 3), photometric="cielab"), "LAB"),
  "CMYK of 16 bits": (tiff(noise("u2", 4), photometric="separated"), "16 bits"),
  "32 bits": (tiff(noise("u2", 0).astype(np.uint32), photometric="minisblack"), "32 bits"),
}
UNREADABLE = {
  "16 bits in planes": (tiff(noise("u2", 3), photometric="rgb", planarconfig="separate"), "planes"),
  "16 bits, 0 is white": (tiff(noise("u2", 0), photometric="miniswhite"), "0 is white"),
  "floating point": (tiff(noise("u1", 0).astype(np.float32)), "floating-point"),
}


@pytest.mark.parametrize("kind", [*REFUSED, *UNREADABLE])
def test_what_cannot_be_written_back_is_refused_by_name(kind):
  data, word = (REFUSED | UNREADABLE)[kind]
  with pytest.raises(ConfigError, match=f"a.tif.*{word}") as caught:
    filled(data, np.zeros(SHAPE, np.uint8))
  if kind in REFUSED:
    assert "--format=png" in str(caught.value)
    hole = np.zeros(SHAPE, np.uint8)
    with Image.open(io.BytesIO(filled(data, hole, "png"))) as image:
      assert image.size == SHAPE[::-1]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
def test_what_describes_the_picture_travels_and_its_layout_does_not(big, orientation):
  tags = TiffImagePlugin.ImageFileDirectory_v2()
  tags.tagtype[270] = tags.tagtype[33723] = tags.tagtype[34377] = 7
  tags[270], tags[271], tags[274], tags[700] = "Café".encode(), "maker", orientation, b"<x:xmpmeta/>"
  tags[34377], tags[33723] = b"8BIM\x04\x04", b"several keywords"
  tags[34665] = {36867: "2020:01:01 00:00:00", 33434: TiffImagePlugin.IFDRational(1, 50)}
  tags[34853] = {1: "N", 2: (48.0, 8.0, 15.0)}
  source = io.BytesIO()
  picture = Image.fromarray(noise("u1", 3)).quantize()
  picture.save(source, "TIFF", tiffinfo=tags, icc_profile=PROFILE, dpi=(300, 150), big_tiff=big)
  hole = np.zeros(SHAPE if orientation == 1 else SHAPE[::-1], np.uint8)
  _, before = page(source.getvalue())
  after_data = filled(source.getvalue(), hole)
  _, after = page(after_data)
  names = {"ImageDescription", "Make", "XMP", "InterColorProfile", "ImageResources", "IPTCNAA", "ExifTag", "GPSTag"}
  names |= {"Orientation", "XResolution", "YResolution", "ResolutionUnit"}
  assert {name: after[name].value for name in names} == {name: before[name].value for name in names}
  assert len(after) == len(names) + 9  # nine of layout: size, bits, compression, colours, channels, one strip
  with Image.open(io.BytesIO(filled(source.getvalue(), hole, "png"))) as png:
    exif = png.getexif()
    assert (exif[271], exif.get(274), exif.get_ifd(34665)[33434]) == ("maker", orientation, 1 / 50)
    assert exif.get_ifd(34853)[2] == (48.0, 8.0, 15.0)
    assert png.info["icc_profile"] == PROFILE and png.info["dpi"] == pytest.approx((300, 150), abs=0.02)
    assert b"<x:xmpmeta/>" in png.info["xmp"]


def test_tifffiles_note_on_the_shape_of_a_file_does_not_travel():
  buffer = io.BytesIO()
  tifffile.imwrite(buffer, np.moveaxis(noise("u1", 3), -1, 0), photometric="rgb", planarconfig="separate")
  assert "ImageDescription" in page(buffer.getvalue())[1]
  assert "ImageDescription" not in page(filled(buffer.getvalue(), np.zeros(SHAPE, np.uint8)))[1]


def test_damaged_tags_are_left_out():
  data = bytearray(
    tiff(noise("u1", 3), photometric="rgb", description="a long description", extratags=[(274, 3, 1, 6)])
  )
  _, tags = page(bytes(data))
  struct.pack_into("<I", data, tags["ImageDescription"].offset + 8, len(data) + 100)  # beyond the end
  assert tiff_files.read_tags(bytes(data)).entries.keys() == {274, 282, 283, 296, 305}


def test_a_preview_in_exif_does_not_show_what_was_in_the_hole():
  thumbnail = b"\xff\xd8 what was in the hole \xff\xd9"
  first = struct.pack("<HHHI4sI", 1, 271, 2, 4, b"abc\0", 26)  # Make; the next directory is at 26
  second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, len(thumbnail), 0)
  exif = b"Exif\0\0" + b"II*\0\x08\0\0\0" + first + second + thumbnail
  with Image.open(io.BytesIO(_jpeg(exif))) as image:
    assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[513] == 56  # Pillow finds it there
  after = filled(_jpeg(exif), np.zeros(SHAPE, np.uint8))
  assert b"in the hole" not in after
  with Image.open(io.BytesIO(after)) as image:
    assert image.getexif()[271] == "abc" and not image.getexif().get_ifd(ExifTags.IFD.IFD1)


def _jpeg(exif):
  buffer = io.BytesIO()
  Image.fromarray(noise("u1", 0)).save(buffer, "JPEG", exif=exif)
  return buffer.getvalue()
