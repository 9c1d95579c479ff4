"""The time that a step takes at least on chips with published peaks: a bound from counts, not a measurement.

Three resources: matrix units (operations), memory (bytes from and to it) and links to the neighbours (bytes sent).
`ASSUMPTIONS` says how they are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gmsrm_jax.hardware.machine import Chip
from gmsrm_jax.hardware.tpu.collectives import Collective

ASSUMPTIONS = (
  "peaks are Google's published ones; no step reaches them, so these times are lower bounds",
  "compute: all operations at the bfloat16 matrix rate; memory: the compiler's count of bytes moved",
  "a ring over n chips sends 2(n-1)/n of an all-reduce's bytes, (n-1)/n of a gather's, scatter's or all-to-all's",
  "optimistic: compute, memory and links at the same time, rings over all links that every chip has",
  "pessimistic: one after the other, one ring in both directions",
  "an axis closes to a ring from 16 chips on (v5e, v6e), or where all three are multiples of 4 (v4, v5p)",
  "latencies, reading images, checkpoints and the host are left out",
)


class Roofline(NamedTuple):
  """Seconds of one step on one chip."""

  compute: float
  memory: float
  links: float  # all links busy
  one_ring: float
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
  """Bytes that one chip sends in one execution, in rings over its group."""
  share = (collective.group - 1) / collective.group
  factor = {"all-reduce": 2.0 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
  return factor.get(collective.kind, share) * collective.bytes


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
  usable = usable_links(shape)
  links = one_ring = 0.0
  for collective in collectives:
    if collective.group > 1:
      seconds = collective.times * sent_bytes(collective) / chip.link_bandwidth
      permute = collective.kind == "collective-permute"
      links += seconds / (1 if permute else usable)
      one_ring += seconds / (1 if permute else min(usable, 2))
  compute, memory = flops / chip.flops, bytes_moved / chip.bandwidth
  optimistic, pessimistic = max(compute, memory, links), compute + memory + one_ring
  return Roofline(compute, memory, links, one_ring, optimistic, pessimistic)
