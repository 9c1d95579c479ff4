"""The weights that come with the code: complete, small, nobody's paths in them, and better than no learning."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import skimage.data
from PIL import Image

import run
from benchmarks.quality import gallery
from gmsrm_jax import Inpainter, experiments, overrides
from gmsrm_jax.arrays import image_from_uint8
from gmsrm_jax.data import pipeline
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.evaluation.baselines import telea_fill
from gmsrm_jax.files import SHIPPED
from gmsrm_jax.pretrained.lpips import load_alexnet, lpips
from gmsrm_jax.training.run_folder import read_run
from gmsrm_jax.training.weights import WEIGHTS
from tests.photographs import SHARED

ROOT = pathlib.Path(run.__file__).parent


@pytest.fixture(scope="module")
def model():
  return Inpainter()


def test_they_fit_into_a_repository_and_name_no_place_on_the_machine_that_trained_them():
  assert {path.name for path in SHIPPED.iterdir()} == {"README.md", "config.json", WEIGHTS}
  assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 40e6
  assert {array.dtype for array in safetensors.numpy.load_file(SHIPPED / WEIGHTS).values()} == {np.dtype("float16")}
  text = (SHIPPED / "config.json").read_text(encoding="utf-8")
  assert '"street"' in text and "/" not in text


def test_they_are_what_the_command_in_their_description_trains():
  described, card = read_run(SHIPPED), (SHIPPED / "README.md").read_text(encoding="utf-8")
  command = card.rpartition("python run.py --experiment=street ")[2].partition("\npython")[0]  # the last run's
  words, left_out = command.replace("\\", " ").split(), ("--", "data.train", "data.val")
  changes = [word for word in words if not word.startswith(left_out)]
  trained = overrides.override(experiments.load("street"), changes)
  differ = overrides.differences(overrides.from_dict(described["config"]), trained)
  # Where the images lay, and how the run was watched and scored.
  assert [line for line in differ if not line.startswith(("data.train", "data.val", "run.", "eval."))] == []
  assert described["step"] == trained.stage2.steps
  assert f"step {described['step']}" in card


def test_the_command_line_takes_them_when_nothing_is_named(model, tmp_path):
  photo = skimage.data.rocket()[:128, :128]
  mask = np.zeros((128, 128), np.uint8)
  mask[40:90, 30:100] = 1
  Image.fromarray(photo).save(tmp_path / "photo.png")
  Image.fromarray(mask * 255).save(tmp_path / "mask.png")
  flags = ["--mode=inpaint", "--images=photo.png", "--masks=mask.png", "--output=filled", "--platform=cpu"]
  environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # as here
  command = [sys.executable, ROOT / "run.py", *flags]
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert f"weights: {SHIPPED}: street, 128x128, step " in done.stdout
  with Image.open(tmp_path / "filled" / "photo.png") as file:
    filled = np.asarray(file)
  np.testing.assert_array_equal(filled, model(photo, mask))
  np.testing.assert_array_equal(filled[mask == 0], photo[mask == 0])
  # Within what surrounds it, not the noise of weights that were never trained.
  assert np.abs(filled[mask > 0].mean(axis=0) - photo[mask == 0].mean(axis=0)).max() < 60


def test_what_lies_in_holes_changes_nothing_about_their_fills(model):
  """None of several is seen from another one, neither by the network nor for its detail."""
  image, mask = skimage.data.coffee()[:280, :400], np.zeros((280, 400), np.uint8)
  for rows, columns in (((60, 130), (40, 120)), ((90, 190), (170, 260)), ((10, 50), (300, 360))):
    mask[slice(*rows), slice(*columns)] = 1
  other = np.where(mask[..., None] > 0, np.random.default_rng(0).integers(0, 256, image.shape, np.uint8), image)
  filled = model(image, mask)
  np.testing.assert_array_equal(model(other, mask), filled)
  assert (filled != model(image, mask, detail=0.0)).any(), "no detail was added, so none was tried"


@pytest.mark.skipif(not (SHARED / "street" / "val").is_dir(), reason="needs the shared street photographs")
def test_in_large_holes_they_beat_telea_on_photographs_they_have_not_seen(model):
  config = overrides.override(model.config, [f"data.val={SHARED / 'street' / 'val'}", "data.train="])
  evaluation = pipeline.evaluation_set(config)
  rows = gallery.spread(evaluation, (0.4, 0.5), 16)
  truth = np.stack([evaluation[row.index][1] for row in rows])
  masks = np.stack([evaluation.mask(*row) for row in rows])[..., None]

  @jax.jit
  def measure(alexnet, fill, truth):
    fill, truth = image_from_uint8(fill), image_from_uint8(truth)
    return jnp.mean(metrics.psnr(fill, truth)), jnp.mean(lpips(alexnet, fill, truth))

  alexnet = load_alexnet()
  psnr, distance = measure(alexnet, model(truth, masks, detail=0.0), truth)
  telea_psnr, telea_lpips = measure(alexnet, telea_fill(truth, masks), truth)
  assert psnr > telea_psnr + 1.0
  assert distance < 0.65 * telea_lpips
  detailed_psnr, detailed_lpips = measure(alexnet, model(truth, masks), truth)
  assert detailed_psnr > telea_psnr + 0.5
  assert detailed_lpips < 0.98 * distance
