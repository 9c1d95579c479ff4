"""What --mode=benchmark measures: sizes and batches that are asked for, or that the back end is fit for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from gmsrm_jax.config import SIZES, Config
from gmsrm_jax.errors import ConfigError, one_of, require
from gmsrm_jax.parallel import sharding


class Plan(NamedTuple):
  """(size, batch) of every row, in the order in which they are measured, and what is not measured, in words."""

  steps: list[tuple[str, int]]
  fills: list[tuple[str, int]]
  left_out: list[str]


def make_plan(configured: Callable[..., Config], sizes: Sequence[str] | None, batches: Sequence[int] | None) -> Plan:
  """What to measure; small batches first, because a device's mark of its highest memory only rises."""
  for size in sizes or ():
    one_of("--sizes", size, tuple(SIZES))
  for batch in batches or ():
    require(batch > 0, f"--batches: {batch} must be greater than 0")
  on_cpu, left_out = jax.default_backend() == "cpu", []
  chosen = tuple(dict.fromkeys(sizes or ("small",) if on_cpu else sizes or ("small", "base")))
  devices = jax.device_count()
  default = (1, 4 * -(-devices // 4)) if on_cpu else (1, 8 * devices, 32 * devices)
  counts = sorted(set(batches or default))
  steps = [(size, batch) for size in chosen for batch in counts if _trains(configured, size, batch, left_out)]
  fills = [(size, batch) for size in chosen for batch in counts]
  if sizes is None and on_cpu:
    fills.append(("base", 1))
    left_out.append("training of base and whatever is larger, too slow for a CPU: ask with --sizes base large")
  elif sizes is None:
    left_out.append("size large: ask with --sizes large")
  if batches is None:
    left_out.append(f"batches above {counts[-1]}: ask with --batches {2 * counts[-1]}")
  if len(counts) > 1:
    left_out.append("parts of all but the largest batch of each size")
  return Plan(steps, fills, left_out)


def _trains(configured: Callable[..., Config], size: str, batch: int, left_out: list[str]) -> bool:
  """Whether a step can take the batch; one image alone is filled, but seldom trained on."""
  try:
    config = configured(size, batch)
    sharding.check_batch(config, sharding.make_mesh(config))
  except ConfigError as error:
    if batch > 1:
      raise ConfigError(f"--batches: {error}") from None
    configured(size)  # what is wrong with any batch is an error with this one, too
    left_out.append(f"training of {size} at batch 1: {error}")
    return False
  return True
