"""How long a program takes: repeats after a warm-up, and the quartiles of what they took."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

MIN_REPEATS, MAX_REPEATS = 5, 50

_SHORTEST = 0.05
"""Seconds a repeat lasts at least: shorter calls are put together, so that the host waits for the device once."""


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of one call, over repeats."""

  median: float
  q1: float  # a quarter of the repeats was faster
  q3: float  # a quarter was slower
  p95: float
  repeats: int
  calls: int  # of one repeat, sent off together


def summarise(repeats: Sequence[float], calls: int = 1) -> Timing:
  """The quartiles of seconds that each repeat of so many calls took; between two values they are interpolated."""
  q1, median, q3, p95 = (float(value) / calls for value in np.quantile(np.asarray(repeats), (0.25, 0.5, 0.75, 0.95)))
  return Timing(median, q1, q3, p95, len(repeats), calls)


def measure(call: Callable[[], Any], *, seconds: float, together: bool = True) -> Timing:
  """Times a call until `seconds` are over, at least `MIN_REPEATS` and at most `MAX_REPEATS` times.

  Two calls warm up and count nothing. Every repeat ends when the device has done what it was told.

  Args:
    call: starts the work and returns its result, or what depends on all of it.
    seconds: how long to go on.
    together: short calls are sent off several at a time, as a training loop does; False times each alone.
  """
  jax.block_until_ready(call())
  begin = time.perf_counter()
  jax.block_until_ready(call())
  once = time.perf_counter() - begin
  calls = max(1, min(100, math.ceil(_SHORTEST / max(once, 1e-6)))) if together else 1
  repeats: list[float] = []
  while len(repeats) < MIN_REPEATS or (sum(repeats) < seconds and len(repeats) < MAX_REPEATS):
    begin = time.perf_counter()
    result = None
    for _ in range(calls):
      result = call()
    jax.block_until_ready(result)
    repeats.append(time.perf_counter() - begin)
  return summarise(repeats, calls)
