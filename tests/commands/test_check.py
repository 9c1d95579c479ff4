"""--mode=check on folders with known faults: what is wrong is named, and nothing else is."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

import run
from gmsrm_jax.config import DataConfig
from gmsrm_jax.data import sources


def write(folder, names, seed, size=(90, 80)):
  folder.mkdir()
  rng = np.random.default_rng(seed)
  for name in names:
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)


@pytest.fixture
def folders(tmp_path):
  write(tmp_path / "train", [f"{i}.jpg" for i in range(4)] + ["tall.png"], 0)
  write(tmp_path / "val", ["x.jpg", "y.png"], 1, (100, 70))
  return tmp_path / "train", tmp_path / "val"


def checked(folders, *changes):
  train, val = folders
  return run.main(["--mode=check", "--set", f"data.train={train}", f"data.val={val}", "data.crop_min=0.5", *changes])


def test_good_data_are_described(folders, capsys):
  assert checked(folders, "model.image_size=64") == 0
  out, err = capsys.readouterr()
  assert err == ""
  for text in (
    f"data.train='{folders[0]}'",
    "80 / 80 / 80 pixels",
    "90 / 90 / 90 pixels",
    "4 JPEG RGB, 1 PNG RGB",
    "70 / 70 / 70 pixels",
    sources.split_hash(sources.open_source(DataConfig(train=str(folders[0]), val=str(folders[1])), "train"))[:12],
    "0 of pictures that are there already",
    "training pictures too: 0",
    "free_form",
    "20-30%",
    "jax 0.",
  ):
    assert text in out, text


def test_the_kinds_that_draw_from_files_are_tried_with_their_files(folders, tmp_path, capsys):
  write(tmp_path / "objects", ["a.png"], 2)
  objects = [f"mask.objects_folder={tmp_path / 'objects'}", "mask.objects=1"]
  assert checked(folders, *objects) == 0 and "objects" in capsys.readouterr().out


def test_every_fault_is_named_in_the_one_line_with_exit_code_2(folders, capsys):
  train, val = folders
  (train / "cut.jpg").write_bytes((train / "0.jpg").read_bytes()[:900])
  (train / "text.png").write_text("no image")
  shutil.copy(train / "1.jpg", train / "copy.jpg")
  Image.open(train / "2.jpg").save(val / "leak.png")  # the same picture in another file
  assert checked(folders) == 2
  out, err = capsys.readouterr()
  (line,) = err.splitlines()
  assert (
    "2 of 8 image files cannot be decoded (cut.jpg, text.png)" in line
    and "more than one, or 1% where that is more" in line
  )
  assert "1 held-out pictures are training pictures too (leak.png)" in line and "remove them" in line
  assert "cut.jpg: OSError: image file is truncated" in out and "text.png: no known picture format" in out
  assert "1.jpg = copy.jpg" in out and "data.val leak.png is data.train 2.jpg" in out
  assert "all is well" not in out


def test_one_damaged_file_and_copies_within_a_split_are_told_but_allowed(folders, capsys):
  (folders[0] / "cut.jpg").write_bytes((folders[0] / "0.jpg").read_bytes()[:900])
  shutil.copy(folders[0] / "1.jpg", folders[0] / "copy.jpg")
  assert checked(folders) == 0
  out = capsys.readouterr().out
  assert "cut.jpg: OSError" in out and "1.jpg = copy.jpg" in out
  assert "1 (tolerated: one, or 1% where that is more)" in out


def smooth(seed, size):
  coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
  return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def warned(folders, capsys, *changes):
  assert checked(folders, *changes) == 0
  *lines, last = capsys.readouterr().out.splitlines()
  warnings = [line for line in lines if line.startswith("warning: ")]
  count = len(warnings) + (folders[0] / "notes.txt").exists()
  assert last == (f"nothing to mend, {count} warning{'s' * (count > 1)}" if count else "all is well")
  return warnings


def test_what_its_owner_would_rather_know_is_a_line_that_names_the_way_out(tmp_path, capsys):
  folders = (tmp_path / "train", tmp_path / "val")
  for folder in folders:
    folder.mkdir()
  for index in range(4):
    Image.fromarray(smooth(index, (70, 66))).save(folders[0] / f"t{index}.png")
  Image.fromarray(smooth(2, (40, 50))).save(folders[1] / "again.jpg", quality=60)
  Image.fromarray(smooth(9, (70, 66))).save(folders[1] / "other.png")
  Image.new("RGB", (50, 50), "white").save(folders[1] / "empty.png")
  Image.new("RGB", (70, 66)).save(folders[0] / "blank.png")  # in which there is nothing to compare
  (folders[0] / "notes.txt").write_text("left out, which is a warning, too")
  alike, heart, few, enlarged, one_size = warned(folders, capsys, "model.image_size=64")
  assert "1 held-out" in alike and "(again.jpg and t2.png)" in alike and "other" not in alike and "empty" not in alike
  assert "data.train has 5 images" in heart and "give more" in heart
  assert "data.val has 3 images" in few and "data.val_share" in few
  assert "94%" in enlarged and "raise data.crop_min to 0.97" in enlarged
  assert "66 pixels" in one_size and "originals" in one_size
  (folders[0] / "notes.txt").unlink()
  assert "model.image_size=64" in warned(folders, capsys, "model.image_size=128")[3]


def test_of_good_data_nothing_is_doubted(tmp_path, capsys):
  folders = (tmp_path / "train", tmp_path / "val")
  for folder, count, first in zip(folders, (50, 50), (0, 100), strict=True):
    folder.mkdir()
    for index in range(first, first + count):
      Image.fromarray(smooth(index, (130 + index % 7, 140))).save(folder / f"{index}.png")
  assert warned(folders, capsys, "model.image_size=64") == []


def test_what_both_splits_lack_is_said_once(tmp_path, capsys):
  assert run.main(["check", f"data.train={tmp_path / 'none'}"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "has 1 to mend" in line and line.count("does not exist") == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_does_not_hide_what_is_wrong_with_the_other(split, folders, capsys):
  other = folders[split == "train"]
  for path in folders[split == "val"].iterdir():
    path.unlink()
  for path in other.iterdir():
    path.write_bytes(b"x")
  assert checked(folders) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f"data.{split}=" in line and "holds no image" in line and "can be decoded" in line
