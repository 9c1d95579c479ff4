"""Distances between a set of fills and the set of true pictures, and the interval of a mean over pictures.

The sets are features of one network, a vector per picture; the network belongs into a number's name (FID and KID are
InceptionV3's, FD-VGG16 and KID-VGG16 are VGG16's). Everything is float64 inside; vectors may be float32.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

SAMPLE = 10_000
"""Fills of all buckets together that KID, P-IDS and U-IDS look at; the Fréchet distance sees every one."""

FULL_SIZE = 5_000
"""Images below which the Fréchet distance is biased too far: prefer the kernel distance."""

KERNEL_LEAST = 50
"""Images below which a kernel distance is left out: its error is as large as itself."""

SEED = 0  # of KID's subsets and of the bootstrap
SUBSETS = 100  # of KID
SUBSET_SIZE = 1000  # of KID, images of each side
RESAMPLES = 1000  # of the bootstrap
LEVEL = 0.95  # share of the intervals

Features = Float[np.ndarray, "n d"]
Others = Float[np.ndarray, "m d"]

_NAMES = {"inception": ("fid", "kid", "p_ids", "u_ids")}  # only Inception's have the names of the field


@dataclasses.dataclass(frozen=True)
class Moments:
  """Count, mean and scatter (the sum of centred outer products) of feature vectors."""

  count: int
  mean: Float[np.ndarray, " d"]
  scatter: Float[np.ndarray, "d d"]

  @classmethod
  def of(cls, features: Features) -> Moments:
    """The moments of one set, of one image at least."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return cls(len(features), mean, centred.T @ centred)

  def merge(self, other: Moments) -> Moments:
    """The moments of both sets together (Chan, Golub & LeVeque 1979): nothing cancels far from zero."""
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
  covariance is singular. Needs 2 images a side. Biased upwards for few images: compare sets of equal size only.
  """
  step, left, right = a.mean - b.mean, a.covariance, b.covariance
  overlap = np.linalg.svd(_root(left).T @ _root(right), compute_uv=False).sum()
  # Rounding may leave a tiny negative where the sets are equal.
  return max(0.0, float(step @ step + np.trace(left) + np.trace(right) - 2.0 * overlap))


def kid(a: Features, b: Others) -> tuple[float, float]:
  """The kernel distance of two sets (Bińkowski et al. 2018) and its standard error; squared MMD, kernel (x·y/d + 1)³.

  The mean over SUBSETS random subsets of SUBSET_SIZE images, or fewer where a side has fewer; where a subset is the
  whole of both sides there is but one. Needs 3 images a side. Unbiased, so it may be below 0 for sets alike. The
  standard error is a jackknife that leaves out one image of each side in turn, mean over the subsets, scaled from the
  size of a subset to that of the smaller side. (Ours.)
  """
  least = min(len(a), len(b))
  size = min(SUBSET_SIZE, least)
  a, b, rng = np.asarray(a, np.float64), np.asarray(b, np.float64), np.random.default_rng(SEED)
  distances, errors = [], []
  for _ in range(1 if size == len(a) == len(b) else SUBSETS):
    # In the sets' own order, so that pairs stay pairs where a subset is the whole.
    x, y = (side[np.sort(rng.choice(len(side), size, replace=False))] for side in (a, b))
    distance, error = _mmd(x, y)
    distances.append(distance)
    errors.append(error**2)
  return float(np.mean(distances)), float(np.sqrt(np.mean(errors) * size / least))


def _mmd(x: Float[np.ndarray, "m d"], y: Float[np.ndarray, "m d"]) -> tuple[float, float]:
  """Unbiased squared MMD of two sets of one size, and its jackknife standard error."""

  def kernel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (u @ v.T / x.shape[1] + 1.0) ** 3

  within, across, size = kernel(x, x) + kernel(y, y), kernel(x, y), len(x)
  np.fill_diagonal(within, 0.0)
  own, cross = within.sum(axis=1), across.sum(axis=1) + across.sum(axis=0) - np.diagonal(across)
  value = own.sum() / (size * (size - 1)) - 2.0 * across.mean()
  # The same without image i of both sides.
  others = (own.sum() - 2.0 * own) / ((size - 1) * (size - 2)) - 2.0 * (across.sum() - cross) / (size - 1) ** 2
  return float(value), float(np.sqrt((size - 1) * np.var(others)))


def ids(fake: Features, real: Features) -> tuple[float, float]:
  """P-IDS and U-IDS, in [0, 1], of fills and the true image of each (Zhao et al. 2021, CoModGAN, section 5).

  A linear support vector machine is fitted to tell the sets apart. P-IDS is the share of fills that it finds more real
  than their own truth, U-IDS the share of all images on the wrong side; 0.5 is the best to hope for. With no more
  images than features almost any two sets come apart and both are near 0, whatever the fills: thousands are needed.
  """
  from sklearn.svm import LinearSVC  # a second of imports, which only this needs

  features = np.concatenate((real, fake)).astype(np.float64)
  labels = np.repeat((1, 0), len(real))
  machine = LinearSVC(dual=False).fit(features, labels)  # pyright: ignore[reportArgumentType]
  realness = machine.decision_function(features)
  wrong = np.mean((realness > 0) != labels)
  return float(np.mean(realness[len(real) :] > realness[: len(real)])), float(wrong)


def distances(
  network: str, moments: tuple[Moments, Moments], fills: Features, truth: Others, paired: Features
) -> dict[str, float]:
  """All distances that so many pictures allow.

  `moments` are of all fills and of the truth of each; `fills` may be a sample, of which `paired` is the truth; `truth`
  has each true picture once.
  """
  own = (f"fd_{network}", f"kid_{network}", f"p_ids_{network}", f"u_ids_{network}")
  fd_name, kid_name, p_ids_name, u_ids_name = _NAMES.get(network, own)
  values: dict[str, float] = {}
  if moments[0].count >= 2:
    values[fd_name] = fid(*moments)
  if min(len(fills), len(truth)) >= KERNEL_LEAST:
    values[kid_name], values[f"{kid_name}_standard_error"] = kid(fills, truth)
  if len(fills) > fills.shape[1]:  # fewer always come apart by a plane
    values[p_ids_name], values[u_ids_name] = ids(fills, paired)
  return values


def sample(keys: Sequence[tuple[str, str]]) -> list[int]:
  """At most SAMPLE places of the (bucket, name) keys, chosen by their hashes, in order."""

  def digest(place: int) -> bytes:
    return hashlib.sha256("\0".join(keys[place]).encode("utf-8", "surrogateescape")).digest()

  return sorted(sorted(range(len(keys)), key=digest)[:SAMPLE])


def interval(values: ArrayLike) -> tuple[float, float]:
  """The 95 % percentile bootstrap interval of the mean over images (Efron 1979), low and high.

  Images at +inf (PSNR of equal images) are left out; if all are, both ends are inf. NaN is not hidden; without any
  image both ends are NaN. The order of the values changes nothing. Of two methods' difference per image it tells
  whether one is better: the images' own spread drops out.
  """
  array = np.sort(np.asarray(values, np.float64).reshape(-1))
  finite = array[~np.isposinf(array)]
  if not len(finite) or np.isnan(finite).any():
    end = math.inf if len(array) and not len(finite) else math.nan
    return end, end
  rng = np.random.default_rng(SEED)
  means = [finite[rng.integers(len(finite), size=len(finite))].mean() for _ in range(RESAMPLES)]
  low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
  return float(low), float(high)
