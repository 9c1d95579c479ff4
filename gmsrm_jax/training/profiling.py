"""A trace of a few training steps, to be looked at with TensorBoard, XProf or Perfetto."""

from __future__ import annotations

import pathlib
from typing import Any

import jax


class Profile:
  """Traces the steps 'START:STOP' of a stage into a folder; no steps, no trace."""

  def __init__(self, steps: str, folder: pathlib.Path, *, active: bool = True):
    first, _, last = steps.partition(":")
    self._range = range(int(first), int(last)) if steps and active else range(0)
    self._folder = folder
    self._running = False

  def before(self, step: int, state: Any) -> None:
    """Starts or ends the trace; `state` is what the steps until now have made. Free on all other steps."""
    if self._running != (step in self._range):
      jax.block_until_ready(state)
      self.close()
      if step in self._range:
        jax.profiler.start_trace(self._folder)
        self._running = True

  def close(self) -> None:
    """Ends a trace that is running."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
