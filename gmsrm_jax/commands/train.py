"""--mode=train: trains both stages, then scores the held-out images."""

from __future__ import annotations

import argparse
import functools
import pathlib

from gmsrm_jax.commands.flags import configuration, workdir
from gmsrm_jax.parallel import backend, processes


def run(flags: argparse.Namespace) -> None:
  """Trains what is not trained yet, then writes `report.md`; a finished run only says so.

  Raises:
    ConfigError: data, devices, checkpoint or settings do not fit, or another process works in the folder.
    NonFiniteError: names the term and the step.
    Stopped: SIGTERM or Ctrl-C came, and everything is saved.
  """
  import jax

  config, folder = configuration(flags), workdir(flags)
  backend.keep_freed_memory()
  processes.start(flags.platform, flags.coordinator, flags.num_processes, flags.process_id)
  backend.check(flags.platform)
  if jax.process_index() == 0:
    print(f"{config.name}: starting", flush=True)
  # Seconds of imports, after everything that is refused without them.
  from gmsrm_jax.commands.evaluate import evaluate_weights
  from gmsrm_jax.training import loop

  loop.train(config, folder, functools.partial(evaluate_weights, config, pathlib.Path(folder)))
