"""Filling the user's own files: nothing outside the hole changes, to the bit."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import skimage.data
from PIL import Image
from test_steps import small_config
from test_train import finish, one_line, trained_run

import run
from gmsrm_jax import inpaint
from gmsrm_jax.config import ConfigError, to_dict
from gmsrm_jax.data import sources

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
  original, mask = sources.decode(files / "images" / f"{name}.png"), holes()[name] > 0
  for sample in (0, 1):
    picture = filled[f"{name}_{sample}"]
    assert picture.shape == original.shape
    np.testing.assert_array_equal(picture[~mask], original[~mask])
    # The garish hole is not looked at: what replaces it is near the photo's own colours.
    assert (picture[mask] != original[mask]).any(axis=-1).mean() > 0.99


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
    assert run.main([*common, f"--output={tmp_path / folder}", f"--seed={seed}"]) == 0, capsys.readouterr()
  a, b, c = ((tmp_path / folder / "alpha.png").read_bytes() for folder in "abc")
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
    ("no mask", ["no mask for 1 of 5 images (wide.png)", "one mask file for all"]),
    ("empty", ["holds no image"]),
    ("missing", ["does not exist"]),
    ("stems", ["share the name 'wide'", "rename one"]),
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
  elif case == "no mask":
    mask.unlink()
  elif case == "empty":
    for path in (tmp_path / "images").iterdir():
      path.unlink()
  elif case == "missing":
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
  elif case == "stems":
    Image.open(image).save(image.with_suffix(".jpg"))
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


def test_pairs_go_by_stem_and_one_mask_serves_all(tmp_path):
  for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
    (tmp_path / folder).mkdir()
    for stem in ("b", "a"):
      Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{stem}{suffix}")
  images, masks = str(tmp_path / "images"), str(tmp_path / "masks")
  assert [(p.image.name, p.mask.name) for p in inpaint.pair_files(images, masks)] == [
    ("a.jpg", "a.png"),
    ("b.jpg", "b.png"),
  ]
  single = f"{masks}/b.png"
  assert [(p.image.name, p.mask.name) for p in inpaint.pair_files(images, single)] == [
    ("a.jpg", "b.png"),
    ("b.jpg", "b.png"),
  ]
  # With one mask for all, too, two photos must not be written to one file.
  Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
  with pytest.raises(ConfigError, match="share the name 'a'"):
    inpaint.pair_files(images, single)


@pytest.mark.parametrize(
  ("height", "width", "expected"),
  [
    (64, 64, (32, 32)),
    (640, 480, (43, 32)),
    (16, 20, (32, 40)),
    (32, 128, (32, 128)),  # four times as long: still whole
    (32, 256, (16, 128)),  # longer: the long side is bounded
    (1, 5000, (1, 128)),
  ],
)
def test_a_photo_is_fitted_by_its_short_side_with_its_long_side_bounded(height, width, expected):
  assert inpaint.fit(height, width, small_config()) == expected


@pytest.fixture
def flat_prediction(monkeypatch):
  """A model that predicts red wherever it is told that there is hole, and records what it was shown."""
  shown = []

  def predict(config, params, image, mask, key):
    shown.append((np.array(image[0]), np.array(mask[0, ..., 0])))
    red = np.array([1.0, -1.0, -1.0], np.float32)
    return np.where(mask > 0, red, image.astype(np.float32) / 127.5 - 1.0).astype(np.float32)

  monkeypatch.setattr(inpaint, "_predict", predict)
  return shown


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 70), (90, 61), (20, 24), (40, 300)])
def test_fill_pastes_the_prediction_into_the_hole_alone(height, width, flat_prediction):
  image = PHOTO[:height, :width].copy()
  mask = np.zeros((height, width), np.uint8)
  mask[height // 4 : height // 2, width // 4 : width // 2] = 1
  out = inpaint.fill(small_config(), {}, image, mask)
  np.testing.assert_array_equal(out[mask == 0], image[mask == 0])
  inner = out[height // 4 + height // 8, width // 4 + width // 8]
  assert inner[0] > 200 and inner[1] < 60 and inner[2] < 60
  seen, hole = flat_prediction[0]
  stride = small_config().model.stride
  assert seen.shape[0] % stride == 0 and seen.shape[1] % stride == 0
  rows, columns = inpaint.fit(height, width, small_config())
  # Padding is hole: it is no evidence.
  assert hole[rows:].all() and hole[:, columns:].all()


def test_hole_pixels_do_not_bleed_into_known_ones(flat_prediction):
  mask = np.zeros((96, 96), np.uint8)
  mask[25:60, 31:71] = 1
  image = np.full((96, 96, 3), 100, np.uint8)
  image[mask > 0] = 255
  inpaint.fill(small_config(), {}, image, mask)
  seen, hole = flat_prediction[0]
  assert (seen[hole == 0] == 100).all()
  np.testing.assert_allclose(hole.mean(), mask.mean(), atol=0.03)


def test_an_empty_hole_changes_nothing_and_a_full_one_is_filled(flat_prediction):
  image = PHOTO[:40, :50].copy()
  np.testing.assert_array_equal(inpaint.fill(small_config(), {}, image, np.zeros((40, 50), np.uint8)), image)
  assert not flat_prediction
  out = inpaint.fill(small_config(), {}, image, np.ones((40, 50), np.uint8))
  assert (out[..., 0] == 255).all() and (out[..., 1] == 0).all()


def test_a_mask_is_hole_where_it_is_brighter_than_the_threshold(tmp_path, caplog):
  levels = np.array([[0, 127, 128, 255]], np.uint8)
  Image.fromarray(levels).save(tmp_path / "mask.png")
  mask = inpaint.read_mask(tmp_path / "mask.png", 1, 4, tmp_path / "image.png")
  assert mask.tolist() == [[0, 0, 1, 1]]
  Image.fromarray(np.zeros((1, 4), np.uint8)).save(tmp_path / "mask.png")
  inpaint.read_mask(tmp_path / "mask.png", 1, 4, tmp_path / "image.png")
  assert "mask.png has no hole" in caplog.text


def test_the_flags_invert_and_then_widen_the_hole(files, tmp_path, monkeypatch):
  shown = []

  def fill(config, params, image, mask, key):
    shown.append(mask)
    return image

  monkeypatch.setattr(inpaint, "fill", fill)
  monkeypatch.setattr(inpaint, "read_run", lambda root: {"config": to_dict(small_config())})
  monkeypatch.setattr(inpaint, "load_trained_state", lambda config, root: None)
  monkeypatch.setattr(inpaint, "release_params", lambda state: {})
  # The eight known columns of the left edge become the hole, and then grow by three.
  levels = np.full((50, 75), 255, np.uint8)
  levels[:, :8] = 0
  Image.fromarray(levels).save(tmp_path / "mask.png")
  where = [f"--images={files / 'images' / 'wide.png'}", f"--masks={tmp_path / 'mask.png'}"]
  common = ["--mode=inpaint", *where, f"--output={tmp_path / 'out'}"]
  for more in ([], ["--mask_invert"], ["--mask_invert", "--mask_dilate=3"]):
    assert run.main([*common, *more]) == 0
  expected = [levels > 0, levels == 0, np.broadcast_to(np.arange(75) < 11, (50, 75))]
  for mask, wanted in zip(shown, expected, strict=True):
    np.testing.assert_array_equal(mask > 0, wanted)


def test_several_samples_need_variation(trained, files, tmp_path, monkeypatch):
  config = inpaint.from_dict(inpaint.read_run(trained.workdir)["config"])
  plain = dataclasses.replace(config, variation=dataclasses.replace(config.variation, enabled=False))
  monkeypatch.setattr(inpaint, "from_dict", lambda tree: plain)
  with pytest.raises(ConfigError, match="variation.enabled=false"):
    inpaint.inpaint(
      images=str(files / "images"),
      masks=str(files / "masks"),
      output=str(tmp_path),
      checkpoint=None,
      workdir=str(trained.workdir),
      num_samples=2,
      seed=0,
    )
