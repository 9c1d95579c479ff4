"""The exported files run without this project and give the same pixels."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import skimage.data
from PIL import Image

from gmsrm_jax import Inpainter, overrides
from gmsrm_jax.commands import export
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.training.weights import WEIGHTS, Weights
from tests.inference.test_inpainter import noisy_model

PHOTO = skimage.data.astronaut()


def export_to(folder, model, dtype):
  described = {"config": overrides.to_dict(model.config), "splits": {"train": "x", "val": "y"}, "commit": "c"}
  export.write(model.config, Weights(model.params, 7), described, folder, dtype)
  return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  return {dtype: export_to(tmp_path_factory.mktemp(dtype), noisy_model(), dtype) for dtype in ("float32", "float16")}


def pictures(count, size=32):
  images = np.stack([PHOTO[20 * i : 20 * i + size, 100 : 100 + size] for i in range(count)])
  masks = np.zeros((count, size, size, 1), np.uint8)
  masks[:, 8:20, 5 : size - 9] = 1
  return images, masks


def farthest(a, b):
  return np.abs(np.asarray(a).astype(int) - b).max()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_and_program_give_the_models_pixels_for_any_batch(dtype, folders):
  model = noisy_model()
  folder = folders[dtype]
  again = Inpainter.from_checkpoint(folder)
  assert (
    again.config == model.config and "step 7" in again.source and ("float16" in again.source) == (dtype != "float32")
  )
  program = jax.export.deserialize((folder / export.PROGRAM).read_bytes())
  assert program.platforms == export.PLATFORMS
  weights = safetensors.numpy.load_file(folder / WEIGHTS)
  assert {array.dtype for array in weights.values()} == {np.dtype(dtype)}
  for count in (1, 3):
    images, masks = pictures(count)
    plain = np.asarray(program.call(weights, images, masks, np.uint32(0), np.float32(0)))
    np.testing.assert_array_equal(plain[masks[..., 0] == 0], images[masks[..., 0] == 0])
    filled = again(images, masks)
    assert farthest(plain, filled) <= 1 and farthest(filled, model(images, masks)) <= (dtype != "float32")
  drawn = [np.asarray(program.call(weights, images, masks, np.uint32(seed), np.float32(1))) for seed in (1, 1, 2)]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any() and (drawn[0] != plain).any()


def run_example(folder, cwd, *words):
  """The example, in a process that cannot import the project."""
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
  refuse = "import importlib.util, runpy, sys; assert importlib.util.find_spec('gmsrm_jax') is None; "
  code = refuse + "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
  command = [sys.executable, "-I", "-c", code, str(folder / export.EXAMPLE), *words]
  return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_example_fills_as_the_model_does(folders, tmp_path):
  images, masks = pictures(1)
  Image.fromarray(images[0]).save(tmp_path / "image.png")
  Image.fromarray(masks[0, ..., 0] * 255).save(tmp_path / "mask.png")
  done = run_example(folders["float32"], tmp_path, "image.png", "mask.png", "out.png")
  assert done.returncode == 0, done.stderr
  with Image.open(tmp_path / "out.png") as filled:
    assert farthest(filled, noisy_model()(images[0], masks[0])) <= 1


@pytest.mark.parametrize("deep", [False, True])
def test_the_example_fills_a_photograph_at_its_own_size(deep, folders, tmp_path):
  photo, hole = PHOTO[:90, 100:220], np.zeros((90, 120), bool)
  hole[50:86, 70:111] = True
  levels, mask = (
    (photo[..., 0] * np.uint16(257), np.where(hole, 40_000, 300).astype(np.uint16)) if deep else (photo, hole)
  )
  Image.fromarray(levels).save(tmp_path / "photo.png")
  Image.fromarray(mask).save(tmp_path / "hole.png")
  done = run_example(folders["float32"], tmp_path, "photo.png", "hole.png", "out.png")
  assert (done.returncode, done.stdout) == (0, "out.png: 120x90, of which 13.7% were filled\n"), done.stderr
  with Image.open(tmp_path / "out.png") as filled:
    pixels = np.asarray(filled)
  seen = np.repeat(photo[..., :1], 3, axis=2) if deep else photo
  np.testing.assert_array_equal(pixels[~hole], seen[~hole])
  assert np.any(pixels[hole] != seen[hole], axis=-1).mean() > 0.9


@pytest.mark.parametrize(
  ("words", "said"),
  [
    ("", "IMAGE MASK OUTPUT [SEED]"),
    ("a.png b.png c.png 4294967296", "0 to 4294967295"),
    ("wide.png narrow.png c.png", "narrow.png is 8x8 but wide.png is 9x8: make"),
    ("wide.png none.png c.png", "none.png does not exist"),
    ("text.jpg wide.png c.png", "text.jpg cannot be read"),
    ("float.tif wide.png c.png", "float.tif cannot be read (neither 8 nor 16 bits"),
    ("black.png black.png c.png", "black.png has no hole"),
    ("wide.png wide.png c.gif", "c.gif cannot be written: name a file (.png"),
    ("wide.png wide.png none/c.png", "none/c.png cannot be written"),
    ("wide.png wide.png link.png", "link.png is an input"),
    ("black.png wide.png ../photos/black.png", "black.png is an input"),
    ("wide.png wide.png folder.png", "folder.png cannot be written"),
  ],
)
def test_the_example_says_in_a_line_what_it_needs_and_touches_nothing(words, said, folders, tmp_path):
  there = tmp_path / "photos"
  (there / "folder.png").mkdir(parents=True)
  for name, width, level in (("wide.png", 9, 255), ("narrow.png", 8, 255), ("black.png", 9, 0)):
    Image.new("L", (width, 8), level).save(there / name)
  Image.new("F", (9, 8)).save(there / "float.tif")
  (there / "text.jpg").write_text("no picture")
  (there / "link.png").symlink_to("wide.png")
  before = {path.name: path.is_file() and path.read_bytes() for path in there.iterdir()}
  done = run_example(folders["float32"], there, *words.split())
  assert done.returncode == 2 and said in (done.stderr if words else done.stdout)
  assert len(done.stderr.splitlines()) == bool(words)
  assert before == {path.name: path.is_file() and path.read_bytes() for path in there.iterdir()}


@pytest.mark.parametrize(
  ("name", "damage", "message"),
  [
    (WEIGHTS, lambda data: data[:1000], rf"{WEIGHTS} cannot be read \(.*\): restore it"),
    ("config.json", lambda data: data.replace(b'"slot_dim": 16', b'"slot_dim": 8'), "does not fit .*memory/codebook/"),
    ("config.json", lambda data: data.replace(b'"step": 7', b'"step": null'), "does not name the step"),
  ],
)
def test_damaged_exports_are_one_line(name, damage, message, folders, tmp_path):
  for file in (WEIGHTS, "config.json"):
    data = (folders["float32"] / file).read_bytes()
    (tmp_path / file).write_bytes(damage(data) if file == name else data)
  with pytest.raises(ConfigError, match=message):
    Inpainter.from_checkpoint(tmp_path)


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
  model = noisy_model()
  large = jax.tree.map(lambda leaf: leaf + 1e5, model.params)
  with pytest.raises(ConfigError, match="does not fit into float16: export float32"):
    export_to(tmp_path, Inpainter(model.config, large), "float16")
  assert not (tmp_path / WEIGHTS).exists()
