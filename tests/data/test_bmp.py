"""BMP files: OpenCV may decode what it decodes as Pillow does, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from PIL import Image

from gmsrm_jax.data import sources
from gmsrm_jax.data.bmp import decode_bmp


@pytest.fixture
def photo():
  return Image.fromarray(skimage.data.astronaut()[20:173, 100:301])


@pytest.mark.parametrize("width", [1, 2, 3, 4, 201])
def test_the_pixels_come_back_whatever_the_padding_of_a_row(photo, width, tmp_path):
  photo = photo.crop((0, 0, width, 50))
  photo.save(tmp_path / "x.bmp")
  data = (tmp_path / "x.bmp").read_bytes()
  np.testing.assert_array_equal(decode_bmp(data, 50 * width), np.asarray(photo))
  np.testing.assert_array_equal(sources.decode(tmp_path / "x.bmp"), np.asarray(photo))
  assert decode_bmp(data, 50 * width - 1) is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA"])
def test_other_modes_are_left_to_pillow(photo, mode, tmp_path):
  photo.convert(mode).save(tmp_path / "x.bmp")
  assert decode_bmp((tmp_path / "x.bmp").read_bytes(), 10**6) is None
  assert sources.decode(tmp_path / "x.bmp").shape == (153, 201, 3)


@pytest.mark.parametrize("length", [0, 1, 20, 54, 1000, 92_400])
def test_a_truncated_file_is_refused(photo, length, tmp_path):
  photo.save(tmp_path / "x.bmp")
  data = (tmp_path / "x.bmp").read_bytes()
  assert len(data) == 54 + 153 * 604
  (tmp_path / "x.bmp").write_bytes(data[:length])
  assert decode_bmp(data[:length], 10**6) is None
  with pytest.raises(OSError):
    sources.decode(tmp_path / "x.bmp")


def test_a_picture_stored_from_its_top_row_stands_upright(photo, tmp_path):
  photo.save(tmp_path / "x.bmp")
  data = bytearray((tmp_path / "x.bmp").read_bytes())
  data[22:26] = (-153).to_bytes(4, "little", signed=True)  # a negative height says so
  (tmp_path / "x.bmp").write_bytes(data)
  np.testing.assert_array_equal(sources.decode(tmp_path / "x.bmp"), np.asarray(photo)[::-1])
