"""SIGTERM: a run that is told to go saves where it is and stops, all of its processes at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 143


class Stopped(SystemExit):
  """The run was told to stop and everything is saved; ends the program with `EXIT_CODE`."""

  def __init__(self):
    super().__init__(EXIT_CODE)


class Stop:
  """Listens to SIGTERM while it is entered; outside deferred stretches the signal stops the program at once.

  With `jax.distributed` JAX itself takes the signal in deferred stretches, on whichever process it arrives, and all
  processes agree on a step that none has passed.
  """

  def __init__(self):
    self._deferred = self._told = False
    self._previous = None
    # Only the main thread may; who calls training from another one handles signals himself.
    self._listens = threading.current_thread() is threading.main_thread()

  def __enter__(self) -> Stop:
    if self._listens and not jax.distributed.is_initialized():
      self._previous = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *_) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def defer(self) -> None:
    """Lets a signal wait until `reached` is asked."""
    self._deferred = True

  def resume(self) -> None:
    """Lets a signal, also one that waited, end the program at once: nothing is left to save.

    All processes but the first are done by then, and end with it.
    """
    self._deferred = False
    if self._listens and jax.distributed.is_initialized():
      signal.signal(signal.SIGTERM, self._handle if jax.process_index() == 0 else signal.SIG_IGN)
    if self._told:
      self._leave()

  def reached(self, count: int) -> bool:
    """Returns True where to save and stop; all processes ask once per step, with a count that only grows."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(count)
    return self._told

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del number, frame
    self._told = True
    if not self._deferred:
      self._leave()

  def _leave(self) -> None:
    if jax.process_index() == 0:
      print("stopped by SIGTERM: the same command goes on from the last checkpoint", flush=True)
    raise Stopped
