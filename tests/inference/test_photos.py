"""Picture files: whatever the mode and format, filling a hole changes the hole and nothing else of the pixels."""

from __future__ import annotations

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
FILL = np.broadcast_to(np.array([200, 60, 20], np.uint8), PHOTO.shape)


def _image(mode):
  image = Image.fromarray(PHOTO)
  if mode == "I;16":
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257 + 3)
  if mode == "P":
    return image.quantize(32)
  if mode in ("LA", "RGBA"):
    alpha = Image.fromarray(np.arange(PHOTO.shape[0] * PHOTO.shape[1], dtype=np.uint8).reshape(PHOTO.shape[:2]))
    image = image.convert(mode)
    image.putalpha(alpha)
    return image
  return image.convert(mode)


SAVED = [
  *((mode, ".png") for mode in ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")),
  *((mode, ".tif") for mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16")),
  *((mode, ".bmp") for mode in ("1", "L", "RGB")),
  *((mode, ".webp") for mode in ("RGB", "RGBA")),
  *((mode, ".ppm") for mode in ("L", "RGB")),
  *((mode, ".tga") for mode in ("L", "LA", "RGB", "RGBA")),
]


@pytest.mark.parametrize(("mode", "suffix"), SAVED)
def test_only_the_hole_of_a_lossless_file_changes(mode, suffix, tmp_path):
  source = tmp_path / f"photo{suffix}"
  _image(mode).save(source, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
  photo = photos.read_photo(source)
  assert photos.output_format(photo, "keep")[1]
  name = photos.output_name(source, photo, "keep")
  assert name == "photo" + suffix
  target = tmp_path / ("filled_" + name)
  photos.write_photo(photos.fill_hole(photo, FILL, HOLE), target)
  with Image.open(source) as before, Image.open(target) as after:
    kept = after.mode == before.mode
    assert kept or (before.mode, after.mode) == ("P", "RGB")
    before = before if kept else before.convert(after.mode)
    old, new = np.array(before), np.array(after)
    filled = np.array(after.convert("RGB"))
  np.testing.assert_array_equal(new[HOLE == 0], old[HOLE == 0])
  if mode in ("LA", "RGBA"):
    np.testing.assert_array_equal(new[..., -1], old[..., -1])
  if mode in ("RGB", "RGBA", "P"):
    assert (filled[HOLE > 0] == FILL[0, 0]).all()
  elif mode == "I;16":
    assert (np.abs(new[HOLE > 0].astype(int) / 257 - 97) < 1).all()
  elif mode != "1":
    np.testing.assert_allclose(filled[HOLE > 0].mean(axis=0), FILL[0, 0] if mode == "CMYK" else 97, atol=2)
  assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


@pytest.mark.parametrize(("suffix", "channels"), [(".png", 3), (".png", 4), (".tif", 3), (".tif", 4)])
def test_sixteen_bits_per_colour_are_kept(suffix, channels, tmp_path):
  deep = np.random.default_rng(0).integers(0, 65536, (*PHOTO.shape[:2], channels), dtype=np.uint16)
  cv2.imwrite(str(tmp_path / f"deep{suffix}"), deep)
  photo = photos.read_photo(tmp_path / f"deep{suffix}")
  assert photo.mode == ("RGB;16" if channels == 3 else "RGBA;16")
  photos.write_photo(photos.fill_hole(photo, FILL, HOLE), tmp_path / f"out{suffix}")
  after = cv2.imread(str(tmp_path / f"out{suffix}"), cv2.IMREAD_UNCHANGED)
  assert after.dtype == np.uint16 and after.shape == deep.shape
  np.testing.assert_array_equal(after[HOLE == 0], deep[HOLE == 0])
  assert (after[HOLE > 0][:, :3] == FILL[0, 0, ::-1].astype(int) * 257).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_turned_photo_is_filled_where_the_viewer_sees_the_hole(orientation, suffix, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = orientation
  exif[0x010F] = "maker"
  source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
  Image.fromarray(PHOTO).save(source, exif=exif, quality=95)
  photo = photos.read_photo(source)
  hole = np.zeros(photo.rgb.shape[:2], np.uint8)
  hole[:8, :16] = 1  # top left, as the viewer sees it
  fill = np.full((*hole.shape, 3), 255, np.uint8)
  photos.write_photo(photos.fill_hole(photo, fill, hole), target)
  again = photos.read_photo(target)
  assert again.orientation == orientation and again.metadata["exif"] == photo.metadata["exif"]
  assert again.rgb[:8, :16].min() > 200
  if suffix == ".png":
    np.testing.assert_array_equal(again.rgb[hole == 0], photo.rgb[hole == 0])
    with Image.open(source) as before, Image.open(target) as after:
      assert before.size == after.size


@pytest.mark.parametrize(
  ("suffix", "deep"), [(".png", False), (".png", True), (".tif", False), (".webp", False), (".jpg", False)]
)
def test_the_colour_profile_is_kept(suffix, deep, tmp_path):
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
  if deep:
    plain = photos.read_photo(_written(tmp_path / "plain.png", np.full((6, 7, 3), 1000, np.uint16)))
    plain.metadata["icc_profile"] = profile
    source.write_bytes(photos.encode_photo(plain, "PNG"))
  else:
    Image.fromarray(PHOTO).save(source, icc_profile=profile)
  photo = photos.read_photo(source)
  photos.write_photo(photo, target)
  with Image.open(target) as after:
    assert after.info["icc_profile"] == profile
  assert photos.read_photo(target).mode == ("RGB;16" if deep else "RGB")


def _written(path, pixels):
  cv2.imwrite(str(path), pixels)
  return path


def test_a_jpeg_is_kept_as_jpeg_and_named_lossy_unless_png_is_asked_for(tmp_path):
  Image.fromarray(PHOTO).save(tmp_path / "a.jpg", quality=90)
  photo = photos.read_photo(tmp_path / "a.jpg")
  assert photos.output_format(photo, "keep") == ("JPEG", False)
  assert photos.output_name(tmp_path / "a.jpg", photo, "keep") == "a.jpg"
  assert photos.output_name(tmp_path / "a.jpg", photo, "png") == "a.png"
  filled = photos.fill_hole(photo, FILL, HOLE)
  photos.write_photo(filled, tmp_path / "b.png", "png")
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png"))[HOLE == 0], photo.rgb[HOLE == 0])


def test_a_hole_of_transparency_becomes_opaque(tmp_path):
  image = Image.fromarray(PHOTO)
  image.putalpha(Image.fromarray((1 - HOLE) * 255))
  image.save(tmp_path / "a.png")
  photo = photos.read_photo(tmp_path / "a.png")
  np.testing.assert_array_equal(photo.alpha, (1 - HOLE) * 255)
  filled = photos.fill_hole(photo, FILL, HOLE, opaque=True)
  assert (filled.pixels[..., 3] == 255).all()
  np.testing.assert_array_equal(filled.pixels[HOLE == 0], photo.pixels[HOLE == 0])


def test_what_cannot_be_read_is_named(tmp_path):
  (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
  with pytest.raises(ConfigError, match=r"broken\.png cannot be decoded"):
    photos.read_photo(tmp_path / "broken.png")


def test_a_resolution_that_is_nonsense_is_left_out(tmp_path):
  tags = TiffImagePlugin.ImageFileDirectory_v2()
  tags[282] = tags[283] = TiffImagePlugin.IFDRational(4_000_000_000, 1)
  tags[296] = 2  # per inch: PNG counts per metre, which 32 bits cannot hold then
  Image.fromarray(PHOTO).save(tmp_path / "a.tif", tiffinfo=tags)
  photo = photos.read_photo(tmp_path / "a.tif")
  assert "dpi" not in photo.metadata
  photos.write_photo(photo, tmp_path / "b.png", "png")
  np.testing.assert_array_equal(photos.read_photo(tmp_path / "b.png").rgb, PHOTO)


def test_cmyk_becomes_rgb_where_the_format_has_no_inks(tmp_path):
  _image("CMYK").save(tmp_path / "a.jpg", quality=95)
  photo = photos.read_photo(tmp_path / "a.jpg")
  photos.write_photo(photos.fill_hole(photo, FILL, HOLE), tmp_path / "b.png", "png")
  written = np.asarray(Image.open(tmp_path / "b.png"))
  np.testing.assert_array_equal(written, np.where(HOLE[..., None] > 0, FILL, photo.rgb))
