"""A demonstration on facades that come along, 64x64: nothing to download, minutes on two CPU cores.

  python run.py

Both stages are trained from nothing, then 24 photographs of other buildings are scored beside Telea's method and the
initial fill that the network starts from. Read runs/demo/report.md and look at runs/demo/samples when it is done.

What is left out makes it short: second fills and discriminator, which double a step and its compilation, and VGG16,
whose place the recognition encoder of stage 1 takes. Both stages learn faster than in a long run, and holes below a
tenth of the picture, where there is little to learn, are not drawn.
"""

from __future__ import annotations

import dataclasses

from gmsrm_jax.config import (
  SIZES,
  Config,
  DataConfig,
  EvalConfig,
  LossConfig,
  MaskConfig,
  RunConfig,
  StageConfig,
  VariationConfig,
)

LIMITS = (
  "This is a demonstration: minutes of training on few pictures show that both stages learn from nothing, and no more.",
  "It cannot show how good the method is. At 64x64 and after so few steps fills are soft, without texture and without "
  "objects of their own in large holes; second fills (`--num_samples`) and the discriminator are off. Whether the "
  "memory helps takes a twin without it. Few pictures and one seed leave wide intervals. docs/results.md of the "
  "project has longer trainings.",
)
"""Sentences that the report says of itself, whatever it was trained on."""


def get_config() -> Config:
  """64x64 pixels, both stages and the evaluation: about eight minutes of processor time, compilation included."""
  return Config(
    name="demo",
    model=dataclasses.replace(SIZES["tiny"], widths=(24, 48, 96)),
    variation=VariationConfig(enabled=False),
    mask=MaskConfig(area_min=0.1),
    data=DataConfig(train="demo"),
    loss=LossConfig(features="recognition", style=5.0, adversarial=0.0),
    stage1=StageConfig(steps=200, warmup=20, learning_rate=1e-3, ema_decay=0.98),
    stage2=StageConfig(steps=900, warmup=30, learning_rate=2e-3, ema_decay=0.98),
    # Each further baseline adds a fifth to the time of the evaluation.
    eval=EvalConfig(batch_size=8, baselines="telea,initial"),
    run=RunConfig(batch_size=8, log_every=50, save_every=300, panel_every=300),
  )
