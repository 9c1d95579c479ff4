"""Picture files: whatever the mode and format, filling a hole changes the hole and nothing else of the pixels."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms, TiffImagePlugin

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference import photos

PHOTO = skimage.data.astronaut()[:45, 150:217]
HOLE = np.zeros(PHOTO.shape[:2], np.uint8)
HOLE[5:20, 30:60] = 1
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FILL = np.broadcast_to(np.array([200, 60, 20], np.uint8), PHOTO.shape)
MODES_OF = {
  ".png": ("1", "L", "LA", "RGB", "RGBA", "P", "I;16"),
  ".tif": ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16"),
  ".bmp": ("1", "L", "RGB"),
  ".webp": ("RGB", "RGBA"),
  ".ppm": ("L", "RGB"),
  ".tga": ("L", "LA", "RGB", "RGBA"),
}


def picture(mode):
  image = Image.fromarray(PHOTO)
  if mode == "I;16":
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257 + 3)
  if mode == "P":
    return image.quantize(32)
  image = image.convert(mode)
  if "A" in mode:
    image.putalpha(Image.fromarray(np.arange(HOLE.size, dtype=np.uint8).reshape(HOLE.shape)))
  return image


def save_picture(path, mode):
  """Writes a photograph in this mode without loss, with a colour profile where the format has one."""
  lossless = {"lossless": True, "exact": True} if path.suffix == ".webp" else {}
  picture(mode).save(path, icc_profile=PROFILE, **lossless)
  return path


def fill_file(source, target, wanted="keep"):
  photo = photos.read_photo(source)
  photos.write_photo(photos.fill_hole(photo, FILL, HOLE), target, wanted)
  return photo


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix in MODES_OF for mode in MODES_OF[suffix]])
def test_only_the_hole_of_a_lossless_file_changes(suffix, mode, tmp_path):
  source, target = save_picture(tmp_path / f"photo{suffix}", mode), tmp_path / f"filled{suffix}"
  photo = fill_file(source, target)
  assert photos.output_format(photo, "keep") == photo.format
  with Image.open(source) as before, Image.open(target) as after:
    assert after.format == before.format and after.mode == (before.mode if mode != "P" else "RGB")
    assert after.info.get("icc_profile") == before.info.get("icc_profile")
    old, new, filled = np.array(before.convert(after.mode)), np.array(after), np.array(after.convert("RGB"))[HOLE > 0]
  np.testing.assert_array_equal(new[HOLE == 0], old[HOLE == 0])
  if "A" in mode:
    np.testing.assert_array_equal(new[..., -1], old[..., -1])
  if mode in ("RGB", "RGBA", "P"):
    assert (filled == FILL[0, 0]).all()
  elif mode == "I;16":
    assert (np.abs(new[HOLE > 0].astype(int) / 257 - 97) < 1).all()
  elif mode != "1":
    np.testing.assert_allclose(filled.mean(axis=0), FILL[0, 0] if mode == "CMYK" else 97, atol=2)
  assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_per_colour_are_kept_and_seen_rounded(suffix, channels, tmp_path):
  deep = np.random.default_rng(0).integers(0, 65536, (*HOLE.shape, channels), dtype=np.uint16)
  source, target = tmp_path / f"deep{suffix}", tmp_path / f"out{suffix}"
  cv2.imwrite(str(source), deep)
  photo = photos.read_photo(source)
  photos.write_photo(photos.fill_hole(photo, FILL, HOLE), target)
  colours, alpha = deep[..., 2::-1] / 257, deep[..., 3:] / 65535 if channels == 4 else 1.0
  np.testing.assert_array_equal(photo.rgb, np.round(colours * alpha + 255 * (1 - alpha)))
  after = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
  assert after.dtype == np.uint16 and after.shape == deep.shape
  np.testing.assert_array_equal(after[HOLE == 0], deep[HOLE == 0])
  assert (after[HOLE > 0][:, :3] == FILL[0, 0, ::-1].astype(int) * 257).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_turned_photo_is_filled_where_the_viewer_sees_the_hole(orientation, suffix, tmp_path):
  exif = Image.Exif()
  exif[0x0112], exif[0x010F] = orientation, "maker"
  source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
  Image.fromarray(PHOTO).save(source, exif=exif, icc_profile=PROFILE, quality=95)
  photo = photos.read_photo(source)
  hole = np.zeros(photo.rgb.shape[:2], np.uint8)
  hole[:8, :16] = 1  # top left, as the viewer sees it
  photos.write_photo(photos.fill_hole(photo, np.full((*hole.shape, 3), 255, np.uint8), hole), target)
  again = photos.read_photo(target)
  assert again.orientation == orientation
  assert (again.metadata.exif, again.metadata.icc_profile) == (photo.metadata.exif, PROFILE)
  assert again.rgb[:8, :16].min() > 200
  with Image.open(source) as before, Image.open(target) as after:
    assert before.size == after.size
  if suffix == ".png":
    np.testing.assert_array_equal(again.rgb[hole == 0], photo.rgb[hole == 0])


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_stays_one_unless_png_is_asked_for_which_keeps_what_a_viewer_sees(mode, tmp_path):
  source, target = tmp_path / "a.jpg", tmp_path / "b.png"
  picture(mode).save(source, quality=90)
  photo = fill_file(source, target, "png")
  assert [photos.output_format(photo, wanted) for wanted in ("keep", "png")] == ["JPEG", "PNG"]
  with Image.open(target) as after:
    np.testing.assert_array_equal(np.asarray(after.convert("RGB"))[HOLE == 0], photo.rgb[HOLE == 0])
    if mode != "L":
      assert (np.asarray(after)[HOLE > 0] == FILL[0, 0]).all()


def test_a_resolution_that_is_nonsense_is_left_out(tmp_path):
  tags = TiffImagePlugin.ImageFileDirectory_v2()
  tags[282] = tags[283] = TiffImagePlugin.IFDRational(4_000_000_000, 1)
  tags[296] = 2  # per inch: PNG counts per metre, which 32 bits cannot hold then
  Image.fromarray(PHOTO).save(tmp_path / "a.tif", tiffinfo=tags)
  photo = photos.read_photo(tmp_path / "a.tif")
  assert photo.metadata.dpi is None
  photos.write_photo(photo, tmp_path / "b.png", "png")
  np.testing.assert_array_equal(photos.read_photo(tmp_path / "b.png").rgb, PHOTO)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_comes_back_otherwise_is_not_written_over_anything(suffix, tmp_path, monkeypatch):
  Image.fromarray(PHOTO).save(tmp_path / f"a{suffix}")
  (tmp_path / "target").write_bytes(b"a file that was there")
  photo = photos.read_photo(tmp_path / f"a{suffix}")
  encode = photos._encode
  monkeypatch.setattr(
    photos, "_encode", lambda photo, kind: encode(dataclasses.replace(photo, pixels=photo.pixels[::-1]), kind)
  )
  with pytest.raises(ConfigError, match=rf"a\{suffix} does not come back .* --format=png"):
    photos.write_photo(photo, tmp_path / "target")
  assert (tmp_path / "target").read_bytes() == b"a file that was there"
  assert len(list(tmp_path.iterdir())) == 2


def test_alpha_that_is_opaque_once_the_hole_is_filled_may_be_left_out_by_webp(tmp_path):
  image = Image.fromarray(PHOTO)
  image.putalpha(Image.fromarray(255 * (1 - HOLE)))
  image.save(tmp_path / "a.webp", lossless=True, exact=True)
  photo = photos.read_photo(tmp_path / "a.webp")
  photos.write_photo(photos.fill_hole(photo, FILL, HOLE, opaque=True), tmp_path / "b.webp")
  with Image.open(tmp_path / "b.webp") as after:
    np.testing.assert_array_equal(np.asarray(after.convert("RGB")), np.where(HOLE[..., None] > 0, FILL, PHOTO))
