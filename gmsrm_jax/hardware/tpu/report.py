"""The rows of --mode=compile as text: one block for every program and one table for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gmsrm_jax.hardware.tpu.collectives import Collective

_GIB = 2.0**30


def grouped(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
  """Count and bytes by kind and size of the group, those of most bytes first."""
  sums: dict[tuple[str, int], list[int]] = {}
  for each in collectives:
    entry = sums.setdefault((each.kind, each.group), [0, 0])
    entry[0] += each.times
    entry[1] += each.times * each.bytes
  rows = [{"kind": kind, "group": group, "count": n, "bytes": size} for (kind, group), (n, size) in sums.items()]
  return sorted(rows, key=lambda row: -row["bytes"])


def program_text(row: Mapping[str, Any]) -> str:
  """All of one program."""
  memory = row["memory"]
  lines = [
    f"{row['topology']} {row['stage']}: batch {row['batch_size']} = {row['chips']} chips x {row['batch_per_chip']}, "
    f"compiled in {row['compile_seconds']:.0f} s"
  ]
  over = memory["needed"] - memory["available"]
  verdict = (
    "fits"
    if row["fits"]
    else f"does not fit: {over / _GIB:.2f} GiB too much; use a smaller batch, run.accumulate=N, "
    "run.remat=encoder,generator,decoder,discriminator,features or run.fsdp=N"
  )
  lines.append(f"  memory: needs {memory['needed'] / _GIB:.2f} of {memory['available'] / _GIB:.2f} GiB, {verdict}")
  if "arguments" not in memory:
    return "\n".join(lines)
  parts = ", ".join(
    f"{name} {memory[name] / _GIB:.2f}" for name in ("arguments", "temporaries", "outputs", "aliased", "code")
  )
  lines.append(f"    {parts} GiB (aliased: outputs that take the place of donated arguments)")
  difference = row["flops"] / row["flops_counted"] - 1.0
  lines.append(
    f"  compute: {row['flops'] / 1e12:.4g} TFLOP by the compiler, {row['flops_counted'] / 1e12:.4g} counted before it "
    f"({100 * difference:+.0f} %; the larger counts); {row['bytes_moved'] / 1e9:.2f} GB moved"
  )
  lines += [
    f"  {each['kind']}: {each['count']} x over {each['group']} chips, {each['bytes'] / 1e6:.2f} MB"
    for each in row["collectives"]
  ] or ["  no collectives"]
  if row["odd_pairs"]:
    lines.append(
      f"  note: with {row['batch_per_chip']} images a chip some pairs of stage 2 lie on two chips, which exchange "
      "activations: make it an even number"
    )
  seconds, speed = row["roofline_seconds"], row["images_per_second_per_chip"]
  lines.append(
    f"  roofline: compute {_ms(seconds['compute'])}, memory {_ms(seconds['memory'])}, links {_ms(seconds['links'])} "
    f"(one ring {_ms(seconds['one_ring'])})"
  )
  lines.append(
    f"  step at least {_ms(seconds['optimistic'])} overlapped, {_ms(seconds['pessimistic'])} one after the other: "
    f"at most {speed['optimistic']:.1f} or {speed['pessimistic']:.1f} images/s/chip"
  )
  if "compiler_seconds" in row:
    lines.append(f"  the compiler's own estimate: {_ms(row['compiler_seconds'])}")
  return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """One line a program; efficiency compares with the smallest slice of the same chips, stage and settings."""
  head = (
    "topology",
    "stage",
    "chips",
    "batch",
    "GiB",
    "of",
    "TFLOP",
    "GB",
    "MB sent",
    "ms",
    "img/s/chip",
    "efficiency",
  )
  lines = [head]
  for row in rows:
    memory = row["memory"]
    cells = [row["topology"], row["stage"], str(row["chips"]), f"{row['batch_per_chip']}/chip"]
    cells += [f"{memory['needed'] / _GIB:.2f}", f"{memory['available'] / _GIB:.2f}"]
    if row["fits"]:
      seconds, speed = row["roofline_seconds"], row["images_per_second_per_chip"]
      cells += [
        f"{max(row['flops'], row['flops_counted']) / 1e12:.4g}",
        f"{row['bytes_moved'] / 1e9:.1f}",
        f"{sum(each['bytes'] for each in row['collectives']) / 1e6:.4g}",
        f"{1e3 * seconds['optimistic']:.1f}-{1e3 * seconds['pessimistic']:.1f}",
        f"{speed['pessimistic']:.1f}-{speed['optimistic']:.1f}",
        " / ".join(f"{100 * each:.1f} %" for each in efficiency(row, rows)),
      ]
    else:
      cells += ["does not fit", "", "", "", "", ""]
    lines.append(tuple(cells))
  widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
  text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
  note = (
    "GiB: needed, and of how many; MB sent: arrays in collectives; ms and images/s/chip: bounds, all overlapped and "
    "one after the other;\nefficiency: images/s/chip against the smallest slice of that chip, one after the other / "
    "overlapped."
  )
  return "\n".join([*text, note])


def efficiency(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
  """Pessimistic and optimistic images/s/chip as shares of those of the smallest slice that is alike and fits."""
  alike = [
    other for other in rows if other["fits"] and all(other[key] == row[key] for key in ("chip", "stage", "settings"))
  ]
  smallest = min(alike, key=lambda other: other["chips"])["images_per_second_per_chip"]
  speed = row["images_per_second_per_chip"]
  return speed["pessimistic"] / smallest["pessimistic"], speed["optimistic"] / smallest["optimistic"]


def _ms(seconds: float) -> str:
  return "unknown" if math.isnan(seconds) else f"{1e3 * seconds:.2f} ms"
