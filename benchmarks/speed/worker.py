"""Reads requests, warms up, times, answers: the same for both kinds of worker of `benchmarks.speed.beside_torch`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import Config

Call = Callable[[], Any]


def configure(size: str, batch: int, changes: list[str]) -> Config:
  """The settings of `street` with networks of that size and a batch of that size."""
  sizes = [f"model.size={size}", f"run.batch_size={batch + batch % 2}", "loss.feature_crop=32"]
  return overrides.override(experiments.load("street"), [*sizes, *changes])


def random_batch(size: int, batch: int) -> dict[str, np.ndarray]:
  """Noise with a square hole over a quarter of each picture."""
  pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
  mask = np.zeros((batch, size, size, 1), np.uint8)
  mask[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
  return {"image": pixels, "mask": mask}


def serve(build: Callable[..., Call], wait: Callable[[Any], None], describe: Callable[[], dict[str, str]]) -> None:
  """Answers requests until the input ends.

  `build(kind, size, batch)` gives a call; `wait` returns when its result is there. Calls of one turn follow each other
  without waiting in between where the device has a queue.
  """
  call: Call | None = None

  def timed(count: int) -> float:
    assert call is not None
    began = time.perf_counter()
    result = None
    for _ in range(count):
      result = call()
    wait(result)
    return (time.perf_counter() - began) / count

  for line in sys.stdin:
    request = json.loads(line)
    try:
      if request["do"] == "prepare":
        call = build(request["kind"], request["size"], request["batch"])
        for _ in range(2):  # compiles, and takes memory from the allocator
          timed(1)
        answer: dict[str, Any] = {"seconds": timed(1)}
      elif request["do"] == "time":
        answer = {"seconds": timed(request["count"])}
      elif request["do"] == "drop":
        call, answer = None, {}
      else:
        answer = dict(describe())
    except Exception as error:  # out of memory, no compiler: the other sides go on
      call = None
      answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    print(json.dumps(answer), flush=True)
