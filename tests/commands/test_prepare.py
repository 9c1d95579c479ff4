"""A preparation holds the same images as its source, whole or not at all, however often it is killed."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import run
from gmsrm_jax import experiments, overrides
from gmsrm_jax.commands import prepare
from gmsrm_jax.config import DataConfig
from gmsrm_jax.data import pictures, sources
from gmsrm_jax.data.prepare import Shard, encoded, shard_borders
from gmsrm_jax.errors import ConfigError

ROOT = pathlib.Path(run.__file__).parent


def photo(seed, height=48, width=60):
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
  return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def paris(root, places=9, test=2, height=48, width=60):
  """A small Paris StreetView."""
  for folder in ("paris_train_original", "paris_eval_gt"):
    (root / folder).mkdir(parents=True)
  for i in range(places):
    for heading in (0, 90):
      name = f"48.8{i:05}_2.3{i:05}_{heading}_-004.JPG"
      Image.fromarray(photo(i + heading, height, width)).save(root / "paris_train_original" / name, "JPEG", quality=97)
  for i in range(test):
    Image.fromarray(photo(1000 + i, 20, 20)).save(root / "paris_eval_gt" / f"{i + 1:03}_im.png")
  return root


def configured(root, *changes):
  return overrides.override(experiments.load("paris"), [f"data.train={root}", "model.size=tiny", *changes])


def opened(folder, split):
  return sources.open_source(DataConfig(train=str(folder)), split)


def files(folder):
  return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_prepared_has_the_names_the_split_and_nearly_the_pixels_of_its_source(tmp_path, capsys):
  source, output = paris(tmp_path / "paris"), tmp_path / "out"
  config = configured(source, "data.stored_side=32")
  prepare.prepare(config, str(output))
  for split, count in (("train", 18), ("val", 2)):
    before, after = opened(source, split), opened(output, split)
    assert after.stored.layout == "arrayrecord"
    assert after.names == before.names and len(after) == count
    assert sources.split_hash(after) == sources.split_hash(opened(output, split))
    for i in range(count):
      image, name = after[i]
      assert name == before[i].name
      expected = before[i].image
      if split == "train":
        expected = cv2.resize(expected, (40, 32), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - expected).mean() < 5
      else:  # small enough: not a pixel changes, and nothing is enlarged
        np.testing.assert_array_equal(image, expected)
  # Any program that knows TFDS reads it.
  builder = tfds.builder_from_directory(output)
  assert builder.info.full_name == "paris_street_view/1.0.0"
  record = builder.as_data_source("train")[3]
  assert record["name"] == opened(output, "train").names[3].encode()
  np.testing.assert_array_equal(record["image"], opened(output, "train")[3].image)
  assert "18 training images and 2 held out with a short side of at most 32" in capsys.readouterr().out

  held = files(output)
  prepare.prepare(config, str(output))
  assert "is finished: train from it with --set data.train=" in capsys.readouterr().out
  assert files(output) == held
  with pytest.raises(ConfigError, match="holds a preparation of short_side=32, not 33: name another folder"):
    prepare.prepare(configured(source, "data.stored_side=33"), str(output))
  (source / "paris_eval_gt" / "001_im.png").unlink()
  with pytest.raises(ConfigError, match="holds a preparation of data=.*images=.*: name another folder"):
    prepare.prepare(config, str(output))


@pytest.mark.parametrize("images", [1, 7, 8, 100, 5_000, 200_000])
def test_shards_take_every_image_once_and_are_neither_tiny_nor_huge(images):
  borders = shard_borders(images)
  assert [index for border in borders for index in range(*border)] == list(range(images))
  lengths = [stop - start for start, stop in borders]
  assert min(8, images) <= min(lengths) and max(lengths) <= 1024 and len(borders) >= min(64, images // 8)


def test_only_what_every_reader_sees_alike_keeps_its_bytes(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  rgb = Image.fromarray(photo(0))
  kept = {"a.png": rgb, "b.jpg": rgb, "c.png": rgb.convert("L")}
  changed = {"d.png": rgb.convert("P"), "e.png": rgb.convert("RGBA"), "f.bmp": rgb, "g.jpg": rgb.convert("CMYK")}
  for name, image in {**kept, **changed}.items():
    image.save(tmp_path / name)
  rgb.save(tmp_path / "h.png", exif=exif)
  for name in kept:
    assert encoded(tmp_path / name, 48, "png") == (tmp_path / name).read_bytes()
  for name in (*changed, "h.png"):
    data = encoded(tmp_path / name, 60, "png")
    assert data != (tmp_path / name).read_bytes()
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    np.testing.assert_array_equal(np.asarray(image), pictures.decode(tmp_path / name))


def test_damaged_files_are_left_out_named_and_bounded(tmp_path, capsys):
  source, output = paris(tmp_path / "paris"), tmp_path / "out"
  folder = source / "paris_train_original"
  good = opened(source, "train").names
  (folder / good[4]).write_bytes((folder / good[4]).read_bytes()[:500])
  prepare.prepare(configured(source), str(output))
  told = capsys.readouterr().out
  assert f"left out 1 that cannot be decoded: train/{good[4]}" in told
  assert opened(output, "train").names == [name for name in good if name != good[4]]

  for i in (9, 10):
    (folder / good[i]).write_bytes(b"")
  shutil.rmtree(output)
  for _ in range(2):  # and again where all shards are there
    with pytest.raises(ConfigError, match=r"of 18 image files cannot be decoded .*more than one, or 1%"):
      prepare.prepare(configured(source), str(output))
  with pytest.raises(ConfigError, match="is a preparation that was not finished: run its --mode=prepare again"):
    opened(output, "train")


def test_folders_that_cannot_be_written_to_are_named(tmp_path):
  source = paris(tmp_path / "paris")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine.txt").touch()
  with pytest.raises(ConfigError, match=r"--output=.*full holds other files \(mine\.txt\)"):
    prepare.prepare(configured(source), str(tmp_path / "full"))
  assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "paris"]


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_one_line(tmp_path):
  source = paris(tmp_path / "paris")
  (tmp_path / ".shard.incomplete").symlink_to("/dev/full")
  shard = Shard("train", tmp_path / "shard", opened(source, "train").stored, 32, "jpeg")
  with pytest.raises(ConfigError, match="shard.incomplete: .*No space left on device: make room"):
    shard.write()


def command(source, output):
  flags = ["--mode=prepare", "--experiment=paris", f"--output={output}", "--set", f"data.train={source}"]
  return [sys.executable, str(ROOT / "run.py"), *flags, "data.stored_side=200"]


def children(pid):
  return [
    int(text) for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children") for text in path.read_text().split()
  ]


def alive(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="looks at processes through /proc")
def test_a_killed_preparation_goes_on_and_ends_in_the_same_files(tmp_path):
  source, output = paris(tmp_path / "paris", places=120, height=240, width=300), tmp_path / "out"
  with subprocess.Popen(command(source, output), stdout=subprocess.DEVNULL) as first:
    deadline = time.monotonic() + 120
    while len(list((output / "done").glob("*.json"))) < 3 and time.monotonic() < deadline and first.poll() is None:
      time.sleep(0.002)
    workers = children(first.pid)
    os.kill(first.pid, signal.SIGKILL)
  assert first.returncode == -signal.SIGKILL
  written = len(list((output / "done").glob("*.json")))
  assert written >= 3
  with pytest.raises(ConfigError, match="not finished"):
    opened(output, "train")
  assert workers
  while any(alive(worker) for worker in workers):  # no process is left behind
    assert time.monotonic() < deadline
    time.sleep(0.01)

  # A shard that a crash of the machine cut off is not taken for a whole one.
  victim = sorted((output / "done").glob("*.json"))[0].name.removesuffix(".json")
  (output / victim).write_bytes((output / victim).read_bytes()[:1000])
  kept = [output / path.stem for path in (output / "done").glob("*.json") if path.stem != victim]
  times = [path.stat().st_mtime_ns for path in kept]
  again = subprocess.run(command(source, output), capture_output=True, text=True, check=True)
  assert again.stderr == ""
  assert kept and times == [path.stat().st_mtime_ns for path in kept], "written twice"
  subprocess.run(command(source, tmp_path / "whole"), capture_output=True, check=True)
  resumed, whole = files(output), files(tmp_path / "whole")
  assert not [name for name in resumed if name.startswith(".") and name not in whole]
  assert sorted(resumed) == sorted(whole)
  # Protobuf writes the features of a record in any order: not the files are equal, but what they hold.
  assert [name for name in whole if resumed[name] != whole[name] and "array_record-" not in name] == []
  for split in ("train", "val"):
    stored = [opened(folder, split).stored for folder in (output, tmp_path / "whole")]
    assert stored[0].names == stored[1].names
    for i in range(len(stored[0].names)):
      assert stored[0].open(i) == stored[1].open(i)
