"""Batches from threads or worker processes: the same batches, and a position that knows of neither."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from gmsrm_jax.config import Config


def start_worker(*_: int) -> None:
  """Runs first in each worker process, here and where data are prepared."""
  # Ctrl-C reaches the whole process group: the parent alone says so and ends the workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  cv2.setNumThreads(0)  # the processes are the parallelism
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends this process when its parent was killed: it would wait for ever to hand over its work."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    connection.wait([parent.sentinel])
    os._exit(1)


class BatchIterator(grain.DatasetIterator):
  """Iterates over a process's share of every batch, `local_size` examples each.

  The state is {'next_index': examples that all processes together have handed out}, so that a checkpoint may be
  continued with any number of processes, threads and workers; grain's own state of `mp_prefetch` is one entry per
  worker. Threads, or workers of which number i of n makes the batches i, i + n, i + 2n, …, start at the first batch.
  """

  def __init__(self, examples: grain.MapDataset, config: Config, local_size: int):
    super().__init__()
    self._examples = examples
    self._local_size = local_size
    self._batch_size = config.run.batch_size
    self._data = config.data
    self._done = 0  # batches handed out
    self._batches: grain.DatasetIterator | None = None

  def __next__(self) -> dict[str, np.ndarray]:
    self._assert_not_closed()
    self.start_prefetch()
    assert self._batches is not None
    batch = next(self._batches)
    self._done += 1
    # grain frees the shared memory behind a worker's arrays once they are gone, whatever still looks at it.
    return {name: np.array(value) for name, value in batch.items()} if self._data.workers else batch

  def get_state(self) -> dict[str, Any]:
    """The place where the next batch begins."""
    return {"next_index": self._done * self._batch_size}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues at a state."""
    self._stop()
    self._done = state["next_index"] // self._batch_size

  def start_prefetch(self) -> None:
    """Starts the threads or workers."""
    if self._batches is None:
      rest = self._examples[self._done * self._local_size :]
      self._batches = self._from_workers(rest) if self._data.workers else self._from_threads(rest)
      self._batches.start_prefetch()

  def _from_threads(self, rest: grain.MapDataset) -> grain.DatasetIterator:
    options = grain.ReadOptions(num_threads=self._data.threads, prefetch_buffer_size=self._data.prefetch)
    return iter(rest.to_iter_dataset(options).batch(self._local_size, drop_remainder=True))

  def _from_workers(self, rest: grain.MapDataset) -> grain.DatasetIterator:
    if not flags.FLAGS.is_parsed():
      # grain keeps its own settings in absl's flags, which a program without absl's `app.run` does not parse.
      flags.FLAGS.mark_as_parsed()
    # Batches are a random-access step, so that a worker makes whole ones and hands each over in one piece.
    # Threads of its own would only contend with it for Python's lock.
    batches = rest.batch(self._local_size, drop_remainder=True).to_iter_dataset(grain.ReadOptions(0, 0))
    ahead = max(1, round(self._data.prefetch / (self._data.workers * self._local_size)))
    options = grain.MultiprocessingOptions(num_workers=self._data.workers, per_worker_buffer_size=ahead)
    return iter(batches.mp_prefetch(options, worker_init_fn=start_worker))

  def close(self) -> None:
    """Ends the threads or workers."""
    super().close()
    self._stop()

  def _stop(self) -> None:
    if self._batches is not None:
      self._batches.close()
      self._batches = None
