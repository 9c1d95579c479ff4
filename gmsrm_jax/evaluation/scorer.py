"""The one way results are scored: those of a model during and after training, and anybody's from folders.

Results come as batches, bucket after bucket; one value per (method, bucket, image) stays, so means, intervals and the
picture page are made from the same numbers. All methods are composited: the truth stands outside the hole.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from gmsrm_jax.config import ALL
from gmsrm_jax.evaluation.distances import Distances, Found, distances
from gmsrm_jax.evaluation.distribution import Moments
from gmsrm_jax.parallel.fixed_batches import ByImage

CHECKED = 16
"""At most so many images of the first bucket, by name and of one size, are scored against themselves as a check."""


class Batch(NamedTuple):
  """Results for some images of one bucket and one size; `fills` need not be composited."""

  bucket: str
  names: list[str]
  images: UInt8[np.ndarray, "b h w 3"]
  masks: UInt8[np.ndarray, "b h w 1"]
  fills: Mapping[str, UInt8[np.ndarray, "b h w 3"]]


@runtime_checkable
class Results(Protocol):
  """What can be scored."""

  methods: tuple[str, ...]  # the one that is judged first, then those beside it
  has_masks: bool  # without masks the whole image counts as hole

  def count(self) -> int:
    """How many images `batches` gives, each bucket counted."""
    ...

  def batches(self) -> Iterator[Batch]:
    """All results; the batches of a bucket follow each other."""
    ...

  def example(self, bucket: str, name: str) -> Batch:
    """One image again."""
    ...


@dataclasses.dataclass
class Outside:
  """How a method's pictures differ from the truth outside the hole, before they are composited."""

  images: int = 0  # pictures with any such pixel
  pixels: int = 0
  most: int = 0  # largest difference, levels of 255

  def add(self, batch: Batch, fill: UInt8[np.ndarray, "b h w 3"]) -> None:
    """Counts a batch."""
    apart = np.where(batch.masks > 0, 0, np.abs(fill.astype(np.int16) - batch.images)).max(axis=-1)
    self.images += int((apart > 0).any(axis=(1, 2)).sum())
    self.pixels += int((apart > 0).sum())
    self.most = max(self.most, int(apart.max()))


class SelfCheck(NamedTuple):
  """The truth scored against itself: values per image, and distances."""

  values: dict[str, np.ndarray]
  distances: Found


@dataclasses.dataclass
class Scores:
  """All numbers of an evaluation."""

  names: dict[str, list[str]]  # bucket to its images, sorted
  values: dict[str, dict[str, dict[str, np.ndarray]]]  # method, bucket, metric to values in the order of `names`
  distances: dict[str, dict[str, Found]]  # method and bucket to distances of sets
  outside: dict[str, Outside]  # by method
  check: SelfCheck


def score(results: Results, measure: ByImage, seed: int) -> Scores:
  """Scores every method; independent of batches, their order and the number of devices.

  Args:
    results: what is scored.
    measure: see `instruments.Instruments`.
    seed: of the distances that sample.
  """
  outside = {method: Outside() for method in results.methods}
  names: dict[str, list[str]] = {}
  values: dict[str, dict[str, dict[str, np.ndarray]]] = {method: {} for method in results.methods}
  between = Distances(seed)
  first: list[tuple[str, np.ndarray, np.ndarray]] = []  # name, truth and mask
  with tqdm(total=results.count(), desc="evaluate", unit="image", disable=None) as progress:
    for bucket, batches in itertools.groupby(results.batches(), key=lambda batch: batch.bucket):
      seen: list[str] = []
      parts = []
      for batch in batches:
        seen += batch.names
        fills = {method: batch.fills[method] for method in results.methods}
        for method, fill in fills.items():
          outside[method].add(batch, fill)
        stacked = np.where(batch.masks[:, None] > 0, np.stack(list(fills.values()), axis=1), batch.images[:, None])
        areas = batch.masks.mean(axis=(1, 2, 3), dtype=np.float64)
        parts.append((*measure(stacked, batch.images, batch.masks), areas))
        if not names:
          first = sorted(
            [*first, *zip(batch.names, batch.images, batch.masks, strict=True)], key=operator.itemgetter(0)
          )
          first = first[:CHECKED]
        progress.update(len(batch.names))
      order = sorted(range(len(seen)), key=seen.__getitem__)
      joined = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
      scores, of_fills, of_truth, areas = jax.tree.map(operator.itemgetter(order), joined)
      names[bucket] = [seen[row] for row in order]
      for place, method in enumerate(results.methods):
        rows = {name: array[:, place].astype(np.float64) for name, array in scores.items()}
        values[method][bucket] = rows | {"hole_area": areas}
      by_method = {m: {n: x[:, place] for n, x in of_fills.items()} for place, m in enumerate(results.methods)}
      between.add_bucket(bucket, names[bucket], by_method, of_truth)
  check = _self_check(first, measure, len(results.methods), seed)
  found = between.finish()
  if not results.has_masks:
    values = {method: {bucket: _without_hole(row) for bucket, row in rows.items()} for method, rows in values.items()}
    check = check._replace(values=_without_hole(check.values))
  if list(names) == [ALL]:
    found = {method: {ALL: rows[ALL]} for method, rows in found.items()}
  return Scores(names, values, found, outside, check)


def _self_check(
  truths: list[tuple[str, np.ndarray, np.ndarray]], measure: ByImage, methods: int, seed: int
) -> SelfCheck:
  """In the place of every method stands the truth, so that it is scored by the very program that scores them."""
  alike = [(image, mask) for _, image, mask in truths if image.shape == truths[0][1].shape]
  images, masks = (np.stack(arrays) for arrays in zip(*alike, strict=True))
  scores, of_fills, of_truth = measure(np.repeat(images[:, None], methods, axis=1), images, masks)
  found: Found = {}
  for network, truth in of_truth.items():
    fills = of_fills[network][:, 0]
    found |= distances(network, fills, truth, truth, (Moments.of(fills), Moments.of(truth)), seed)
  return SelfCheck({name: array[:, 0].astype(np.float64) for name, array in scores.items()}, found)


def _without_hole(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What has a meaning where there was no mask."""
  return {name: value for name, value in row.items() if "hole" not in name and "boundary" not in name}
