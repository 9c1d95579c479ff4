"""Distances between the sets of filled and of true pictures, per bucket and over all, from features of each picture.

A bucket's features are held until it is finished, those of all buckets as moments and as a sample that a hash of the
names chooses: 36,500 images of 2,048 features and six methods take about 3 GB. Rows are sorted by name first, so the
order in which pictures came changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from gmsrm_jax.config import ALL
from gmsrm_jax.evaluation import distribution

SAMPLE = 10_000
"""Fills of all buckets together that KID, P-IDS and U-IDS look at; the Fréchet distance sees every one."""

FULL_SIZE = 5_000
"""Images below which the Fréchet distance is biased too far: prefer the kernel distance."""

Features = Float[np.ndarray, "n d"]
Truth = Float[np.ndarray, "t d"]
Found = dict[str, float]

_NAMES = {"inception": ("fid", "kid", "p_ids", "u_ids")}


def _names(network: str) -> tuple[str, str, str, str]:
  """What the four distances are called: only Inception's have the names of the field."""
  own = (f"fd_{network}", f"kid_{network}", f"p_ids_{network}", f"u_ids_{network}")
  return _NAMES.get(network, own)


def distances(
  network: str,
  fills: Features,
  truth: Truth,
  paired: Features,
  moments: tuple[distribution.Moments, distribution.Moments],
  seed: int,
) -> Found:
  """All distances that so many pictures allow.

  Args:
    network: whose features they are.
    fills: of the filled pictures.
    truth: of the true pictures, each once.
    paired: of the truth of each filled picture.
    moments: of all filled pictures, of which `fills` may be a sample, and of the truth of each.
    seed: of KID's subsets.
  """
  fd, kid, p_ids, u_ids = _names(network)
  found: Found = {}
  if moments[0].count >= 2:
    found[fd] = distribution.fid(*moments)
  if min(len(fills), len(truth)) >= 3:
    found[kid], found[f"{kid}_standard_error"] = distribution.kid(fills, truth, seed=seed)
  if len(fills) > fills.shape[1]:  # fewer always come apart by a plane
    found[p_ids], found[u_ids] = distribution.ids(fills, paired)
  return found


class Distances:
  """Collects features bucket after bucket."""

  def __init__(self, seed: int):
    self._seed = seed
    self._truth: dict[str, dict[str, np.ndarray]] = {}  # network, image
    self._moments: dict[tuple[str, str], distribution.Moments] = {}  # method, network
    self._truth_moments: dict[str, distribution.Moments] = {}  # network; an image counts once per bucket
    self._sample: dict[tuple[str, str], Features] = {}  # method, network
    self._keys: list[tuple[bytes, str, str]] = []  # hash, bucket and image of each row of the sample
    self.found: dict[str, dict[str, Found]] = {}  # method, bucket

  def add_bucket(
    self,
    bucket: str,
    names: Sequence[str],
    fills: Mapping[str, Mapping[str, Features]],
    truth: Mapping[str, Features],
  ) -> None:
    """Takes the features of a whole bucket: `fills` by method and network, `truth` by network, rows as `names`."""
    keys = [*self._keys, *((_hash(bucket, name), bucket, name) for name in names)]
    kept = sorted(range(len(keys)), key=lambda row: keys[row])[:SAMPLE]
    kept.sort(key=lambda row: keys[row][1:])
    self._keys = [keys[row] for row in kept]
    of_truth = {network: distribution.Moments.of(rows) for network, rows in truth.items()}
    for network, rows in truth.items():
      self._truth.setdefault(network, {}).update(zip(names, rows, strict=True))
      known = self._truth_moments.get(network)
      self._truth_moments[network] = known.merge(of_truth[network]) if known else of_truth[network]
    for method, by_network in fills.items():
      row = self.found.setdefault(method, {}).setdefault(bucket, {})
      for network, rows in by_network.items():
        moments = distribution.Moments.of(rows)
        row |= distances(network, rows, truth[network], truth[network], (moments, of_truth[network]), self._seed)
        key = (method, network)
        self._moments[key] = self._moments[key].merge(moments) if key in self._moments else moments
        known = self._sample.get(key, rows[:0])
        self._sample[key] = np.concatenate([known, rows])[kept]

  def finish(self) -> dict[str, dict[str, Found]]:
    """The distances by method and bucket, with those over all buckets."""
    for (method, network), moments in self._moments.items():
      by_name = self._truth[network]
      truth = np.stack([by_name[name] for name in sorted(by_name)])
      paired = np.stack([by_name[name] for _, _, name in self._keys])
      row = self.found[method].setdefault(ALL, {})
      both = (moments, self._truth_moments[network])
      row |= distances(network, self._sample[method, network], truth, paired, both, self._seed)
    return self.found


def _hash(bucket: str, name: str) -> bytes:
  return hashlib.sha256(f"{bucket}\0{name}".encode("utf-8", "surrogateescape")).digest()
