"""Trains variants that differ in one setting, and compares them image by image: which part of the model does what.

  python -m benchmarks.quality.ablation --output=DIR --experiment=paris --set data.train=DIR data.val=DIR ...

All variants see the same images, holes and steps. The same command again goes on where it was interrupted. A stage 1
whose settings another variant shares is trained once. `--jobs=2` trains two runs at once, each on half of the
CPU's cores. Differences are paired: the spread of the images drops out of their 95 % intervals (bootstrap over images,
of each image's mean over the seeds).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import functools
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import Config
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name
from gmsrm_jax.evaluation.distribution import interval
from gmsrm_jax.evaluation.held_out import METHOD

ROOT = pathlib.Path(__file__).resolve().parents[2]
LARGE = "40-60%"  # both buckets of large holes, image by image
METRICS = {"psnr": "PSNR, dB", "ssim": "SSIM", "lpips": "LPIPS"}


class Variant(NamedTuple):
  """A row of the table."""

  title: str
  changes: tuple[str, ...]
  seeds: int  # of the wanted ones, how many at most
  longer: bool = False  # stage 2 has the steps of stage 1 as well


class Run(NamedTuple):
  """A training run."""

  folder: pathlib.Path
  changes: list[str]  # settings
  stage_1: pathlib.Path | None = None  # folder of the run whose stage 1 is taken over


VARIANTS = {
  "full": Variant("full", (), 99),
  "no_memory": Variant("no memory, as many parameters", ("memory.enabled=false",), 99),
  "no_memory_longer": Variant("no memory, and the steps of stage 1 besides", ("memory.enabled=false",), 1, longer=True),
  "flat": Variant("flat codebook", ("memory.num_groups=1",), 1),
  "not_pretrained": Variant("codebook not pre-learned", ("memory.pretrain=false",), 1),
  # One step, because none is refused: what of the gain comes from a frozen network, whatever it has learned.
  "untrained": Variant("memory frozen after one step of stage 1", ("stage1.steps=1",), 1),
  "no_supervision": Variant("no retrieval supervision", ("loss.retrieval=0", "loss.read=0"), 1),
  "no_variation": Variant("no stochastic variation", ("variation.enabled=false",), 1),
}


def changes_of(name: str, base: Config, seed: int) -> list[str]:
  """The settings of a run; a flat codebook keeps the number of its slots."""
  variant = VARIANTS[name]
  changes = [*variant.changes, f"run.seed={seed}"]
  if name == "flat":
    changes.append(f"memory.slots_per_group={base.memory.num_slots}")
  if variant.longer:
    changes.append(f"stage2.steps={base.stage1.steps + base.stage2.steps}")
  return changes


def together(common: Sequence[str], changes: Sequence[str]) -> list[str]:
  """The settings of all runs with those of one, which win: no setting may be given twice."""
  changed = {change.partition("=")[0] for change in changes}
  return [*(change for change in common if change.partition("=")[0] not in changed), *changes]


def first_stage(config: Config) -> str:
  """The settings that stage 1 depends on: runs with equal text may share it. Empty where there is none."""
  if not (config.memory.enabled and config.memory.pretrain):
    return ""
  whole = overrides.to_dict(config)
  of_stage_2 = {"retrieval", "read", "retrieval_known", "hole", "valid", "style", "memory_image"}
  whole["loss"] = {name: value for name, value in whole["loss"].items() if name not in of_stage_2}
  for name in ("stage2", "variation", "eval"):
    del whole[name]
  return json.dumps(whole, sort_keys=True)


def plan(flags: argparse.Namespace, runs: dict[tuple[str, int], pathlib.Path]) -> tuple[list[Run], list[Run]]:
  """The runs that train a stage 1 of their own or need none, and those that take one over from them."""
  experiment = experiments.load(flags.experiment)
  base = overrides.override(experiment, flags.set)
  owners: dict[str, pathlib.Path] = {}
  own, shared = [], []
  for (name, seed), folder in runs.items():
    changes = changes_of(name, base, seed)
    stage = first_stage(overrides.override(experiment, together(flags.set, changes)))
    if stage in owners:
      shared.append(Run(folder, changes, owners[stage]))
    else:
      own.append(Run(folder, changes))
      if stage:
        owners[stage] = folder
  return own, shared


def train(flags: argparse.Namespace, run: Run) -> None:
  """Trains and evaluates a run as far as it is not yet."""
  if run.stage_1 and not run.folder.exists():
    copy = run.folder.with_name(run.folder.name + ".incomplete")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run.stage_1 / "checkpoints" / "memory", copy / "checkpoints" / "memory")
    copy.rename(run.folder)
  print(f"--- {run.folder.name}: {' '.join(run.changes)}", flush=True)
  command = [sys.executable, str(ROOT / "run.py"), f"--experiment={flags.experiment}", f"--platform={flags.platform}"]
  command += [f"--workdir={run.folder}", "--set", *together(flags.set, run.changes)]
  if flags.jobs == 1:
    subprocess.run(command, check=True)
  else:
    with run.folder.with_name(run.folder.name + ".log").open("a", encoding="utf-8") as log:
      subprocess.run(command, check=True, stdout=log, stderr=log)


def usable_cores() -> list[int]:
  """The cores that this process may use; only Linux can hand them out, elsewhere there is nothing to share."""
  return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def train_all(flags: argparse.Namespace, runs: dict[tuple[str, int], pathlib.Path]) -> None:
  """Trains and evaluates what is not yet, so many runs at once, each on cores of its own."""
  free = queue.SimpleQueue()
  for job in range(flags.jobs):
    free.put(usable_cores()[job :: flags.jobs])

  def settle() -> None:
    if flags.jobs > 1:
      # Of this thread alone: the processes that it starts inherit it.
      os.sched_setaffinity(0, free.get())

  with concurrent.futures.ThreadPoolExecutor(flags.jobs, initializer=settle) as pool:
    for part in plan(flags, runs):
      list(pool.map(functools.partial(train, flags), part))


def scores(folder: pathlib.Path) -> dict[str, dict[str, dict[str, float]]]:
  """bucket -> metric -> image -> value of a finished run."""
  found: dict[str, dict[str, dict[str, float]]] = {}
  with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
    for row in csv.DictReader(file):
      if row["method"] == METHOD:
        for metric in METRICS:
          found.setdefault(row["bucket"], {}).setdefault(metric, {})[row["image"]] = float(row[metric])
  forties, fifties = found["40-50%"], found["50-60%"]
  found[LARGE] = {
    metric: {image: (value + fifties[metric][image]) / 2 for image, value in forties[metric].items()}
    for metric in METRICS
  }
  return found


def per_image(folders: Sequence[pathlib.Path], bucket: str, metric: str) -> dict[str, float]:
  """Each image's mean over the seeds."""
  seeds = [scores(folder)[bucket][metric] for folder in folders]
  return {image: float(np.mean([seed[image] for seed in seeds])) for image in seeds[0]}


def compare(runs: dict[tuple[str, int], pathlib.Path]) -> dict[str, dict[str, dict[str, dict[str, object]]]]:
  """variant -> bucket -> metric -> mean, seeds, and what the full model has more, with the interval of that."""
  names = list(dict.fromkeys(name for name, _ in runs))
  table: dict[str, dict[str, dict[str, dict[str, object]]]] = {}
  for name in names:
    for bucket in [*map(bucket_name, BUCKETS), LARGE]:
      row = table.setdefault(name, {}).setdefault(bucket, {})
      for metric in METRICS:
        # Against the full model of the same seeds.
        seeds = [seed for other, seed in runs if other == name and ("full", seed) in runs]
        mine = [runs[name, seed] for other, seed in runs if other == name]
        values = per_image(mine, bucket, metric)
        of_seeds = [float(np.mean(list(scores(folder)[bucket][metric].values()))) for folder in mine]
        row[metric] = {"mean": float(np.mean(list(values.values()))), "seeds": of_seeds}
        if name != "full" and seeds:
          whole = per_image([runs["full", seed] for seed in seeds], bucket, metric)
          values = per_image([runs[name, seed] for seed in seeds], bucket, metric)
          ahead = [whole[image] - values[image] for image in whole]
          row[metric] |= {"full_minus_this": float(np.mean(ahead)), "interval": interval(ahead)}
      kid = [json.loads((folder / "report.json").read_text())["distribution"][METHOD] for folder in mine]
      if bucket != LARGE:
        row["kid_vgg16"] = {"mean": float(np.mean([of[bucket]["kid_vgg16"] for of in kid if bucket in of]))}
  return table


def as_markdown(table: dict[str, dict[str, dict[str, dict[str, object]]]]) -> str:
  """One table per metric; behind the mean stands what the full model has more ± half the width of its interval.

  Bold where the interval leaves out 0.
  """
  parts = []
  for metric, title in {**METRICS, "kid_vgg16": "KID on VGG16 features"}.items():
    buckets = [*map(bucket_name, BUCKETS), *([LARGE] if metric in METRICS else [])]
    lines = [f"**{title}**", "", f"| | {' | '.join(buckets)} |", "|---" * (len(buckets) + 1) + "|"]
    for name, rows in table.items():
      cells = []
      for bucket in buckets:
        value = rows[bucket][metric]
        cell = f"{value['mean']:.{2 if metric == 'psnr' else 3}f}"
        if "interval" in value:
          low, high = value["interval"]  # pyright: ignore[reportGeneralTypeIssues]
          digits = 2 if metric == "psnr" else 4
          ahead = f"{value['full_minus_this']:+.{digits}f} ± {(high - low) / 2:.{digits}f}"
          cell += f" ({f'**{ahead}**' if low > 0 or high < 0 else ahead})"
        cells.append(cell)
      lines.append(f"| {VARIANTS[name].title} | {' | '.join(cells)} |")
    parts.append("\n".join(lines))
  return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
  """Trains what is missing, then prints the tables and writes ablation.md and ablation.json."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--output", required=True, metavar="DIR", help="folder of all runs and of the tables")
  parser.add_argument("--experiment", default="demo")
  parser.add_argument("--platform", default="auto")
  parser.add_argument("--seeds", type=int, default=3, help="of the full model and of its twin without memory")
  parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
  parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings of all runs")
  parser.add_argument("--jobs", type=int, default=1, help="runs at once, the CPU's cores shared out; output in *.log")
  flags = parser.parse_args(argv)
  if not 1 <= flags.jobs <= len(usable_cores()):
    parser.error(f"--jobs={flags.jobs} is out of range: choose from 1 to {len(usable_cores())}, the cores at hand")

  output = pathlib.Path(flags.output)
  runs = {
    (name, seed): output / f"{name}_{seed}"
    for name in flags.variants
    for seed in range(flags.seeds)
    if seed < VARIANTS[name].seeds
  }
  output.mkdir(parents=True, exist_ok=True)
  train_all(flags, runs)
  table = compare(runs)
  text = as_markdown(table)
  (output / "ablation.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
  (output / "ablation.md").write_text(text, encoding="utf-8")
  print(text)


if __name__ == "__main__":
  main()
