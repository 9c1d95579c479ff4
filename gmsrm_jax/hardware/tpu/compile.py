"""Predicts what a training step needs on a TPU slice, from the real TPU compiler and without a TPU.

Both stages' steps are compiled as training compiles them, with the same shardings and donated state, for the devices
of a slice that is only named. What is printed and written: bytes per chip and whether they fit, operations, bytes
moved, every collective, and a roofline bound (see `roofline.py`).
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tabulate

from gmsrm_jax import overrides
from gmsrm_jax.config import Config
from gmsrm_jax.errors import require
from gmsrm_jax.files import git_commit, versions, write_json
from gmsrm_jax.hardware import measure
from gmsrm_jax.hardware.tpu import collectives, topologies
from gmsrm_jax.hardware.tpu.roofline import ASSUMPTIONS, roofline
from gmsrm_jax.hardware.tpu.topologies import Topology
from gmsrm_jax.parallel import sharding
from gmsrm_jax.training import loop
from gmsrm_jax.training.stages import planned_stages

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_GIB = 2.0**30
_WAYS_OUT = (
  "lower run.batch_size (or --batch_per_chip), raise run.accumulate or run.fsdp, or set "
  "run.remat=encoder,generator,decoder,discriminator,features"
)


def compile_steps(config: Config, names: Sequence[str], *, batch_per_chip: int | None, output: str | None) -> None:
  """Compiles each stage's step for each slice and prints what it needs; `output` is a JSON file or a folder.

  Results are written after each program, so that what was compiled is kept when the rest is interrupted.

  Raises:
    ConfigError: a slice, the settings or the compiler are not what they must be, or nothing fits; in the last case
      everything is printed and written first.
  """
  loop.check_settings(config)
  path = None
  if output is not None:
    path = pathlib.Path(output)
    path = path if path.suffix == ".json" else path / "compile.json"
    path.parent.mkdir(parents=True, exist_ok=True)
  slices = map(topologies.open_topology, names)
  jobs = [(topology, configure(config, topology, batch_per_chip)) for topology in slices]
  stages = planned_stages(config)
  programs: list[dict[str, Any]] = []
  counted: dict[tuple[str, int], float] = {}
  for topology, configured in jobs:
    for stage in stages:
      per_chip = configured.run.batch_size // len(topology.devices)
      print(f"compiling {stage} for {topology.name}, {per_chip} images a chip ...", flush=True)
      if (stage, per_chip) not in counted:
        counted[stage, per_chip] = measure.count_flops(configured, stage, per_chip)
      programs.append(compile_one(topology, configured, stage, counted[stage, per_chip]))
      print(describe(programs[-1]), flush=True)
      if path is not None:
        report = {"experiment": config.name, "commit": git_commit(), "versions": versions() | topologies.compiler()}
        write_json(path, {**report, "assumptions": ASSUMPTIONS, "programs": programs})
  print(table(programs))
  print("Assumptions: " + ";\n  ".join(ASSUMPTIONS) + ".")
  if path is not None:
    print(f"written to {path}")
  require(any(program["fits"] for program in programs), f"nothing fits: {_WAYS_OUT}")


def configure(config: Config, topology: Topology, batch_per_chip: int | None) -> Config:
  """The settings for a slice, checked: bfloat16 is what 'auto' means there, whatever this process runs on."""
  run = config.run
  if run.compute_dtype == "auto":
    run = dataclasses.replace(run, compute_dtype="bfloat16")
  if batch_per_chip is not None:
    run = dataclasses.replace(run, batch_size=batch_per_chip * len(topology.devices))
  config = dataclasses.replace(config, run=run)
  sharding.check_batch(config, sharding.make_mesh(config, topology.devices))
  return config


def compile_one(topology: Topology, config: Config, stage: str, counted: float) -> dict[str, Any]:
  """One row of the report; a program that does not fit has only its memory."""
  chip, mesh = topology.chip, sharding.make_mesh(config, topology.devices)
  per_chip = config.run.batch_size // mesh.size
  settings = overrides.to_dict(config.run)
  # Every second image is filled twice (see `variation`): pairs that lie on two chips are exchanged.
  odd = stage == "inpaint" and config.variation.enabled and per_chip % 2 == 1 and mesh.size > 1
  row: dict[str, Any] = {
    "topology": topology.name,
    "chip": chip.name,
    "chips": mesh.size,
    "mesh": dict(mesh.shape),
    "stage": stage,
    "batch_size": config.run.batch_size,
    "batch_per_chip": per_chip,
    "settings": {key: settings[key] for key in ("fsdp", "remat", "accumulate", "compute_dtype")},
    "odd_pairs": odd,
    "flops_counted": counted,
  }
  begin = time.monotonic()
  try:
    compiled = measure.lower_step(config, stage, mesh).compile()
  except jax.errors.JaxRuntimeError as error:
    needs = out_of_memory(str(error))
    if needs is None:
      raise
    memory = {"needed": needs[0], "available": needs[1]}
    return row | {"memory": memory, "fits": False, "compile_seconds": time.monotonic() - begin}
  row["compile_seconds"] = time.monotonic() - begin

  plan, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
  assert plan is not None and text is not None, "the TPU compiler tells both"
  memory = {
    "arguments": plan.argument_size_in_bytes,
    "temporaries": plan.temp_size_in_bytes,
    "outputs": plan.output_size_in_bytes,
    "aliased": plan.alias_size_in_bytes,  # outputs that take the place of donated arguments
    "code": plan.generated_code_size_in_bytes,
  }
  needed = sum(memory.values()) - 2 * memory["aliased"]
  sent = collectives.collectives(text, mesh.size)
  flops, moved = float(cost.get("flops", math.nan)), float(cost.get("bytes accessed", math.nan))
  # The larger of the two counts: the compiler's leaves out what it put into calls of its own.
  busiest = max(value for value in (flops, counted, 0.0) if not math.isnan(value))
  bound = roofline(chip, topology.shape, flops=busiest, bytes_moved=moved, collectives=sent)
  return row | {
    "memory": {**memory, "needed": needed, "available": chip.memory},
    "fits": needed <= chip.memory,
    "flops": flops,
    "bytes_moved": moved,
    "collectives": collectives.grouped(sent),
    "roofline_seconds": bound._asdict(),
    "images_per_second_per_chip": {
      "optimistic": per_chip / bound.optimistic,
      "pessimistic": per_chip / bound.pessimistic,
    },
  }


def out_of_memory(message: str) -> tuple[float, float] | None:
  """Bytes needed and available, from the TPU compiler's message that a program does not fit; None for others."""
  sizes = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
  if "RESOURCE_EXHAUSTED" not in message or sizes is None:
    return None
  return float(sizes[1]) * _UNITS[sizes[2]], float(sizes[3]) * _UNITS[sizes[4]]


def describe(row: Mapping[str, Any]) -> str:
  """Memory and collectives of one program; the table has the rest."""
  memory = row["memory"]
  lines = [f"compiled in {row['compile_seconds']:.0f} s"]
  if not row["fits"]:
    over = (memory["needed"] - memory["available"]) / _GIB
    lines.append(f"does not fit: {over:.2f} GiB too much; {_WAYS_OUT}")
  lines.append("GiB: " + ", ".join(f"{name} {size / _GIB:.2f}" for name, size in memory.items()))
  lines += [
    f"{each['kind']}: {each['count']} x over {each['group']} chips, {each['bytes'] / 1e6:.2f} MB"
    for each in row.get("collectives", ())
  ]
  if row["odd_pairs"]:
    lines.append("some pairs of stage 2 lie on two chips, which exchange activations: give a chip an even batch")
  return "\n".join(f"  {line}" for line in lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """One line a program."""
  cells = []
  for row in rows:
    memory = row["memory"]
    line = [row["topology"], row["stage"], row["chips"], f"{row['batch_per_chip']}/chip"]
    line.append(f"{memory['needed'] / _GIB:.2f} of {memory['available'] / _GIB:.2f}")
    if row["fits"]:
      seconds, speed = row["roofline_seconds"], row["images_per_second_per_chip"]
      line += [
        f"{row['flops'] / 1e12:.4g} / {row['flops_counted'] / 1e12:.4g}",
        f"{row['bytes_moved'] / 1e9:.1f}",
        f"{sum(each['bytes'] for each in row['collectives']) / 1e6:.4g}",
        f"{1e3 * seconds['optimistic']:.1f}-{1e3 * seconds['pessimistic']:.1f}",
        f"{speed['pessimistic']:.1f}-{speed['optimistic']:.1f}",
      ]
    else:
      line.append("does not fit")
    cells.append(line)
  heads = "topology, stage, chips, batch, GiB, TFLOP, GB, MB sent, ms, img/s/chip"
  return (
    tabulate.tabulate(cells, heads.split(", "), tablefmt="plain", disable_numparse=True)
    + "\nTFLOP: XLA cost analysis of the compiled / of the unoptimised program, the larger counts; MB sent: arrays in "
    "collectives;\nms and img/s/chip: bounds, all overlapped and one after the other."
  )
