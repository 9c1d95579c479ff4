"""One documented file per experiment, each with `get_config()`; adding a file adds the experiment.

The package has this folder as `gmsrm_jax.experiments`.
"""

from __future__ import annotations

import importlib
import pathlib

from gmsrm_jax.config import Config
from gmsrm_jax.errors import require, suggest


def names() -> list[str]:
  """Every experiment of this folder."""
  return sorted(path.stem for path in pathlib.Path(__file__).parent.glob("[!_]*.py"))


def load(name: str) -> Config:
  """The configuration of an experiment.

  Raises:
    ConfigError: there is no such experiment.
  """
  known = names()
  require(name in known, f"--experiment={name} is unknown: {suggest(name, known)}choose from {', '.join(known)}")
  return importlib.import_module(f"{__name__}.{name}").get_config()


def limits(name: str) -> list[str]:
  """Returns what the report of an experiment must say of itself: the `LIMITS` of its file, where there are any."""
  module = importlib.import_module(f"{__name__}.{name}") if name in names() else None  # a run may outlive its file
  return [*getattr(module, "LIMITS", ())]
