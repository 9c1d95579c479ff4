"""Image sources: every kind of file is read right, damage is found, counted and bounded."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import DataConfig
from gmsrm_jax.data import pictures, sources
from gmsrm_jax.errors import ConfigError


def opened(folder, split):
  # Held-out images from elsewhere, so that all of the folder is for training.
  other = {"val": "elsewhere"} if split == "train" else {}
  return sources.open_source(DataConfig(**{split: folder}, **other), split)


def _photo(seed=0, height=48, width=60):
  """Smooth colours with some detail, so that JPEG keeps them nearly."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
  return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _save(path, seed=0, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(_photo(seed)).save(path, **options)
  return path


def _truncate(path, share=0.5):
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])
  return path


def test_names_are_sorted_relative_and_recursive_and_leave_out_what_is_no_image(tmp_path):
  for name in ("b.PNG", "a/z.jpg", "a/deep/er.webp", "c.TIFF", "B.jpeg", "d.bmp", "e.tif"):
    _save(tmp_path / name)
  for name in (".hidden.png", ".git/x.png", "a/._z.jpg"):
    _save(tmp_path / name)
  (tmp_path / "notes.txt").write_text("no image")
  source = opened(str(tmp_path), "train")
  assert source.names == ["B.jpeg", "a/deep/er.webp", "a/z.jpg", "b.PNG", "c.TIFF", "d.bmp", "e.tif"]
  assert [source[i].name for i in range(len(source))] == source.names


def test_links_in_a_circle_end(tmp_path):
  _save(tmp_path / "a" / "x.png")
  os.symlink(tmp_path, tmp_path / "a" / "up")
  os.symlink(tmp_path / "a", tmp_path / "b")
  assert opened(str(tmp_path), "train").names == ["a/x.png"]


def test_a_source_travels_to_other_processes_with_what_it_knows(tmp_path):
  for i in range(3):
    _save(tmp_path / f"{i}.png", seed=i)
  (tmp_path / "1.png").write_bytes(b"")
  source = opened(str(tmp_path), "train")
  assert source[1].name == "2.png"
  copy = pickle.loads(pickle.dumps(source))
  assert copy.bad_files == ["1.png"]
  np.testing.assert_array_equal(copy[1].image, source[2].image)
  (tmp_path / "0.png").write_bytes(b"")
  with pytest.raises(ConfigError, match="2 of 3 image files"):
    copy[0]
  assert source.bad_files == ["1.png"]


@pytest.mark.parametrize(("suffix", "share"), [("jpg", 0.97), ("png", 0.6), ("bmp", 0.97), ("webp", 0.2), ("tif", 0.6)])
def test_a_truncated_file_is_replaced_by_the_next_counted_and_named_once(tmp_path, caplog, suffix, share):
  for i in range(12):
    _save(tmp_path / f"{i:02}.{suffix}", seed=i)
  _truncate(tmp_path / f"04.{suffix}", share)
  source = opened(str(tmp_path), "train")
  with caplog.at_level(logging.WARNING):
    for _ in range(3):
      assert source[4].name == f"05.{suffix}"
  np.testing.assert_array_equal(source[4].image, source[5].image)
  assert source.bad_files == [f"04.{suffix}"]
  assert [f"04.{suffix}" in record.getMessage() for record in caplog.records] == [True]


def test_the_last_file_is_replaced_by_the_first(tmp_path):
  for i in range(3):
    _save(tmp_path / f"{i}.png", seed=i)
  _truncate(tmp_path / "2.png")
  assert opened(str(tmp_path), "train")[2].name == "0.png"
  assert opened(str(tmp_path), "train")[-1].name == "0.png"


def test_too_many_bad_files_are_an_error_that_counts_and_names_them(tmp_path):
  for i in range(12):
    _save(tmp_path / f"{i:02}.png")
  for i in (2, 3):
    (tmp_path / f"{i:02}.png").write_bytes(b"no image at all")
  source = opened(str(tmp_path), "val")
  with pytest.raises(
    ConfigError, match=r"data\.val=.*: 2 of 12 .* \(02\.png, 03\.png\), more than one, or 1% .*: replace"
  ) as error:
    source[2]
  assert "\n" not in str(error.value)


def test_only_bad_files_are_an_error_and_no_endless_loop(tmp_path):
  (tmp_path / "0.jpg").write_bytes(b"")
  source = opened(str(tmp_path), "train")
  for _ in range(2):
    with pytest.raises(ConfigError, match="none of its 1 image files can be decoded"):
      source[0]


def test_bad_files_are_counted_once_when_many_threads_meet_them(tmp_path, caplog, monkeypatch):
  for i in range(20):
    _save(tmp_path / f"{i:02}.png")
  (tmp_path / "07.png").write_bytes(b"\x89PNG broken")
  source = opened(str(tmp_path), "train")
  all_here, decode = threading.Barrier(8, timeout=20), pictures.decode

  def decode_together(path, name):
    if path.name == "07.png":
      all_here.wait()
    return decode(path, name)

  monkeypatch.setattr(pictures, "decode", decode_together)
  names = []
  with caplog.at_level(logging.WARNING):
    threads = [threading.Thread(target=lambda: names.append(source[7].name)) for _ in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert names == ["08.png"] * 8
  assert len(caplog.records) == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_folders_that_cannot_be_used_are_named_in_one_line(tmp_path, split):
  file = _save(tmp_path / "x.png")
  empty = tmp_path / "empty"
  empty.mkdir()
  missing = tmp_path / "no"
  cases = {"": "names nothing", str(missing): "does not exist", str(file): "is a file", str(empty): "no image"}
  for spec, rule in cases.items():
    with pytest.raises(ConfigError, match=rule) as error:
      opened(spec, split)
    message = str(error.value)
    assert message.startswith(f"data.{split}={spec!r} ")
    assert "give data." in message
    assert "\n" not in message


def test_the_split_hash_follows_names_and_sizes_but_not_the_place(tmp_path):
  for folder in ("one", "two"):
    for i in range(3):
      _save(tmp_path / folder / f"{i}.png", seed=i)

  def digest(folder):
    return sources.split_hash(opened(str(tmp_path / folder), "train"))

  lines = "".join(f"{i}.png\0{(tmp_path / 'one' / f'{i}.png').stat().st_size}\n" for i in range(3))
  assert digest("one") == digest("two") == hashlib.sha256(lines.encode()).hexdigest()
  (tmp_path / "two" / "2.png").rename(tmp_path / "two" / "3.png")
  assert digest("one") != digest("two")
  (tmp_path / "two" / "3.png").rename(tmp_path / "two" / "2.png")
  (tmp_path / "two" / "1.png").write_bytes((tmp_path / "two" / "1.png").read_bytes() + b"\0")
  assert digest("one") != digest("two")


def test_held_out_images_that_are_training_images_are_found_by_content_under_any_name(tmp_path):
  for i in range(6):
    _save(tmp_path / "train" / f"{i}.png", seed=i)
    _save(tmp_path / "val" / f"{i}.png", seed=10 + i)
  train = opened(str(tmp_path / "train"), "train")
  assert sources.doubts(train, opened(str(tmp_path / "val"), "val")) == []
  shutil.copy(tmp_path / "train" / "2.png", tmp_path / "val" / "other.png")
  (doubt,) = sources.doubts(train, opened(str(tmp_path / "val"), "val"))
  assert "1 of 7" in doubt and "(other.png)" in doubt
  (doubt,) = sources.doubts(train, opened(str(tmp_path / "train") + "/.", "val"))
  assert "6 of 6" in doubt and "--mode=check" in doubt


def test_one_held_out_image_is_doubtful(tmp_path):
  for i in range(9):
    _save(tmp_path / f"{i}.png", seed=i)
  data = DataConfig(train=str(tmp_path))
  train, val = (sources.open_source(data, split) for split in ("train", "val"))
  assert len(val) == 1
  (doubt,) = sources.doubts(train, val)
  assert str(tmp_path) in doubt and "1 image" in doubt and "data.val_share" in doubt
  assert sources.doubts(None, opened("demo", "val")) == []


def test_the_demo_holds_out_from_the_images_that_it_trains_on(tmp_path):
  for i in range(9):
    _save(tmp_path / f"{i}.png", seed=i)
  data = overrides.override(experiments.load("demo"), [f"data.train={tmp_path}"]).data
  train, val = (sources.open_source(data, split) for split in ("train", "val"))
  assert sorted(train.names + val.names) == [f"{i}.png" for i in range(9)] and len(val) == 1


def test_the_photographs_that_come_along_are_small_cc0_and_held_out_by_place():
  root = sources.open_source(DataConfig(train="demo"), "val").stored.folder.parent
  assert "CC0-1.0" in (root / "README.md").read_text(encoding="utf-8")
  assert sum(path.stat().st_size for path in root.rglob("*")) < 2e6
  numbers = {}
  for split, count in (("train", 96), ("val", 24)):
    source = sources.open_source(DataConfig(train="demo"), split)
    assert len(source) == count and all(min(x.image.shape[:2]) >= 80 and max(x.image.shape[:2]) <= 160 for x in source)
    numbers[split] = np.array([int(name.removesuffix(".jpg").removeprefix("spb_img_")) for name in source.names])
  # Neighbours in the data set may show one house front.
  assert np.abs(numbers["train"][:, None] - numbers["val"]).min() >= 4
