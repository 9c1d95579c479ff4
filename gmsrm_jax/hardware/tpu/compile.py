"""--mode=compile: what a training step needs on a TPU slice, from the real TPU compiler and without a TPU.

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
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gmsrm_jax import overrides
from gmsrm_jax.config import Config
from gmsrm_jax.errors import require
from gmsrm_jax.files import git_commit, versions, write_json
from gmsrm_jax.hardware.tpu import collectives, topologies
from gmsrm_jax.hardware.tpu import report as compile_report
from gmsrm_jax.hardware.tpu.roofline import ASSUMPTIONS, roofline
from gmsrm_jax.hardware.tpu.topologies import Topology
from gmsrm_jax.parallel import sharding
from gmsrm_jax.pretrained import features
from gmsrm_jax.training import loop, steps
from gmsrm_jax.training.checkpoint import with_shardings
from gmsrm_jax.training.state import has_memory_stage

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class _Job:
  """One slice with its settings, checked."""

  slice: Topology
  config: Config
  mesh: Mesh


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
  jobs = [_prepare(config, topologies.open_topology(name), batch_per_chip) for name in names]
  stages = ("memory", "inpaint") if has_memory_stage(config) and not config.run.init_from else ("inpaint",)
  report = {
    "experiment": config.name,
    "commit": git_commit(),
    "versions": versions() | topologies.compiler_version(),
    "assumptions": list(ASSUMPTIONS),
    "programs": [],
  }
  counted: dict[tuple[str, int], float] = {}
  for job in jobs:
    for stage in stages:
      per_chip = job.config.run.batch_size // job.mesh.size
      print(f"compiling {stage} for {job.slice.name}, {per_chip} images a chip ...", flush=True)
      if (stage, per_chip) not in counted:
        counted[stage, per_chip] = counted_flops(job.config, stage, per_chip)
      row = compile_one(job, stage, counted[stage, per_chip])
      report["programs"].append(row)
      print(compile_report.program_text(row), flush=True)
      if path is not None:
        write_json(path, report)
  print(compile_report.table(report["programs"]))
  print("Assumptions: " + ";\n  ".join(ASSUMPTIONS) + ".")
  if path is not None:
    print(f"written to {path}")
  missing = [row for row in report["programs"] if not row["fits"]]
  require(
    len(missing) < len(report["programs"]),
    "nothing fits: lower run.batch_size (or --batch_per_chip), raise run.accumulate or run.fsdp, or set run.remat",
  )


def _prepare(config: Config, found: Topology, batch_per_chip: int | None) -> _Job:
  """The settings for a slice: bfloat16 is what 'auto' means there, whatever this process runs on."""
  run = config.run
  if run.compute_dtype == "auto":
    run = dataclasses.replace(run, compute_dtype="bfloat16")
  if batch_per_chip is not None:
    run = dataclasses.replace(run, batch_size=batch_per_chip * len(found.devices))
  config = dataclasses.replace(config, run=run)
  mesh = sharding.make_mesh(config, found.devices)
  sharding.check_batch(config, mesh)
  return _Job(found, config, mesh)


def lower_step(config: Config, stage: str, mesh: Mesh) -> jax.stages.Lowered:
  """The stage's whole step for abstract arguments: shapes, types and where they live."""
  target = with_shardings(config, stage, mesh)
  size, split, whole = config.model.image_size, sharding.batch_sharding(mesh), sharding.replicated(mesh)
  batch = {
    name: jax.ShapeDtypeStruct((config.run.batch_size, size, size, channels), jnp.uint8, sharding=split)
    for name, channels in (("image", 3), ("mask", 1))
  }
  params: Any = {}
  if config.loss.features == "vgg16" and (config.loss.perceptual > 0 or config.loss.style > 0):
    params = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), features.load_vgg16()
    )
  step = loop.compile_step(config, stage, mesh, target, steps.Phase(adversarial=config.loss.adversarial > 0))
  return step.lower(target, batch, params)


def counted_flops(config: Config, stage: str, batch: int) -> float:
  """Operations of the step for so many images on one device, counted before any compiler has changed it.

  The second opinion on the compiler's own count; a loop's body would count once, so the batch is in one part.
  """
  run = dataclasses.replace(config.run, batch_size=batch + batch % 2, fsdp=1, accumulate=1)
  config = dataclasses.replace(config, run=run)
  cost = lower_step(config, stage, sharding.make_mesh(config, jax.local_devices()[:1])).cost_analysis()
  return math.nan if cost is None else float(cost["flops"]) * batch / run.batch_size


def compile_one(job: _Job, stage: str, counted: float) -> dict[str, Any]:
  """One row of the report; a program that does not fit has only its memory."""
  config, chip = job.config, job.slice.chip
  row: dict[str, Any] = {
    "topology": job.slice.name,
    "chip": chip.name,
    "chips": job.mesh.size,
    "mesh": dict(job.mesh.shape),
    "stage": stage,
    "batch_size": config.run.batch_size,
    "batch_per_chip": config.run.batch_size // job.mesh.size,
    "settings": {
      key: value
      for key, value in overrides.to_dict(config.run).items()
      if key in ("fsdp", "remat", "accumulate", "compute_dtype")
    },
    # Every second image is filled twice (see `variation`): pairs that lie on two chips are exchanged.
    "odd_pairs": bool(
      stage == "inpaint"
      and config.variation.enabled
      and config.run.batch_size // job.mesh.size % 2
      and job.mesh.size > 1
    ),
    "memory": {"available": chip.memory},
    "flops_counted": counted,
  }
  begin = time.monotonic()
  lowered = lower_step(config, stage, job.mesh)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needs = out_of_memory(str(error))
    if needs is None:
      raise
    row["memory"] = {"needed": needs[0], "available": needs[1]}
    return row | {"fits": False, "compile_seconds": time.monotonic() - begin}
  row["compile_seconds"] = time.monotonic() - begin

  memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis() or {}, compiled.as_text()
  assert memory is not None and text is not None, "the TPU compiler tells both"
  parts = {
    "arguments": memory.argument_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "outputs": memory.output_size_in_bytes,
    "aliased": memory.alias_size_in_bytes,
    "code": memory.generated_code_size_in_bytes,
  }
  needed = sum(parts.values()) - 2 * parts["aliased"]
  row["memory"] |= {**parts, "needed": needed}
  found = collectives.collectives(text, job.mesh.size)
  flops, moved = float(cost.get("flops", math.nan)), float(cost.get("bytes accessed", math.nan))
  # The larger of the two counts: the compiler's leaves out what it put into calls of its own.
  busiest = max(value for value in (flops, counted, 0.0) if not math.isnan(value))
  bound = roofline(chip, job.slice.shape, flops=busiest, bytes_moved=moved, collectives=found)
  row |= {
    "fits": needed <= chip.memory,
    "flops": flops,
    "bytes_moved": moved,
    "collectives": compile_report.grouped(found),
    "largest_collectives": [each._asdict() for each in sorted(found, key=lambda each: -each.bytes * each.times)[:10]],
    "roofline_seconds": {**bound._asdict(), "optimistic": bound.optimistic, "pessimistic": bound.pessimistic},
    "images_per_second_per_chip": {
      "optimistic": row["batch_per_chip"] / bound.optimistic,
      "pessimistic": row["batch_per_chip"] / bound.pessimistic,
    },
  }
  if cost.get("optimal_seconds", -1.0) > 0:  # it has come out negative
    row["compiler_seconds"] = float(cost["optimal_seconds"])
  return row


def out_of_memory(message: str) -> tuple[float, float] | None:
  """Bytes needed and available, from the TPU compiler's message that a program does not fit; None for others."""
  found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
  if "RESOURCE_EXHAUSTED" not in message or found is None:
    return None
  return float(found[1]) * _UNITS[found[2]], float(found[3]) * _UNITS[found[4]]
