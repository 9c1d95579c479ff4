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
from test_inpainter_api import noisy_model

from gmsrm_jax import export

PHOTO = skimage.data.astronaut()


@pytest.fixture(scope="module")
def model():
  return noisy_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp("exported")
  export.write(model, folder)
  return folder


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
  weights = safetensors.numpy.load_file(folder / export.WEIGHTS)
  plain = np.asarray(program.call(weights, images, masks, np.uint32(0), np.float32(0)))
  np.testing.assert_array_equal(plain[masks[..., 0] == 0], images[masks[..., 0] == 0])
  assert np.abs(plain.astype(int) - model(images, masks)).max() <= 1
  drawn = [np.asarray(program.call(weights, images, masks, np.uint32(s), np.float32(1))) for s in (1, 1, 2)]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any() and (drawn[0] != plain).any()


def test_the_weights_are_complete_and_named_by_their_place(model, folder):
  weights = safetensors.numpy.load_file(folder / export.WEIGHTS)
  assert sum(leaf.size for leaf in weights.values()) == sum(leaf.size for leaf in jax.tree.leaves(model.params))
  np.testing.assert_array_equal(weights["memory/codebook/keys"], model.params["memory"]["codebook"]["keys"])


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
