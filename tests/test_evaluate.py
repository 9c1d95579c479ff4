"""Scores: they depend on pictures and holes alone, rank fills rightly, and come out the same a second time."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
from test_train import finish, trained_run

from gmsrm_jax import evaluate, settings, writer
from gmsrm_jax.config import BUCKETS, ConfigError
from gmsrm_jax.data import pipeline


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def config(trained):
  return settings.from_dict(writer.read_json(trained.workdir / "config.json")["config"])


@pytest.fixture(scope="module")
def evaluation(config):
  return pipeline.evaluation_set(config)


@pytest.fixture(scope="module")
def batch(evaluation):
  return next(evaluation.batches(BUCKETS[3], 2))


@pytest.fixture(scope="module")
def scores(config, evaluation):
  """Four methods, scored one image at a time and two at a time; three images, so the last batch is padded."""
  methods = {
    "perfect": lambda images, masks: images,
    "telea": functools.partial(evaluate.telea_fill, radius=3.0),
    "mean": evaluate.mean_fill,
    "inverse": lambda images, masks: np.where(masks > 0, 255 - images, 0).astype(np.uint8),
  }
  return {
    size: evaluate.score(
      dataclasses.replace(config, eval=dataclasses.replace(config.eval, batch_size=size)), methods, evaluation
    )
    for size in (1, 2)
  }


@pytest.mark.parametrize("fill", [evaluate.mean_fill, functools.partial(evaluate.telea_fill, radius=3.0)])
def test_baselines_leave_known_pixels_and_do_not_see_the_hole(fill, batch):
  filled = fill(batch.images, batch.masks)
  assert filled.dtype == np.uint8
  known = np.broadcast_to(batch.masks == 0, filled.shape)
  np.testing.assert_array_equal(filled[known], batch.images[known])
  assert (filled[~known] != batch.images[~known]).mean() > 0.5
  hidden = np.where(batch.masks > 0, 255 - batch.images, batch.images)
  np.testing.assert_array_equal(fill(hidden, batch.masks), filled)


def test_mean_fill_is_the_mean_of_the_known():
  image = np.zeros((1, 2, 2, 3), np.uint8)
  image[0, 0, 0], image[0, 0, 1], image[0, 1, 0], image[0, 1, 1] = 10, 20, 60, 200
  mask = np.zeros((1, 2, 2, 1), np.uint8)
  mask[0, 1, 1] = 1
  assert evaluate.mean_fill(image, mask)[0, 1, 1].tolist() == [30, 30, 30]


def test_scores_do_not_depend_on_the_batch_size(scores):
  for method, rows in scores[1].items():
    assert list(rows) == [evaluate.bucket_name(bucket) for bucket in BUCKETS] + ["all"]
    for bucket, values in rows.items():
      for name, value in values.items():
        # Up to float32 sums of one picture, which another batch size may add up in another order.
        assert math.isclose(value, scores[2][method][bucket][name], rel_tol=2e-5, abs_tol=1e-6), (method, bucket, name)


def test_a_perfect_fill_scores_perfectly_and_worse_ones_worse(scores):
  row = {method: rows["all"] for method, rows in scores[2].items()}
  assert row["perfect"]["psnr"] == math.inf and row["perfect"]["psnr_hole"] == math.inf
  assert row["perfect"]["lpips"] == 0 and row["perfect"]["l1"] == 0
  np.testing.assert_allclose(row["perfect"]["ssim"], 1, atol=1e-6)
  order = ["perfect", "telea", "mean", "inverse"]
  for better, worse in zip(order, order[1:], strict=False):
    for name, sign in {"psnr": 1, "ssim": 1, "psnr_hole": 1, "l1": -1, "lpips": -1, "l1_hole": -1}.items():
      assert sign * row[better][name] > sign * row[worse][name], (better, worse, name)


def test_every_bucket_has_its_holes_and_all_is_their_mean(scores):
  rows = scores[2]["mean"]
  for lower, upper in BUCKETS:
    assert lower < rows[evaluate.bucket_name((lower, upper))]["hole_area"] <= upper
  buckets = [rows[evaluate.bucket_name(bucket)] for bucket in BUCKETS]
  for name in ("psnr", "lpips", "l1"):
    np.testing.assert_allclose(rows["all"][name], np.mean([row[name] for row in buckets]), rtol=1e-6)


def test_the_report_has_every_method_and_bucket(trained):
  report = json.loads((trained.workdir / "report.json").read_text())
  text = (trained.workdir / "report.md").read_text()
  assert set(report["scores"]) == {"GM-SRM", "Telea", "initial fill", "mean fill"}
  header = "| | " + " | ".join([*map(evaluate.bucket_name, BUCKETS), "all"]) + " |"
  assert text.count(header) == 4
  for method, rows in report["scores"].items():
    values = [rows[bucket]["psnr"] for bucket in [*map(evaluate.bucket_name, BUCKETS), "all"]]
    assert f"| {method} | " + " | ".join(f"{value:.2f}" for value in values) + " |" in text
  assert report["memory"]["slots"] == 16 and 1 <= report["memory"]["perplexity"] <= 16


def test_evaluating_again_repeats_the_report(trained):
  before = json.loads((trained.workdir / "report.json").read_text())
  done = finish(trained.cache, "--mode=evaluate", f"--workdir={trained.workdir}")
  assert done.returncode == 0, done.stderr
  assert json.loads((trained.workdir / "report.json").read_text()) == before
  assert (trained.workdir / "report.md").read_text() in done.stdout


def test_without_a_checkpoint_nothing_is_evaluated(config, tmp_path):
  with pytest.raises(ConfigError, match="holds no checkpoint of stage 2: train there first"):
    evaluate.evaluate(config, str(tmp_path))
