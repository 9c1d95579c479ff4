"""The time that a step takes at least on chips with published peaks: a bound from counts, not a measurement.

Three resources: matrix units (operations), memory (bytes from and to it) and links to the neighbours (bytes sent).
`ASSUMPTIONS` says how they are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gmsrm_jax.hardware.machine import Chip
from gmsrm_jax.hardware.tpu.collectives import Collective

HOP_SECONDS = 1e-6  # latency of one step of a ring; ours: Google publishes none

ASSUMPTIONS = (
  "peaks are Google's published ones; no step reaches them, so these times are lower bounds",
  "compute: all operations at the bfloat16 matrix rate; memory: the compiler's count of bytes moved",
  "a ring over n chips sends 2(n-1)/n of an all-reduce's bytes, (n-1)/n of a gather's, scatter's or all-to-all's",
  "optimistic: compute, memory and links at the same time, rings over all links that every chip has",
  "pessimistic: one after the other, one ring in both directions, 1 microsecond a hop (ours)",
  "an axis closes to a ring from 16 chips on (v5e, v6e), or where all three are multiples of 4 (v4, v5p)",
  "an all-to-all also passes the cut through the middle of the longest axis",
  "reading images, checkpoints and the host are left out",
)


class Roofline(NamedTuple):
  """Seconds of one step on one chip."""

  compute: float
  memory: float
  links: float  # all links busy
  one_ring: float  # one ring and its latency
  optimistic: float  # everything overlaps
  pessimistic: float  # nothing does, on one ring


def wraps(shape: Sequence[int]) -> tuple[bool, ...]:
  """Which axes of a slice close to a ring."""
  if len(shape) == 3:
    return (all(size % 4 == 0 for size in shape),) * 3
  return tuple(size >= 16 for size in shape)


def usable_links(shape: Sequence[int]) -> int:
  """Links that every chip of a slice has; where axes do not close, a corner has one an axis."""
  return sum((2 if closed else 1) for size, closed in zip(shape, wraps(shape), strict=True) if size > 1)


def sent_bytes(collective: Collective) -> float:
  """What one chip sends in one execution, in rings over its group."""
  share = (collective.group - 1) / collective.group
  factor = {"all-reduce": 2.0 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
  return factor.get(collective.kind, share) * collective.bytes


def crossing_seconds(collective: Collective, chip: Chip, shape: Sequence[int]) -> float:
  """An all-to-all's least time through the cut across the longest axis, of slice and group alike; else 0."""
  if "all-to-all" not in collective.kind or collective.group < 2:
    return 0.0
  longest = max(range(len(shape)), key=lambda axis: shape[axis])
  links = math.prod(shape) / shape[longest] * (2 if wraps(shape)[longest] else 1)
  # Half of the chips send half of what they have across.
  return math.prod(shape) * collective.bytes / 4.0 / (links * chip.link_bandwidth)


def hops(collective: Collective, shape: Sequence[int]) -> int:
  """Steps of the rings, one axis of the slice after the other."""
  if collective.kind == "collective-permute":
    return 1
  steps = min(sum(size - 1 for size in shape), collective.group - 1)
  return 2 * steps if collective.kind == "all-reduce" else steps


def roofline(
  chip: Chip, shape: Sequence[int], *, flops: float, bytes_moved: float, collectives: Sequence[Collective]
) -> Roofline:
  """The bound for a program's counts, all of them of one chip.

  Args:
    chip: its peaks.
    shape: chips of the slice along each axis.
    flops: operations, a multiply-add is two.
    bytes_moved: from and to the chip's memory.
    collectives: what it exchanges with others.
  """
  everything = usable_links(shape)
  links = one_ring = 0.0
  for collective in collectives:
    if collective.group < 2:
      continue
    sent, crossing = sent_bytes(collective), crossing_seconds(collective, chip, shape)
    many, few = (1, 1) if collective.kind == "collective-permute" else (everything, min(everything, 2))
    links += collective.times * max(sent / (many * chip.link_bandwidth), crossing)
    one_ring += collective.times * (
      max(sent / (few * chip.link_bandwidth), crossing) + hops(collective, shape) * HOP_SECONDS
    )
  compute, memory = flops / chip.flops, bytes_moved / chip.bandwidth
  optimistic, pessimistic = max(compute, memory, links), compute + memory + one_ring
  return Roofline(compute, memory, links, one_ring, optimistic, pessimistic)
