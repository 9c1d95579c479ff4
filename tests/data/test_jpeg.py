"""JPEG files: OpenCV may decode what it decodes as Pillow does, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from gmsrm_jax.data import sources
from gmsrm_jax.data.jpeg import decode_jpeg, read_header


def fast(path):
  return decode_jpeg(path.read_bytes(), 1_000_000)


def by_pillow(path):
  return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def photo():
  return Image.fromarray(skimage.data.astronaut()[20:173, 100:301])  # odd sides, as subsampled colours like least


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 95, "progressive": True}, {"restart_marker_rows": 2}])
def test_plain_files_have_pillows_pixels(photo, subsampling, options, tmp_path):
  photo.save(tmp_path / "x.jpg", subsampling=subsampling, **options)
  np.testing.assert_array_equal(fast(tmp_path / "x.jpg"), by_pillow(tmp_path / "x.jpg"))


def test_grey_and_colours_kept_as_rgb_have_pillows_pixels(photo, tmp_path):
  photo.convert("L").save(tmp_path / "grey.jpg")
  photo.save(tmp_path / "rgb.jpg", keep_rgb=True)
  for name in ("grey.jpg", "rgb.jpg"):
    np.testing.assert_array_equal(fast(tmp_path / name), by_pillow(tmp_path / name))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.97, 0.9999])
def test_a_truncated_file_is_left_to_pillow_which_refuses_it(photo, share, tmp_path):
  path = tmp_path / "x.jpg"
  photo.save(path)
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  with pytest.raises(OSError):
    if fast(path) is None:
      sources.decode(path)


def test_what_is_not_plain_is_left_to_pillow(photo, tmp_path):
  turned = Image.Exif()
  turned[0x0112] = 6
  photo.save(tmp_path / "turned.jpg", exif=turned)
  photo.convert("CMYK").save(tmp_path / "cmyk.jpg")
  photo.save(tmp_path / "trailing.jpg")
  with (tmp_path / "trailing.jpg").open("ab") as file:
    file.write(b"a camera's own notes")
  photo.save(tmp_path / "named.jpg", format="PNG")
  photo.save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[photo])
  (tmp_path / "header_only.jpg").write_bytes((tmp_path / "cmyk.jpg").read_bytes()[:30])
  (tmp_path / "empty.jpg").write_bytes(b"")
  for path in tmp_path.iterdir():
    assert fast(path) is None, path
    if path.name in ("header_only.jpg", "empty.jpg"):
      with pytest.raises(OSError):
        sources.decode(path)
    else:
      assert sources.decode(path).shape[2] == 3
  assert sources.decode(tmp_path / "turned.jpg").shape == (photo.width, photo.height, 3)


def test_an_upright_photo_with_exif_is_plain_and_a_huge_one_is_not(photo, tmp_path):
  tags = Image.Exif()
  tags[0x0112], tags[0x010F] = 1, "a camera"
  photo.save(tmp_path / "x.jpg", exif=tags, icc_profile=b"p" * 70000)  # the profile takes two segments
  np.testing.assert_array_equal(fast(tmp_path / "x.jpg"), by_pillow(tmp_path / "x.jpg"))
  data = (tmp_path / "x.jpg").read_bytes()
  assert decode_jpeg(data, photo.width * photo.height) is not None
  assert decode_jpeg(data, photo.width * photo.height - 1) is None
  header = read_header(data)
  assert header is not None and header[:3] == (photo.height, photo.width, 3) and header.exif.startswith(b"Exif")
