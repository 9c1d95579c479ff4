"""The folder of a run: `config.json` with settings, images, code and packages, and the overview on the console."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import os
import pathlib
import sys
from typing import Any

import clu.parameter_overview
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gmsrm_jax import overrides
from gmsrm_jax.config import Config
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import git_commit, local_path, read_json, versions, write_json
from gmsrm_jax.training.stages import planned_stages, work_left
from gmsrm_jax.training.state import compute_dtype, make_networks

# Forward operations per second and core that a training on a CPU gets through in stage 1: measured with `street` on two
# cores; a step of `base` costs less per forward operation, so its estimate errs upwards by up to a third.
_CPU_RATE = 1e10

REPORT = "report"
"""Stem of the files that an evaluation writes."""


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns the `config.json` of a run or an export: 'config', 'splits' and more. Raises ConfigError without these."""
  path = pathlib.Path(folder) / "config.json"
  require(
    path.is_file(),
    f"{folder} holds no config.json: train there first (python run.py trains runs/demo), or name a folder that was",
  )
  described = read_json(path)
  require(
    isinstance(described, dict) and {"config", "splits"} <= described.keys(),
    f"{path} describes no run: it has no 'config' and 'splits'; restore it, or use another folder",
  )
  return described


def read_config(folder: str | os.PathLike[str], experiment: str | None = None) -> Config:
  """Returns the settings of a run or an export. Raises ConfigError for another experiment than the one asked for."""
  config = overrides.from_dict(read_run(folder)["config"])
  require(
    experiment in (None, config.name),
    f"{folder} holds experiment {config.name!r}, not {experiment!r}: leave out --experiment",
  )
  return config


def data_facts(
  config: Config, training: sources.ImageSource | None, evaluation: pipeline.EvaluationSet
) -> dict[str, dict[str, Any]]:
  """Returns hash and number of images of both splits, and the hashes of the folders that holes are drawn from.

  `training` is None where data.synthetic stands in for it.
  """
  train_hash = "synthetic" if training is None else sources.split_hash(training)
  folders = {"objects": config.mask.objects_folder, "occlusions": config.mask.occlusions_folder}
  holes = {kind: _hash_of_holes(kind, folder) for kind, folder in folders.items() if config.mask.weights[kind] > 0}
  return {
    "splits": {"train": train_hash, "val": sources.split_hash(evaluation.source), **holes},
    "images": {"train": 0 if training is None else len(training), "val": len(evaluation)},
  }


def _hash_of_holes(kind: str, folder: str) -> str:
  setting = f"mask.{kind}_folder"
  paths, root = hole_files.mask_paths(folder, setting), local_path(folder, setting)
  return sources.files_hash([str(path.relative_to(root)) for path in paths], [path.stat().st_size for path in paths])


def common_facts(config: Config, data: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """Returns what all processes of a run must have in common; each may find the same images in another place."""
  code = b"".join(path.read_bytes() for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")))
  settings = overrides.to_dict(config)
  for name in ("train", "val"):
    del settings["data"][name]
  facts = {"versions": versions(), "config": settings, "images": data["splits"]}
  return {"code": hashlib.sha256(code).hexdigest(), **facts}


def lengthened(config: Config, root: pathlib.Path) -> Config:
  """Returns the settings that a begun stage 2 goes on with: where it was made longer, what has begun does not end.

  The learning rate follows the curve of the new length from here on.
  """
  was, now = read_config(root).stage2, config.stage2
  phase_steps = was.phase_steps or (was.steps if now.steps > was.steps else 0)
  return dataclasses.replace(config, stage2=dataclasses.replace(now, phase_steps=now.phase_steps or phase_steps))


def describe_run(config: Config, root: pathlib.Path, data: dict[str, dict[str, Any]], *, free: tuple[str, ...]) -> None:
  """Writes `config.json`; on resume compares with the one that is there.

  Settings that begin with `free` may differ, and those of folders whose contents are the same.

  Raises:
    ConfigError: the folder holds a run of other settings or other images.
  """
  path = root / "config.json"
  if path.exists():
    before = read_run(root)
    hashes = before["splits"]  # of what lies in folders, which may lie elsewhere now
    free = (*free, "data.train", "data.val", "data.layout", *(f"mask.{kind}_folder" for kind in hashes))
    was = overrides.from_dict(before["config"])
    if os.path.realpath(was.run.init_from) == os.path.realpath(config.run.init_from):
      free = (*free, "run.init_from")  # written otherwise
    if config.stage2.steps > was.stage2.steps:
      free = (*free, "stage2.steps", "stage2.phase_steps")
    different = overrides.differences(was, config)
    changed = [line for line in different if not line.startswith(free)]
    require(
      not changed,
      f"{root} holds a run with other settings ({'; '.join(changed)}): use another --workdir, or the old settings",
    )
    others = [_folder_of(config, kind) for kind in hashes if data["splits"].get(kind) != hashes[kind]]
    require(
      not others,
      f"{root} was begun with other images than there are now in {' and '.join(others)} (names or sizes differ): "
      "bring them back or use another --workdir",
    )
  if jax.process_index() > 0:
    return
  # A finished run keeps saying which code made it, whichever code looks at it now.
  if not finished(config, root):
    device = {"kind": jax.devices()[0].device_kind, "count": jax.device_count()}
    made_by = {"commit": git_commit(), "versions": versions(), "device": device}
    write_json(path, {"config": overrides.to_dict(config), **data, **made_by})
  counts, hashes = data["images"], data["splits"]
  print(
    f"{config.name}: {counts['train']} training images ({hashes['train'][:12]}), {counts['val']} held out "
    f"({hashes['val'][:12]})"
  )


def _folder_of(config: Config, kind: str) -> str:
  """Returns the setting that names the folder of a hash, with its value."""
  if kind == "val" and not config.data.val:
    return f"the held-out part of data.train={config.data.train}"
  if kind in ("train", "val"):
    return f"data.{kind}={getattr(config.data, kind)}"
  return f"mask.{kind}_folder={getattr(config.mask, f'{kind}_folder')}"


def print_overview(config: Config, mesh: Mesh, root: pathlib.Path) -> None:
  """Prints devices, parameters and operations of the networks; warns where a CPU would need days."""
  network = make_networks(config).inpaint
  size = config.model.image_size
  image, mask = jnp.zeros((1, size, size, 3)), jnp.ones((1, size, size, 1))
  params = jax.eval_shape(network.init, jax.random.key(0), image, mask)
  cost = jax.jit(network.apply).lower(params, image, mask).cost_analysis() or {}
  sizes = collections.Counter()
  for name, subtree in params["params"].items():
    sizes[name.split("_")[0]] += clu.parameter_overview.count_parameters(subtree)
  print(
    f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, "
    f"computing in {jnp.dtype(compute_dtype(config)).name}"
  )
  print(
    f"inpainter: {sizes.total() / 1e6:.2f} M parameters ("
    + ", ".join(f"{name} {number / 1e6:.2f}" for name, number in sizes.items())
    + f"), {cost.get('flops', math.nan) / 1e9:.2f} GFLOP forward per {size}x{size} image\nwriting to {root}"
  )
  steps = sum(work_left(config, stage) for stage in planned_stages(config))
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS lacks it
  days = steps * config.run.batch_size * cost.get("flops", math.nan) / (_CPU_RATE * cores) / 86400
  if jax.default_backend() == "cpu" and days > 1:
    print(
      f"warning: {config.name} has the schedule of an accelerator: about {days:.0f} days on these {cores} cores. Use "
      "--experiment=street, which is made for CPUs (any folder of photographs, two hours on two cores), --platform=gpu "
      "or tpu, or fewer steps: stage1.steps=1500 stage2.steps=7600",
      file=sys.stderr,
    )


def finished(config: Config, root: pathlib.Path) -> bool:
  """Returns True where both stages have run to their end and were scored; a report that is cut off counts as none."""
  try:
    report = read_json(root / f"{REPORT}.json")
  except (FileNotFoundError, ConfigError):
    return False
  whole = isinstance(report, dict) and (root / f"{REPORT}.md").exists()  # which earlier versions wrote last
  return whole and report.get("step") == config.stage2.steps


def print_finished(config: Config, workdir: str) -> None:
  """Says that a run is finished, and what can be done next."""
  print(
    f"{workdir} is finished: read {workdir}/{REPORT}.md\n"
    f"  fill pictures:      python run.py inpaint --workdir={workdir} --images=DIR --masks=DIR --output=DIR\n"
    f"  train it further:   the same command with --set stage2.steps={2 * config.stage2.steps}\n"
    "  train another one:  the same command with another --workdir"
  )
