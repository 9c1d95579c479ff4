"""Judges one picture of a folder in a process: reads, fills, scores by pixels, and lays out for networks.

JAX never starts here, so that nothing is compiled for a picture's size, and pictures are judged beside each other.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import math
import multiprocessing
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.data import workers
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.data.masks.fixed import BUCKETS, Bucket, bucket_name, mask_bytes
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.evaluation.baselines import baselines
from gmsrm_jax.evaluation.protocols import PROTOCOLS
from gmsrm_jax.evaluation.scorer import ALL, Judged, Picture
from gmsrm_jax.inference import photos
from gmsrm_jax.parallel import backend

_BOUNDS = (*BUCKETS, (BUCKETS[-1][1], 1.0))  # holes beyond the last bucket are scored, too

Input = TypeVar("Input")
Output = TypeVar("Output")


class Task(NamedTuple):
  """One picture's files, and what is to be done with them."""

  stem: str
  truth: pathlib.Path
  result: pathlib.Path
  mask: pathlib.Path | None  # None: the whole picture counts
  method: str  # that made the result
  invert: bool = False
  baselines: str = ""
  protocol: str = "ours"
  size: tuple[int, int] = (0, 0)  # in which networks see it: height and width
  canvas: tuple[int, int] = (0, 0)


def judge(task: Task) -> Judged:
  """Does all that needs no network.

  Raises:
    PictureError: a file cannot be decoded.
  """
  clock = time.perf_counter()
  picture, digest, kinds = read(task)
  image, mask = picture.image, picture.mask
  has_hole = task.mask is not None and bool(mask.any())
  packed = mask_bytes(task.stem, area_bounds(mask), mask[..., 0]) if has_hole else b""
  judged = Judged(picture.bucket, task.stem, float(mask.mean()), (digest, packed), kinds)
  if not mask.any():
    return judged
  seconds, fills = {"reading": time.perf_counter() - clock}, {**picture.fills}
  for method, fill in baselines(task.baselines).items():
    clock = time.perf_counter()
    fills[method] = fill(image[None], mask[None])[0]
    seconds[method] = time.perf_counter() - clock
  clock, hole = time.perf_counter(), mask > 0
  differences = [np.where(hole, 0, cv2.absdiff(fill, image)).max(axis=-1) for fill in fills.values()]
  apart = {"pixels": [np.count_nonzero(levels) for levels in differences], "most": [x.max() for x in differences]}
  composited = [np.where(hole, fill, image) for fill in fills.values()]
  score = PROTOCOLS[task.protocol].score_pixels
  rows = [score(fill[None], image[None], mask[None]) for fill in composited]
  scores = {name: np.array([float(row[name][0]) for row in rows]) for name in rows[0]}
  seconds["pixel scores"] = time.perf_counter() - clock
  return judged._replace(
    methods=tuple(fills),
    scores=scores,
    apart={name: np.array(values, np.int64) for name, values in apart.items()},
    fills=np.stack([_laid_out(fill, task) for fill in composited]),
    image=_laid_out(image, task),
    mask=(_laid_out(hole.astype(np.float32), task) > 0).astype(np.uint8),
    size=task.size,
    seconds=seconds,
  )


def _laid_out(picture: np.ndarray, task: Task) -> np.ndarray:
  """Reduced to the task's size and put on its canvas."""
  (height, width), channels = task.size, picture.shape[-1]
  if picture.shape[:2] != task.size:
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, channels)
  return np.pad(picture, ((0, task.canvas[0] - height), (0, task.canvas[1] - width), (0, 0)))


def read(task: Task) -> tuple[Picture, bytes, dict[str, list[pathlib.Path]]]:
  """The picture with its result, the hash of that one's file, and the files that had to be converted, by kind."""
  data, kinds = task.result.read_bytes(), collections.defaultdict(list)

  def pixels(path: pathlib.Path, source: pathlib.Path | bytes) -> UInt8[np.ndarray, "h w 3"]:
    photo = photos.read_photo(source, str(path))
    if photo.mode.endswith(";16"):
      kinds["have 16 bits per channel, taken to the nearest of 256 levels"].append(path)
    if photo.alpha is not None and photo.alpha.min() < 255:
      kinds["have transparent pixels, laid on white"].append(path)
    if photo.frames > 1:
      kinds["hold several pictures or pages, of which the first is scored"].append(path)
    return photo.rgb

  image, fill = pixels(task.truth, task.truth), pixels(task.result, data)
  bucket, mask = ALL, np.ones_like(image[..., :1])
  if task.mask is not None:
    mask = hole_files.read_hole(task.mask, invert=task.invert)[..., None]
    bucket = bucket_name(area_bounds(mask))
  picture = Picture(bucket, task.stem, image, mask, {task.method: fill})
  return picture, hashlib.sha256(data).digest(), dict(kinds)


def area_bounds(mask: UInt8[np.ndarray, "h w 1"]) -> Bucket:
  """The bucket of a hole by its share of the image; the lowest where there is none."""
  return next(bounds for bounds in _BOUNDS if mask.mean() <= bounds[1])


def reduced(size: tuple[int, int], most: float) -> tuple[int, int]:
  """A size of about `most` pixels with the same proportions; a smaller one stays."""
  scale = math.sqrt(min(1.0, most / math.prod(size)))
  return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def canvas_of(size: tuple[int, int]) -> tuple[int, int]:
  """The least of the sizes of canvases that holds a picture; their sides are 2^n and 1.5 * 2^n from 32 on."""
  sides = [side << octave for octave in range(20) for side in (32, 48)]
  return next(side for side in sides if side >= size[0]), next(side for side in sides if side >= size[1])


def _start_process() -> None:
  workers.start_worker()
  backend.keep_freed_memory()


def in_processes(function: Callable[[Input], Output], tasks: Iterable[Input], processes: int) -> Iterator[Output]:
  """Yields what a function makes of tasks, in their order; a few are ahead of what is asked for.

  Raises:
    ConfigError: a process was killed.
  """
  if processes < 2:
    yield from map(function, tasks)
    return
  others = multiprocessing.active_children()
  # Spawned, so that no thread or lock of JAX in this process is copied half-way.
  context, waiting = multiprocessing.get_context("spawn"), collections.deque()
  pool = concurrent.futures.ProcessPoolExecutor(processes, context, _start_process)
  try:
    for task in tasks:
      waiting.append(pool.submit(function, task))
      if len(waiting) > 2 * processes:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  except BrokenProcessPool:
    raise ConfigError(
      "a process that judged pictures was killed (out of memory?): close others, or shrink them"
    ) from None
  except BaseException:  # nobody waits for the rest
    for process in set(multiprocessing.active_children()) - set(others):
      process.terminate()
    raise
  finally:
    pool.shutdown(cancel_futures=True)
