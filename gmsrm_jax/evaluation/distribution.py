"""How far a set of fills is from the set of true images: distances of two sets of feature vectors, on the host.

The features are those of one network for every image, one row each; the network belongs into a number's name (FID and
KID are InceptionV3's, FD-VGG16 and KID-VGG16 are VGG16's). Everything is float64 inside; rows may be float32.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gmsrm_jax.errors import require

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]


def _rows(features: Features) -> Features:
  rows = np.asarray(features, np.float64)
  if not np.all(np.isfinite(rows)):
    raise ValueError("the features hold NaN or infinity")
  return rows


@dataclasses.dataclass(frozen=True)
class Moments:
  """Count, mean and scatter (the sum of centred outer products) of feature vectors; neither order nor batches matter.

  Batches merge by Chan, Golub & LeVeque 1979, so nothing cancels however far the mean lies from zero. The memory is
  that of one d x d matrix, whatever the number of images.
  """

  count: int
  mean: Float[np.ndarray, " d"]
  scatter: Float[np.ndarray, "d d"]

  @classmethod
  def of(cls, features: Features) -> Moments:
    """The moments of one batch, which may be empty."""
    rows = _rows(features)
    if not len(rows):
      return cls(0, np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2))
    mean = rows.mean(axis=0)
    centred = rows - mean
    return cls(len(rows), mean, centred.T @ centred)

  def merge(self, other: Moments) -> Moments:
    """The moments of both sets together."""
    if not self.count or not other.count:
      return other if not self.count else self
    count, step = self.count + other.count, other.mean - self.mean
    scatter = self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count)
    return Moments(count, self.mean + step * (other.count / count), scatter)

  @property
  def covariance(self) -> Float[np.ndarray, "d d"]:
    """With n - 1 below, as NumPy's and pytorch-fid's."""
    return self.scatter / (self.count - 1)


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
  """F with F Fᵀ the covariance; as many columns as it has rank."""
  values, vectors = np.linalg.eigh(covariance)
  keep = values > values[-1] * len(values) * np.finfo(np.float64).eps
  return vectors[:, keep] * np.sqrt(values[keep])


def fid(a: Moments, b: Moments) -> float:
  """The Fréchet distance of two Gaussians with these moments (Heusel et al. 2017, eq. 6); 0 for equal sets.

  The trace of (A B)^½ is the sum of the singular values of Fᵀ G for A = F Fᵀ, B = G Gᵀ, which needs no offset where a
  covariance is singular. Biased upwards for few images: compare sets of equal size only, and prefer `kid` below 5,000.

  Raises:
    ConfigError: fewer than 2 images on a side.
  """
  _check_count("FID", min(a.count, b.count), 2)
  step, left, right = a.mean - b.mean, a.covariance, b.covariance
  overlap = np.linalg.svd(_root(left).T @ _root(right), compute_uv=False).sum()
  # Rounding may leave a tiny negative where the sets are equal.
  return max(0.0, float(step @ step + np.trace(left) + np.trace(right) - 2.0 * overlap))


class Kid(NamedTuple):
  """A kernel distance and its standard error."""

  value: float
  error: float


def kid(a: Features, b: Others, *, subsets: int = 100, subset_size: int | None = None, seed: int = 0) -> Kid:
  """The kernel distance of two sets (Bińkowski et al. 2018): unbiased squared MMD, kernel (x·y/d + 1)³.

  The mean over random subsets; where a subset is the whole of both sides there is but one, and order does not
  matter. Unbiased, so it may be below 0 for sets alike. The standard error is a jackknife that leaves out one image of
  each side in turn, mean over the subsets, scaled from the size of a subset to that of the smaller side. (Ours.)

  Args:
    a: one set.
    b: the other; sizes may differ.
    subsets: how many.
    subset_size: rows of each side in a subset; None for 1,000, or fewer where a side has fewer.
    seed: of the subsets.

  Raises:
    ConfigError: fewer than 3 images on a side, or a subset larger than a side.
  """
  least = min(len(a), len(b))
  _check_count("KID", least, 3)
  size = min(1000, least) if subset_size is None else subset_size
  require(
    3 <= size <= least,
    f"subset_size={size} does not fit sets of {len(a)} and {len(b)} images: give a number from 3 to {least}",
  )
  subsets = 1 if size == len(a) == len(b) else subsets
  a, b, rng = _rows(a), _rows(b), np.random.default_rng(seed)
  found = []
  for _ in range(subsets):
    # In the sets' own order, so that pairs stay pairs where a subset is the whole.
    chosen = (np.sort(rng.choice(len(rows), size, replace=False)) for rows in (a, b))
    found.append(_mmd(*(rows[index] for rows, index in zip((a, b), chosen, strict=True))))
  variance = np.mean([error**2 for _, error in found]) * size / least
  return Kid(float(np.mean([value for value, _ in found])), float(np.sqrt(variance)))


def _mmd(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"]) -> tuple[float, float]:
  """Unbiased squared MMD of two sets of one size, and its jackknife standard error."""

  def kernel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (u @ v.T / x.shape[1] + 1.0) ** 3

  within, across, size = kernel(x, x) + kernel(y, y), kernel(x, y), len(x)
  np.fill_diagonal(within, 0.0)
  rows, cross = within.sum(axis=1), across.sum(axis=1) + across.sum(axis=0) - np.diagonal(across)
  value = rows.sum() / (size * (size - 1)) - 2.0 * across.mean()
  # The same without image i of both sides.
  others = (rows.sum() - 2.0 * rows) / ((size - 1) * (size - 2)) - 2.0 * (across.sum() - cross) / (size - 1) ** 2
  return float(value), float(np.sqrt((size - 1) * np.var(others)))


class Ids(NamedTuple):
  """Shares of fills that a linear classifier takes for real, in [0, 1]: larger is better."""

  paired: float
  unpaired: float


def ids(fake: Features, real: Others) -> Ids:
  """P-IDS and U-IDS of fills and the true images they belong to, row by row (Zhao et al. 2021, CoModGAN, section 5).

  A linear support vector machine is fitted to tell the sets apart. P-IDS is the share of fills that it finds more real
  than their own truth, U-IDS the share of all images on the wrong side; 0.5 is the best to hope for. With no more
  images than features almost any two sets come apart and both are near 0, whatever the fills: thousands are needed.

  Raises:
    ConfigError: fewer than 2 images.
  """
  if fake.shape != real.shape:
    raise ValueError(f"{len(fake)} fills and {len(real)} true images are no pairs")
  _check_count("P-IDS", len(fake), 2)
  from sklearn.svm import LinearSVC  # a second of imports, which only this needs

  rows = np.concatenate((_rows(real), _rows(fake)))
  labels = np.repeat((1, 0), len(real))
  machine = LinearSVC(dual=False).fit(rows, labels)  # pyright: ignore[reportArgumentType]
  realness = machine.decision_function(rows)
  wrong = np.mean((realness > 0) != labels)
  return Ids(float(np.mean(realness[len(real) :] > realness[: len(real)])), float(wrong))


def _check_count(name: str, count: int, least: int) -> None:
  require(
    count >= least,
    f"{name} is a distance of sets and needs at least {least} images on each side, but there are {count}: score more "
    f"images, or leave it out",
  )
