"""Experiments small enough for tests."""

from __future__ import annotations

import dataclasses

from gmsrm_jax.config import Config, ModelConfig, StageConfig, VariationConfig


def shrink(config: Config) -> Config:
  """The same experiment, tiny and short, with every term from the start."""

  def short(stage: StageConfig) -> StageConfig:
    return dataclasses.replace(stage, steps=min(4, stage.steps), warmup=min(1, stage.warmup), adversarial_start=0.0)

  return dataclasses.replace(
    config,
    model=ModelConfig("tiny", 32, (8, 16, 16), 1, 1, 2, 8, 2),
    memory=dataclasses.replace(
      config.memory,
      num_groups=4,
      slots_per_group=4,
      slot_dim=16,
      heads=2,
      revive_every=min(2, config.memory.revive_every),
    ),
    data=dataclasses.replace(config.data, threads=1, workers=0, prefetch=2),
    variation=VariationConfig(),
    loss=dataclasses.replace(config.loss, features="recognition", feature_crop=0, style=5.0, adversarial=0.3),
    stage1=short(config.stage1),
    stage2=short(config.stage2),
    eval=dataclasses.replace(config.eval, batch_size=2, max_images=4),
    run=dataclasses.replace(
      config.run,
      batch_size=2,
      log_every=1,
      save_every=2,
      panel_every=4,
      panel_images=2,
      fsdp=1,
      compute_dtype="float32",
    ),
  )
