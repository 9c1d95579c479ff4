"""--mode=benchmark: measures how fast this machine is, or lays measurements side by side."""

from __future__ import annotations

import argparse

from gmsrm_jax import experiments
from gmsrm_jax.errors import require
from gmsrm_jax.parallel import backend


def run(flags: argparse.Namespace) -> None:
  """Runs the mode.

  Raises:
    ConfigError: the flags do not go together, or a file or setting does not fit.
  """
  if flags.compare:
    for name in ("set", "output", "sizes", "batches", "experiment"):
      require(getattr(flags, name) is None, f"--{name} is not read with --compare: leave one of the two out")
    from gmsrm_jax.hardware import compare

    print(compare.compare(flags.compare))
    return
  backend.keep_freed_memory()
  backend.check(flags.platform)
  from gmsrm_jax.hardware import benchmark

  experiment = experiments.load(flags.experiment or "demo")
  benchmark.benchmark(experiment, flags.set or [], flags.sizes, flags.batches, flags.output)
