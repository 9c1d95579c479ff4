"""Batches from worker processes: the same batches as without them, and a position that does not know of them."""

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


def _end_with_parent() -> None:
  """Ends this process when its parent was killed: it would wait for ever to hand over a batch."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    connection.wait([parent.sentinel])
    os._exit(1)


def start_worker(index: int, count: int) -> None:
  """Runs first in each worker process."""
  del index, count
  # Ctrl-C reaches the whole process group: the parent alone says so and ends the workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  cv2.setNumThreads(0)  # the processes are the parallelism
  threading.Thread(target=_end_with_parent, daemon=True).start()


class WorkerIterator(grain.DatasetIterator):
  """Iterates over a dataset's batches, of which worker i of n makes number i, i + n, i + 2n, …

  The state is that of the iterator without workers, {'next_index': examples handed out}, so that a checkpoint may be
  continued with any number of them. grain's own state of `mp_prefetch` is one entry per worker.

  Args:
    examples: the examples of this process, in order.
    batch_size: examples per batch.
    workers: processes, at least 1. They start at the first batch, or at `start_prefetch`.
    ahead: batches that each worker keeps ready.
  """

  def __init__(self, examples: grain.MapDataset, batch_size: int, workers: int, ahead: int):
    super().__init__()
    self._examples = examples
    self._batch_size = batch_size
    self._options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
    self._next_index = 0
    self._batches: grain.DatasetIterator | None = None

  def __next__(self) -> dict[str, np.ndarray]:
    self._assert_not_closed()
    self.start_prefetch()
    assert self._batches is not None
    batch = next(self._batches)
    self._next_index += self._batch_size
    # grain frees the shared memory behind its arrays once they are gone, whatever still looks at it.
    return {name: np.array(value) for name, value in batch.items()}

  def get_state(self) -> dict[str, Any]:
    """Where the next batch begins."""
    return {"next_index": self._next_index}

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues at a state of this class, or of the iterator without workers."""
    self._stop()
    self._next_index = state["next_index"]

  def start_prefetch(self) -> None:
    """Starts the workers."""
    if self._batches is not None:
      return
    if not flags.FLAGS.is_parsed():
      # grain keeps its own settings in absl's flags, which a program without absl's `app.run` does not parse.
      flags.FLAGS.mark_as_parsed()
    # Batches are a step of the random-access part, so that a worker makes whole ones and hands each over in one piece.
    # Threads of its own would only contend with it for Python's lock.
    rest = self._examples[self._next_index :].batch(self._batch_size, drop_remainder=True)
    alone = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._batches = iter(rest.to_iter_dataset(alone).mp_prefetch(self._options, worker_init_fn=start_worker))
    self._batches.start_prefetch()

  def close(self) -> None:
    """Ends the workers."""
    super().close()
    self._stop()

  def _stop(self) -> None:
    if self._batches is not None:
      self._batches.close()
      self._batches = None
