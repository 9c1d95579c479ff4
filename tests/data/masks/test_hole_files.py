"""Masks from files: what is hole in every format, and NVIDIA's test set in both its shapes."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from PIL import Image

import run
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.data.masks.fixed import BUCKETS
from gmsrm_jax.errors import ConfigError

REAL = pathlib.Path(run.__file__).parent.parent / "shared" / "data" / "nvidia_irregular_test_12000_256_packbits.npz"


def hole() -> np.ndarray:
  mask = np.zeros((40, 56), np.uint8)
  mask[8:24, 16:40] = 1
  return mask


def save(path, picture) -> pathlib.Path:
  picture.save(path)
  return path


def palette() -> Image.Image:
  picture = Image.new("P", (56, 40))
  picture.putpalette([250, 250, 250, 10, 10, 10])  # entry 0 is white: the index is not the level
  picture.putdata((1 - hole()).ravel().tolist())
  return picture


def soft() -> Image.Image:
  levels = np.where(hole(), 160, 90).astype(np.uint8)
  return Image.fromarray(np.stack([levels] * 3, -1))


@pytest.mark.parametrize(
  ("name", "picture"),
  [
    ("grey.png", lambda: Image.fromarray(hole() * np.uint8(255))),
    ("colour.bmp", lambda: Image.fromarray(np.stack([hole() * np.uint8(255)] * 3, -1))),
    ("photo.jpg", lambda: Image.fromarray(hole() * np.uint8(255))),
    ("soft.png", soft),
    ("one_bit.png", lambda: Image.fromarray(hole().astype(bool))),
    ("sixteen.png", lambda: Image.fromarray(hole().astype(np.uint16) * 40000)),
    ("palette.png", palette),
    ("cmyk.tif", lambda: Image.fromarray(hole() * np.uint8(255)).convert("CMYK")),
  ],
)
def test_white_is_hole_in_every_format(tmp_path, name, picture):
  mask = hole_files.read_hole(save(tmp_path / name, picture()))
  assert mask.dtype == np.uint8
  np.testing.assert_array_equal(mask, hole())
  inverted = hole_files.read_hole(tmp_path / name, invert=True)
  np.testing.assert_array_equal(inverted, 1 - hole())


def test_the_threshold_lies_between_127_and_128(tmp_path):
  levels = np.array([[0, 127, 128, 255]], np.uint8)
  assert hole_files.read_hole(save(tmp_path / "m.png", Image.fromarray(levels))).tolist() == [[0, 0, 1, 1]]
  deep = np.array([[0, 32767, 32768, 65535]], np.uint16)
  assert hole_files.read_hole(save(tmp_path / "d.png", Image.fromarray(deep))).tolist() == [[0, 0, 1, 1]]


def erased():
  noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
  return Image.fromarray(np.dstack([noise, np.where(hole(), 20, 255).astype(np.uint8)]))


@pytest.mark.parametrize(
  "picture", [erased(), palette(), soft(), Image.fromarray(hole() * 255), Image.fromarray(hole() * np.uint16(40000))]
)
def test_a_file_its_bytes_pillows_picture_and_its_pixels_have_one_hole(tmp_path, picture):
  path = save(tmp_path / "m.png", picture)
  sources = [path, path.read_bytes(), picture]
  if picture.mode != "P":  # an array has no palette
    sources.append(np.asarray(picture))
  for source in sources:
    np.testing.assert_array_equal(hole_files.read_hole(source), hole())


@pytest.mark.parametrize(
  ("levels", "expected"),
  [
    (np.array([[0, 127, 128, 255]], np.uint8), [[0, 0, 1, 1]]),
    (np.array([[0, 127, 128, 255]], np.int64), [[0, 0, 1, 1]]),
    (np.array([[0, 32767, 32768, 65535]], np.uint16), [[0, 0, 1, 1]]),
    (np.array([[0.0, 0.5, 0.51, 1.0]], np.float32), [[0, 0, 1, 1]]),
    *((np.array([[0, 0, 1, 1]], dtype), [[0, 0, 1, 1]]) for dtype in (bool, np.uint8, np.uint16, np.int32, float)),
    (np.zeros((1, 4), np.uint8), [[0, 0, 0, 0]]),
    (np.array([[[0], [1]]], np.uint8), [[0, 1]]),
  ],
)
def test_arrays_are_cut_in_the_middle_of_their_range_unless_they_hold_zeros_and_ones(levels, expected):
  assert hole_files.read_hole(levels).tolist() == expected
  assert hole_files.read_hole(levels, invert=True).tolist() == (1 - np.array(expected)).tolist()


@pytest.mark.parametrize("array", [np.full((2, 2), 2.0), np.full((2, 2), 256), np.zeros(4), np.zeros((2, 4, 4), bool)])
def test_arrays_of_no_known_range_or_shape_are_refused(array):
  with pytest.raises(ConfigError, match=rf"mask is an array of {array.dtype} {array.shape[0]}"):
    hole_files.read_hole(array)


def test_where_alpha_varies_the_transparent_is_hole_and_colours_do_not_count(tmp_path):
  np.testing.assert_array_equal(hole_files.read_hole(save(tmp_path / "erased.png", erased())), hole())
  alpha = np.where(hole(), 20, 255).astype(np.uint8)
  grey = Image.merge("LA", [Image.new("L", (56, 40), 255), Image.fromarray(alpha)])
  np.testing.assert_array_equal(hole_files.read_hole(save(tmp_path / "la.png", grey)), hole())


@pytest.mark.parametrize("alpha", [255, 128, 0])
def test_where_alpha_is_the_same_everywhere_colours_count(tmp_path, alpha):
  white = np.dstack([hole() * np.uint8(255)] * 3 + [np.full((40, 56), alpha, np.uint8)])
  np.testing.assert_array_equal(hole_files.read_hole(save(tmp_path / "m.png", Image.fromarray(white))), hole())


def test_a_mask_stands_upright_like_its_photo(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # stored lying: a viewer turns it a quarter clockwise
  Image.fromarray(hole() * np.uint8(255)).save(tmp_path / "m.png", exif=exif)
  np.testing.assert_array_equal(hole_files.read_hole(tmp_path / "m.png"), np.rot90(hole(), -1))


def test_dilation_widens_by_that_many_pixels_and_follows_the_inversion(tmp_path):
  dot = np.zeros((21, 21), np.uint8)
  dot[10, 10] = 255
  path = save(tmp_path / "dot.png", Image.fromarray(dot))
  y, x = np.mgrid[-10:11, -10:11]
  for radius in (1, 3, 6):
    mask = hole_files.read_hole(path, dilate=radius)
    assert mask[10, 10 - radius] == mask[10 + radius, 10] == 1
    assert (mask[np.hypot(x, y) <= radius - 0.5] == 1).all() and (mask[np.hypot(x, y) > radius + 0.5] == 0).all()
  assert hole_files.read_hole(path, invert=True, dilate=2).all()


def test_what_is_no_picture_is_refused_by_name(tmp_path):
  (tmp_path / "broken.png").write_bytes(b"no picture")
  with pytest.raises(ConfigError, match="broken.png cannot be decoded"):
    hole_files.read_hole(tmp_path / "broken.png")


def test_empty_and_huge_holes_are_warned_about(caplog):
  mask = np.zeros((10, 10), np.uint8)
  hole_files.warn_area(mask, "a.png")
  assert "a.png has no hole" in caplog.text
  caplog.clear()
  mask[:7] = 1
  hole_files.warn_area(mask, "b.png")
  assert caplog.text == ""
  mask[7, 0] = 1
  hole_files.warn_area(mask, "c.png")
  assert "c.png makes 71 % of the image hole: is it inverted?" in caplog.text


def test_packed_masks_are_what_was_packed(tmp_path):
  drawn = np.random.default_rng(0).integers(0, 2, (5, 256, 256), dtype=np.uint8)
  np.savez(tmp_path / "m.npz", bits=np.packbits(drawn.reshape(5, -1), axis=1))
  packed = hole_files.MaskFiles(str(tmp_path / "m.npz"), "eval.masks")
  assert len(packed) == 5
  for index in (4, 0, 2):
    np.testing.assert_array_equal(packed[index], drawn[index])


@pytest.mark.parametrize(
  "content",
  [b"", b"no archive", {"masks": np.zeros(3)}, {"bits": np.zeros((3, 8), np.uint8)}, {"bits": np.zeros(8192)}],
)
def test_other_archives_are_refused(tmp_path, content):
  path = tmp_path / "m.npz"
  if isinstance(content, bytes):
    path.write_bytes(content)
  else:
    np.savez(path, **content)
  with pytest.raises(ConfigError, match="eval.masks='.*m.npz'.*8192"):
    hole_files.MaskFiles(str(path), "eval.masks")


@pytest.mark.parametrize("below", ["", "testing_mask_dataset", "mask/testing_mask_dataset"])
def test_nvidias_folder_is_seen_in_and_below_what_is_named(tmp_path, below):
  (tmp_path / below).mkdir(parents=True, exist_ok=True)
  for index in range(3):
    picture = np.zeros((64, 64), np.uint8)
    picture[: index + 1] = 255
    Image.fromarray(picture).save(tmp_path / below / f"{index:05d}.png")
  files = hole_files.MaskFiles(str(tmp_path), "eval.masks")
  assert [int(files[index].sum()) for index in range(len(files))] == [64, 128, 192]


@pytest.mark.skipif(not REAL.exists(), reason="NVIDIA's masks are not here")
def test_the_real_masks_lie_in_the_bucket_of_their_index():
  masks = hole_files.MaskFiles(str(REAL), "eval.masks")
  assert len(masks) == 12_000
  for index in range(0, len(masks), 97):
    low, high = BUCKETS[index // hole_files.NVIDIA_PER_BUCKET]
    # They were sorted at 512x512; halving them moves an area by less than this.
    assert low - 0.002 < masks[index].mean() < high + 0.002
