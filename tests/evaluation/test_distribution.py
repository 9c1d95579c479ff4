from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from sklearn.svm import LinearSVC

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.evaluation import distribution
from gmsrm_jax.evaluation.bootstrap import interval


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


@pytest.mark.parametrize("size", [1, 7, 64, 500])
def test_moments_do_not_depend_on_order_or_batches(sets, size):
  rows = sets[0][np.random.default_rng(size).permutation(len(sets[0]))]
  merged = moments(rows[:0])
  for start in range(0, len(rows), size):
    merged = merged.merge(moments(rows[start : start + size]))
  exact = np.float64(sets[0])
  assert merged.count == len(rows)
  np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-13)
  covariance = np.cov(exact, rowvar=False)
  np.testing.assert_allclose(merged.covariance, covariance, rtol=1e-6, atol=1e-12 * covariance.max())
  halves = moments(rows[:100]).merge(moments(rows[100:]))
  assert distribution.fid(merged, moments(sets[1])) == pytest.approx(
    distribution.fid(halves, moments(sets[1])), rel=1e-9
  )


def test_moments_far_from_zero_keep_their_digits():
  rows = 1e6 + np.random.default_rng(0).normal(size=(400, 3))
  merged = moments(rows[:150]).merge(moments(rows[150:]))
  np.testing.assert_allclose(merged.covariance, np.cov(rows - 1e6, rowvar=False), rtol=1e-6, atol=1e-9)


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


def test_fid_of_known_gaussians():
  """Of one dimension it is (m - n)² + (s - t)²."""
  a, b = np.array([[1.0], [3.0], [5.0]]), np.array([[2.0], [2.0], [8.0]])
  expected = (3 - 4) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
  assert distribution.fid(moments(a), moments(b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 10, 200])
def test_equal_sets_have_no_distance(count):
  rows = draw(count, 5, width=64)
  shuffled = rows[np.random.default_rng(0).permutation(count)]
  assert distribution.fid(moments(rows), moments(shuffled)) < 1e-9


def kid_plain(a, b):
  a, b = np.float64(a), np.float64(b)
  k = lambda x, y: (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3  # noqa: E731
  within = [np.mean([k(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]) for rows in (a, b)]
  return sum(within) - 2 * np.mean([k(x, y) for x in a for y in b])


def test_kid_equals_its_definition_pair_by_pair(sets):
  a, b = sets[0][:12] / 10, sets[1][:12] / 10
  assert distribution.kid(a, b).value == pytest.approx(kid_plain(a, b), rel=1e-9)
  leave_one_out = [kid_plain(np.delete(a, i, 0), np.delete(b, i, 0)) for i in range(12)]
  expected = math.sqrt(11 / 12 * np.sum((leave_one_out - np.mean(leave_one_out)) ** 2))
  assert distribution.kid(a, b).error == pytest.approx(expected, rel=1e-9)


def test_kid_of_subsets_comes_near_that_of_all(sets):
  whole = distribution.kid(sets[0][:170], sets[1])
  parts = distribution.kid(*sets, subsets=60, subset_size=50, seed=3)
  assert whole.value > 2 * whole.error > 0
  assert abs(parts.value - whole.value) < 3 * parts.error
  assert parts.error == pytest.approx(whole.error, rel=0.5)
  assert parts == distribution.kid(*sets, subsets=60, subset_size=50, seed=3)
  assert parts != distribution.kid(*sets, subsets=60, subset_size=50, seed=4)


def test_kid_is_unbiased_and_its_error_is_the_spread_of_repetitions():
  found = [distribution.kid(draw(40, 2 * i) / 10, draw(40, 2 * i + 1) / 10 + 0.02) for i in range(150)]
  values, errors = np.array(found).T
  assert np.std(values) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=0.35)
  same = [distribution.kid(draw(20, 2 * i) / 10, draw(20, 2 * i + 1) / 10).value for i in range(300)]
  assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(300), "sets of one distribution lie around 0"


def test_ids_are_those_of_scikit_learn():
  real, fake = draw(300, 6, width=6), draw(300, 7, width=6, shift=0.2)
  machine = LinearSVC(dual=False)
  machine.fit(np.concatenate((real, fake)).astype(np.float64), np.array([1] * 300 + [0] * 300))
  found = distribution.ids(fake, real)
  score = machine.score(np.concatenate((real, fake)), np.array([1] * 300 + [0] * 300))
  assert found.unpaired == pytest.approx(1 - score, abs=1e-12)
  paired = np.mean(machine.decision_function(fake) > machine.decision_function(real))
  assert found.paired == pytest.approx(paired, abs=1e-12)
  assert 0.05 < found.unpaired < 0.5


def test_ids_range_from_nothing_to_half():
  real = draw(400, 8, width=4)
  assert distribution.ids(real + 100, real) == (0.0, 0.0)
  alike = distribution.ids(draw(400, 9, width=4), real)
  assert alike.paired == pytest.approx(0.5, abs=0.08) and alike.unpaired == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
  ("measure", "pattern"),
  [
    (lambda x: distribution.fid(moments(x), moments(x)), "^FID .* at least 2 images .* there are 1: score more"),
    (lambda x: distribution.kid(x, x), "^KID .* at least 3 images .* there are 1: score more"),
    (lambda x: distribution.ids(x, x), "^P-IDS .* at least 2 images .* there are 1: score more"),
  ],
)
def test_one_image_is_no_set(measure, pattern):
  with pytest.raises(ConfigError, match=pattern):
    measure(draw(1, 0))


def test_what_cannot_be_compared_is_refused(sets):
  with pytest.raises(ConfigError, match="subset_size=171 does not fit sets of 230 and 170 images: .* from 3 to 170"):
    distribution.kid(*sets, subset_size=171)
  with pytest.raises(ValueError, match="230 fills and 170 true images are no pairs"):
    distribution.ids(*sets)
  with pytest.raises(ValueError, match="NaN or infinity"):
    moments(np.array([[np.nan, 1.0]]))


def test_the_interval_is_scipys(sets):
  values = sets[0][:80, 3]
  expected = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000).confidence_interval
  low, high = interval(values, 0)
  width = expected.high - expected.low
  assert abs(low - expected.low) < 0.1 * width and abs(high - expected.high) < 0.1 * width
  inner = interval(values, 0, level=0.5)
  assert low < inner[0] < np.mean(values) < inner[1] < high


def test_the_interval_depends_on_the_seed_and_not_on_the_order(sets):
  values = sets[0][:50, 0]
  assert interval(values, 7) == interval(values[::-1], 7) == interval(np.random.default_rng(0).permutation(values), 7)
  assert interval(values, 7) != interval(values, 8)


def test_the_interval_leaves_out_infinity_and_shows_nan():
  assert interval([20.0, 22.0, 25.0, math.inf], 0) == interval([20.0, 22.0, 25.0], 0)
  assert interval([math.inf] * 3, 0) == (math.inf, math.inf)
  assert interval([3.0], 0) == (3.0, 3.0)
  assert all(map(math.isnan, interval([], 0) + interval([1.0, math.nan], 0)))


def test_the_interval_covers_the_truth_as_often_as_it_says():
  rng = np.random.default_rng(0)
  hits = [low <= 1.0 <= high for low, high in (interval(rng.exponential(size=60), i) for i in range(200))]
  assert 0.87 < np.mean(hits) < 0.99
