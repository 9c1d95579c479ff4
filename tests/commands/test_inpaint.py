"""Filling the user's own files: nothing outside the hole changes, to the bit."""

from __future__ import annotations

import errno
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

import run
from gmsrm_jax import Inpainter
from gmsrm_jax.commands import inpaint
from gmsrm_jax.inference import photos
from tests.inference.test_inpainter import noisy_model
from tests.inference.test_photos import MODES_OF, save_picture
from tests.trained import one_line

PHOTO = skimage.data.astronaut()[:50, 150:225]
HOLE = np.zeros(PHOTO.shape[:2], np.uint8)
HOLE[10:30, 20:45] = 255


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """One photo with its mask, to be filled by random weights."""
  monkeypatch.setattr(inpaint.Inpainter, "from_checkpoint", lambda path: noisy_model())
  for name in ("images", "masks"):
    (tmp_path / name).mkdir()
  Image.fromarray(PHOTO).save(tmp_path / "images" / "a.png")
  Image.fromarray(HOLE).save(tmp_path / "masks" / "a.png")
  return tmp_path


def fill(folder, *more, output="out"):
  where = [f"--images={folder / 'images'}", f"--masks={folder / 'masks'}", f"--output={folder / output}"]
  return run.main(["--mode=inpaint", *where, *more])


def read(path):
  with Image.open(path) as image:
    return np.asarray(image)


def test_a_runs_folder_fills_as_the_python_interface_does(folder, monkeypatch, trained):
  monkeypatch.undo()
  assert fill(folder, f"--workdir={trained.workdir}") == 0
  expected = Inpainter.from_checkpoint(trained.workdir)(PHOTO, HOLE)
  np.testing.assert_array_equal(read(folder / "out" / "a.png"), expected)
  np.testing.assert_array_equal(expected[HOLE == 0], PHOTO[HOLE == 0])


def test_samples_have_names_of_their_own_and_equal_seeds_give_equal_files(folder):
  for output, seed in (("a", 3), ("b", 3), ("c", 4)):
    assert fill(folder, "--num_samples=2", f"--seed={seed}", output=output) == 0
  first, second = ([(folder / output / f"a_{sample}.png").read_bytes() for output in "abc"] for sample in (0, 1))
  assert len({*first, *second}) == 3 and second[0] == second[1] != second[2]


def test_the_users_own_files_are_never_overwritten(folder, capsys):
  before = (folder / "images" / "a.png").read_bytes()
  assert fill(folder, output="images") == 2
  assert "a.png is an input" in one_line(capsys.readouterr().err)
  assert (folder / "images" / "a.png").read_bytes() == before


@pytest.mark.parametrize(
  ("damage", "flag", "parts"),
  [
    (lambda f: Image.new("L", (10, 20), 255).save(f / "masks" / "a.png"), "", ["a.png is 10x20", "a.png is 75x50"]),
    (lambda f: (f / "images" / "a.png").write_bytes(b"\x89PNG"), "", ["a.png cannot be decoded"]),
    (lambda f: None, "--seed=3", ["--seed=3", "--num_samples"]),
  ],
)
def test_what_cannot_be_filled_is_one_line_and_exit_code_2(damage, flag, parts, folder, capsys):
  damage(folder)
  assert fill(folder, *[flag] * bool(flag)) == 2
  line = one_line(capsys.readouterr().err)
  assert [part for part in parts if part not in line] == []
  assert not list(folder.glob("out/*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, None])
def test_a_picture_that_cannot_be_written_is_named_and_the_others_are_done(number, folder, capsys, monkeypatch):
  for name in ("b", "c"):
    Image.fromarray(PHOTO).save(folder / "images" / f"{name}.png")
  write = photos.write_photo

  def write_or_fail(photo, path, wanted):
    if path.name == "b.png":
      raise OSError(number, os.strerror(number), str(path)) if number else OSError("encoder error -2")
    write(photo, path, wanted)

  monkeypatch.setattr(photos, "write_photo", write_or_fail)
  where = [f"--images={folder / 'images'}", f"--masks={folder / 'masks' / 'a.png'}", f"--output={folder / 'out'}"]
  assert run.main(["--mode=inpaint", *where]) == 2
  line = one_line(capsys.readouterr().err)
  assert "1 of 3" in line and (f"b.png: {os.strerror(number)}" if number else "encoder error -2") in line
  assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "c.png"]


@pytest.mark.parametrize(("name", "kind"), [("x1.png", "PNG"), ("new/x1.jpg", "JPEG"), ("x1.TIF", "TIFF")])
def test_one_picture_is_written_to_the_file_that_is_named_in_its_format(name, kind, folder):
  assert fill(folder, output=name) == 0
  with Image.open(folder / name) as filled:
    assert filled.format == kind
    if kind != "JPEG":
      np.testing.assert_array_equal(np.asarray(filled)[HOLE == 0], PHOTO[HOLE == 0])


def test_a_format_that_cannot_hold_the_pixels_is_refused(folder, capsys):
  Image.fromarray(PHOTO).convert("RGBA").save(folder / "images" / "a.png")
  assert fill(folder, output="x.jpg") == 2
  line = one_line(capsys.readouterr().err)
  assert [part for part in ("JPEG", "RGBA", ".png") if part not in line] == []
  assert not (folder / "x.jpg").exists()


def test_the_flags_invert_and_then_widen_the_hole_which_then_is_suspiciously_large(folder, caplog):
  hole = np.full_like(HOLE, 255)
  hole[:, :8] = 0  # the hole once it is inverted, which then grows by three
  Image.fromarray(hole).save(folder / "masks" / "a.png")
  assert fill(folder, "--mask_invert", "--mask_dilate=3") == 0
  assert caplog.text == ""
  changed = (read(folder / "out" / "a.png") != PHOTO).any(axis=(0, 2))
  assert changed[:11].all() and not changed[11:].any()
  assert fill(folder) == 0
  assert "is it inverted" in caplog.text


def test_without_masks_what_is_transparent_is_filled_and_a_picture_that_has_none_is_named(folder, capsys):
  image = Image.fromarray(PHOTO)
  image.putalpha(Image.fromarray(255 - HOLE))
  image.save(folder / "images" / "clear.png")
  assert run.main(["--mode=inpaint", f"--images={folder / 'images'}", f"--output={folder / 'out'}"]) == 2
  # One bad file among good ones: the others are written, then it is named.
  error = one_line(capsys.readouterr().err)
  assert "1 of 2" in error and "a.png has no transparency" in error
  assert [path.name for path in (folder / "out").iterdir()] == ["clear.png"]
  filled = read(folder / "out" / "clear.png")
  assert (filled[..., 3] == 255).all()
  np.testing.assert_array_equal(filled[HOLE == 0], np.asarray(image)[HOLE == 0])


def test_a_jpeg_stays_a_jpeg_with_a_word_and_the_sheet_shows_all_samples(folder, caplog, capsys):
  (folder / "images" / "a.png").unlink()
  Image.fromarray(PHOTO).save(folder / "images" / "a.jpg", quality=92)
  assert fill(folder, "--num_samples=2") == 0
  assert "--format=png keeps every bit" in caplog.text and "2 fills of 1 picture in" in capsys.readouterr().out
  assert sorted(path.name for path in (folder / "out").iterdir()) == ["a_0.jpg", "a_1.jpg", "a_sheet.png"]
  assert read(folder / "out" / "a_sheet.png").shape[1] >= 4 * inpaint.SHEET_SIDE
  caplog.clear()
  assert fill(folder, "--format=png", output="png") == 0
  assert caplog.text == "" and (folder / "png" / "a.png").exists()


def test_the_sheet_shows_a_small_hole_enlarged_and_the_program_says_where_it_lies(folder, capsys):
  large, hole = np.zeros((600, 800, 3), np.uint8), np.zeros((600, 800), np.uint8)
  hole[500:560, 30:90] = 255
  Image.fromarray(large).save(folder / "images" / "a.png")
  Image.fromarray(hole).save(folder / "masks" / "a.png")
  assert fill(folder, "--contact_sheet", output="x.png") == 0
  sheet = read(folder / "x_sheet.png")
  second = sheet[30:, sheet.shape[1] // 3 : 2 * sheet.shape[1] // 3]
  assert 0.3 < (second == 255).mean() < 0.6  # a quarter of the hole around it; 0.75 % of the photo
  out = capsys.readouterr().out
  assert f"side by side: {folder / 'x_sheet.png'}" in out and "loading the weights" in out
  assert fill(folder, output="y.png") == 0
  assert not (folder / "y_sheet.png").exists()


def test_files_of_every_format_and_mode_change_in_the_hole_alone(folder):
  rng, sources = np.random.default_rng(0), []
  for suffix in (".png", ".tif", ".bmp", ".webp"):
    for mode in MODES_OF[suffix]:
      name = f"{mode}_{suffix[1:]}"
      sources.append(save_picture(folder / "images" / f"{name}{suffix}", mode))
      hole = rng.random((45, 67)) < rng.choice([0.001, 0.2, 1.0])
      hole[: rng.integers(45), : rng.integers(67)] = True
      Image.fromarray(hole * np.uint8(255)).save(folder / "masks" / f"{name}.png")
  assert fill(folder) == 0
  for source in sources:
    hole = read(folder / "masks" / f"{source.stem}.png") > 0
    with Image.open(source) as before, Image.open(folder / "out" / source.name) as after:
      assert (before.size, before.format) == (after.size, after.format)
      old, new = np.asarray(before.convert(after.mode)), np.asarray(after)
    np.testing.assert_array_equal(new[~hole], old[~hole], err_msg=source.name)
    assert (new != old).any(), source.name


def test_an_animation_is_named_and_its_first_picture_is_filled(folder, caplog):
  (folder / "images" / "a.png").unlink()
  others = [Image.fromarray(PHOTO[::-1]), Image.fromarray(255 - PHOTO)]
  Image.fromarray(PHOTO).save(folder / "images" / "a.webp", save_all=True, append_images=others, lossless=True)
  assert fill(folder) == 0
  assert "a.webp holds 3 pictures" in caplog.text
  np.testing.assert_array_equal(read(folder / "out" / "a.webp")[HOLE == 0], PHOTO[HOLE == 0])


def test_a_picture_that_cannot_be_written_as_it_was_is_refused_before_it_is_filled(folder, capsys):
  (folder / "images" / "a.png").unlink()
  Image.fromarray(PHOTO).convert("LAB").save(folder / "images" / "a.tif")
  assert fill(folder) == 2
  line = one_line(capsys.readouterr().err)
  assert [part for part in ("a.tif", "LAB", "--format=png") if part not in line] == []
  assert fill(folder, "--format=png") == 0 and read(folder / "out" / "a.png").shape == PHOTO.shape


def test_what_libraries_think_of_a_files_remarks_is_not_printed(folder, capfd):
  def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

  path = folder / "images" / "a.png"
  cv2.imwrite(str(path), PHOTO.astype(np.uint16) * 257)
  remarks = chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"junk")) + chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\0")
  data = path.read_bytes()
  path.write_bytes(data[:33] + remarks + data[33:])
  assert fill(folder) == 0
  assert capfd.readouterr().err == ""
  assert cv2.imread(str(folder / "out" / "a.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
