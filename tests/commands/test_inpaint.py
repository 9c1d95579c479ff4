"""Filling the user's own files: nothing outside the hole changes, to the bit."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import skimage.data
from PIL import Image

import run
from gmsrm_jax.commands import inpaint
from gmsrm_jax.inference import photos
from tests.inference.test_inpainter import noisy_model
from tests.training.test_loop import finish, one_line, trained_run

PHOTO = skimage.data.astronaut()
SIZES = {"wide": (50, 75), "tall": (101, 67), "grey": (64, 64), "alpha": (33, 47), "dot": (90, 90)}  # height, width


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return trained_run(tmp_path_factory.getbasetemp())


@functools.cache
def holes() -> dict[str, np.ndarray]:
  masks = {name: np.zeros(size, np.uint8) for name, size in SIZES.items()}
  masks["wide"][:, 20:45] = 255  # from border to border
  masks["tall"][60:, :30] = 255  # in a corner
  masks["grey"][16:48, 16:48] = 255
  masks["alpha"][5:25, 10:30] = 255
  masks["dot"][40, 41] = 255  # one pixel
  return masks


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Five photos of other sizes and modes, with garish holes, and their masks."""
  root = tmp_path_factory.mktemp("files")
  (root / "images").mkdir()
  (root / "masks").mkdir()
  for name, mask in holes().items():
    height, width = mask.shape
    pixels = PHOTO[:height, 150 : 150 + width].copy()
    pixels[mask > 0] = (255, 0, 255)
    image = Image.fromarray(pixels)
    if name == "grey":
      image = image.convert("L")
    if name == "alpha":
      image.putalpha(255)
    image.save(root / "images" / f"{name}.png")
    Image.fromarray(mask).save(root / "masks" / f"{name}.png")
  return root


def flags(trained, files, output, *more):
  where = [f"--images={files / 'images'}", f"--masks={files / 'masks'}", f"--output={output}"]
  return ["--mode=inpaint", f"--workdir={trained.workdir}", *where, *more]


@pytest.fixture(scope="module")
def filled(trained, files, tmp_path_factory):
  """Two samples of each photo, by a process of its own."""
  output = tmp_path_factory.mktemp("filled")
  done = finish(trained.cache, *flags(trained, files, output, "--num_samples=2"))
  assert done.returncode == 0, done.stderr
  assert "10 pictures" in done.stdout
  return {path.stem: np.asarray(Image.open(path)) for path in output.iterdir()}


@pytest.mark.parametrize("name", SIZES)
def test_only_the_hole_changes(name, filled, files):
  original, mask = np.asarray(Image.open(files / "images" / f"{name}.png")), holes()[name] > 0
  for sample in (0, 1):
    picture = filled[f"{name}_{sample}"]
    assert picture.shape == original.shape
    np.testing.assert_array_equal(picture[~mask], original[~mask])
    # The garish hole is not looked at: what replaces it is near the photo's own colours.
    assert (picture[mask] != original[mask]).reshape(mask.sum(), -1).any(axis=-1).mean() > 0.99


def test_samples_differ_in_the_hole(filled):
  assert {key.rsplit("_", 1)[0] for key in filled} == set(SIZES) and len(filled) == 2 * len(SIZES)
  for name in ("wide", "tall", "alpha"):
    mask = holes()[name] > 0
    assert (filled[f"{name}_0"][mask] != filled[f"{name}_1"][mask]).any()


def test_the_same_seed_repeats_to_the_bit_and_another_does_not(trained, files, filled, tmp_path, capsys):
  """In this process, with four devices: the checkpoint is restored on other hardware than it was written on."""
  one = [f"--images={files / 'images' / 'alpha.png'}", f"--masks={files / 'masks' / 'alpha.png'}"]
  common = ["--mode=inpaint", f"--workdir={trained.workdir}", *one]
  for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
    more = [f"--output={tmp_path / folder}", "--num_samples=2", f"--seed={seed}"]
    assert run.main([*common, *more]) == 0, capsys.readouterr()
  a, b, c = ((tmp_path / folder / "alpha_1.png").read_bytes() for folder in "abc")
  assert a == b and a != c
  assert run.main([*common, f"--output={tmp_path / 'd'}"]) == 0
  deterministic = np.asarray(Image.open(tmp_path / "d" / "alpha.png")).astype(int)
  assert np.abs(deterministic - filled["alpha_0"]).max() <= 1


def test_the_users_own_files_are_never_overwritten(trained, tmp_path, capsys):
  Image.fromarray(PHOTO[:40, :40]).save(tmp_path / "a.png")
  Image.fromarray(np.full((40, 40), 255, np.uint8)).save(tmp_path / "hole.png")
  before = (tmp_path / "a.png").read_bytes()
  where = [f"--images={tmp_path / 'a.png'}", f"--masks={tmp_path / 'hole.png'}", f"--output={tmp_path}"]
  assert run.main(["--mode=inpaint", f"--workdir={trained.workdir}", *where]) == 2
  assert "would overwrite" in capsys.readouterr().err
  assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
  ("case", "parts"),
  [
    ("other size", ["wide.png is 10x20", "wide.png is 75x50", "make the mask as large"]),
    ("truncated", ["wide.png cannot be decoded"]),
  ],
)
def test_files_that_do_not_fit_are_one_line_and_exit_code_2(case, parts, trained, files, tmp_path, capsys):
  for folder in ("images", "masks"):
    (tmp_path / folder).mkdir()
    for path in (files / folder).iterdir():
      (tmp_path / folder / path.name).write_bytes(path.read_bytes())
  image, mask = tmp_path / "images" / "wide.png", tmp_path / "masks" / "wide.png"
  if case == "other size":
    Image.new("L", (10, 20), 255).save(mask)
    for path in (tmp_path / "images").iterdir():
      if path != image:
        path.unlink()
  elif case == "truncated":
    image.write_bytes(image.read_bytes()[:200])
    for path in (tmp_path / "images").iterdir():
      if path != image:
        path.unlink()
  assert run.main(flags(trained, tmp_path, tmp_path / "out")) == 2
  line = one_line(capsys.readouterr().err)
  for part in parts:
    assert part in line
  assert not list((tmp_path / "out").glob("*"))


def test_a_mask_is_hole_where_it_is_brighter_than_the_threshold(tmp_path, caplog):
  Image.new("RGB", (4, 1)).save(tmp_path / "image.png")
  photo = photos.read_photo(tmp_path / "image.png")
  pair = inpaint.Pair(tmp_path / "image.png", tmp_path / "mask.png")
  Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(pair.mask)
  assert inpaint.read_hole(pair, photo).tolist() == [[0, 0, 1, 1]]
  Image.fromarray(np.zeros((1, 4), np.uint8)).save(pair.mask)
  inpaint.read_hole(pair, photo)
  assert "has no hole" in caplog.text
  Image.fromarray(np.full((1, 4), 255, np.uint8)).save(pair.mask)
  inpaint.read_hole(pair, photo)
  assert "is it inverted" in caplog.text


def test_the_flags_invert_and_then_widen_the_hole(tmp_path):
  Image.new("RGB", (75, 50)).save(tmp_path / "image.png")
  photo = photos.read_photo(tmp_path / "image.png")
  # The eight known columns of the left edge become the hole, and then grow by three.
  levels = np.full((50, 75), 255, np.uint8)
  levels[:, :8] = 0
  Image.fromarray(levels).save(tmp_path / "mask.png")
  pair = inpaint.Pair(tmp_path / "image.png", tmp_path / "mask.png")
  np.testing.assert_array_equal(inpaint.read_hole(pair, photo), levels > 0)
  np.testing.assert_array_equal(inpaint.read_hole(pair, photo, invert=True), levels == 0)
  widened = np.broadcast_to(np.arange(75) < 11, (50, 75))
  np.testing.assert_array_equal(inpaint.read_hole(pair, photo, invert=True, dilate=3), widened)


def test_without_masks_what_is_transparent_is_filled_and_a_jpeg_is_refused(trained, tmp_path, capsys):
  (tmp_path / "in").mkdir()
  image = Image.fromarray(PHOTO[:50, :40])
  alpha = np.full((50, 40), 255, np.uint8)
  alpha[10:20, 10:30] = 0
  image.putalpha(Image.fromarray(alpha))
  image.save(tmp_path / "in" / "clear.png")
  common = ["--mode=inpaint", f"--workdir={trained.workdir}", f"--images={tmp_path / 'in'}"]
  assert run.main([*common, f"--output={tmp_path / 'a'}"]) == 0, capsys.readouterr()
  filled = np.asarray(Image.open(tmp_path / "a" / "clear.png"))
  assert (filled[..., 3] == 255).all()
  np.testing.assert_array_equal(filled[alpha > 0], np.asarray(image)[alpha > 0])
  capsys.readouterr()
  # One bad file among good ones: the others are written, then it is named.
  Image.fromarray(PHOTO[:20, :20]).save(tmp_path / "in" / "plain.jpg")
  assert run.main([*common, f"--output={tmp_path / 'b'}"]) == 2
  err = capsys.readouterr().err
  assert "1 of 2 pictures were not filled" in err and "plain.jpg has no transparency" in err
  assert [path.name for path in (tmp_path / "b").iterdir()] == ["clear.png"]


def test_a_jpeg_stays_a_jpeg_with_a_word_and_the_sheet_shows_all_samples(trained, tmp_path, capsys, caplog):
  Image.fromarray(PHOTO[:60, :90]).save(tmp_path / "a.jpg", quality=92)
  mask = np.zeros((60, 90), np.uint8)
  mask[20:40, 30:60] = 255
  Image.fromarray(mask).save(tmp_path / "mask.png")
  common = ["--mode=inpaint", f"--workdir={trained.workdir}", f"--images={tmp_path / 'a.jpg'}"]
  common += [f"--masks={tmp_path / 'mask.png'}", f"--output={tmp_path / 'out'}", "--num_samples=2", "--contact_sheet"]
  assert run.main(common) == 0, capsys.readouterr()
  assert "--format=png keeps every bit" in caplog.text
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_0.jpg", "a_1.jpg", "a_sheet.png"]
  with Image.open(tmp_path / "out" / "a_sheet.png") as sheet, Image.open(tmp_path / "out" / "a_0.jpg") as filled:
    assert sheet.width >= 4 * 90
    assert filled.format == "JPEG" and filled.size == (90, 60)
  caplog.clear()
  assert run.main([*common, "--format=png"]) == 0
  assert caplog.text == "" and (tmp_path / "out" / "a_0.png").exists()


def test_flags_out_of_range_are_refused_before_anything_is_read(tmp_path, capsys):
  where = ["--mode=inpaint", f"--images={tmp_path}", f"--output={tmp_path}"]
  for flag, part in (
    ("--seed=3", "--seed=3 changes nothing"),
    ("--num_samples=0", "--num_samples=0 is out of range"),
    ("--strategy=corp", "did you mean 'crop'"),
    ("--format=jpg", "--format='jpg' is unknown"),
  ):
    assert run.main([*where, flag]) == 2
    assert part in one_line(capsys.readouterr().err)


MODES = ("1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16")
SUFFIXES = {"1": ".bmp", "LA": ".tif", "CMYK": ".tiff", "RGBA": ".webp"}


def write_random_pair(rng, folder, name):
  """A picture of random size and mode, and a hole of a random kind: none, all, a pixel, a border, boxes, specks."""
  height, width = (int(n) for n in np.exp(rng.uniform(0, np.log(180), 2)))
  mode = str(rng.choice(MODES))
  top, left = rng.integers(0, 512 - height), rng.integers(0, 512 - width)
  pixels = Image.fromarray(skimage.data.astronaut()[top : top + height, left : left + width])
  if mode == "I;16":
    pixels = Image.fromarray(np.asarray(pixels.convert("L")).astype(np.uint16) * 256 + 7)
  elif mode == "P":
    pixels = pixels.quantize(16)
  else:
    pixels = pixels.convert(mode)
  if mode in ("LA", "RGBA"):
    pixels.putalpha(Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)))
  suffix = SUFFIXES.get(mode, ".png")
  pixels.save(folder / "images" / f"{name}{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
  mask = np.zeros((height, width), np.uint8)
  kind = rng.integers(7)
  if kind == 1:
    mask[:] = 1
  elif kind == 2:
    mask[rng.integers(height), rng.integers(width)] = 1
  elif kind == 3:
    mask[:] = 1
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = 0
  elif kind == 4:
    mask = (rng.random((height, width)) < 0.2).astype(np.uint8)
  elif kind > 4:
    mask[: int(rng.integers(1, height + 1)), int(rng.integers(width)) :] = 1
  Image.fromarray(mask * 255).save(folder / "masks" / f"{name}.png")


def check_random_pair(folder, output, image):
  """Asserts that nothing outside the hole differs; returns whether anything inside does."""
  with Image.open(image) as before, Image.open(output / image.name) as after:
    if before.mode == "P":
      before = before.convert(after.mode)
    assert (before.mode, before.size) == (after.mode, after.size)
    old, new = np.array(before), np.array(after)
  with Image.open(folder / "masks" / f"{image.stem}.png") as mask:
    hole = np.asarray(mask) > 0
  np.testing.assert_array_equal(new[~hole], old[~hole], err_msg=image.name)
  return (new != old).any()


def test_pictures_of_any_size_mode_and_hole_change_in_the_hole_alone(tmp_path, monkeypatch):
  monkeypatch.setattr(inpaint.Inpainter, "from_checkpoint", lambda path: noisy_model())
  rng = np.random.default_rng(0)
  for folder in ("images", "masks"):
    (tmp_path / folder).mkdir()
  for index in range(60):
    write_random_pair(rng, tmp_path, f"p{index:03d}")
  out = tmp_path / "out"
  common = ["--mode=inpaint", f"--images={tmp_path / 'images'}", f"--masks={tmp_path / 'masks'}", f"--output={out}"]
  assert run.main(common) == 0
  images = sorted((tmp_path / "images").iterdir())
  assert len(images) == 60 and {image.suffix for image in images} == {".png", *SUFFIXES.values()}
  changed = sum(check_random_pair(tmp_path, out, image) for image in images)
  assert changed > 40
