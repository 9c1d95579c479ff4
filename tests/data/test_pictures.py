"""Pictures: every kind of file is read right, and by OpenCV only where its pixels are Pillow's."""

from __future__ import annotations

import os
import pickle
import struct
import zlib

import cv2
import imagecodecs
import numpy as np
import pytest
import skimage.data
from PIL import Image

from gmsrm_jax.data import pictures
from gmsrm_jax.errors import ConfigError


def _photo(height=48, width=60):
  """Smooth colours with some detail, so that JPEG keeps them nearly."""
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
  return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _save(path, **options):
  Image.fromarray(_photo()).save(path, **options)
  return path


def test_rgb_comes_back_to_the_bit(tmp_path):
  for suffix in ("png", "bmp", "tiff"):
    np.testing.assert_array_equal(pictures.decode(_save(tmp_path / f"x.{suffix}")), _photo())
  close = pictures.decode(_save(tmp_path / "x.jpg", quality=98)).astype(int) - _photo()
  assert np.abs(close).mean() < 3


def test_grey_palette_bilevel_and_cmyk_become_rgb(tmp_path):
  rgb = Image.fromarray(_photo())
  for mode, suffix in (("L", "png"), ("P", "png"), ("1", "png"), ("CMYK", "tif"), ("CMYK", "jpg"), ("L", "jpg")):
    converted = rgb.convert(mode)
    path = tmp_path / f"{mode}.{suffix}"
    converted.save(path, **({"quality": 98} if suffix == "jpg" else {}))
    image = pictures.decode(path)
    assert image.shape == (48, 60, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - np.asarray(converted.convert("RGB"))).mean() < 3
    if mode in ("L", "1"):
      assert (image[..., 0] == image[..., 2]).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_and_not_clipped(tmp_path, suffix):
  values = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
  Image.fromarray(values).save(tmp_path / f"x.{suffix}")
  image = pictures.decode(tmp_path / f"x.{suffix}")
  np.testing.assert_array_equal(image, np.repeat(np.round(values / 257).astype(np.uint8)[..., None], 3, 2))


def test_16_bit_colour_is_scaled(tmp_path):
  values = _photo().astype(np.uint16) * 257
  cv2.imwrite(str(tmp_path / "x.png"), values[..., ::-1])
  np.testing.assert_array_equal(pictures.decode(tmp_path / "x.png"), _photo())


def test_transparent_pixels_become_white(tmp_path):
  alpha = np.full((48, 60), 255, np.uint8)
  alpha[:, 30:] = 0
  Image.fromarray(np.dstack([_photo(), alpha])).save(tmp_path / "x.png")
  image = pictures.decode(tmp_path / "x.png")
  np.testing.assert_array_equal(image[:, :30], _photo()[:, :30])
  assert (image[:, 30:] == 255).all()


def test_exif_orientation_turns_the_image_upright(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
  Image.fromarray(_photo()).save(tmp_path / "x.png", exif=exif)
  np.testing.assert_array_equal(pictures.decode(tmp_path / "x.png"), np.rot90(_photo(), -1))


@pytest.fixture(scope="module")
def photo():
  return Image.fromarray(skimage.data.astronaut()[20:173, 100:301])  # odd sides, as subsampled colours like least


def by_opencv(path):
  with pictures.open_picture(path) as file:
    return pictures._decode_plain_jpeg(file, path)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 95, "progressive": True}, {"restart_marker_rows": 2}])
def test_a_plain_jpeg_has_pillows_pixels(photo, subsampling, options, tmp_path):
  photo.save(tmp_path / "x.jpg", subsampling=subsampling, **options)
  np.testing.assert_array_equal(by_opencv(tmp_path / "x.jpg"), np.asarray(Image.open(tmp_path / "x.jpg")))


def test_grey_jpegs_and_colours_kept_as_rgb_have_pillows_pixels(photo, tmp_path):
  photo.convert("L").save(tmp_path / "grey.jpg")
  photo.save(tmp_path / "rgb.jpg", keep_rgb=True)
  for name in ("grey.jpg", "rgb.jpg"):
    np.testing.assert_array_equal(by_opencv(tmp_path / name), np.asarray(Image.open(tmp_path / name).convert("RGB")))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.97, 0.9999])
def test_a_truncated_jpeg_is_refused_by_name(photo, share, tmp_path):
  path = tmp_path / "x.jpg"
  photo.save(path)
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  with pytest.raises(ConfigError, match=r"x\.jpg cannot be decoded"):
    pictures.decode(path)


def test_other_jpegs_are_left_to_pillow(photo, tmp_path):
  turned = Image.Exif()
  turned[0x0112] = 6
  photo.save(tmp_path / "turned.jpg", exif=turned)
  photo.convert("CMYK").save(tmp_path / "cmyk.jpg")
  photo.save(tmp_path / "trailing.jpg")
  with (tmp_path / "trailing.jpg").open("ab") as file:
    file.write(b"a camera's own notes")
  photo.save(tmp_path / "named.jpg", format="PNG")
  photo.save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[photo])
  for path in tmp_path.iterdir():
    assert by_opencv(path) is None, path
    assert pictures.decode(path).shape == ((201, 153, 3) if path.stem == "turned" else (153, 201, 3))


def test_a_picture_with_too_many_pixels_is_refused_by_its_header(photo, tmp_path):
  photo.save(tmp_path / "x.jpg")
  with pictures.open_picture(tmp_path / "x.jpg", most_pixels=153 * 201) as file:
    assert file.size == (201, 153)
  with (
    pytest.raises(ConfigError, match=r"x\.jpg cannot be decoded \(it has more than .* shrink it"),
    pictures.open_picture(tmp_path / "x.jpg", most_pixels=153 * 201 - 1),
  ):
    pass


def test_a_pipe_is_not_waited_for_and_what_is_not_there_is_said_to_be_missing(tmp_path):
  os.mkfifo(tmp_path / "pipe.png")
  with pytest.raises(pictures.PictureError, match=r"pipe\.png: no regular file: choose another"):
    pictures.decode(tmp_path / "pipe.png")
  with pytest.raises(pictures.PictureError, match=r"none\.png: No such file or directory: choose another"):
    pictures.decode(tmp_path / "none.png")


def test_the_error_travels_between_processes(tmp_path):
  with pytest.raises(pictures.PictureError) as caught:
    pictures.decode(tmp_path / "none.jpg")
  copy = pickle.loads(pickle.dumps(caught.value))
  assert str(copy) == str(caught.value) and copy.why == caught.value.why


@pytest.mark.parametrize(("depth", "level"), [(2, 1), (2, 3), (4, 1), (4, 15)])
def test_a_png_of_few_grey_levels_is_transparent_where_libpng_says(depth, level):
  grey = np.arange(8, dtype=np.uint8) % 2**depth
  row = b"\0" + np.packbits((grey[:, None] >> np.arange(depth)[::-1]) & 1).tobytes()
  parts = {
    b"IHDR": struct.pack(">IIBBBBB", 8, 1, depth, 0, 0, 0, 0),
    b"tRNS": struct.pack(">H", level),
    b"IDAT": zlib.compress(row),
    b"IEND": b"",
  }
  chunks = [struct.pack(">I", len(v)) + k + v + struct.pack(">I", zlib.crc32(k + v)) for k, v in parts.items()]
  data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
  shown = imagecodecs.png_decode(data)[0]
  expected = np.where(shown[:, 1] == 0, 255, shown[:, 0])
  np.testing.assert_array_equal(pictures.decode(data)[0, :, 1], expected)
  assert (shown[:, 1] == 0).tolist() == (grey == level).tolist()
