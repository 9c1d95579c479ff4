"""Seconds on a progress bar: for how long work has been going on whose end nobody knows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import tqdm

PATIENCE = 2.0
"""Seconds after which the time is shown."""
_PAUSE = 1.0  # seconds between two looks


@contextlib.contextmanager
def ticking(bar: tqdm.tqdm) -> Iterator[Callable[[str], None]]:
  """Yields a function that sets the bar's text; what lasts gets its seconds behind it until the next text."""
  said, over = ("", 0.0), threading.Event()

  def say(text: str) -> None:
    nonlocal said
    said = text, time.monotonic()
    bar.set_description_str(text)

  def tick() -> None:
    while not over.wait(_PAUSE):
      text, since = said
      seconds = time.monotonic() - since
      if text and seconds >= PATIENCE:
        bar.set_description_str(f"{text} ({seconds:.0f} s so far)")

  thread = threading.Thread(target=tick, daemon=True)
  if not bar.disable:
    thread.start()
  try:
    yield say
  finally:
    over.set()
    if thread.ident:
      thread.join()
