"""The exported files run without this project and give the same pixels."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
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


@pytest.fixture(scope="module")
def model():
  return noisy_model()


def written(model, folder, dtype="float32"):
  described = {"config": overrides.to_dict(model.config), "splits": {"train": "x", "val": "y"}, "commit": "c"}
  export.write(model.config, Weights(model.params, 7), described, folder, dtype)
  return folder


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
  return written(model, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def half(model, tmp_path_factory):
  return written(model, tmp_path_factory.mktemp("half"), "float16")


def _pictures(count, size):
  images = np.stack([PHOTO[20 * i : 20 * i + size, 100 : 100 + size] for i in range(count)])
  masks = np.zeros((count, size, size, 1), np.uint8)
  masks[:, 8:20, 5 : size - 9] = 1
  return images, masks


@pytest.mark.parametrize("count", [1, 3])
def test_the_program_gives_the_models_pixels_for_any_batch(model, folder, count):
  images, masks = _pictures(count, model.config.model.image_size)
  program = jax.export.deserialize((folder / export.PROGRAM).read_bytes())
  assert program.platforms == export.PLATFORMS
  weights = safetensors.numpy.load_file(folder / WEIGHTS)
  np.testing.assert_array_equal(weights["memory/codebook/keys"], model.params["memory"]["codebook"]["keys"])
  plain = np.asarray(program.call(weights, images, masks, np.uint32(0), np.float32(0)))
  np.testing.assert_array_equal(plain[masks[..., 0] == 0], images[masks[..., 0] == 0])
  assert np.abs(plain.astype(int) - model(images, masks)).max() <= 1
  drawn = [np.asarray(program.call(weights, images, masks, np.uint32(s), np.float32(1))) for s in (1, 1, 2)]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any() and (drawn[0] != plain).any()


def test_the_example_runs_in_a_process_that_cannot_import_the_project(model, folder, tmp_path):
  images, masks = _pictures(1, model.config.model.image_size)
  Image.fromarray(images[0]).save(tmp_path / "image.png")
  Image.fromarray(masks[0, ..., 0] * 255).save(tmp_path / "mask.png")
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
  refuse = "import importlib.util, runpy, sys; assert importlib.util.find_spec('gmsrm_jax') is None; "
  code = refuse + "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
  command = [sys.executable, "-I", "-c", code, str(folder / export.EXAMPLE), "image.png", "mask.png", "out.png"]
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  filled = np.asarray(Image.open(tmp_path / "out.png"))
  assert np.abs(filled.astype(int) - model(images[0], masks[0])).max() <= 1


def test_what_was_exported_is_a_model_again(model, folder, half):
  images, masks = _pictures(1, model.config.model.image_size)
  again = Inpainter.from_checkpoint(folder)
  assert again.config == model.config and again.source.endswith("step 7")
  np.testing.assert_array_equal(again(images, masks), model(images, masks))
  smaller = Inpainter.from_checkpoint(half)
  assert "float16" in smaller.source
  assert np.abs(smaller(images, masks).astype(int) - model(images, masks)).max() <= 1
  assert (half / WEIGHTS).stat().st_size < 0.55 * (folder / WEIGHTS).stat().st_size
  # The program takes them as they are.
  program = jax.export.deserialize((half / export.PROGRAM).read_bytes())
  weights = safetensors.numpy.load_file(half / WEIGHTS)
  filled = np.asarray(program.call(weights, images, masks, np.uint32(0), np.float32(0)))
  assert np.abs(filled.astype(int) - smaller(images, masks)).max() <= 1


def reset(name, value):
  def damage(folder):
    described = json.loads((folder / "config.json").read_text())
    *sections, last = name.split(".")
    functools.reduce(dict.__getitem__, sections, described)[last] = value
    (folder / "config.json").write_text(json.dumps(described))

  return damage


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda folder: os.truncate(folder / WEIGHTS, 1000), rf"{WEIGHTS} cannot be read \(.*\): restore it"),
    (reset("config.memory.slots_per_group", 3), "does not fit its configuration .*memory/codebook/"),
    (reset("step", None), "does not name the step"),
  ],
)
def test_damaged_exports_are_one_line(damage, message, folder, tmp_path):
  copy = pathlib.Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("*.stablehlo")))
  damage(copy)
  with pytest.raises(ConfigError, match=message):
    Inpainter.from_checkpoint(copy)


def test_weights_too_large_for_half_precision_are_refused(model, tmp_path):
  large = jax.tree.map(lambda leaf: leaf + 1e5, model.params)
  with pytest.raises(ConfigError, match="does not fit into float16: export float32"):
    written(Inpainter(model.config, large), tmp_path, "float16")
  assert not (tmp_path / WEIGHTS).exists()
