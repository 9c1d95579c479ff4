"""Reads from its HLO text what a compiled program sends between devices.

`jax.stages.Compiled.as_text()` gives the text: one computation after another, one instruction a line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Collective(NamedTuple):
  """One instruction; `bytes` and `group` are those of one device and one execution."""

  kind: str  # as HLO names it: all-reduce, all-gather ...
  bytes: int  # the whole array where it is largest: before a reduce-scatter, after an all-gather
  group: int  # devices that exchange with each other
  times: int  # executions in one run of the program


_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\]")
_COMMENT_OR_LAYOUT = re.compile(r"/\*.*?\*/|\{[^{}]*\}")
_SECOND = re.compile(r"\((?:\([^()]*\)|[^,()]*\[[^\]]*\]), (\([^()]*\)|[^,()]*\[[^\]]*\])")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?\S+ = ")
_COLLECTIVE = re.compile(
  r"^\s*(?:ROOT )?%?\S+ = ([^\"]*?) "
  r"(all-reduce|all-gather|reduce-scatter|(?:ragged-)?all-to-all|collective-permute|collective-broadcast)(-start)?\("
)
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|true_computation|false_computation|branch_computations)=\{?(%?[\w.-]+(?:, %[\w.-]+)*)"
)
_TRIPS = re.compile(r'\bbody=.*"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")


def collectives(text: str, devices: int) -> list[Collective]:
  """All collectives of a program that so many devices run.

  An asynchronous pair counts once, by its start, and so do fusions that the TPU compiler spreads a collective over,
  by their common channel; a loop's body as often as the compiler says that it runs, or once where it does not know; of
  a conditional every branch counts.
  """
  computations: dict[str, list[str]] = {}
  entry, current = "", []
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif _INSTRUCTION.match(line):
      current.append(line)
  counted, channels = [], set()
  for channel, collective in _reachable(computations, entry, 1, devices):
    if channel is None or channel not in channels:
      counted.append(collective)
      channels.add(channel)
  return counted


def grouped(sent: Sequence[Collective]) -> list[dict[str, Any]]:
  """Count and bytes by kind and size of the group, those of most bytes first."""
  sums: dict[tuple[str, int], list[int]] = {}
  for each in sent:
    entry = sums.setdefault((each.kind, each.group), [0, 0])
    entry[0] += each.times
    entry[1] += each.times * each.bytes
  rows = [{"kind": kind, "group": group, "count": n, "bytes": size} for (kind, group), (n, size) in sums.items()]
  return sorted(rows, key=lambda row: -row["bytes"])


def array_bytes(shape: str) -> int:
  """Bytes of an array or of all arrays of a tuple, such as '(f32[2,3]{1,0}, bf16[8])', without padding."""
  total = 0
  for name, sizes in _ARRAY.findall(_COMMENT_OR_LAYOUT.sub("", shape)):
    bits = 8 if name == "pred" else int((re.findall(r"\d+", name) or [0])[0])
    total += -(-math.prod(int(size.removeprefix("<=")) for size in sizes.split(",") if size) * bits // 8)
  return total


def group_size(line: str, devices: int) -> int:
  """The number of devices that exchange with each other; all of them where the instruction names no groups."""
  if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
    return int(iota[1])
  if listed := re.search(r"replica_groups=\{\{([\d, ]+)\}", line):
    return len(listed[1].split(","))
  if mesh := re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\][^{]*\{([^}]*)\}", line):
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    # A part of an axis is written 'name':(what lies before it)its size.
    axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
    return math.prod(int(part) if part else sizes[name] for name, part in axes)
  return 2 if "source_target_pairs=" in line else devices


def _reachable(
  computations: dict[str, list[str]], name: str, times: int, devices: int, *, fused: bool = False
) -> Iterator[tuple[str | None, Collective]]:
  """Every collective, with its channel where it is inside a fusion; elsewhere several may have the same."""
  for line in computations.get(name, []):
    if collective := _collective(line, name, times, devices):
      channel = _CHANNEL.search(line) if fused else None
      yield channel[1] if channel else None, collective
      continue
    trips = _TRIPS.search(line)
    for called in sorted({other.lstrip("%") for names in _CALLED.findall(line) for other in names.split(", ")}):
      repeats = times * int(trips[1]) if trips else times
      yield from _reachable(computations, called, repeats, devices, fused=fused or " fusion(" in line)


def _collective(line: str, computation: str, times: int, devices: int) -> Collective | None:
  match = _COLLECTIVE.match(re.sub(r"/\*.*?\*/", "", line))
  if match is None:
    return None
  shape, kind, starts = match.groups()
  if starts and kind != "all-reduce":  # (what goes in, what comes out, ...)
    second = _SECOND.match(_COMMENT_OR_LAYOUT.sub("", shape))
    shape = second[1] if second else shape
  size, group = array_bytes(shape), group_size(line, devices)
  if kind == "reduce-scatter":
    size *= group
  elif kind == "all-reduce" and "reduce-scatter" in computation:
    kind = "reduce-scatter"  # the TPU compiler writes it as a fusion of an all-reduce and a slice
  return Collective(kind, size, group, times)
