"""Each data set's tree is recognised as it was unpacked, and split without a near copy in both splits."""

from __future__ import annotations

import logging
import os

import pytest
from PIL import Image

from gmsrm_jax.config import DataConfig
from gmsrm_jax.data import datasets, pictures, sources
from gmsrm_jax.errors import ConfigError


def plant(root, *names):
  """Small real images, one colour each."""
  for i, name in enumerate(names):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix.lower() == ".png" else "JPEG"
    Image.new("RGB", (24, 20), (i * 40 % 256, 90, 200)).save(path, kind)
  return root


def opened(root, split, **settings):
  return sources.open_source(DataConfig(**{"train": str(root), **settings}), split)


def names(root, **settings):
  return tuple(opened(root, split, **settings).names for split in ("train", "val"))


def layout(root, **settings):
  return opened(root, "train", **settings).stored.layout


def paris_names(places=40, headings=3):
  return [
    f"48.{840000 + place}_2.{344000 + place}_{heading * 90}_-004.JPG"
    for place in range(places)
    for heading in range(headings)
  ]


def test_every_format_is_found_in_a_folder_and_what_is_left_out_is_named(tmp_path, caplog, monkeypatch):
  for suffix in [
    "png",
    "apng",
    "jpg",
    "jpeg",
    "jfif",
    "JPG",
    "webp",
    "tif",
    "tiff",
    "bmp",
    "gif",
    "ppm",
    "pgm",
    "jp2",
    "j2k",
    "tga",
  ]:
    Image.new("L" if suffix == "pgm" else "RGB", (24, 20)).save(tmp_path / f"{suffix}.{suffix}")
  found = datasets.image_names(tmp_path)
  assert found == sorted(path.name for path in tmp_path.iterdir()) and caplog.text == ""
  for name in found:
    assert pictures.decode(tmp_path / name).shape == (20, 24, 3), name
  for name in ("a.heic", "notes.txt", ".hidden.txt", "closed/b.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  scan = os.scandir

  def scan_what_is_open(path):  # root may read everything
    if os.path.basename(path) == "closed":
      raise PermissionError(13, "Permission denied", path)
    return scan(path)

  monkeypatch.setattr(os, "scandir", scan_what_is_open)
  assert datasets.image_names(tmp_path) == datasets.image_names(tmp_path) == found
  (record,) = caplog.records  # once
  assert [part for part in ("2 files", "a.heic, notes.txt", "1 folder", "closed") if part not in record.message] == []
  assert ".hidden" not in record.message


@pytest.mark.parametrize("inside", ["", "paris_eval/", "given/out/"])
def test_paris_has_its_own_test_images_wherever_they_lie(tmp_path, inside):
  plant(tmp_path, *(f"x/paris_train_original/{name}" for name in paris_names(3)))
  plant(tmp_path, *(f"{inside}paris_eval_gt/{i:03}_im.png" for i in range(1, 4)))
  assert layout(tmp_path) == layout(tmp_path, layout="paris") == "paris"
  train, val = names(tmp_path)
  assert train == sorted(paris_names(3))
  assert val == ["001_im.png", "002_im.png", "003_im.png"]
  assert opened(tmp_path, "val")[0].image.shape == (20, 24, 3)
  # The same names as from the folder itself: the evaluation's holes are functions of them.
  folder = tmp_path / inside / "paris_eval_gt"
  assert sources.open_source(DataConfig(val=str(folder)), "val").names == val


@pytest.mark.parametrize("root", [".", "paris_train_original"])
def test_paris_without_test_images_is_held_out_by_place(tmp_path, root):
  plant(tmp_path / "paris_train_original", *paris_names(), "left_over.jpg")
  train, val = names(tmp_path / root)
  places = [{name.rsplit("_", 2)[0] for name in split} for split in (train, val)]
  assert not places[0] & places[1]
  assert len(places[1]) >= 1 and len(val) == 3 * len(places[1])
  assert sorted(train + val) == sorted([*paris_names(), "left_over.jpg"])
  assert names(tmp_path / root, val_share=1e-9)[1]  # at least one place
  # All of it is for training where the held-out images come from elsewhere.
  assert len(opened(tmp_path / root, "train", val="elsewhere").names) == 121


def test_places2_has_its_own_validation_images(tmp_path):
  train = ["a/airfield/00000001.jpg", "a/apartment_building/outdoor/00000001.jpg", "z/zen_garden/00005000.jpg"]
  plant(tmp_path, *(f"data_256/{name}" for name in train))
  plant(tmp_path, *(f"val_256/Places365_val_{i:08}.jpg" for i in (1, 2)))
  assert layout(tmp_path) == layout(tmp_path, layout="places2") == "places2"
  assert names(tmp_path) == (train, ["Places365_val_00000001.jpg", "Places365_val_00000002.jpg"])


@pytest.mark.parametrize("folder", ["CelebAMask-HQ/CelebA-HQ-img", "data256x256"])
def test_celebahq_holds_out_the_last_fifteenth_by_number_and_wants_30000(tmp_path, caplog, folder):
  numbers = [f"{i}.jpg" for i in range(30)]  # 9.jpg comes before 10.jpg
  plant(tmp_path, *(f"{folder}/{name}" for name in numbers))
  plant(tmp_path, "CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_hair.png")
  with caplog.at_level(logging.WARNING):
    train, val = names(tmp_path)
  assert layout(tmp_path) == "celebahq"
  assert val == ["28.jpg", "29.jpg"]
  assert train == sorted(numbers[:28])
  assert "30 images, where CelebA-HQ has 30,000" in caplog.text


def test_30000_numbered_images_are_celebahq_with_2000_held_out(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(datasets, "image_names", lambda folder: [f"{i + 1:05}.jpg" for i in range(30_000)])
  assert datasets.detect_layout(tmp_path) == "celebahq"
  parts = [
    datasets.split_files(tmp_path, "celebahq", split, val_share=0.5, by_rule=True, setting="data.train='x'").names
    for split in ("train", "val")
  ]
  assert (parts[0][-1], parts[1][0], len(parts[0]), len(parts[1])) == ("28000.jpg", "28001.jpg", 28_000, 2_000)
  assert not caplog.records
  monkeypatch.setattr(datasets, "image_names", lambda folder: [f"a{i + 1:05}.jpg" for i in range(30_000)])
  assert datasets.detect_layout(tmp_path) == "folder"


def test_train_beside_val_needs_no_second_setting(tmp_path):
  plant(tmp_path, "train/a/1.png", "train/2.png", "val/1.png", "test/3.png")
  for chosen in ("auto", "folder", "celebahq"):
    assert names(tmp_path, layout=chosen) == (["2.png", "a/1.png"], ["1.png"])
  # Held-out images from elsewhere do not bring those of this tree into training.
  assert opened(tmp_path, "train", val="elsewhere").names == ["2.png", "a/1.png"]


def test_any_folder_is_split_by_a_hash_of_the_names_that_lasts(tmp_path):
  many = [f"{i:03}.png" for i in range(100)]
  plant(tmp_path, *many)
  assert layout(tmp_path) == "folder"
  train, val = names(tmp_path, val_share=0.1)
  assert sorted(train + val) == many and not set(train) & set(val)
  assert 3 <= len(val) <= 20
  assert names(tmp_path, val=str(tmp_path)) == (many, many)  # the rule is for an empty data.val alone
  assert set(val) <= set(names(tmp_path, val_share=0.2)[1])
  # More images: what was held out stays so, and nothing that was trained on is held out now.
  plant(tmp_path, *(f"new/{i:03}.png" for i in range(50)))
  more_train, more_val = names(tmp_path, val_share=0.1)
  assert set(train) <= set(more_train) and set(val) <= set(more_val)
  assert set(more_val) > set(val)


def test_a_small_folder_has_one_image_at_least_on_each_side(tmp_path):
  plant(tmp_path, "a.png", "b.png")
  for share in (1e-9, 0.999):
    assert [len(split) for split in names(tmp_path, val_share=share)] == [1, 1]
  (tmp_path / "b.png").unlink()
  with pytest.raises(ConfigError, match=r"1 image\(s\) cannot be split in two: give data\.val images of their own"):
    opened(tmp_path, "train")


@pytest.mark.parametrize("chosen", ["paris", "places2", "celebahq", "arrayrecord"])
def test_a_wrong_tree_shows_the_expected_and_the_found_one(tmp_path, chosen):
  plant(tmp_path, "left.jpg", "photos/cat.jpg", *(f"z{i}/dog.jpg" for i in range(4)))
  for split in ("train", "val"):
    with pytest.raises(ConfigError) as error:
      opened(tmp_path, split, layout=chosen)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(
      f"data.train='{tmp_path}': data.layout={chosen} expects {datasets.EXPECTED[chosen]}; found "
    )
    assert "left.jpg" in message and "photos" in message
