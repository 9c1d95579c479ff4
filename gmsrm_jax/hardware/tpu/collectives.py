"""What a compiled program sends between devices, read from its HLO text.

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


_BITS = {"pred": 8, "bf16": 16, "token": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")
_LAYOUT = re.compile(r"\{[^{}]*\}")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?(\S+) = ")
_COLLECTIVE = re.compile(
  r" (all-reduce|all-gather|reduce-scatter|(?:ragged-)?all-to-all|collective-permute|collective-broadcast)(-start)?\("
)
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_BODY = re.compile(r"\bbody=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")


def collectives(text: str, devices: int) -> list[Collective]:
  """All collectives of a program that so many devices run.

  An asynchronous pair counts once, by its start, and so do fusions that the TPU compiler spreads a collective over,
  by their common channel; a loop's body as often as the compiler says that it runs, or once where it does not know; of
  a conditional every branch counts.
  """
  computations, entry = _computations(text)
  found, channels = [], set()
  for channel, collective in _reachable(computations, entry, 1, devices):
    if channel is None or channel not in channels:
      found.append(collective)
      channels.add(channel)
  return found


def grouped(found: Sequence[Collective]) -> list[dict[str, Any]]:
  """Count and bytes by kind and size of the group, those of most bytes first."""
  sums: dict[tuple[str, int], list[int]] = {}
  for each in found:
    entry = sums.setdefault((each.kind, each.group), [0, 0])
    entry[0] += each.times
    entry[1] += each.times * each.bytes
  rows = [{"kind": kind, "group": group, "count": n, "bytes": size} for (kind, group), (n, size) in sums.items()]
  return sorted(rows, key=lambda row: -row["bytes"])


def array_bytes(shape: str) -> int:
  """Bytes of an array or of all arrays of a tuple, such as '(f32[2,3]{1,0}, bf16[8])', without padding."""
  total = 0
  for name, sizes in _ARRAY.findall(_LAYOUT.sub("", _COMMENT.sub("", shape))):
    elements = math.prod(int(size.removeprefix("<=")) for size in sizes.split(",") if size)
    total += -(-elements * _bits(name) // 8)
  return total


def group_size(line: str, devices: int) -> int:
  """How many devices exchange with each other; all of them where the instruction names no groups."""
  if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
    return int(found[1])
  if found := re.search(r"replica_groups=\{\{([\d, ]+)\}", line):
    return len(found[1].split(","))
  if found := re.search(r"replica_groups=@?mesh\w*\[([^\]]*)\][^{]*\{([^}]*)\}", line):
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    # A part of an axis is written 'name':(what lies before it)its size.
    parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
    return math.prod(int(part) if part else sizes[name] for name, part in parts)
  if "source_target_pairs=" in line:
    return 2
  return devices


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """The instructions of every computation, and which of them is the program."""
  found: dict[str, list[str]] = {}
  entry, current = "", []
  for line in text.splitlines():
    if header := _HEADER.match(line):
      current = found.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif _INSTRUCTION.match(line):
      current.append(line)
  return found, entry


def _reachable(
  computations: dict[str, list[str]], name: str, times: int, devices: int, *, fused: bool = False
) -> Iterator[tuple[str | None, Collective]]:
  """Every collective, with its channel where it is inside a fusion; elsewhere several may have the same."""
  for line in computations.get(name, []):
    if found := _collective(line, name, times, devices):
      channel = _CHANNEL.search(line) if fused else None
      yield channel[1] if channel else None, found
      continue
    called = set(_CALLED.findall(line))
    for branches in _BRANCHES.findall(line):
      called |= {branch.strip().lstrip("%") for branch in branches.split(",")}
    trips = _TRIPS.search(line)
    for other in sorted(called):
      repeats = int(trips[1]) if trips and _BODY.search(line) else 1
      yield from _reachable(computations, other, times * repeats, devices, fused=fused or " fusion(" in line)


def _collective(line: str, computation: str, times: int, devices: int) -> Collective | None:
  line = _COMMENT.sub("", line)
  begin = _INSTRUCTION.match(line)
  found = _COLLECTIVE.search(line)
  if begin is None or found is None or '"' in line[: found.start()]:
    return None
  kind, shape, group = found[1], line[begin.end() : found.start()], group_size(line, devices)
  if found[2] and kind != "all-reduce":
    shape = _elements(shape)[1]  # (what goes in, what comes out, ...)
  size = array_bytes(shape)
  if kind == "reduce-scatter":
    size *= group
  elif kind == "all-reduce" and "reduce-scatter" in computation:
    kind = "reduce-scatter"  # the TPU compiler writes it as a fusion of an all-reduce and a slice
  return Collective(kind, size, group, times)


def _elements(shape: str) -> list[str]:
  """The elements of a tuple shape."""
  text = _LAYOUT.sub("", shape).strip()
  elements, depth, start = [], 0, 1
  for position, character in enumerate(text):
    depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
    if (depth == 1 and character == ",") or depth == 0:
      elements.append(text[start:position])
      start = position + 1
  return elements


def _bits(name: str) -> int:
  if name in _BITS:
    return _BITS[name]
  digits = re.search(r"\d+", name)
  return int(digits[0]) if digits else 0
