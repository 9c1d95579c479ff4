"""--mode=train: trains both stages, then scores the held-out images."""

from __future__ import annotations

import pathlib

from gmsrm_jax.config import Config
from gmsrm_jax.evaluation.held_out import evaluate_weights
from gmsrm_jax.training import loop


def train(config: Config, workdir: str) -> None:
  """Trains what is not trained yet, then writes `report.md`; a finished run only says so.

  Raises:
    ConfigError: data, devices, checkpoint or settings do not fit.
    NonFiniteError: names the term and the step.
    Stopped: SIGTERM came, and everything is saved.
  """
  trained = loop.train(config, workdir)
  if trained is not None:
    weights, evaluation = trained
    evaluate_weights(config, weights, evaluation, pathlib.Path(workdir))
