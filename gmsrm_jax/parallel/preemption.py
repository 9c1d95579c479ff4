"""SIGTERM and Ctrl-C: a run that is told to go saves where it is and stops, all of its processes at the same step."""

from __future__ import annotations

import os
import signal
import socket
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

_PATIENCE = 3.0
"""Seconds that a run with nothing left to save has to end in good order: it may be in the middle of a compilation."""


class Stopped(SystemExit):
  """The run was told to stop and everything is saved; ends the program with 128 + the signal's number: 143 or 130."""

  def __init__(self, number: int = signal.SIGTERM):
    super().__init__(128 + number)


class Stop:
  """Listens to SIGTERM and Ctrl-C while it is entered; outside deferred stretches they stop the program at once.

  With `jax.distributed` JAX itself takes SIGTERM in deferred stretches, on whichever process it arrives, and all
  processes agree on a step that none has passed. Ctrl-C counts as SIGTERM there.
  """

  def __init__(self):
    self.unsaved = False  # steps were made that no checkpoint holds
    self._deferred = False
    self._told = 0
    self._previous = {}
    # Only the main thread may; who calls training from another one handles signals himself.
    self._listens = threading.current_thread() is threading.main_thread()

  def __enter__(self) -> Stop:
    if self._listens:
      numbers = [signal.SIGINT] if jax.distributed.is_initialized() else [signal.SIGINT, signal.SIGTERM]
      # A shell lets what it starts in the background ignore Ctrl-C.
      numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
      self._previous = {number: signal.signal(number, self._handle) for number in numbers}
      self._signals, self._wakeup = socket.socketpair()
      self._wakeup.setblocking(False)
      self._wakeup_before = signal.set_wakeup_fd(self._wakeup.fileno())
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if self._listens:
      signal.set_wakeup_fd(self._wakeup_before)
      self._wakeup.close()

  def defer(self) -> None:
    """Lets a signal wait until `reached` is asked."""
    self._deferred = True

  def resume(self) -> None:
    """Lets a signal, also one that waited, end the program at once: nothing is left to save.

    All processes but the first are done by then, and end with it.
    """
    self._deferred = self.unsaved = False
    if self._listens and jax.distributed.is_initialized():
      signal.signal(signal.SIGTERM, self._handle if jax.process_index() == 0 else signal.SIG_IGN)
    if self._told:
      self._leave()

  def reached(self, count: int) -> bool:
    """Returns True where to save and stop; all processes ask once per step, with a count that only grows."""
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(count)
    return self._told > 0

  def leave(self, where: str) -> None:
    """Says that the run stops, and where the same command goes on; raises Stopped."""
    number = self._told or signal.SIGTERM
    if jax.process_index() == 0:
      print(f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}{where}", flush=True)
    raise Stopped(number)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    if number == signal.SIGINT and jax.distributed.is_initialized():
      if not self._deferred:
        raise KeyboardInterrupt
      os.kill(os.getpid(), signal.SIGTERM)
      return
    self._told = self._told or number
    if not self._deferred:
      self._leave()

  def _leave(self) -> None:
    self.leave(": the same command goes on from the last checkpoint")

  def _watch(self) -> None:
    """Sees signals as they come, while Python's own handlers wait for the end of a compilation."""
    interrupts = 0
    with self._signals as signals:
      while True:
        try:
          number = signals.recv(1)
        except TimeoutError:
          if not self.unsaved:
            break
          signals.settimeout(None)  # it went on meanwhile, and stops at its next step
          continue
        if not number:  # nobody listens any more
          return
        if number[0] not in (signal.SIGINT, signal.SIGTERM):  # the caller's own
          continue
        interrupts += number[0] == signal.SIGINT
        if interrupts > 1:
          break
        if interrupts and jax.process_index() == 0:
          print(f"\nCtrl-C: stopping{', once this step is saved' * self.unsaved}; again: at once", flush=True)
        if not (self.unsaved or jax.distributed.is_initialized()):
          signals.settimeout(_PATIENCE)
    print("stopped at once: the same command goes on from the last checkpoint, if there is one", flush=True)
    os._exit(128 + (self._told or signal.SIGINT))
