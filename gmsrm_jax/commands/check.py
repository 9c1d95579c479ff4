"""--mode=check: looks through the data of an experiment and tries the way from file to loss once, before training.

Prints what is there; whatever must be fixed stands in the one line of a ConfigError at the end.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import math
import os
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from gmsrm_jax.arrays import image_from_uint8, mask_from_uint8
from gmsrm_jax.commands.flags import configuration
from gmsrm_jax.config import BUCKETS, Config, shrink
from gmsrm_jax.data import pictures, pipeline, sources
from gmsrm_jax.data.masks import draw
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import versions
from gmsrm_jax.models.inpainter import apply_inpainter
from gmsrm_jax.parallel import backend
from gmsrm_jax.training import losses
from gmsrm_jax.training.state import make_networks

_DRAWS = 200  # training holes of which areas are told
_MASKED_IMAGES = 32  # held-out images of which evaluation holes are told
_SHOWN = 5  # names of one kind that are listed
_CHUNK = 4096  # files handed to the threads at once, because a queue of millions takes gigabytes


class Found(NamedTuple):
  """What one image turned out to be; `reason` says why it cannot be decoded."""

  name: str
  kind: str  # format and colour mode
  height: int = 0
  width: int = 0
  digest: str = ""  # of shape and pixels: the same picture in another file counts as the same
  reason: str = ""


def run(flags: argparse.Namespace) -> None:
  """Runs the mode."""
  config = configuration(flags)
  backend.check(flags.platform)
  check(config)


def check(config: Config) -> None:
  """Prints the report on both splits, the holes, this machine and the self-test.

  Raises:
    ConfigError: something must be fixed before training; names all of it.
  """
  print(f"experiment {config.name}, {config.model.image_size}x{config.model.image_size} pixels")
  print(f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})")
  print(", ".join(f"{name} {version}" for name, version in versions().items()))
  problems: list[str] = []
  usable: set[str] = set()
  found: dict[str, list[Found]] = {}
  for split, spec in (("train", config.data.train), ("val", config.data.val)):
    try:
      source = sources.open_source(config.data, split)
    except ConfigError as error:
      problems.append(str(error))
      print(f"\ndata.{split}={spec!r}: {error}")
      continue
    found[split] = list(scan(source, f"data.{split}"))
    print("\n" + "\n".join(describe_split(config, split, source, found[split])))
    bad = sorted(file.name for file in found[split] if file.reason)
    try:
      sources.check_bad(f"data.{split}={spec!r}", bad, len(found[split]), config.data.max_bad_share)
      usable.add(split)
    except ConfigError as error:
      problems.append(str(error))
    if len(bad) == len(found[split]):
      problems.append(f"data.{split}={spec!r}: no image can be decoded: replace them")
      usable.discard(split)
  if len(found) == 2:
    print()
    pairs = shared_images(found["train"], found["val"])
    print(f"held-out pictures that are training pictures too: {len(pairs)}")
    _print_list(f"data.val {val} is data.train {train}" for train, val in pairs)
    if pairs:
      problems.append(
        f"held-out pictures that are training pictures too: {len(pairs)} ({', '.join(val for _, val in pairs[:3])}"
        f"{', …' if len(pairs) > 3 else ''}), so data.val={config.data.val!r} would flatter: remove them from one split"
      )
  for title, test in (("holes", describe_masks), ("self-test", self_test)):
    print(f"\n{title}")
    if usable != {"train", "val"}:
      print("  left out, because it needs both splits")
      continue
    try:
      for line in test(config):
        print(f"  {line}")
    except ConfigError as error:
      problems.append(str(error))
  require(not problems, f"--mode=check found {len(problems)} to fix: {'; '.join(problems)}")
  print("\nall is well")


def _print_list(lines: Iterator[str]) -> None:
  """The first few lines, and how many more there are."""
  every = list(lines)
  for line in every[:_SHOWN]:
    print(f"  {line}")
  if len(every) > _SHOWN:
    print(f"  … and {len(every) - _SHOWN} more")


def scan(source: sources.Source, setting: str) -> Iterator[Found]:
  """Decodes every image of a source, in name order, on all cores."""

  def look(index: int) -> Found:
    if isinstance(source, sources.ImageSource):
      return scan_file(source.stored.open(index), source.names[index])
    pixels, name = source[index]
    return _described(name, "pixels RGB", pixels)

  # Decoders let go of Python's lock, so threads are enough.
  with (
    concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    tqdm(total=len(source), desc=setting, unit="image", disable=None, leave=False) as bar,
  ):
    for start in range(0, len(source), _CHUNK):
      for file in pool.map(look, range(start, min(start + _CHUNK, len(source)))):
        bar.update()
        yield file


def scan_file(stored: pathlib.Path | bytes, name: str) -> Found:
  """Decodes one file to its end."""
  kind = "unreadable"
  try:
    with pictures.open_picture(stored, name) as file:
      kind = f"{file.format} {file.mode}"
    return _described(name, kind, pictures.decode(stored, name))
  except pictures.PictureError as error:
    return Found(name, kind, reason=error.why)


def _described(name: str, kind: str, pixels: np.ndarray) -> Found:
  height, width = pixels.shape[:2]
  digest = hashlib.sha256(b"%d %d " % (height, width))
  digest.update(pixels.tobytes())
  return Found(name, kind, height, width, digest.hexdigest())


def duplicates(files: Sequence[Found]) -> list[list[str]]:
  """Names of the files that hold the same picture, a list for each picture that more than one holds."""
  groups: dict[str, list[str]] = collections.defaultdict(list)
  for file in files:
    if file.digest:
      groups[file.digest].append(file.name)
  return [names for names in groups.values() if len(names) > 1]


def shared_images(train: Sequence[Found], val: Sequence[Found]) -> list[tuple[str, str]]:
  """(training name, held-out name) of every held-out picture that is a training picture too."""
  known = {file.digest: file.name for file in reversed(train) if file.digest}
  return [(known[file.digest], file.name) for file in val if file.digest in known]


def _spread(values: Sequence[int]) -> str:
  return f"{min(values)} / {statistics.median_low(values)} / {max(values)}"


def describe_split(config: Config, split: str, source: sources.Source, files: Sequence[Found]) -> list[str]:
  """The lines on one split."""
  spec = config.data.train if split == "train" else config.data.val
  rule = "a region of each photograph of scikit-image" if isinstance(source, sources.DemoSource) else source.stored.rule
  whole = [file for file in files if not file.reason]
  bad = [file for file in files if file.reason]
  twins = duplicates(whole)
  kinds = collections.Counter(file.kind for file in whole).most_common()
  lines = [
    f"data.{split}={spec!r}: {len(files)} images",
    f"  split     {rule}; sha256 of names and sizes {sources.split_hash(source)[:12]}",
  ]
  if whole:
    shorter = [min(file.height, file.width) for file in whole]
    lines += [
      f"  sizes     shorter side {_spread(shorter)}, longer side "
      f"{_spread([max(file.height, file.width) for file in whole])} pixels (min / median / max)",
      f"  formats   {', '.join(f'{count} {kind}' for kind, count in kinds)}",
    ]
    small = sum(config.data.crop_min * side < config.model.image_size for side in shorter)
    if small and split == "train":
      lines.append(f"  enlarged  the smallest windows of {small} images (data.crop_min={config.data.crop_min})")
  lines.append(f"  damaged   {len(bad)} of at most {config.data.max_bad_share:.1%} (data.max_bad_share)")
  lines += [f"            {file.name}: {file.reason}" for file in bad]
  lines.append(f"  copies    {sum(len(names) - 1 for names in twins)} of pictures that are there already")
  lines += [f"            {' = '.join(names)}" for names in twins[:_SHOWN]]
  return lines


def describe_masks(config: Config) -> list[str]:
  """The areas of training holes by kind, and of evaluation holes by bucket."""
  size, settings = config.model.image_size, config.mask
  rng = np.random.default_rng(pipeline.stream_seed(config.run.seed, "check"))
  total = sum(settings.weights.values())
  lines = [f"{'kind':<12}{'draws':>6}{'min':>8}{'mean':>8}{'max':>8}   share of the image"]
  for kind, weight in settings.weights.items():
    if weight == 0:
      continue
    draws = max(1, round(_DRAWS * weight / total))
    area = (settings.area_min, settings.area_max)
    areas = [draw.draw_kind(kind, rng, size, size, area).mean() for _ in range(draws)]
    lines.append(f"{kind:<12}{draws:>6}{min(areas):>8.3f}{np.mean(areas):>8.3f}{max(areas):>8.3f}")
  evaluation = pipeline.evaluation_set(config)
  count = min(len(evaluation), _MASKED_IMAGES)
  lines.append(f"mean area of the evaluation holes of {count} held-out images, by bucket")
  means = [
    (low, high, np.mean([evaluation.mask(i, (low, high)).mean() for i in range(count)])) for low, high in BUCKETS
  ]
  lines.append(", ".join(f"{100 * low:.0f}-{100 * high:.0f}%: {mean:.3f}" for low, high, mean in means))
  return lines


def self_test(config: Config) -> Iterator[str]:
  """Tries the input pipeline and a tiny model; yields what went well.

  Raises:
    ConfigError: names the promise that was not kept.
  """
  broken = "this installation breaks it: run the tests of this checkout"
  ahead = min(config.data.prefetch, 16)  # what is made and thrown away
  here = dataclasses.replace(config.data, workers=0, synthetic=False, prefetch=ahead)
  one = dataclasses.replace(
    config, data=here, run=dataclasses.replace(config.run, batch_size=min(config.run.batch_size, 8))
  )
  other = dataclasses.replace(one, data=dataclasses.replace(here, workers=config.data.workers, threads=1))
  first, state, second = _two_batches(one)
  again, _, last = _two_batches(other)
  require(_same(first, again) and _same(second, last), f"self-test: the same seed gave two other batches; {broken}")
  how = f"{config.data.workers} worker processes" if config.data.workers else "one thread"
  yield f"two batches of {len(first['mask'])} are the same from {here.threads} threads and from {how}"
  iterator = pipeline.training_iterator(other, "inpaint")
  iterator.set_state(state)
  resumed = next(iterator)
  iterator.close()
  require(_same(resumed, second), f"self-test: the second batch is another one after a restart; {broken}")
  yield "a restart after the first batch continues with the second"
  areas = [float(area) for batch in (first, second) for area in batch["mask"].mean((1, 2, 3))]
  low, high = config.mask.area_min, config.mask.area_max
  require(
    low <= min(areas) and max(areas) <= high,
    f"self-test: hole areas from {min(areas):.4f} to {max(areas):.4f} leave [{low}, {high}]; {broken}",
  )
  yield f"holes cover {min(areas):.3f} to {max(areas):.3f}, within [{low}, {high}]"
  loss = tiny_loss(one)
  require(math.isfinite(loss), f"self-test: the loss of the shrunk model is {loss}; {broken}")
  yield f"the model, shrunk and with random parameters, has a hole L1 of {loss:.3f}"


def _two_batches(config: Config) -> tuple[dict[str, np.ndarray], dict, dict[str, np.ndarray]]:
  """The first batch of stage 2, the iterator's state after it, and the second batch."""
  iterator = pipeline.training_iterator(config, "inpaint")
  first = next(iterator)
  state = iterator.get_state()
  second = next(iterator)
  iterator.close()
  return first, state, second


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
  return all(itertools.starmap(np.array_equal, ((one[name], other[name]) for name in one)))


def tiny_loss(config: Config) -> float:
  """Hole L1 of the experiment's own inpainter, shrunk, with random parameters, on a batch of its data."""
  tiny = shrink(config)
  # Fewer scales and plain random numbers, because compiling whole and with `init` takes four times as long.
  tiny = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, widths=tiny.model.widths[-2:]))
  iterator = pipeline.training_iterator(tiny, "inpaint")
  batch = next(iterator)
  iterator.close()
  inpainter = make_networks(tiny).inpainter
  image, mask = image_from_uint8(jnp.asarray(batch["image"])), mask_from_uint8(jnp.asarray(batch["mask"]))
  shapes = jax.eval_shape(inpainter.init, jax.random.key(0), image, mask)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.05, leaf.shape).astype(leaf.dtype), shapes)

  @jax.jit
  def loss(params: Any, image: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.mean(losses.hole_l1(apply_inpainter(inpainter, params, image, mask).prediction, image, mask))

  return float(loss(params, image, mask))
