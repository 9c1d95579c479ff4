"""One way to score: perfect is perfect, worse is worse, and neither batches, order nor devices change a number."""

from __future__ import annotations

import io
import math
import sys
import time

import jax
import numpy as np
import pytest
import skimage.data
from jax.sharding import AxisType, Mesh

from gmsrm_jax import progress
from gmsrm_jax.config import EvalConfig
from gmsrm_jax.evaluation import report, scorer
from gmsrm_jax.evaluation.baselines import mean_fill, telea_fill
from gmsrm_jax.evaluation.scorer import ALL
from gmsrm_jax.parallel import sharding

COUNT = 6
BUCKETS = ("10-20%", "20-30%")
PHOTOS = (skimage.data.astronaut(), skimage.data.coffee())


FILLS = {"telea": telea_fill, "mean": mean_fill, "inverse": lambda images, masks: 255 - images}


class Crops:
  """Crops of two photographs with a box as hole and a perfect fill; the second bucket's box is larger."""

  def __init__(self, order=range(COUNT)):
    self.order = order

  def __len__(self) -> int:
    return len(self.order) * len(BUCKETS)

  def picture(self, bucket: str, i: int) -> scorer.Picture:
    side = 16 + 3 * BUCKETS.index(bucket)
    image = PHOTOS[i % 2][30 * i : 30 * i + 36, 150 + i : 186 + i]
    mask = np.zeros((36, 36, 1), np.uint8)
    mask[8 : 8 + side, 12 : 12 + side] = 1
    return scorer.Picture(bucket, f"p{i}", image, mask, {"perfect": image})

  def __iter__(self):
    return (self.picture(bucket, i) for i in self.order for bucket in BUCKETS)


@pytest.fixture(scope="module")
def measure():
  return scorer.make_measure(EvalConfig()).program


@pytest.fixture(scope="module")
def scores(measure):
  return scorer.score(Crops(), FILLS, measure, 64)


@pytest.fixture(scope="module")
def means(scores):
  return report.summarise(scores)[0]


def flat(tree, prefix=""):
  if isinstance(tree, dict):
    return {key: value for name, item in tree.items() for key, value in flat(item, f"{prefix}/{name}").items()}
  return {prefix: tree}


def one_device() -> Mesh:
  return Mesh(np.array(jax.local_devices()[:1]).reshape(1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("other", ["batches of 5, another order", "one device"])
def test_neither_batches_nor_order_nor_devices_change_a_number(other, scores, measure, monkeypatch):
  assert len(jax.local_devices()) == 4
  if other == "one device":
    monkeypatch.setattr(sharding, "local_mesh", one_device)
    again = scorer.score(Crops(), FILLS, scorer.make_measure(EvalConfig()).program, 7)
  else:
    again = scorer.score(Crops((3, 0, 5, 1, 4, 2)), FILLS, measure, 5)
  assert again.keys == scores.keys == [(bucket, f"p{i}") for bucket in BUCKETS for i in range(COUNT)]
  for name, values in scores.values.items():
    np.testing.assert_allclose(again.values[name], values, rtol=1e-6, atol=1e-7, err_msg=name)
  assert again.check["images"] == COUNT
  before, after = flat(scores.distances), flat(again.distances)
  assert before.keys() == after.keys()
  for key, value in before.items():
    np.testing.assert_allclose(after[key], value, rtol=1e-6, atol=1e-6, err_msg=key)


def test_a_perfect_fill_scores_perfectly_and_worse_ones_worse(means):
  row = {method: rows[ALL] for method, rows in means.items()}
  assert row["perfect"]["psnr"] == math.inf and row["perfect"]["psnr_hole"] == math.inf
  for name in ("lpips", "lpips_vgg", "lpips_hole", "l1", "l1_hole", "boundary_error"):
    # Not quite 0: the compiler may round fills and truth on ways of its own.
    assert row["perfect"][name] < (1e-12 if name.startswith("lpips") else 1e-6), name
  np.testing.assert_allclose([row["perfect"]["ssim"], row["perfect"]["ms_ssim"]], 1, atol=1e-6)
  order = ["perfect", "telea", "mean", "inverse"]
  for better, worse in zip(order, order[1:], strict=False):
    signs = {"psnr": 1, "ssim": 1, "psnr_hole": 1, "l1": -1, "lpips": -1, "lpips_vgg": -1, "l1_hole": -1}
    for name, sign in signs.items():
      assert sign * row[better][name] > sign * row[worse][name], (better, worse, name)


def test_distances_of_sets_rank_alike(scores):
  for bucket in (*BUCKETS, ALL):
    row = {method: rows[bucket] for method, rows in scores.distances.items()}
    assert row["perfect"]["fd_vgg16"] < 1e-6
    assert row["telea"]["fd_vgg16"] < row["inverse"]["fd_vgg16"]
    # No more pictures than features: any two sets come apart; and too few for a kernel distance.
    assert not {"p_ids_vgg16", "kid_vgg16"} & row["telea"].keys()


def test_pixels_outside_the_hole_are_the_truths_and_are_counted(scores, means):
  outside = scores.outside
  assert outside["perfect"] == {"images": 0, "pixels": 0, "most": 0}
  assert outside["inverse"]["images"] == COUNT * len(BUCKETS)
  known = sum(36 * 36 - (16 + 3 * b) ** 2 for b in range(len(BUCKETS)))
  # A level of 127.5 would be its own inverse, so every pixel of the inverse differs.
  assert outside["inverse"]["pixels"] == COUNT * known
  area = means["inverse"][BUCKETS[0]]["hole_area"]
  np.testing.assert_allclose(
    means["inverse"][BUCKETS[0]]["l1"], means["inverse"][BUCKETS[0]]["l1_hole"] * area, rtol=1e-5
  )


def test_all_is_the_mean_over_images_and_intervals_hold_it(scores):
  means, intervals = report.summarise(scores)
  for name in ("psnr", "lpips", "l1"):
    row = means["telea"]
    np.testing.assert_allclose(row[ALL][name], np.mean([row[bucket][name] for bucket in BUCKETS]), rtol=1e-12)
    for bucket in (*BUCKETS, ALL):
      low, high = intervals["telea"][bucket][name]
      assert low < row[bucket][name] < high
  # Two holes in one image are no two images: pooling them would narrow the interval.
  pooled = scores.values["psnr"][:, scores.methods.index("telea")]
  low, high = intervals["telea"][ALL]["psnr"]
  assert high - low > 2 * 1.96 * pooled.std() / math.sqrt(len(pooled)) * 0.95


def test_the_self_check_passes_and_would_fail(scores):
  check = scores.check
  assert check["passed"] and check["images"] == COUNT
  assert check["off_by"]["lpips"] < 1e-12 and check["frechet_distance"]["fd_vgg16"] < 1e-6
  perfect = {"psnr": np.array([np.inf, 150.0]), "lpips": np.array([0.0, 0.0])}
  assert scorer.self_check(perfect, {"fd_vgg16": 1e-6})["passed"]
  assert not scorer.self_check({**perfect, "lpips": np.array([0.0, 0.01])}, {})["passed"]
  assert not scorer.self_check({**perfect, "psnr": np.array([np.inf, 60.0])}, {})["passed"]
  assert not scorer.self_check(perfect, {"fd_vgg16": 0.1})["passed"]


def test_the_self_check_notices_a_program_that_measures_wrongly(measure):
  check = scorer.score(Crops(range(2)), FILLS, lambda fills, *rest: measure(np.roll(fills, 1, axis=3), *rest), 64).check
  assert not check["passed"] and check["psnr"] < 60


def test_a_terminal_is_told_what_is_waited_for_after_the_last_picture(measure, monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self) -> bool:
      return True

  shown = Terminal()
  monkeypatch.setattr(sys, "stderr", shown)
  monkeypatch.setattr(progress, "PATIENCE", 0.0)
  monkeypatch.setattr(progress, "_PAUSE", 0.001)
  monkeypatch.setattr(scorer, "_distances", lambda *_: time.sleep(0.5) or {})
  scorer.score(Crops(range(1)), {}, measure, 64)
  assert "self-check (0 s so far)" in shown.getvalue() and "distances of sets (0 s so far)" in shown.getvalue()
