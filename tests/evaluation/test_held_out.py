"""Evaluation of a trained run: its report has every number, comes out the same again, and says what it rests on."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from gmsrm_jax import files, overrides
from gmsrm_jax.config import BUCKETS, bucket_name
from gmsrm_jax.data import pipeline
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.evaluation import held_out
from gmsrm_jax.parallel import sharding
from gmsrm_jax.training import weights
from tests.evaluation.test_scorer import one_device
from tests.training.test_loop import finish, trained_run

METHODS = ["GM-SRM", "Telea", "initial fill", "mean fill"]
COLUMNS = [*map(bucket_name, BUCKETS), "all"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def config(trained):
  return overrides.from_dict(files.read_json(trained.workdir / "config.json")["config"])


@pytest.fixture(scope="module")
def report(trained):
  text = (trained.workdir / "report.json").read_text()
  return json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_the_report_has_every_method_and_bucket(trained, report):
  text = (trained.workdir / "report.md").read_text()
  assert list(report["scores"]) == METHODS
  header = "| | " + " | ".join(COLUMNS) + " |"
  assert text.count(header) >= 4
  for method, rows in report["scores"].items():
    values = [rows[bucket]["psnr"] for bucket in COLUMNS]
    assert f"| {method} | " + " | ".join(f"{value:.2f}" for value in values) + " |" in text
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


def test_the_report_says_what_its_numbers_rest_on(trained, report):
  assert report["self_check"]["passed"] and report["self_check"]["psnr"] == "inf"
  assert set(report["weights"]) == {"alexnet", "vgg16"} and all(len(h) == 64 for h in report["weights"].values())
  assert report["versions"]["jax"] == jax.__version__ and "scikit-image" in report["versions"]
  assert report["commit"] == json.loads((trained.workdir / "config.json").read_text())["commit"]
  assert report["protocol"]["name"] == "ours" and len(report["protocol"]["masks_sha256"]) == 64
  text = (trained.workdir / "report.md").read_text()
  assert "Self-check" in text and ": passed." in text
  assert "FID" in text and "eval.inception_weights" in text  # which weights it would need
  assert "prefer the kernel distance" in text


def test_the_table_has_a_row_per_method_bucket_and_image(trained, report):
  with (trained.workdir / "report.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(METHODS) * len(BUCKETS) * 3
  for bucket in COLUMNS[:-1]:
    values = [float(row["lpips"]) for row in rows if (row["method"], row["bucket"]) == ("Telea", bucket)]
    np.testing.assert_allclose(report["scores"]["Telea"][bucket]["lpips"], np.mean(values), rtol=1e-6)


def test_the_picture_page_is_a_picture(trained):
  with Image.open(trained.workdir / "report.png") as page:
    assert np.asarray(page).std() > 20


def test_evaluating_again_repeats_the_report_elsewhere(trained, report, tmp_path):
  done = finish(trained.cache, "--mode=evaluate", f"--workdir={trained.workdir}", f"--output={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
  assert (tmp_path / "out" / "report.md").read_text() in done.stdout
  assert (tmp_path / "out" / "report.csv").read_bytes() == (trained.workdir / "report.csv").read_bytes()


def test_a_fill_depends_on_neither_batch_nor_devices(config, trained, monkeypatch):
  params = weights.load_weights(config, trained.workdir).params
  evaluation = pipeline.evaluation_set(config)

  def filled(batch_size):
    smaller = dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=batch_size))
    fills = {"model": held_out.make_fill(config, params)}
    return list(held_out.HeldOutResults(smaller, fills, evaluation).batches())

  whole = filled(3)
  monkeypatch.setattr(sharding, "local_mesh", one_device)
  single = filled(1)
  assert [batch.names for batch in single] == [[name] for batch in whole for name in batch.names]
  np.testing.assert_array_equal(
    np.concatenate([batch.fills["model"] for batch in single]), np.concatenate([b.fills["model"] for b in whole])
  )


def test_an_undecodable_image_is_left_out_of_every_number(config, trained, tmp_path):
  held_out = shutil.copytree(trained.held_out, tmp_path / "held_out")
  broken = held_out / "photo01.jpg"
  broken.write_bytes(broken.read_bytes()[:1000])
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, val=str(held_out)))
  results = held_out.HeldOutResults(config, {}, pipeline.evaluation_set(config))
  assert {name for batch in results.batches() for name in batch.names} == {"photo00.png", "photo02.png"}


def test_without_a_checkpoint_nothing_is_evaluated(config, tmp_path):
  with pytest.raises(ConfigError, match="holds no checkpoint of stage 2: train there first"):
    held_out.evaluate(config, str(tmp_path), str(tmp_path))
