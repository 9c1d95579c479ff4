"""One file per experiment, each with `get_config()`; adding a file adds the experiment."""

from __future__ import annotations

import importlib
import pathlib

from gmsrm_jax.config import Config, require, suggest


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
  return importlib.import_module(f"experiments.{name}").get_config()
