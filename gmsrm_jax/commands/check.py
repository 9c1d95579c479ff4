"""--mode=check: looks through the data of an experiment before training.

Prints what is there; whatever must be mended stands in the one line of a ConfigError at the end.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import logging
import logging.handlers
import math
import os
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import jax
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from gmsrm_jax.commands.flags import configuration
from gmsrm_jax.config import Config
from gmsrm_jax.data import pictures, pipeline, sources
from gmsrm_jax.data.masks import draw
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.evaluation.distribution import KERNEL_LEAST
from gmsrm_jax.files import printable, versions
from gmsrm_jax.parallel import backend

_DRAWS = 200  # training holes whose areas are told
_MASKED_IMAGES = 32  # held-out images whose holes are told
_SHOWN = 5  # names of one kind that are listed
_FEW = 50  # training images: fewer are learned by heart
_ENLARGED = 0.25  # share of the training windows that may be enlarged without a word
_ALIKE = 32  # bits of 256 that differ between two pictures that are one; other photographs differ in 69 at least
_CHUNK = 4096  # files handed to the threads at once, because a queue of millions takes gigabytes


class Scan(NamedTuple):
  """One image file, decoded to its end; `reason` says why that failed."""

  name: str
  kind: str = ""  # format and colour mode
  height: int = 0
  width: int = 0
  digest: str = ""  # of shape and pixels: the same picture in another file counts as the same
  look: bytes = b""  # bits of `_look`; empty where there is nothing to see
  reason: str = ""


def run(flags: argparse.Namespace) -> None:
  """Looks through both splits of the experiment."""
  config = configuration(flags)
  backend.check(flags.platform)
  with _logged_warnings() as logged:
    warnings = check(config) + len(logged)
  print(f"\nnothing to mend, {warnings} warning{'s' * (warnings > 1)}" if warnings else "\nall is well")


@contextlib.contextmanager
def _logged_warnings() -> Iterator[list[logging.LogRecord]]:
  """Yields the warnings that the package logs meanwhile, such as of files that are left out."""
  logger, handler = logging.getLogger("gmsrm_jax"), logging.handlers.BufferingHandler(capacity=10**6)
  logger.addHandler(handler)
  try:
    yield handler.buffer
  finally:
    logger.removeHandler(handler)


def check(config: Config) -> int:
  """Prints devices, versions, both splits and the holes; returns the number of warnings printed.

  Raises:
    ConfigError: something must be mended before training; names all of it.
  """
  print(f"experiment {config.name}, {config.model.image_size}x{config.model.image_size} pixels")
  print(f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})")
  print(", ".join(f"{name} {version}" for name, version in versions().items()))
  problems: list[str] = []
  warnings: list[str] = []
  scans: dict[str, list[Scan]] = {}
  for split in ("train", "val"):
    try:
      source = sources.open_source(config.data, split)
      scans[split] = list(scan(source, split))
      print(f"\n{describe_split(config, split, source, scans[split])}")
      bad = [file.name for file in scans[split] if file.reason]
      sources.check_bad(f"data.{split}", bad, len(source))
      warnings += sources.doubts(None, source) if split == "val" else []
    except ConfigError as error:
      problems.append(str(error))
  if len(scans) == 2:
    shared = shared_images(scans["train"], scans["val"])
    pairs = [f"data.val {val} is data.train {train}" for train, val in shared]
    print("\n" + "\n".join([f"held-out pictures that are training pictures too: {len(shared)}", *_listed(pairs)]))
    if shared:
      problems.append(
        f"{len(shared)} held-out pictures are training pictures too ({', '.join(val for _, val in shared[:_SHOWN])}"
        f"{', …' if len(shared) > _SHOWN else ''}), so data.val={config.data.val!r} would flatter: remove them from one"
      )
    warnings += training_doubts(config, scans["train"], scans["val"])
  if "val" in scans:
    try:
      print(f"\n{describe_masks(config)}")
    except ConfigError as error:
      problems.append(str(error))
  if warnings:
    print("\n" + "\n".join(f"warning: {printable(doubt)}" for doubt in warnings))
  problems = list(dict.fromkeys(problems))  # what both splits lack is said once
  require(not problems, f"--mode=check has {len(problems)} to mend: {'; '.join(problems)}")
  return len(warnings)


def _listed(lines: Sequence[str]) -> list[str]:
  """The first few lines, and how many more there are."""
  return [*map(printable, lines[:_SHOWN]), *([f"… and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]


def scan(source: sources.ImageSource, split: str) -> Iterator[Scan]:
  """Decodes every image of a source, in name order, on all cores."""

  def look(index: int) -> Scan:
    name = source.names[index]
    stored = source.stored.open(index)
    try:
      with pictures.open_picture(stored, name) as file:
        kind = f"{file.format} {file.mode}"
      return _seen(name, kind, pictures.decode(stored, name))
    except pictures.PictureError as error:
      return Scan(name, reason=error.why)

  # Decoders let go of Python's lock, so threads are enough.
  with (
    concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    tqdm(total=len(source), desc=f"data.{split}", unit="image", disable=None, leave=False) as bar,
  ):
    for start in range(0, len(source), _CHUNK):
      for file in pool.map(look, range(start, min(start + _CHUNK, len(source)))):
        bar.update()
        yield file


def _seen(name: str, kind: str, image: np.ndarray) -> Scan:
  height, width = image.shape[:2]
  digest = hashlib.sha256(b"%d %d " % (height, width) + image.tobytes()).hexdigest()
  return Scan(name, kind, height, width, digest, _look(image))


def _look(image: np.ndarray) -> bytes:
  """Which of 16x17 cells are brighter than the one to the left: bits that a copy of another size or quality shares."""
  cells = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (17, 16), interpolation=cv2.INTER_AREA)
  bits = cells[:, 1:] > cells[:, :-1]
  return np.packbits(bits).tobytes() if 0.1 < bits.mean() < 0.9 else b""


def duplicates(files: Sequence[Scan]) -> list[list[str]]:
  """Names of the files that hold the same picture, a list for each picture that more than one holds."""
  groups: dict[str, list[str]] = collections.defaultdict(list)
  for file in files:
    if file.digest:
      groups[file.digest].append(file.name)
  return [names for names in groups.values() if len(names) > 1]


def shared_images(train: Sequence[Scan], val: Sequence[Scan]) -> list[tuple[str, str]]:
  """(training name, held-out name) of every held-out picture that is a training picture too."""
  known = {file.digest: file.name for file in reversed(train) if file.digest}
  return [(known[file.digest], file.name) for file in val if file.digest in known]


def near_copies(train: Sequence[Scan], val: Sequence[Scan]) -> list[tuple[str, str]]:
  """(training name, held-out name) of every held-out picture that looks like a training picture and is not equal."""
  seen = [file for file in train if file.look]
  looks = np.array([np.frombuffer(file.look, np.uint64) for file in seen]).reshape(len(seen), 4)
  equal, found = {file.digest for file in train}, []
  for file in (file for file in val if file.look and file.digest not in equal and seen):
    apart = np.bitwise_count(looks ^ np.frombuffer(file.look, np.uint64)).sum(axis=1, dtype=np.int64)
    if apart.min() <= _ALIKE:
      found.append((seen[int(apart.argmin())].name, file.name))
  return found


def training_doubts(config: Config, train: Sequence[Scan], val: Sequence[Scan]) -> Iterator[str]:
  """Yields what a training can do with, but its owner would rather know, a line each with the way out."""
  side, least = config.model.image_size, config.data.crop_min
  alike = near_copies(train, val)
  if alike:
    pairs = ", ".join([f"{held} and {known}" for known, held in alike[:_SHOWN]] + ["…"] * (len(alike) > _SHOWN))
    yield (
      f"{len(alike)} held-out pictures look like training pictures ({pairs}), so scores may flatter: look at both, and "
      "remove one"
    )
  if len(train) < _FEW:
    count = f"{len(train)} image{'s' * (len(train) > 1)}"
    yield (
      f"data.train has {count}, and fewer than {_FEW} are learned by heart: give more, or tune trained weights by "
      "run.init_from"
    )
  if 1 < len(val) < KERNEL_LEAST:
    yield (
      f"data.val has {len(val)} images: of fewer than {KERNEL_LEAST} there are no kernel distances, and intervals are "
      "wide: hold out more, by data.val or data.val_share"
    )
  shorter = sorted(min(file.height, file.width) for file in train if file.digest)
  enlarged = sum(min(1.0, max(0.0, side / length - least) / max(1.0 - least, 1e-9)) for length in shorter)
  if enlarged > _ENLARGED * len(shorter):
    median, stride = statistics.median_low(shorter), 2 * config.model.stride
    smaller = f"train at model.image_size={max(stride, median // stride * stride)}, or give larger images"
    yield (
      f"{enlarged / len(shorter):.0%} of the training windows are enlarged to {side} pixels, which teaches blur: "
      f"{f'raise data.crop_min to {math.ceil(100 * side / median) / 100:g}' if median > side else smaller}"
    )
  sizes = {(file.height, file.width) for file in train if file.digest}
  if len(train) > len(sizes) == 1 and shorter[0] <= 2 * side:
    yield (
      f"all training images are of one size, {shorter[0]} pixels on the shorter side: if they were squeezed into it, "
      "give the originals"
    )


def _spread(values: Sequence[int]) -> str:
  return f"{min(values)} / {statistics.median_low(values)} / {max(values)} pixels (min / median / max)"


def describe_split(config: Config, split: str, source: sources.ImageSource, files: Sequence[Scan]) -> str:
  """Counts, sizes and formats of one split, and which of its files are damaged or copies of others."""
  whole, bad = [file for file in files if not file.reason], [file for file in files if file.reason]
  copies = duplicates(whole)
  kinds = collections.Counter(file.kind for file in whole).most_common()
  lines = [
    ("images", len(files)),
    ("from", source.where),
    ("split", source.stored.rule),
    ("sha256", f"{sources.split_hash(source)[:12]} of names and sizes"),
  ]
  if whole:
    shorter = [min(file.height, file.width) for file in whole]
    lines += [
      ("shorter side", _spread(shorter)),
      ("longer side", _spread([max(file.height, file.width) for file in whole])),
      ("formats", ", ".join(f"{count} {kind}" for kind, count in kinds)),
    ]
    if split == "train":
      small = sum(config.data.crop_min * side < config.model.image_size for side in shorter)
      lines.append(("enlarged", f"the smallest windows of {small} images (data.crop_min={config.data.crop_min})"))
  lines += [
    ("damaged", f"{len(bad)} (tolerated: {sources.BAD_RULE})"),
    ("copies", f"{sum(len(names) - 1 for names in copies)} of pictures that are there already"),
  ]
  table = tabulate(lines, headers=(f"data.{split}", ""), disable_numparse=True)
  damage = [f"{file.name}: {file.reason}" for file in bad]
  return "\n".join([table, *_listed(damage), *_listed([" = ".join(names) for names in copies])])


def describe_masks(config: Config) -> str:
  """The areas of training holes by kind, and of evaluation holes by bucket."""
  size, settings = config.model.image_size, config.mask
  rng = np.random.default_rng(pipeline.stream_seed(config.run.seed, "check"))
  total = sum(settings.weights.values())
  kinds = []
  for kind, weight in settings.weights.items():
    if weight > 0:
      bounds, count = (settings.area_min, settings.area_max), max(1, round(_DRAWS * weight / total))
      areas = [draw.draw_kind(kind, rng, size, size, bounds, settings).mean() for _ in range(count)]
      kinds.append((kind, count, min(areas), np.mean(areas), max(areas)))
  evaluation = pipeline.evaluation_set(config)
  count = min(len(evaluation), _MASKED_IMAGES)
  means = [np.mean([evaluation.mask(index, bucket).mean() for index in range(count)]) for bucket in BUCKETS]
  training = tabulate(kinds, headers=("training holes", "draws", "min", "mean", "max share"), floatfmt=".3f")
  held_out = tabulate([("mean share", *means)], headers=("held out", *map(bucket_name, BUCKETS)), floatfmt=".3f")
  return f"{training}\n\n{held_out}"
