"""Batches for training and evaluation.

A training example is a pure function of (run.seed, stream, index): the shuffle of its epoch, its crop, its flip, its
hole and its colours. Threads, worker processes, prefetching, hosts and restarts cannot change it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import cv2
import grain
import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.config import Config
from gmsrm_jax.data import sources
from gmsrm_jax.data.augment import colour_jitter
from gmsrm_jax.data.masks import draw, fixed
from gmsrm_jax.data.workers import BatchIterator


def resized_square(
  image: UInt8[np.ndarray, "_ _ 3"], top: int, left: int, side: int, size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
  """Cuts out a square and resizes it: by cubic interpolation when it grows, by means of its pixels when it shrinks.

  The means are of whole blocks, after a slight linear enlargement to a multiple of the size: OpenCV takes a third of
  the time for that of what it takes for blocks of broken sides. Less than a quarter smaller, linear alone does.
  """
  square = image[top : top + side, left : left + side]
  if side == size:
    return square
  if side < size:
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_CUBIC)
  if 4 * side > 5 * size:
    multiple = -(-side // size) * size
    if multiple > side:
      square = cv2.resize(square, (multiple, multiple), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
  return cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR)


def _training_example(
  example: sources.Example, rng: np.random.Generator, *, config: Config
) -> dict[str, UInt8[np.ndarray, "_ _ _"]]:
  """Crops, resizes, mirrors, draws the hole and varies the colours."""
  size = config.model.image_size
  height, width = example.image.shape[:2]
  side = max(1, round(rng.uniform(config.data.crop_min, 1.0) * min(height, width)))
  top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
  mirrored = rng.random() < 0.5
  image = resized_square(example.image, top, left, side, size)
  if config.data.flip and mirrored:
    image = cv2.flip(image, 1)  # a tenth of the time of copying image[:, ::-1]
  mask = draw.draw(rng, size, size, config.mask)
  image = np.ascontiguousarray(image)
  if config.data.jitter > 0:
    # Drawn last, so that the strength changes colours alone, not windows and holes.
    image = colour_jitter(image, rng, config.data.jitter)
  return {"image": image, "mask": mask[:, :, None]}


def stream_seed(seed: int, stream: str) -> int:
  """The root seed of a named random stream, 32 bits."""
  return int.from_bytes(hashlib.sha256(f"{seed}\0{stream}".encode()).digest()[:4], "big")


def training_iterator(config: Config, stream: str, rows: Sequence[int] | None = None) -> grain.DatasetIterator:
  """Endless training batches: dict(image=uint8 [b h w 3], mask=uint8 [b h w 1] of 0 and 1).

  Batch i holds the same examples in the same rows however many processes share it. `get_state` and `set_state` resume
  at the same batch, to the bit, with any number of processes, threads and workers. `close` ends these.

  Args:
    config: the experiment.
    stream: name of the random stream ('memory' or 'inpaint'), so that the stages see different orders and holes.
    rows: the rows of every batch that this process makes, in order; None makes them all.

  Raises:
    ConfigError: `data.train` or a folder of masks cannot be read.
  """
  rows = range(config.run.batch_size) if rows is None else rows
  if config.data.synthetic:
    return _synthetic_iterator(config, stream, rows)
  source = sources.open_source(config.data, "train")
  draw.check_folders(config.mask)
  examples = (
    grain.MapDataset.source(source)
    .seed(stream_seed(config.run.seed, stream))
    .shuffle()
    .repeat()
    .random_map(functools.partial(_training_example, config=config))
  )
  size = config.run.batch_size
  if len(rows) < size:
    # Picked last, so that an example's index, and with it its randomness, is the same however many processes there are.
    pick = functools.partial(_example_of_row, examples, size, tuple(rows))
    examples = grain.MapDataset.range(len(examples) // size * len(rows)).map(pick)
  return BatchIterator(examples, config, len(rows))


def _example_of_row(
  examples: grain.MapDataset, batch_size: int, rows: tuple[int, ...], index: int
) -> dict[str, np.ndarray]:
  """Example `index` of a process that makes these rows of every batch."""
  batch, position = divmod(index, len(rows))
  example = examples[batch * batch_size + rows[position]]
  assert example is not None, "nothing filters the examples"
  return example


def _synthetic_iterator(config: Config, stream: str, rows: Sequence[int]) -> grain.DatasetIterator:
  """The same random batch for ever: pixels uniform, half of them in the hole."""
  size, count = config.model.image_size, config.run.batch_size
  rng = np.random.default_rng(stream_seed(config.run.seed, stream))
  whole = {
    "image": rng.integers(0, 256, (count, size, size, 3), np.uint8),
    "mask": rng.integers(0, 2, (count, size, size, 1), np.uint8),
  }
  batch = {name: value[list(rows)] for name, value in whole.items()}
  # Without threads, so that a step finds all cores free.
  return iter(grain.MapDataset.source([batch]).repeat().to_iter_dataset(grain.ReadOptions(0, 0)))


class EvaluationSet:
  """The held-out images in name order, square, and the fixed hole of each for every bucket."""

  def __init__(self, config: Config):
    self._config = config
    self.source = sources.open_source(config.data, "val")
    self.names = self.source.names[: config.eval.max_images or None]
    self._masks = fixed.open_masks(config, self.names)

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> tuple[str, UInt8[np.ndarray, "_ _ 3"]]:
    """The image's name, and its largest centred square at `model.image_size`.

    The name is another one than `names[index]` where that file cannot be decoded and the next one stands in.
    """
    image, name = self.source[range(len(self))[index]]
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return name, np.ascontiguousarray(resized_square(image, top, left, side, self._config.model.image_size))

  def mask(self, index: int, bucket: tuple[float, float]) -> UInt8[np.ndarray, "_ _"]:
    """The hole of image `index` for a bucket: a function of its name, the bucket and `eval.mask_seed`."""
    return self._masks.mask(self.names[index], bucket)

  @property
  def mask_source(self) -> str:
    """Source of the holes, in words."""
    return self._masks.source


def evaluation_set(config: Config) -> EvaluationSet:
  """The held-out images of `data.val`; the first `eval.max_images` in name order if that is set.

  Raises:
    ConfigError: `data.val` or `eval.masks` cannot be read.
  """
  return EvaluationSet(config)
