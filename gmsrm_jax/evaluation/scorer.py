"""The one way results are scored: those of a model during and after training, and anybody's from folders.

Results come as batches, in any order; one value per (method, bucket, image) stays, so means, intervals and pictures are
made from the same numbers. All methods are composited: the truth stands outside the hole. Features stay, too: with
Inception about 10 KB per method, bucket and image.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from gmsrm_jax.arrays import Rgb8, image_from_uint8
from gmsrm_jax.config import EvalConfig
from gmsrm_jax.evaluation import distribution
from gmsrm_jax.evaluation.protocols import PROTOCOLS
from gmsrm_jax.parallel.fixed_batches import ByImage, in_fixed_batches
from gmsrm_jax.pretrained import inception, lpips, vgg16, weight_files

ALL = "all"
"""The column over all buckets."""

CHECKED = 16
"""At most so many images of one size, the first that come, are scored against themselves as a check."""


class Batch(NamedTuple):
  """Results for some images of one size; `fills`, by method, need not be composited."""

  buckets: list[str]
  names: list[str]
  images: UInt8[np.ndarray, "b h w 3"]
  masks: UInt8[np.ndarray, "b h w 1"]
  fills: Mapping[str, UInt8[np.ndarray, "b h w 3"]]


@runtime_checkable
class Results(Protocol):
  """What can be scored."""

  has_masks: bool  # without masks the whole image counts as hole

  def least_size(self) -> tuple[int, int]:
    """Height and width of the image with the shortest side."""
    ...

  def count(self) -> int:
    """How many images `batches` gives at most, each bucket counted."""
    ...

  def batches(self) -> Iterator[Batch]:
    """All results, each image decoded and each mask drawn or read once."""
    ...

  def example(self, bucket: str, name: str, methods: Sequence[str]) -> Batch:
    """One image again, filled by some of the methods."""
    ...

  def describe(self) -> dict[str, Any]:
    """What a report says of them, the hashes of images and masks included; whole after the batches."""
    ...


@dataclasses.dataclass
class Scores:
  """All numbers of an evaluation."""

  names: dict[str, list[str]]  # bucket to its images, sorted
  values: dict[str, dict[str, dict[str, np.ndarray]]]  # method, bucket, metric to values in the order of `names`
  distances: dict[str, dict[str, dict[str, float]]]  # method and bucket to distances of sets
  outside: dict[str, dict[str, int]]  # method to `images`, `pixels` and `most` levels that differed outside the hole
  check: dict[str, Any]  # see `self_check`


class Measure(NamedTuple):
  """`program(fills [b m h w 3], truth, masks)` gives scores [b m], features of fills [b m d] and of the truth [b d]."""

  program: ByImage
  weights: dict[str, str]  # file of the networks to its sha256
  notes: list[str]


def _vgg16(networks: Any, pixels: Rgb8) -> jax.Array:
  return vgg16.vgg16_embedding(networks["vgg"], image_from_uint8(pixels))


def _inception(networks: Any, pixels: Rgb8) -> jax.Array:
  return inception.inception_features(networks["inception"], image_from_uint8(pixels))


def make_measure(config: EvalConfig) -> Measure:
  """Reads the networks of the protocol and the distances, and makes one program of all numbers of a picture.

  Raises:
    ConfigError: a file of weights is lost or altered, or `eval.inception_weights` names none.
  """
  protocol = PROTOCOLS[config.protocol]
  networks: dict[str, Any] = {"alex": lpips.load_alexnet(), "vgg": vgg16.load_vgg16()}
  weights = {name: weight_files.SHA256[name] for name in ("alexnet", "vgg16")}
  embeddings = {"vgg16": _vgg16}
  setting = config.inception_weights
  path = inception.download() if setting == "download" else pathlib.Path(setting) if setting else None
  path = path or inception.find_inception()
  if path is None:
    note = f"No FID: it needs {inception.NAME}; set eval.inception_weights to its path, or to download."
  else:
    networks["inception"], weights["inception"] = inception.load_inception(path), inception.SHA256
    embeddings["inception"] = _inception
    note = f"FID's pictures are resized to {inception.SIDE}x{inception.SIDE}: {inception.RESIZE}."

  def measure(networks: Any, fills: jax.Array, truth: jax.Array, masks: jax.Array) -> Any:
    # One program for all methods: what is done to the truth is done once.
    scores = jax.vmap(protocol.score, in_axes=(None, 1, None, None), out_axes=1)(networks, fills, truth, masks)
    of_fills = {name: jax.vmap(embed, (None, 1), 1)(networks, fills) for name, embed in embeddings.items()}
    return scores, of_fills, {name: embed(networks, truth) for name, embed in embeddings.items()}

  return Measure(in_fixed_batches(measure, networks), weights, [note])


def score(results: Results, measure: ByImage) -> Scores:
  """Scores every method; independent of batches, their order and the number of devices."""
  keys: list[tuple[str, str]] = []  # bucket and name of each row
  pieces: list[Any] = []
  methods: tuple[str, ...] = ()
  checked: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # name to truth and mask
  with tqdm(total=results.count(), desc="evaluate", unit="image", disable=None) as progress:
    for batch in results.batches():
      methods = tuple(batch.fills)  # the one that is judged first, then those beside it
      keys += zip(batch.buckets, batch.names, strict=True)
      pieces.append(_measured(batch, measure))
      for name, truth, mask in zip(batch.names, batch.images, batch.masks, strict=True):
        if len(checked) < CHECKED and all(truth.shape == other.shape for other, _ in checked.values()):
          checked.setdefault(name, (truth, mask))
      progress.update(len(batch.names))
  order = sorted(range(len(keys)), key=keys.__getitem__)
  values, of_fills, of_truth, apart = jax.tree.map(lambda *rows: np.concatenate(rows)[order], *pieces)
  keys.sort()
  buckets = {bucket: list(rows) for bucket, rows in itertools.groupby(range(len(keys)), lambda row: keys[row][0])}
  if not results.has_masks:
    values = {name: array for name, array in values.items() if _of_whole(name)}
  return Scores(
    names={bucket: [keys[row][1] for row in rows] for bucket, rows in buckets.items()},
    values={
      method: {bucket: {name: array[rows, place] for name, array in values.items()} for bucket, rows in buckets.items()}
      for place, method in enumerate(methods)
    },
    distances=_distances(methods, keys, buckets, of_fills, of_truth),
    outside={
      method: {"images": int((pixels > 0).sum()), "pixels": int(pixels.sum()), "most": int(most.max())}
      for method, pixels, most in zip(methods, apart["pixels"].T, apart["most"].T, strict=True)
    },
    check=self_check(*_truth_against_itself(checked, measure, len(methods), results.has_masks)),
  )


def _measured(batch: Batch, measure: ByImage) -> tuple[Any, Any, Any, Any]:
  """The scores, in float64, and features of a batch, and how it differs from the truth outside the hole."""
  masks, truth, fills = batch.masks[:, None], batch.images[:, None], np.stack(list(batch.fills.values()), axis=1)
  composited = np.where(masks > 0, fills, truth)
  scores, of_fills, of_truth = measure(composited, batch.images, batch.masks)
  scores = {name: array.astype(np.float64) for name, array in scores.items()}
  # A compiler may round fills and truth on ways of its own; whether they are equal the integers tell.
  equal = (composited == truth).all(axis=(2, 3, 4))
  for name in ("psnr", "psnr_hole"):
    if name in scores:  # what a protocol cuts off at 100 dB stays
      scores[name] = np.where(equal & (scores[name] > 100), np.inf, scores[name])
  area = batch.masks.mean(axis=(1, 2, 3), dtype=np.float64)
  scores["hole_area"] = np.repeat(area[:, None], len(batch.fills), axis=1)
  apart = np.where(masks > 0, 0, np.abs(fills.astype(np.int16) - truth)).max(axis=-1)
  return scores, of_fills, of_truth, {"pixels": (apart > 0).sum(axis=(2, 3)), "most": apart.max(axis=(2, 3))}


def _distances(
  methods: Sequence[str],
  keys: Sequence[tuple[str, str]],
  buckets: Mapping[str, Sequence[int]],
  of_fills: Mapping[str, Float[np.ndarray, "n m _d"]],
  of_truth: Mapping[str, Float[np.ndarray, "n _d"]],
) -> dict[str, dict[str, dict[str, float]]]:
  """The distances of each method by bucket and over all; rows are sorted by their keys, bucket and name."""
  values = {method: {bucket: {} for bucket in (*buckets, ALL)} for method in methods}
  sample, merge = distribution.sample(keys), distribution.Moments.merge
  once = dict(sorted({name: row for row, (_, name) in enumerate(keys)}.items()))
  for network, truth in of_truth.items():
    moments_of_truth = {bucket: distribution.Moments.of(truth[rows]) for bucket, rows in buckets.items()}
    truth_of_all = functools.reduce(merge, moments_of_truth.values())
    for place, method in enumerate(methods):
      fills = of_fills[network][:, place]
      moments = {bucket: distribution.Moments.of(fills[rows]) for bucket, rows in buckets.items()}
      for bucket, rows in buckets.items():
        both = (moments[bucket], moments_of_truth[bucket])
        values[method][bucket] |= distribution.distances(network, both, fills[rows], truth[rows], truth[rows])
      both = (functools.reduce(merge, moments.values()), truth_of_all)
      whole = distribution.distances(network, both, fills[sample], truth[list(once.values())], truth[sample])
      values[method][ALL] |= whole
  return values


def _truth_against_itself(
  pictures: Mapping[str, tuple[np.ndarray, np.ndarray]], measure: ByImage, methods: int, has_masks: bool
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
  """In the place of every method stands the truth, so that it is scored by the very program that scores them."""
  truth, masks = (np.stack(arrays) for arrays in zip(*pictures.values(), strict=True))
  fills = np.repeat(truth[:, None], methods, axis=1)
  scores, of_fills, of_truth = measure(fills, truth, masks)
  frechet: dict[str, float] = {}
  for network, own in of_truth.items():
    moments = (distribution.Moments.of(of_fills[network][:, 0]), distribution.Moments.of(own))
    frechet |= distribution.distances(network, moments, of_fills[network][:, 0], own, own)
  frechet = {name: value for name, value in frechet.items() if name.startswith(("fd", "fid"))}
  return {name: array[:, 0] for name, array in scores.items() if has_masks or _of_whole(name)}, frechet


def _of_whole(metric: str) -> bool:
  """Whether it has a meaning where there was no mask."""
  return "hole" not in metric and "boundary" not in metric


_BEST = {"ssim": 1.0, "ms_ssim": 1.0}  # of equal pictures; every other error is 0, and PSNR has no end


def self_check(values: Mapping[str, np.ndarray], frechet: Mapping[str, float]) -> dict[str, Any]:
  """How the truth scored against itself, and whether as it must: PSNR 100 dB at least, every error and distance 0.

  HINT's protocol ends PSNR at 100 dB, and a compiler's rounding may leave more than that instead of infinity.
  """
  psnr = float(values["psnr"].min())
  off = {
    name: float(np.abs(array - _BEST.get(name, 0.0)).max())
    for name, array in values.items()
    if not name.startswith("psnr")
  }
  perfect = psnr >= 100.0 and all(value < 1e-5 for value in off.values())
  return {
    "images": len(values["psnr"]),
    "psnr": "inf" if np.isposinf(psnr) else psnr,
    "off_by": off,
    "frechet_distance": dict(frechet),
    "passed": bool(perfect and all(value < 1e-3 for value in frechet.values())),
  }
