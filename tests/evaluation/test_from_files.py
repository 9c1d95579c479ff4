"""Anybody's results as files: what is scored, what is converted, and what is refused in one line with exit code 2."""

from __future__ import annotations

import csv
import json
import re
import shutil

import cv2
import jax
import numpy as np
import pytest
import skimage.data
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import run
from gmsrm_jax.data.masks.fixed import bucket_name
from gmsrm_jax.evaluation import from_files
from gmsrm_jax.evaluation.scorer import ALL
from tests.training.test_loop import finish, one_line

PHOTO = skimage.data.astronaut()
NAMES = ("a", "b", "c", "d")
CACHE = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
QUICK = ["--set", "eval.protocol=aotgan", "eval.baselines=mean"]


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
  """Every evaluation builds its program anew: this keeps what was compiled."""
  before = {name: getattr(jax.config, name) for name in CACHE}
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("cache")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  """Four crops, filled grey, with holes of 20, 20, 45 and 70 % of the picture; one of another size."""
  root = tmp_path_factory.mktemp("folders")
  for index, (name, share) in enumerate(zip(NAMES, (0.2, 0.2, 0.45, 0.7), strict=True)):
    side = 40 if name != "b" else 48
    truth = PHOTO[40 * index : 40 * index + 40, 200 : 200 + side].copy()
    mask = np.zeros(truth.shape[:2], np.uint8)
    mask[: round(40 * share)] = 255
    write(root / "truth" / f"{name}.png", truth)
    write(root / "masks" / f"{name}.png", mask)
    write(root / "filled" / f"{name}.png", np.where(mask[..., None] > 0, np.uint8(128), truth))
  return root


@pytest.fixture
def copied(tree, tmp_path):
  shutil.copytree(tree, tmp_path / "tree")
  return tmp_path / "tree"


def flags(tree, output, *more, masks=True):
  where = [f"--images={tree / 'truth'}", f"--inpainted={tree / 'filled'}", f"--output={output}"]
  return ["--mode=evaluate", *where, *([f"--masks={tree / 'masks'}"] if masks else []), *QUICK, *more]


def evaluate(tree, output, *more, masks=True):
  assert run.main(flags(tree, output, *more, masks=masks)) == 0
  return json.loads((output / "report.json").read_text(), parse_constant=lambda text: pytest.fail(text))


@pytest.fixture(scope="module")
def report(tree, tmp_path_factory):
  output = tmp_path_factory.mktemp("output")
  return evaluate(tree, output), output


def numbers(tree, prefix=""):
  """Every number of a report by its path."""
  if isinstance(tree, dict):
    return {key: value for name, item in tree.items() for key, value in numbers(item, f"{prefix}/{name}").items()}
  if isinstance(tree, list):
    return {key: value for i, item in enumerate(tree) for key, value in numbers(item, f"{prefix}/{i}").items()}
  return {prefix: tree} if isinstance(tree, (int, float)) else {}


def test_eight_devices_and_another_batch_give_the_same_report(tmp_path):
  """Twenty pictures, in processes of their own."""
  rng = np.random.default_rng(0)
  for index in range(20):
    truth = PHOTO[20 * index : 20 * index + 32, 180:212]
    mask = np.zeros((32, 32), np.uint8)
    mask[: 6 + index % 12, 3:28] = 255
    noisy = np.clip(truth + rng.normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    for folder, pixels in (("truth", truth), ("masks", mask), ("filled", noisy)):
      write(tmp_path / folder / f"p{index:02d}.png", pixels)
  reports = []
  for devices, batch_size in ((1, 64), (8, 7)):
    output = tmp_path / f"out{devices}"
    more = ["eval.protocol=ours", f"eval.batch_size={batch_size}", "eval.baselines=telea,initial"]
    given = [flag for flag in flags(tmp_path, output) if "=aotgan" not in flag and "=mean" not in flag]
    done = finish(tmp_path, *given, *more, devices=devices)
    assert done.returncode == 0, done.stderr
    reports.append(json.loads((output / "report.json").read_text()))
  before, after = map(numbers, reports)
  assert before.keys() == after.keys() and len(before) > 200
  for key, value in before.items():
    np.testing.assert_allclose(after[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_pictures_are_paired_by_stem_and_put_into_buckets_by_measured_area(report, tree):
  found, output = report
  assert found["images"] == {"10-20%": 2, "40-50%": 1, "60-100%": 1, "all": 4}
  assert list(found["scores"]) == ["filled", "mean fill"] and found["self_check"]["passed"]
  with (output / "report.csv").open() as file:
    rows = {(row["method"], row["image"]): row for row in csv.DictReader(file)}
  assert len(rows) == 8
  for name in NAMES:
    truth = np.asarray(Image.open(tree / "truth" / f"{name}.png")).astype(float)
    filled = np.asarray(Image.open(tree / "filled" / f"{name}.png")).astype(float)
    psnr = 10 * np.log10(255**2 / np.mean((truth - filled) ** 2))
    np.testing.assert_allclose(float(rows["filled", name]["psnr"]), psnr, rtol=1e-5)
  mean = np.mean([float(rows["filled", name]["psnr"]) for name in NAMES])
  np.testing.assert_allclose(found["scores"]["filled"]["all"]["psnr"], mean, rtol=1e-6)
  assert found["protocol"]["name"] == "aotgan" and len(found["protocol"]["masks_sha256"]) == 64


def test_the_page_has_a_row_per_bucket_and_shows_the_pictures(report):
  with Image.open(report[1] / "report.png") as page:
    pixels = np.asarray(page)
  assert pixels.shape[2] == 3 and pixels.std() > 20
  assert "PSNR" in (report[1] / "report.md").read_text()


def test_what_differs_outside_the_hole_is_counted_and_put_back(copied, tmp_path, report):
  path = copied / "filled" / "a.png"
  pixels = np.asarray(Image.open(path)).copy()
  pixels[-1, :3] ^= 16  # three pixels below the hole
  write(path, pixels)
  found = evaluate(copied, tmp_path / "out")
  assert found["outside_hole"]["filled"] == {"images": 1, "pixels": 3, "most": 16}
  assert found["scores"] == report[0]["scores"]
  text = (tmp_path / "out" / "report.md").read_text()
  assert "filled: 1 pictures differed from the truth outside the hole, in 3 pixels, by at most 16 levels" in text
  assert "All pictures equalled the truth outside the hole already." in (report[1] / "report.md").read_text()


def test_without_masks_whole_pictures_are_compared_in_one_bucket(tree, tmp_path):
  found = evaluate(tree, tmp_path, masks=False)
  assert found["images"] == {ALL: 4} and list(found["scores"]) == ["filled"]
  assert {name for name in found["scores"]["filled"][ALL]} == {"psnr", "ssim", "mae"}
  assert not found["protocol"]["composite"]
  assert "nothing was composited" in (tmp_path / "report.md").read_text()


def test_a_missing_stem_is_named_and_the_others_are_scored(copied, tmp_path, caplog):
  (copied / "filled" / "b.png").unlink()
  (copied / "masks" / "c.png").unlink()
  found = evaluate(copied, tmp_path / "out")
  assert found["images"][ALL] == 2
  assert "1 not scored, no picture of that name in --inpainted" in caplog.text and ": b" in caplog.text
  assert any("no mask of that name" in note and note.endswith(": c") for note in found["notes"])
  assert all(note in (tmp_path / "out" / "report.md").read_text() for note in found["notes"])


def test_one_picture_has_no_distance_of_sets(copied, tmp_path):
  for name in "bcd":
    (copied / "filled" / f"{name}.png").unlink()
  found = evaluate(copied, tmp_path / "out")
  assert found["images"][ALL] == 1 and found["distribution"]["filled"][ALL] == {}
  text = (tmp_path / "out" / "report.md").read_text()
  assert "Fréchet distance of" not in text and "needs 2 pictures" in text
  assert re.search(r"\*95 % interval\* \| – +\|", text)


def test_16_bits_and_alpha_are_converted_by_the_stated_rule(copied, tmp_path, report):
  rgb = np.asarray(Image.open(copied / "filled" / "a.png"))
  deep = rgb.astype(np.uint16) * 257 + 100  # less than half a level off
  deep[rgb == 255] = 65535
  assert cv2.imwrite(str(copied / "filled" / "a.png"), deep[..., ::-1])
  for folder in ("truth", "filled"):
    image = Image.open(copied / folder / "c.png").convert("RGBA")
    image.putalpha(255)
    image.save(copied / folder / "c.png")
  opaque = evaluate(copied, tmp_path / "out")
  assert opaque["scores"] == report[0]["scores"]
  assert any("1 files have 16 bits per channel, taken to the nearest" in note for note in opaque["notes"])
  assert not any("transparent" in note for note in opaque["notes"])
  image = Image.open(copied / "filled" / "c.png")
  alpha = np.full(image.size[::-1], 255, np.uint8)
  alpha[0, :] = 0  # in the hole
  image.putalpha(Image.fromarray(alpha))
  image.save(copied / "filled" / "c.png")
  clear = evaluate(copied, tmp_path / "again")
  assert any("1 files have transparent pixels, laid on white" in note for note in clear["notes"])
  assert clear["scores"]["filled"]["40-50%"] != opaque["scores"]["filled"]["40-50%"]


def test_inverted_masks_are_turned_by_a_flag(copied, tmp_path, report):
  for path in (copied / "masks").iterdir():
    write(path, 255 - np.asarray(Image.open(path)))
  assert evaluate(copied, tmp_path / "out", "--mask_invert")["scores"] == report[0]["scores"]


@pytest.mark.parametrize(
  ("case", "parts"),
  [
    ("empty", ["--inpainted=", "holds no image", "give a folder that does"]),
    ("missing", ["--inpainted=", "does not exist"]),
    ("no stem", ["no picture of --inpainted=", "so nothing can be scored", "name results like their truth"]),
    ("other size", ["filled/a.png is 20x30", "truth/a.png is 40x40", "make all of one size"]),
    ("other mask", ["masks/a.png is 20x30", "truth/a.png is 40x40"]),
    ("no holes", ["no mask of --masks=", "has a hole (white is hole)"]),
    ("twins", ["--inpainted", "share the name 'a'", "rename one"]),
    ("broken", ["filled/a.png cannot be decoded", "replace the file"]),
    ("too small", ["protocol=ours needs pictures of at least 32x32", "30x20"]),
  ],
)
def test_what_cannot_be_scored_is_one_line_and_exit_code_2(case, parts, copied, tmp_path, capsys):
  small = np.zeros((30, 20, 3), np.uint8)
  more = []
  if case in ("empty", "missing"):
    shutil.rmtree(copied / "filled")
    if case == "empty":
      (copied / "filled").mkdir()
  elif case == "no stem":
    (copied / "filled").rename(copied / "old")
    write(copied / "filled" / "else.png", small)
  elif case == "other size":
    write(copied / "filled" / "a.png", small)
  elif case == "other mask":
    write(copied / "masks" / "a.png", small)
  elif case == "no holes":
    for name in NAMES:
      write(copied / "masks" / f"{name}.png", np.zeros((40, 48 if name == "b" else 40), np.uint8))
  elif case == "twins":
    write(copied / "filled" / "a.jpg", small)
  elif case == "broken":
    path = copied / "filled" / "a.png"
    path.write_bytes(path.read_bytes()[:200])
  else:
    for folder in ("truth", "filled"):
      write(copied / folder / "e.png", small)
    write(copied / "masks" / "e.png", small + 255)
    more = ["eval.protocol=ours"]
  arguments = flags(copied, tmp_path / "out", *more)
  arguments = [flag for flag in arguments if not (more and flag == "eval.protocol=aotgan")]
  assert run.main(arguments) == 2
  line = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
  assert len(line) == 1
  for part in parts:
    assert part in line[0]
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (["--images=x", "--inpainted=y"], "needs --output, too"),
    (["--images=x", "--output=z"], "needs --inpainted, too"),
    (["--masks=x"], "needs --images, too"),
    (["--images=x", "--inpainted=y", "--output=z", "--workdir=w"], "--workdir is not read where --inpainted"),
    (["--images=x", "--inpainted=y", "--output=z", "--checkpoint=w"], "--checkpoint is not read where --inpainted"),
    (["--images=x", "--inpainted=y", "--output=z", "--mask_invert"], "--mask_invert without --masks"),
  ],
)
def test_flags_that_do_not_go_together_are_refused(given, message, capsys):
  assert run.main(["--mode=evaluate", *given]) == 2
  assert message in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
  ("area", "name"), [(1e-5, "0-10%"), (0.1, "0-10%"), (0.1001, "10-20%"), (0.6, "50-60%"), (1.0, "60-100%")]
)
def test_a_bucket_holds_its_upper_end(area, name):
  assert bucket_name(from_files.area_bounds(area)) == name
