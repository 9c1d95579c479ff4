"""Anybody's results as files: what is scored, what is converted, and what is refused in one line with exit code 2."""

from __future__ import annotations

import collections
import csv
import hashlib
import json
import re
import shutil

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

import run
from gmsrm_jax.config import EvalConfig
from gmsrm_jax.data.masks.fixed import bucket_name, mask_bytes
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.evaluation.from_files import FolderPictures
from gmsrm_jax.evaluation.judge import area_bounds
from gmsrm_jax.evaluation.scorer import ALL
from gmsrm_jax.inference import photos
from tests.trained import one_line

PHOTO = skimage.data.astronaut()
NAMES = ("a", "b", "c", "d")


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def pixels(path):
  return np.asarray(Image.open(path))


@pytest.fixture
def tree(tmp_path):
  """Four crops, filled grey, with holes of 20, 20, 45 and 70 % of the picture; one of another size."""
  for index, (name, share) in enumerate(zip(NAMES, (0.2, 0.2, 0.45, 0.7), strict=True)):
    side = 40 if name != "b" else 48
    truth = PHOTO[40 * index : 40 * index + 40, 200 : 200 + side].copy()
    mask = np.zeros(truth.shape[:2], np.uint8)
    mask[: round(40 * share)] = 255
    write(tmp_path / "truth" / f"{name}.png", truth)
    write(tmp_path / "masks" / f"{name}.png", mask)
    write(tmp_path / "filled" / f"{name}.png", np.where(mask[..., None] > 0, np.uint8(128), truth))
  return tmp_path


def opened(tree, **options):
  return FolderPictures([str(tree / "truth")], [str(tree / "filled")], [str(tree / "masks")], **options)


def pictures_of(folder):
  return {picture.name: picture for picture in sorted(folder, key=lambda picture: picture.name)}


def flags(tree, *more):
  names = {"images": "truth", "inpainted": "filled", "output": "out"}
  where = [f"--{flag}={tree / folder}" for flag, folder in names.items()]
  return ["--mode=evaluate", *where, *more, "--set", "eval.baselines=mean"]


def report(tree, *more):
  assert run.main([*flags(tree, *more), "eval.protocol=aotgan"]) == 0
  return json.loads((tree / "out" / "report.json").read_text(), parse_constant=lambda text: pytest.fail(text))


def test_pictures_are_paired_by_stem_put_into_buckets_by_area_and_read_once(tree, monkeypatch):
  read, read_photo = collections.Counter(), photos.read_photo
  monkeypatch.setattr(photos, "read_photo", lambda data, name: read.update([name]) or read_photo(data, name))
  folder = opened(tree)
  pictures = pictures_of(folder)
  assert set(read.values()) == {1} and len(read) == 8
  assert [(p.name, p.bucket) for p in pictures.values()] == list(
    zip(NAMES, ("10-20%", "10-20%", "40-50%", "60-100%"), strict=True)
  )
  digest = hashlib.sha256()
  for name, picture in pictures.items():
    np.testing.assert_array_equal(picture.image, pixels(tree / "truth" / f"{name}.png"))
    np.testing.assert_array_equal(picture.fills[0], pixels(tree / "filled" / f"{name}.png"))
    np.testing.assert_array_equal(picture.mask[..., 0] * 255, pixels(tree / "masks" / f"{name}.png"))
    digest.update(mask_bytes(name, area_bounds(picture.mask), picture.mask[..., 0]))
  assert folder.describe()["protocol"]["masks_sha256"] == digest.hexdigest()


def test_a_report_has_their_numbers_and_what_differs_outside_the_hole(tree):
  truth, filled = ({name: pixels(tree / folder / f"{name}.png") for name in NAMES} for folder in ("truth", "filled"))
  changed = filled["a"].copy()
  changed[-1, :3] ^= 16  # three pixels below the hole
  write(tree / "filled" / "a.png", changed)
  numbers = report(tree, f"--masks={tree / 'masks'}")
  assert numbers["images"] == {"10-20%": 2, "40-50%": 1, "60-100%": 1, "all": 4}
  assert list(numbers["scores"]) == ["filled", "mean fill"] and numbers["self_check"]["passed"]
  assert numbers["outside_hole"]["filled"] == {"images": 1, "pixels": 3, "most": 16}
  with (tree / "out" / "report.csv").open() as file:
    lines = {(line["method"], line["image"]): float(line["psnr"]) for line in csv.DictReader(file)}
  assert len(lines) == 8
  for name in NAMES:
    error = np.float64(truth[name]) - filled[name]
    np.testing.assert_allclose(lines["filled", name], 10 * np.log10(255**2 / np.mean(error**2)), rtol=1e-5)
  mean = np.mean([lines["filled", name] for name in NAMES])
  np.testing.assert_allclose(numbers["scores"]["filled"]["all"]["psnr"], mean, rtol=1e-6)


def test_without_masks_whole_pictures_are_compared_and_one_picture_is_no_set(tree):
  for name in NAMES[1:]:
    (tree / "filled" / f"{name}.png").unlink()
  numbers = report(tree)
  assert numbers["images"] == {ALL: 1} and set(numbers["scores"]["filled"][ALL]) == {"psnr", "ssim", "mae"}
  assert numbers["distribution"] == {"filled": {ALL: {}}}
  text = (tree / "out" / "report.md").read_text()
  assert "nothing was composited" in text and re.search(r"\*95 % interval\* \| – +\|", text)


def test_what_has_no_partner_or_no_hole_is_named_and_the_others_are_scored(tree, caplog):
  (tree / "filled" / "b.png").unlink()
  (tree / "masks" / "c.png").unlink()
  write(tree / "masks" / "d.png", np.zeros((40, 40), np.uint8))
  folder = opened(tree)
  assert [picture.name for picture in folder] == ["a"]
  notes = folder.describe()["notes"]
  assert [(note[0], note[-1]) for note in notes] == [("1", "b"), ("1", "c"), ("1", "d")]
  assert all(note in caplog.text for note in notes)


def test_of_large_pictures_the_costly_part_is_left_out_with_a_word_unless_it_is_asked_for(tree, capsys):
  """Five sizes besides, so that pictures share canvases."""
  shapes = {"e": (520, 520), "f": (33, 60), "g": (64, 35)}
  for name, (height, width) in shapes.items():
    truth, mask = cv2.resize(PHOTO, (width, height)), np.zeros((height, width), np.uint8)
    mask[4:20, 4:25] = 255
    for folder, picture in (("truth", truth), ("masks", mask), ("filled", 255 - truth)):
      write(tree / folder / f"{name}.png", picture)
  whole = opened(tree, settings=EvalConfig(costly="always"))
  assert whole.is_whole and "biharmonic" in whole.baselines and "lpips_vgg" in whole.protocol.metrics
  folder = opened(tree)
  assert {picture.image.shape[:2] for picture in folder} == {(48, 48), (512, 512), (48, 64), (64, 48)}
  assert opened(tree, settings=EvalConfig(max_images=4)).is_whole, "of small ones nothing is left out"
  numbers = report(tree, f"--masks={tree / 'masks'}")
  said = capsys.readouterr().out
  time = re.search(r"^time: (\d+) s: (.*); meanwhile, where pictures are judged: .*reading", said, re.MULTILINE)
  assert time is not None
  parts = [int(seconds) for seconds in re.findall(r" (\d+) s", time[2])]
  # Nothing is left unexplained but what rounding hides.
  assert len(parts) == 5 and abs(sum(parts) - int(time[1])) <= 3
  assert any("1 of 7 pictures have more than 512x512" in note for note in numbers["notes"])
  assert numbers["distribution"]["filled"]["all"] == {} and numbers["self_check"]["passed"]
  truth, filled = pixels(tree / "truth" / "e.png"), pixels(tree / "filled" / "e.png")
  squares = np.square(np.float64(truth) - filled)[pixels(tree / "masks" / "e.png") > 0].sum() / truth.size
  with (tree / "out" / "report.csv").open() as file:
    (psnr,) = [row["psnr"] for row in csv.DictReader(file) if (row["method"], row["image"]) == ("filled", "e")]
  np.testing.assert_allclose(float(psnr), 10 * np.log10(255**2 / squares), rtol=1e-5)


def test_16_bits_and_alpha_are_converted_by_the_stated_rule(tree):
  before = {picture.name: picture.fills[0] for picture in opened(tree)}
  deep = before["a"].astype(np.uint16) * 257 + 100  # less than half a level off
  deep[before["a"] == 255] = 65535
  assert cv2.imwrite(str(tree / "filled" / "a.png"), deep[..., ::-1])
  image = Image.fromarray(before["c"])
  alpha = np.full(image.size[::-1], 255, np.uint8)
  alpha[0, :] = 0
  image.putalpha(Image.fromarray(alpha))
  image.save(tree / "filled" / "c.png")
  folder = opened(tree)
  after = {picture.name: picture.fills[0] for picture in folder}
  np.testing.assert_array_equal(after["a"], before["a"])
  assert (after["c"][0] == 255).all()
  np.testing.assert_array_equal(after["c"][1:], before["c"][1:])
  assert [note[:12] for note in folder.describe()["notes"]] == ["1 files have"] * 2


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg"])
def test_a_turned_file_is_as_large_as_it_is_seen(tree, suffix):
  """Orientation 6: stored lying, seen standing; Pillow itself turns a TIFF's pixels and size."""
  stored, standing = np.full((34, 50, 3), 90, np.uint8), np.full((50, 34, 3), 90, np.uint8)
  for folder in ("truth", "filled"):
    (tree / folder / "a.png").unlink()
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(stored).save(tree / folder / f"a.{suffix}", exif=exif)
  write(tree / "masks" / "a.png", np.full((50, 34), 255, np.uint8))
  folder = opened(tree)
  assert folder.least_size == (50, 34)
  first = pictures_of(folder)["a"]
  np.testing.assert_array_equal(first.image, standing)
  np.testing.assert_array_equal(first.fills[0], standing)


def test_of_several_pages_the_first_is_scored_with_a_word(tree):
  image = Image.open(tree / "filled" / "a.png")
  (tree / "filled" / "a.png").unlink()
  image.save(tree / "filled" / "a.tif", save_all=True, append_images=[image.rotate(90)])
  folder = opened(tree)
  np.testing.assert_array_equal(pictures_of(folder)["a"].fills[0], np.asarray(image))
  assert [note for note in folder.describe()["notes"] if note.startswith("1 files hold several")]


def test_inverted_masks_are_turned_by_a_flag(tree):
  masks = [picture.mask for picture in opened(tree)]
  for path in (tree / "masks").iterdir():
    write(path, 255 - pixels(path))
  for mask, picture in zip(masks, opened(tree, invert=True), strict=True):
    np.testing.assert_array_equal(mask, picture.mask)


def test_masks_that_look_inverted_are_pointed_out(tree, caplog):
  for path in (tree / "masks").iterdir():
    mask = np.full_like(pixels(path), 255)
    mask[:8] = 0
    write(path, mask)
  folder = opened(tree)
  assert len(list(folder)) == 4
  assert "4 of 4 masks" in caplog.text and "--mask_invert" in folder.describe()["notes"][-1]


def test_masks_beside_the_truth_and_results_called_like_them_as_lama_has_it(tree):
  for name in NAMES:
    (tree / "masks" / f"{name}.png").rename(tree / "truth" / f"{name}_mask001.png")
    (tree / "filled" / f"{name}.png").rename(tree / "filled" / f"{name}_mask001.png")
  folder = FolderPictures([str(tree / "truth")], [str(tree / "filled")], [str(tree / "truth")])
  assert list(pictures_of(folder)) == list(NAMES)
  with pytest.raises(ConfigError, match="compared with itself"):
    FolderPictures([str(tree / "filled")], [str(tree / "filled")], None)


@pytest.mark.parametrize(
  ("case", "named"),
  [
    ("empty", ["--inpainted=", "holds no image", "give a folder"]),
    ("missing", ["--inpainted=", "does not exist"]),
    ("no stem", ["--inpainted=", "--images=", "name results like their truth"]),
    ("other size", ["filled/a.png", "20x30", "truth/a.png", "40x40", "make all of one size"]),
    ("other mask", ["masks/a.png", "20x30", "truth/a.png", "40x40"]),
    ("no holes", ["--masks=", "white is hole", "--mask_invert"]),
    ("twins", ["--inpainted", "'a'", "rename one"]),
    ("broken", ["filled/a.png", "cannot be decoded", "replace it"]),
    ("overwritten", ["truth/report.png is an input", "--output"]),
    ("too small", ["protocol=ours", "32x32", "30x20"]),
  ],
)
def test_what_cannot_be_scored_is_one_line_and_exit_code_2(case, named, tree, capsys):
  small = np.zeros((30, 20, 3), np.uint8)
  if case in ("empty", "missing"):
    shutil.rmtree(tree / "filled")
  if case == "empty":
    (tree / "filled").mkdir()
  elif case == "no stem":
    (tree / "filled").rename(tree / "old")
    write(tree / "filled" / "else.png", small)
  elif case == "other size":
    write(tree / "filled" / "a.png", small)
  elif case == "other mask":
    write(tree / "masks" / "a.png", small)
  elif case == "no holes":
    for name in NAMES:
      write(tree / "masks" / f"{name}.png", np.zeros((40, 48 if name == "b" else 40), np.uint8))
  elif case == "twins":
    write(tree / "filled" / "a.jpg", small)
  elif case == "broken":
    path = tree / "filled" / "a.png"
    path.write_bytes(path.read_bytes()[:200])
  elif case == "too small":
    for folder, picture in (("truth", small), ("filled", small), ("masks", small + 255)):
      write(tree / folder / "e.png", picture)
  more = [f"--masks={tree / 'masks'}"]
  if case == "overwritten":
    for folder in ("truth", "filled", "masks"):
      shutil.copy(tree / folder / "a.png", tree / folder / "report.png")
    more = [*more, f"--output={tree / 'truth'}"]
  assert run.main(flags(tree, *more)) == 2
  (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
  assert all(fragment in line for fragment in named), line
  assert not (tree / "out").exists()


@pytest.mark.parametrize(
  ("given", "named"),
  [
    ("--images=x --inpainted=y", "needs --output"),
    ("--images=x --output=z", "needs --inpainted"),
    ("--masks=x", "needs --images"),
    ("--images=x --inpainted=y --output=z --workdir=w", "--workdir is not read"),
    ("--images=x --inpainted=y --output=z --checkpoint=w", "--checkpoint is not read"),
    ("--images=x --inpainted=y --output=z --mask_invert", "--mask_invert without --masks"),
  ],
)
def test_flags_that_do_not_go_together_are_refused(given, named, capsys):
  assert run.main(["--mode=evaluate", *given.split()]) == 2
  assert named in one_line(capsys.readouterr().err)


def test_a_bucket_holds_its_upper_end():
  pixels = {1: "0-10%", 100: "0-10%", 101: "10-20%", 600: "50-60%", 1000: "60-100%"}
  masks = {count: (np.arange(1000) < count).astype(np.uint8).reshape(20, 50, 1) for count in pixels}
  assert {count: bucket_name(area_bounds(mask)) for count, mask in masks.items()} == pixels
