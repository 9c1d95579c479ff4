"""The one way results are scored: those of a model during and after training, and anybody's from folders.

One value per (method, bucket, image) stays, so means, intervals and pictures are made from the same numbers. Features
stay, too, with Inception about 10 KB each. All methods are composited: the truth stands outside the hole.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import operator
import pathlib
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from gmsrm_jax.arrays import Rgb8, image_from_uint8
from gmsrm_jax.config import EvalConfig
from gmsrm_jax.evaluation import distribution
from gmsrm_jax.evaluation.baselines import Fill
from gmsrm_jax.evaluation.protocols import PROTOCOLS, Protocol
from gmsrm_jax.files import local_path
from gmsrm_jax.parallel.fixed_batches import ByImage, in_fixed_batches
from gmsrm_jax.pretrained import inception, lpips, vgg16, weight_files
from gmsrm_jax.pretrained.canvas import Sizes
from gmsrm_jax.progress import ticking

ALL = "all"
"""The column over all buckets."""

CHECKED = 16
"""At most so many images of one size, the first that come, are scored against themselves as a check."""

_AT_THE_HOLE = ("psnr_hole", "l1_hole", "lpips_hole", "boundary_error", "detail")  # without masks they mean nothing

_BEST = {"ssim": 1.0, "ms_ssim": 1.0}  # of equal pictures; every other error is 0, and PSNR has no end


class Picture(NamedTuple):
  """A true image with its hole, in a bucket; without a mask, in bucket 'all', the whole image counts as hole."""

  bucket: str
  name: str
  image: UInt8[np.ndarray, "h w 3"]
  mask: UInt8[np.ndarray, "h w 1"]
  fills: Mapping[str, UInt8[np.ndarray, "h w 3"]] = {}  # by method, as far as they are there already


class Judged(NamedTuple):
  """One picture's scores and fills, a row per method, the result first; without a hole there are no rows."""

  bucket: str
  name: str
  share: float  # of the picture that is hole
  digests: tuple[bytes, bytes]  # sha256 of the result's file; `mask_bytes`
  kinds: dict[str, list[pathlib.Path]]  # files that are converted, by what they are
  methods: tuple[str, ...] = ()
  scores: dict[str, Float[np.ndarray, " m"]] = {}
  apart: dict[str, Int[np.ndarray, " m"]] = {}  # `pixels` and `most` levels that differed outside the hole
  fills: UInt8[np.ndarray, "m h w 3"] = np.zeros((0, 1, 1, 3), np.uint8)  # composited, on a canvas, as all below
  image: UInt8[np.ndarray, "h w 3"] = np.zeros((1, 1, 3), np.uint8)
  mask: UInt8[np.ndarray, "h w 1"] = np.zeros((1, 1, 1), np.uint8)
  size: tuple[int, int] = (1, 1)
  seconds: dict[str, float] = {}  # by what took them


Shown = TypeVar("Shown", Picture, Judged)

_Measured = tuple[dict[str, np.ndarray], Any, Any, dict[str, np.ndarray]]
"""Scores, features of fills and of the truth, and what differs outside the hole."""

Watch = Callable[[Sequence[Picture], Mapping[str, UInt8[np.ndarray, "b h w 3"]]], None]
"""Called with each batch and its fills by method."""


@dataclasses.dataclass
class Scores:
  """All numbers of an evaluation; a row is an image in a bucket."""

  methods: list[str]  # the one that is judged first, then those beside it
  keys: list[tuple[str, str]]  # bucket and name of each row, sorted
  values: dict[str, Float[np.ndarray, "n m"]]  # metric to a value per row and method
  distances: dict[str, dict[str, dict[str, float]]]  # method and bucket to distances of sets
  outside: dict[str, dict[str, int]]  # method to `images`, `pixels` and `most` levels that differed outside the hole
  check: dict[str, Any]  # see `self_check`
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of this process, by what took them
  seconds_of_others: dict[str, float] = dataclasses.field(default_factory=dict)  # of those that judge, meanwhile

  @property
  def buckets(self) -> dict[str, list[int]]:
    """The rows of each bucket."""
    groups = itertools.groupby(range(len(self.keys)), lambda row: self.keys[row][0])
    return {bucket: list(rows) for bucket, rows in groups}


class Measure(NamedTuple):
  """`program(fills [b m h w 3], truth, masks)` gives scores [b m], features of fills [b m d] and of the truth [b d].

  That of `make_feature_measure` takes the pictures' sizes [b 2] on their canvases, too, and gives scores of networks.
  """

  program: ByImage
  weights: dict[str, str]  # file of the networks to its sha256
  note: str


def make_measure(config: EvalConfig) -> Measure:
  """Reads the networks of the protocol and the distances, and makes one program of all numbers of a picture.

  Raises:
    ConfigError: a file of weights is lost or altered, or `eval.inception_weights` names none.
  """
  protocol = PROTOCOLS[config.protocol]
  networks, weights, note = _load_networks(config)

  def measure(networks: Any, fills: jax.Array, truth: jax.Array, masks: jax.Array) -> Any:
    # One program for all methods: what is done to the truth is done once.
    scores = jax.vmap(protocol.score, in_axes=(None, 1, None, None), out_axes=1)(networks, fills, truth, masks)
    return scores, jax.vmap(_embed, (None, 1), 1)(networks, fills), _embed(networks, truth)

  return Measure(in_fixed_batches(measure, networks), weights, note)


def make_feature_measure(config: EvalConfig, protocol: Protocol, *, has_vgg16: bool) -> Measure:
  """The same for pictures on canvases, of which all that needs no network is known; without VGG16 there is less."""
  networks, weights, note = _load_networks(config)
  embedding = networks if has_vgg16 else {name: value for name, value in networks.items() if name != "vgg"}

  def measure(params: Any, fills: jax.Array, truth: jax.Array, masks: jax.Array, sizes: jax.Array) -> Any:
    networks, embedding = params
    score = jax.vmap(protocol.score_features, (None, 1, None, None, None), 1)
    embed = jax.vmap(_embed, (None, 1, None), 1)
    scores = score(networks, fills, truth, masks, sizes)
    return scores, embed(embedding, fills, sizes), _embed(embedding, truth, sizes)

  return Measure(in_fixed_batches(measure, (networks, embedding)), weights, note)


def _load_networks(config: EvalConfig) -> tuple[dict[str, Any], dict[str, str], str]:
  """The networks, their files' sha256, and what the report says about FID."""
  networks: dict[str, Any] = {"alex": lpips.load_alexnet(), "vgg": vgg16.load_vgg16()}
  weights = {name: weight_files.SHA256[name] for name in ("alexnet", "vgg16")}
  setting = config.inception_weights
  if setting == "download":
    path = inception.download()
  else:
    path = local_path(setting, "eval.inception_weights") if setting else inception.find_inception()
  note = f"No FID: it needs {inception.NAME}; set eval.inception_weights to its path, or to download."
  if path is not None:
    networks["inception"], weights["inception"] = inception.load_inception(path), inception.SHA256
    note = f"FID's pictures are resized to {inception.SIDE}x{inception.SIDE}: {inception.RESIZE}."
  return networks, weights, note


def _embed(networks: Any, pixels: Rgb8, sizes: Sizes | None = None) -> dict[str, jax.Array]:
  """Features for distances of sets, of the networks that are there."""
  image, embeddings = image_from_uint8(pixels), {}
  if "vgg" in networks:
    embeddings["vgg16"] = vgg16.vgg16_embedding(networks["vgg"], image, sizes)
  if "inception" in networks:
    embeddings["inception"] = inception.inception_features(networks["inception"], image, sizes)
  return embeddings


def batches(pictures: Iterable[Shown], size: int) -> Iterator[list[Shown]]:
  """Neighbours of equal height and width, at most `size` of them."""
  for _, alike in itertools.groupby(pictures, lambda picture: picture.image.shape):
    while batch := list(itertools.islice(alike, size)):
      yield batch


def fill_all(batch: Sequence[Picture], fills: Mapping[str, Fill]) -> dict[str, UInt8[np.ndarray, "b h w 3"]]:
  """The pictures of each method, those that are there already first; they need not be composited."""
  images, masks = np.stack([picture.image for picture in batch]), np.stack([picture.mask for picture in batch])
  given = {method: np.stack([picture.fills[method] for picture in batch]) for method in batch[0].fills}
  return given | {method: fill(images, masks) for method, fill in fills.items() if method not in given}


def score(
  pictures: Iterable[Picture], fills: Mapping[str, Fill], measure: ByImage, batch_size: int, watch: Watch | None = None
) -> Scores:
  """Scores the pictures' own fills and those of `fills`; neither batches, their order nor devices change a number."""
  keys: list[tuple[str, str]] = []  # bucket and name of each row
  measured: list[_Measured] = []
  methods: list[str] = []
  checked: dict[str, Picture] = {}
  with tqdm(total=operator.length_hint(pictures), desc="evaluate", unit="image", disable=None) as progress:
    for batch in batches(pictures, batch_size):
      filled = fill_all(batch, fills)
      methods = list(filled)
      keys += [(picture.bucket, picture.name) for picture in batch]
      measured.append(_measured(batch, np.stack(list(filled.values()), axis=1), measure))
      if watch:
        watch(batch, filled)
      _choose_checked(batch, checked)
      progress.update(len(batch))
  return _scores(methods, keys, measured, list(checked.values()), measure)


def score_judged(pictures: Iterable[Judged], measure: ByImage, protocol: Protocol, batch_size: int) -> Scores:
  """Adds what networks say to what is known of pictures; the result tells what that and they took."""
  keys: list[tuple[str, str]] = []
  measured: list[_Measured] = []
  checked: dict[str, Judged] = {}
  methods: tuple[str, ...] = ()
  networks, of_others, began = 0.0, collections.Counter[str](), time.perf_counter()
  with tqdm(total=operator.length_hint(pictures), desc="evaluate", unit="image", disable=None) as progress:
    for batch in batches(pictures, batch_size):
      clock = time.perf_counter()
      fills, images, masks = (np.stack([getattr(one, name) for one in batch]) for name in ("fills", "image", "mask"))
      scores, of_fills, of_truth = measure(fills, images, masks, np.array([one.size for one in batch], np.int32))
      networks += time.perf_counter() - clock
      scores |= {name: np.stack([one.scores[name] for one in batch]) for name in batch[0].scores}
      scores = _of_bucket(scores, batch[0].bucket, np.array([one.share for one in batch]))
      apart = {name: np.stack([one.apart[name] for one in batch]) for name in batch[0].apart}
      measured.append((scores, of_fills, of_truth, apart))
      keys += [(one.bucket, one.name) for one in batch]
      methods = batch[0].methods
      for one in batch:
        of_others.update(one.seconds)
      _choose_checked(batch, checked)
      progress.update(len(batch))
  sizes, judged = np.array([one.size for one in checked.values()], np.int32), time.perf_counter()

  def measure_whole(fills: np.ndarray, images: np.ndarray, masks: np.ndarray) -> Any:
    scores, of_fills, of_truth = measure(fills, images, masks, sizes)
    pixels = protocol.score_pixels(fills[:, 0], images, masks)
    return scores | {name: values[:, None] for name, values in pixels.items()}, of_fills, of_truth

  scores = _scores(list(methods), keys, measured, list(checked.values()), measure_whole)
  seconds = {"networks": networks, "waiting for pictures": judged - began - networks}
  seconds["self-check and distances of sets"] = time.perf_counter() - judged
  return dataclasses.replace(scores, seconds=seconds, seconds_of_others=dict(of_others))


def _choose_checked(batch: Sequence[Shown], checked: dict[str, Shown]) -> None:
  for picture in batch:
    if len(checked) < CHECKED and all(picture.image.shape == other.image.shape for other in checked.values()):
      checked.setdefault(picture.name, picture)


def _scores(
  methods: list[str], keys: list[tuple[str, str]], measured: list[_Measured], checked: Sequence[Shown], measure: ByImage
) -> Scores:
  """Sorts what was measured, checks how, and adds distances of sets."""
  tqdm.write("all scored: self-check, distances of sets, report")
  order = sorted(range(len(keys)), key=keys.__getitem__)
  values, of_fills, of_truth, apart = jax.tree.map(lambda *parts: np.concatenate(parts)[order], *measured)
  outside = {
    method: {"images": int((pixels > 0).sum()), "pixels": int(pixels.sum()), "most": int(most.max())}
    for method, pixels, most in zip(methods, apart["pixels"].T, apart["most"].T, strict=True)
  }
  with tqdm(disable=None, leave=False, bar_format="{desc}") as line, ticking(line) as say:
    say("self-check")
    check = _check_truth(checked, measure, len(methods), values)
    scores = Scores(methods, sorted(keys), values, {}, outside, check)
    say("distances of sets")
    scores.distances = _distances(scores, of_fills, of_truth)
  return scores


def _measured(batch: Sequence[Picture], fills: UInt8[np.ndarray, "b m h w 3"], measure: ByImage) -> _Measured:
  """The scores, in float64, and features of a batch, and how it differs from the truth outside the hole."""
  images, masks = np.stack([picture.image for picture in batch]), np.stack([picture.mask for picture in batch])
  truth, hole = images[:, None], masks[:, None] > 0
  composited = np.where(hole, fills, truth)
  scores, of_fills, of_truth = measure(composited, images, masks)
  scores = _of_bucket(scores, batch[0].bucket, masks.mean(axis=(1, 2, 3), dtype=np.float64))
  # A compiler may round fills and truth on ways of its own; whether they are equal the integers tell.
  equal = (composited == truth).all(axis=(2, 3, 4))
  for name in scores.keys() & {"psnr", "psnr_hole"}:  # what a protocol cuts off at 100 dB stays
    scores[name] = np.where(equal & (scores[name] > 100), np.inf, scores[name])
  apart = np.where(hole, 0, np.abs(fills.astype(np.int16) - truth)).max(axis=-1)
  return scores, of_fills, of_truth, {"pixels": (apart > 0).sum(axis=(2, 3)), "most": apart.max(axis=(2, 3))}


def _of_bucket(
  scores: Mapping[str, np.ndarray], bucket: str, areas: Float[np.ndarray, " b"]
) -> dict[str, Float[np.ndarray, "b m"]]:
  """The scores in float64, with the holes' areas; without masks what is measured at the hole has no meaning."""
  named = {name: array.astype(np.float64) for name, array in scores.items()}
  if bucket == ALL:
    return {name: array for name, array in named.items() if name not in _AT_THE_HOLE}
  return named | {"hole_area": np.repeat(areas[:, None], next(iter(named.values())).shape[1], axis=1)}


def _distances(
  scores: Scores, of_fills: Mapping[str, Float[np.ndarray, "n m _d"]], of_truth: Mapping[str, Float[np.ndarray, "n _d"]]
) -> dict[str, dict[str, dict[str, float]]]:
  """The distances of each method by bucket and over all."""
  values = {method: {bucket: {} for bucket in (*scores.buckets, ALL)} for method in scores.methods}
  sample, moments_of = distribution.sample(scores.keys), distribution.Moments.of
  once = [row for _, row in sorted({name: row for row, (_, name) in enumerate(scores.keys)}.items())]
  for network, truth in of_truth.items():
    of_bucket = {bucket: moments_of(truth[rows]) for bucket, rows in scores.buckets.items()}
    for place, method in enumerate(scores.methods):
      fills = of_fills[network][:, place]
      pairs = {bucket: (moments_of(fills[rows]), of_bucket[bucket]) for bucket, rows in scores.buckets.items()}
      whole = functools.reduce(lambda a, b: (a[0].merge(b[0]), a[1].merge(b[1])), pairs.values())
      for bucket, rows in scores.buckets.items():
        values[method][bucket] |= distribution.distances(network, pairs[bucket], fills[rows], truth[rows], truth[rows])
      values[method][ALL] |= distribution.distances(network, whole, fills[sample], truth[once], truth[sample])
  return values


def _check_truth(pictures: Sequence[Shown], measure: ByImage, methods: int, metrics: Container[str]) -> dict[str, Any]:
  """In the place of every method stands the truth, so that it is scored by the very program that scores them."""
  truth, masks = np.stack([picture.image for picture in pictures]), np.stack([picture.mask for picture in pictures])
  scores, of_fills, of_truth = measure(np.repeat(truth[:, None], methods, axis=1), truth, masks)
  frechet: dict[str, float] = {}
  for network, own in of_truth.items():
    moments = (distribution.Moments.of(of_fills[network][:, 0]), distribution.Moments.of(own))
    frechet |= distribution.distances(network, moments, of_fills[network][:, 0], own, own)
  return self_check(
    {name: array[:, 0] for name, array in scores.items() if name in metrics},
    {name: value for name, value in frechet.items() if name.startswith(("fd", "fid"))},
  )


def self_check(values: Mapping[str, np.ndarray], frechet: Mapping[str, float]) -> dict[str, Any]:
  """The truth scored against itself, and if it scored as it must: PSNR 100 dB at least, every error and distance 0.

  HINT's protocol ends PSNR at 100 dB, and a compiler's rounding may leave more than that instead of infinity.
  """
  psnr, errors = float(values["psnr"].min()), values.keys() - {"psnr", "psnr_hole"}
  off = {name: float(np.abs(values[name] - _BEST.get(name, 0.0)).max()) for name in sorted(errors)}
  perfect = psnr >= 100.0 and max(off.values()) < 1e-5 and max(frechet.values(), default=0.0) < 1e-3
  return {
    "images": len(values["psnr"]),
    "psnr": "inf" if np.isposinf(psnr) else psnr,
    "off_by": off,
    "frechet_distance": dict(frechet),
    "passed": bool(perfect),
  }
