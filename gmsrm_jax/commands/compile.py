"""--mode=compile: compiles the training steps for TPU slices that are not here."""

from __future__ import annotations

import argparse

from gmsrm_jax.commands.flags import configuration
from gmsrm_jax.errors import require
from gmsrm_jax.hardware.tpu.compile import compile_steps
from gmsrm_jax.parallel import backend


def run(flags: argparse.Namespace) -> None:
  """Runs the mode.

  Raises:
    ConfigError: the flags do not go together, or no program can be compiled.
  """
  require(
    flags.platform in ("auto", "cpu"),
    f"--platform={flags.platform} is not read by --mode=compile, which compiles on the CPU: leave it out",
  )
  require(
    flags.batch_per_chip is None or not any(item.startswith("run.batch_size=") for item in flags.set or []),
    "--batch_per_chip and run.batch_size say the same twice: leave one of the two out",
  )
  config = configuration(flags)
  backend.check("cpu")
  backend.use_compile_cache("off")  # programs for devices that are not here cannot be read back
  compile_steps(config, flags.topology, batch_per_chip=flags.batch_per_chip, output=flags.output)
