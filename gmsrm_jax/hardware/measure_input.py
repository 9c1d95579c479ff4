"""The speed of the input: training batches made on this host while nothing else runs."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import cv2
import skimage.data

from gmsrm_jax.config import Config
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.errors import ConfigError

_STAND_INS = 32  # photographs
_SIZE = (936, 537)  # width and height of those of Paris StreetView


def measure_input(config: Config, *, seconds: float, insist: bool = False) -> dict[str, Any]:
  """Images per second of the pipeline, on `data.train` where it can be read, else on photographs that come along.

  Raises:
    ConfigError: `data.train` cannot be read, and `insist` says that it must be.
  """
  with contextlib.ExitStack() as stack:
    try:
      source = sources.open_source(config.data, "train")
      described = {"source": "data.train", "images": len(source), "sha256": sources.split_hash(source)}
    except ConfigError:
      if insist:
        raise
      folder = stack.enter_context(tempfile.TemporaryDirectory())
      write_stand_ins(pathlib.Path(folder))
      data = dataclasses.replace(config.data, train=folder, layout="folder", max_bad_share=0.0)
      config = dataclasses.replace(config, data=data)
      described = {"source": f"{_STAND_INS} JPEG files of {_SIZE[0]}x{_SIZE[1]} pixels", "images": _STAND_INS}
    iterator = stack.enter_context(contextlib.closing(pipeline.training_iterator(config, "inpaint")))
    # What was made ahead before the clock began must not count.
    for _ in range(2 + config.data.prefetch // config.run.batch_size):
      next(iterator)
    count, begin = 0, time.perf_counter()
    while (took := time.perf_counter() - begin) < seconds:
      count += len(next(iterator)["mask"])
  return {
    **described,
    "size": config.model.image_size,
    "threads": config.data.threads,
    "workers": config.data.workers,
    "images_per_second": count / took,
  }


def write_stand_ins(folder: pathlib.Path) -> None:
  """JPEG files of photographic content, no two alike."""
  for index, photo in zip(range(_STAND_INS), _photographs(), strict=False):
    shifted = photo[:, index % 16 :]
    cv2.imwrite(str(folder / f"{index:03d}.jpg"), cv2.resize(shifted, _SIZE, interpolation=cv2.INTER_AREA))


def _photographs() -> Iterator[Any]:
  photos = (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.cat())
  while True:
    yield from photos
