"""--mode=evaluate: scores the held-out images with trained weights, or pictures that lie in a folder.

One code path for the end of a training run, for a checkpoint later and for folders of files.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

from gmsrm_jax import files, overrides
from gmsrm_jax.commands.flags import configuration, trained, workdir
from gmsrm_jax.config import Config, EvalConfig
from gmsrm_jax.data import pipeline
from gmsrm_jax.errors import require
from gmsrm_jax.evaluation.baselines import Fill, baselines
from gmsrm_jax.evaluation.from_files import FolderPictures
from gmsrm_jax.evaluation.held_out import METHOD, HeldOutPictures, make_fill
from gmsrm_jax.evaluation.protocols import PROTOCOLS
from gmsrm_jax.evaluation.report import make_report, report_files, summary, write_report
from gmsrm_jax.evaluation.scorer import Scores, make_feature_measure, make_measure, score, score_judged
from gmsrm_jax.experiments import load
from gmsrm_jax.parallel import backend
from gmsrm_jax.training.curves import draw_curves
from gmsrm_jax.training.run_folder import REPORT, read_config
from gmsrm_jax.training.weights import Weights, load_weights


def run(flags: argparse.Namespace) -> None:
  """Runs the mode.

  Raises:
    ConfigError: the flags do not go together, or what they name cannot be scored.
  """
  backend.keep_freed_memory()
  folders = [name for name in ("images", "inpainted", "masks", "mask_invert") if getattr(flags, name)]
  if folders:
    _evaluate_folders(flags, folders[0])
    return
  output = flags.output or (workdir(flags) if flags.workdir or flags.experiment else "")
  require(
    output != "",
    "--mode=evaluate needs the run that is scored: give --workdir=runs/mine; or --output=DIR, to score other weights "
    "(--checkpoint, or those that come along); or --images, --inpainted, --masks and --output, to score pictures",
  )
  # Where a run is named its settings count, whichever weights are scored.
  described = workdir(flags) if flags.workdir or flags.experiment else trained(flags)
  config = overrides.override(read_config(described, flags.experiment), flags.set or [])
  backend.check(flags.platform)
  backend.use_compile_cache(config.run.compile_cache)
  print(f"loading the weights of {trained(flags)}", flush=True)
  weights = load_weights(config, pathlib.Path(trained(flags)))
  evaluate_weights(config, pathlib.Path(output), weights, pipeline.evaluation_set(config))


def evaluate_weights(config: Config, root: pathlib.Path, weights: Weights, evaluation: pipeline.EvaluationSet) -> None:
  """Scores the model on the held-out images, and writes a panel of fills per bucket and the report."""
  fills = {METHOD: make_fill(config, weights.params), **baselines(config.eval.baselines)}
  pictures = HeldOutPictures(config, evaluation, weights)
  if (root / "metrics.jsonl").exists():
    draw_curves(root)
  _report(config.eval, pictures, fills, root)
  print(f"pictures: {root / 'samples'}, {root / REPORT}.png")


def _evaluate_folders(flags: argparse.Namespace, first: str) -> None:
  for name in ("images", "inpainted", "output"):
    require(
      bool(getattr(flags, name)),
      f"--{first} with --mode=evaluate scores files and needs --{name}, too: --images (truth), --inpainted, --output, "
      "and --masks where there are holes",
    )
  for name in ("workdir", "checkpoint"):
    require(
      not getattr(flags, name),
      f"--{name} is not read where --inpainted names pictures to score: leave one of the two out",
    )
  require(not flags.mask_invert or bool(flags.masks), "--mask_invert without --masks inverts nothing: give --masks")
  if flags.experiment:
    config = configuration(flags)
  else:  # nothing but the settings' own defaults is meant
    config = overrides.override(dataclasses.replace(load("demo"), eval=EvalConfig()), flags.set or [])
  backend.check(flags.platform)
  pictures = FolderPictures(flags.images, flags.inpainted, flags.masks, invert=flags.mask_invert, settings=config.eval)
  root = pathlib.Path(flags.output)
  files.check_inputs_stay(report_files(root), pictures.files())
  _report(config.eval, pictures, baselines(pictures.baselines), root)


def _report(
  config: EvalConfig,
  pictures: HeldOutPictures | FolderPictures,
  fills: Mapping[str, Fill],
  root: pathlib.Path,
) -> None:
  clock = [time.perf_counter()]
  held_out = isinstance(pictures, HeldOutPictures)
  protocol = PROTOCOLS[config.protocol] if held_out else pictures.protocol
  protocol.check(*pictures.least_size)
  print(f"scoring {len(pictures)} pictures, {len(fills)} fills beside them; programs take half a minute", flush=True)
  if held_out:
    measure = make_measure(config)
    scores = score(pictures, fills, measure.program, config.batch_size, pictures.watch)
    pictures.save_panels(root / "samples")
  else:
    measure = make_feature_measure(config, protocol, has_vgg16=pictures.is_whole)
    clock.append(time.perf_counter())
    scores = score_judged(pictures, measure.program, protocol, config.batch_size)
    clock.append(time.perf_counter())
  head = pictures.describe()
  head["notes"] = [*head["notes"], measure.note]
  head["protocol"] = {**protocol.describe(*pictures.least_size), **head["protocol"]}
  head |= {"weights": measure.weights, "commit": files.git_commit(), "versions": files.versions()}
  report = make_report(head, scores)
  write_report(root, report, pictures.read_again, fills, scores)
  print(summary(report))
  if scores.seconds:
    _print_time([*clock, time.perf_counter()], scores)
  print(f"report: {root / REPORT}.md")
  if not report["self_check"]["passed"]:
    print(f"warning: the self-check of these numbers failed: see {root / REPORT}.md", file=sys.stderr)


def _print_time(clock: Sequence[float], scores: Scores) -> None:
  """Prints what took the time, from the start, the first picture, the last and the end."""
  began, first, last, end = clock
  own = {"loading": first - began, **scores.seconds, "report": end - last}

  def listed(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{what} {spent:.0f} s" for what, spent in collections.Counter(seconds).most_common())

  others = listed(scores.seconds_of_others)
  print(f"time: {end - began:.0f} s: {listed(own)}; meanwhile, where pictures are judged: {others}")
