"""Evaluation of a trained run: its report has every number, comes out the same again, and says what it rests on."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from gmsrm_jax.data import pipeline
from gmsrm_jax.data.masks import fixed
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name
from gmsrm_jax.evaluation.held_out import HeldOutPictures, make_fill
from gmsrm_jax.parallel import sharding
from gmsrm_jax.training import weights
from gmsrm_jax.training.run_folder import read_config
from tests.evaluation.test_scorer import one_device
from tests.trained import ODD, finish

METHODS = ["GM-SRM", "Telea", "initial fill"]
COLUMNS = [*map(bucket_name, BUCKETS), "all"]


@pytest.fixture(scope="module")
def config(trained):
  return read_config(trained.workdir)


@pytest.fixture(scope="module")
def report(trained):
  text = (trained.workdir / "report.json").read_text()
  return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_the_report_has_every_method_and_bucket(trained, report):
  text = (trained.workdir / "report.md").read_text()
  assert list(report["scores"]) == METHODS
  lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
  assert lines.count(["", *COLUMNS]) >= 4
  for method, rows in report["scores"].items():
    assert [method, *(f"{rows[bucket]['psnr']:.2f}" for bucket in COLUMNS)] in lines
    for bucket in COLUMNS:
      low, high = report["intervals"][method][bucket]["psnr"]
      assert low <= rows[bucket]["psnr"] <= high
      assert report["distribution"][method][bucket]["fd_vgg16"] > 0
  assert report["memory"]["slots"] == 16 and 1 <= report["memory"]["perplexity"] <= 16


def test_every_bucket_has_its_holes(report):
  for lower, upper in BUCKETS:
    row = report["scores"]["GM-SRM"][bucket_name((lower, upper))]
    assert lower < row["hole_area"] <= upper
  assert report["images"] == dict.fromkeys(COLUMNS[:-1], 3) | {"all": 18}
  assert report["outside_hole"]["GM-SRM"] == {"images": 0, "pixels": 0, "most": 0}


def test_the_report_says_what_its_numbers_rest_on(config, trained, report):
  assert report["self_check"]["passed"] and report["self_check"]["images"] == 3
  assert set(report["weights"]) == {"alexnet", "vgg16"} and all(len(h) == 64 for h in report["weights"].values())
  assert report["versions"]["jax"] == jax.__version__ and "scikit-image" in report["versions"]
  assert report["commit"] == json.loads((trained.workdir / "config.json").read_text())["commit"]
  assert report["protocol"]["name"] == "ours"
  evaluation = pipeline.evaluation_set(config)
  places = itertools.product(range(len(evaluation)), BUCKETS)
  masks = b"".join(fixed.mask_bytes(evaluation.names[i], bucket, evaluation.mask(i, bucket)) for i, bucket in places)
  assert report["protocol"]["masks_sha256"] == hashlib.sha256(masks).hexdigest()
  text = (trained.workdir / "report.md").read_text()
  assert "Self-check" in text and ": passed." in text
  assert "FID" in text and "eval.inception_weights" in text  # which weights it would need
  assert "prefer the kernel distance" in text


def test_evaluating_again_repeats_the_report_elsewhere(trained, report, tmp_path):
  flags = ["--mode=evaluate", f"--workdir={trained.workdir}", f"--output={tmp_path / 'out'}"]
  out, _ = finish(flags, trained.cache)
  assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
  assert str(tmp_path / "out" / "report.md") in out and "PSNR (dB) GM-SRM" in out
  assert (tmp_path / "out" / "report.csv").read_bytes() == (trained.workdir / "report.csv").read_bytes()


def test_a_fill_depends_on_neither_batch_nor_devices(config, trained, monkeypatch):
  params = weights.load_weights(config, trained.workdir).params
  pictures = list(HeldOutPictures(config, pipeline.evaluation_set(config)))
  images, masks = np.stack([picture.image for picture in pictures]), np.stack([picture.mask for picture in pictures])
  whole = make_fill(config, params)(images, masks)
  monkeypatch.setattr(sharding, "local_mesh", one_device)
  fill = make_fill(config, params)
  alone = [fill(image[None], mask[None]) for image, mask in zip(images[:7], masks[:7], strict=True)]
  np.testing.assert_array_equal(np.concatenate(alone), whole[:7])


def test_each_image_is_decoded_once_and_each_hole_drawn_once(config, monkeypatch):
  evaluation = pipeline.evaluation_set(config)
  decoded, drawn = collections.Counter(), collections.Counter()
  decode, draw = pipeline.EvaluationSet.__getitem__, pipeline.EvaluationSet.mask
  monkeypatch.setattr(pipeline.EvaluationSet, "__getitem__", lambda s, i: decoded.update([i]) or decode(s, i))
  monkeypatch.setattr(pipeline.EvaluationSet, "mask", lambda s, i, b: drawn.update([(i, b)]) or draw(s, i, b))
  assert len(list(HeldOutPictures(config, evaluation))) == 3 * len(BUCKETS)
  assert decoded == dict.fromkeys(range(3), 1)
  assert drawn == dict.fromkeys(itertools.product(range(3), BUCKETS), 1)


def test_an_undecodable_image_is_left_out_of_every_number(config, trained, tmp_path):
  folder = shutil.copytree(trained.held_out, tmp_path / "held_out")
  broken = folder / "photo01.jpg"
  broken.write_bytes(broken.read_bytes()[:1000])
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, val=str(folder)))
  pictures = HeldOutPictures(config, pipeline.evaluation_set(config))
  assert {picture.name for picture in pictures} == {"photo00.png", ODD}
