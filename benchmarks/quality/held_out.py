"""Held-out images with the fixed holes of evaluation, for the comparisons of trained models."""

from __future__ import annotations

import dataclasses

from gmsrm_jax.config import Config
from gmsrm_jax.data import pipeline


def held_out(config: Config, images: str, masks: str = "") -> pipeline.EvaluationSet:
  """All images of a folder at the model's size; `masks` as eval.masks, packed ones taken by their index."""
  return pipeline.evaluation_set(
    dataclasses.replace(
      config,
      data=dataclasses.replace(config.data, val=images),
      eval=dataclasses.replace(
        config.eval, max_images=0, masks=masks, mask_bucket="index" if masks.endswith(".npz") else "area"
      ),
    )
  )
