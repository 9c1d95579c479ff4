from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.svm import LinearSVC

from gmsrm_jax.evaluation import distribution
from gmsrm_jax.evaluation.distribution import interval


def draw(count, seed, *, width=24, shift=0.0, scale=1.0):
  """Rows as a network makes them: not negative, of very different sizes, correlated, far from zero."""
  rng = np.random.default_rng(seed)
  mixing = np.random.default_rng(99).normal(size=(width, width)) * np.geomspace(0.01, 1, width)
  return np.maximum(30 + shift + scale * rng.normal(size=(count, width)) @ mixing, 0).astype(np.float32)


@pytest.fixture(scope="module")
def sets():
  return draw(230, 1), draw(170, 2, shift=0.4, scale=1.3)


def moments(features):
  return distribution.Moments.of(features)


def test_moments_depend_on_neither_order_nor_batches_and_keep_their_digits_far_from_zero(sets):
  exact = np.float64(sets[0]) + 1e5
  shuffled = exact[np.random.default_rng(0).permutation(len(exact))]
  batches = [moments(shuffled[start : start + 7]) for start in range(0, len(exact), 7)]
  merged = functools.reduce(distribution.Moments.merge, batches)
  assert merged.count == len(exact)
  np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-13)
  covariance = np.cov(exact - 1e5, rowvar=False)
  np.testing.assert_allclose(merged.covariance, covariance, rtol=1e-6, atol=1e-9 * covariance.max())


def frechet(a, b):
  """The formula with SciPy's matrix root."""
  a, b = np.float64(a), np.float64(b)
  left, right = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = scipy.linalg.sqrtm(left @ right).real
  step = a.mean(axis=0) - b.mean(axis=0)
  return step @ step + np.trace(left + right - 2 * root)


def test_fid_equals_scipy(sets):
  expected = frechet(*sets)
  assert expected > 1
  assert distribution.fid(*map(moments, sets)) == pytest.approx(expected, rel=1e-6)
  assert distribution.fid(*map(moments, sets[::-1])) == pytest.approx(expected, rel=1e-6)


def test_fid_of_few_images_in_many_dimensions_equals_an_offset_that_vanishes():
  a, b = draw(9, 3, width=40), draw(12, 4, width=40, shift=1)
  left, right = (np.cov(np.float64(x), rowvar=False) + 1e-10 * np.eye(40) for x in (a, b))
  step = a.mean(axis=0, dtype=np.float64) - b.mean(axis=0, dtype=np.float64)
  expected = step @ step + np.trace(left + right - 2 * scipy.linalg.sqrtm(left @ right).real)
  assert distribution.fid(moments(a), moments(b)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [2, 200])
def test_equal_sets_have_no_distance(count):
  features = draw(count, 5, width=64)
  shuffled = features[np.random.default_rng(0).permutation(count)]
  assert distribution.fid(moments(features), moments(shuffled)) < 1e-9


def kid_plain(a, b):
  a, b = np.float64(a), np.float64(b)
  k = lambda x, y: (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3  # noqa: E731
  within = [np.mean([k(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]) for rows in (a, b)]
  return sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])


def test_kid_equals_its_definition_pair_by_pair(sets):
  a, b = sets[0][:12] / 10, sets[1][:12] / 10
  value, error = distribution.kid(a, b)
  assert value == pytest.approx(kid_plain(a, b), rel=1e-9)
  leave_one_out = [kid_plain(np.delete(a, i, 0), np.delete(b, i, 0)) for i in range(12)]
  expected = math.sqrt(11 / 12 * np.sum((leave_one_out - np.mean(leave_one_out)) ** 2))
  assert error == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [49, 50])
def test_a_kernel_distance_needs_50_pictures(sets, count):
  a, b = (side[:count] for side in sets)
  moments = (distribution.Moments.of(a), distribution.Moments.of(b))
  assert ("kid_vgg16" in distribution.distances("vgg16", moments, a, b, b)) == (count == 50)


def test_kid_of_subsets_comes_near_that_of_all(sets, monkeypatch):
  whole, whole_error = distribution.kid(sets[0][:170], sets[1])
  monkeypatch.setattr(distribution, "SUBSET_SIZE", 50)
  value, error = distribution.kid(*sets)
  assert whole > 2 * whole_error > 0
  assert abs(value - whole) < 3 * error
  assert error == pytest.approx(whole_error, rel=0.5)


def test_kid_is_unbiased_and_its_error_is_the_spread_of_repetitions():
  found = [distribution.kid(draw(40, 2 * i) / 10, draw(40, 2 * i + 1) / 10 + 0.02) for i in range(150)]
  values, errors = np.array(found).T
  assert np.std(values) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.35)
  same = [distribution.kid(draw(20, 2 * i) / 10, draw(20, 2 * i + 1) / 10)[0] for i in range(300)]
  assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(300), "sets of one distribution lie around 0"


def test_ids_are_those_of_scikit_learn():
  real, fake = draw(300, 6, width=6), draw(300, 7, width=6, shift=0.2)
  features, labels = np.concatenate((real, fake)).astype(np.float64), np.array([1] * 300 + [0] * 300)
  machine = LinearSVC(dual=False).fit(features, labels)
  paired, unpaired = distribution.ids(fake, real)
  assert unpaired == pytest.approx(1 - machine.score(features, labels), abs=1e-12)
  assert 0.05 < unpaired < 0.5
  closer = np.mean(machine.decision_function(fake) > machine.decision_function(real))
  assert paired == pytest.approx(closer, abs=1e-12)


def test_a_sample_is_chosen_by_names_and_not_by_their_order(monkeypatch):
  monkeypatch.setattr(distribution, "SAMPLE", 5)
  keys = [(bucket, f"{i:02d}.png") for bucket in ("a", "b") for i in range(20)]
  chosen = [keys[place] for place in distribution.sample(keys)]
  assert len(chosen) == 5 and chosen == sorted(chosen)
  assert sorted(keys[::-1][place] for place in distribution.sample(keys[::-1])) == chosen


def test_the_interval_is_scipys(sets):
  values = sets[0][:80, 3]
  expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000).confidence_interval
  low, high = interval(values)
  width = expected.high - expected.low
  assert abs(low - expected.low) < 0.1 * width and abs(high - expected.high) < 0.1 * width
  assert interval(values) == interval(values[::-1])


def test_the_interval_leaves_out_infinity_and_shows_nan():
  assert interval([20.0, 22.0, 25.0, math.inf]) == interval([20.0, 22.0, 25.0])
  assert interval([math.inf] * 3) == (math.inf, math.inf)
  assert all(map(math.isnan, interval([]) + interval([1.0, math.nan])))


def test_the_interval_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = [low <= 1.0 <= high for low, high in (interval(rng.exponential(size=60)) for _ in range(200))]
  assert 0.87 < np.mean(hits) < 0.99
