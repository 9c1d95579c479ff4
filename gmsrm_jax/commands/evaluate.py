"""--mode=evaluate: scores the held-out images with trained weights, or pictures that lie in a folder."""

from __future__ import annotations

import argparse
import dataclasses

from gmsrm_jax import overrides
from gmsrm_jax.commands.flags import configuration, trained, workdir
from gmsrm_jax.config import EvalConfig
from gmsrm_jax.errors import require
from gmsrm_jax.evaluation import held_out
from gmsrm_jax.experiments import load
from gmsrm_jax.parallel import backend
from gmsrm_jax.training.run_folder import read_config


def run(flags: argparse.Namespace) -> None:
  """Runs the mode.

  Raises:
    ConfigError: the flags do not go together, or what they name cannot be scored.
  """
  folders = [name for name in ("images", "inpainted", "masks", "mask_invert") if getattr(flags, name)]
  if folders:
    _evaluate_folders(flags, folders[0])
    return
  output = flags.output or (workdir(flags) if flags.workdir or flags.experiment else "")
  require(output != "", "--mode=evaluate without --workdir scores weights that are no run: give --output, too")
  # Where a run is named its settings count, whichever weights are scored.
  described = workdir(flags) if flags.workdir or flags.experiment else trained(flags)
  config = overrides.override(read_config(described, flags.experiment), flags.set or [])
  backend.check(flags.platform)
  held_out.evaluate(config, trained(flags), output)


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
  held_out.evaluate_folders(
    config,
    experiment=flags.experiment,
    images=flags.images,
    inpainted=flags.inpainted,
    masks=flags.masks,
    output=flags.output,
    mask_invert=flags.mask_invert,
  )
