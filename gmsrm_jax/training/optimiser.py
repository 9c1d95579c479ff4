"""Optimisers: Adam with warm-up, cosine decay and a clipped norm; and the moving average of parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gmsrm_jax.config import Config, StageConfig
from gmsrm_jax.training.stages import freezes_memory, has_memory_stage, stage_settings

FINAL_RATE = 0.05  # at the end of a stage, as a share of the peak
BETA2 = 0.99


def make_schedule(stage: StageConfig, peak: float) -> optax.Schedule:
  """Returns linear warm-up to the peak, then cosine decay to FINAL_RATE of it."""
  steps = max(stage.steps, 1)
  # optax wants at least one step of decay.
  warmup = min(stage.warmup, steps // 5)
  return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, peak * FINAL_RATE)


def rates_at(config: Config, stage: str, step: int) -> dict[str, float]:
  """Returns the learning rates of a step, counted from 0."""
  settings = stage_settings(config, stage)
  peaks = {"learning_rate": settings.learning_rate, "discriminator_rate": settings.discriminator_rate}
  return {name: jnp.asarray(make_schedule(settings, peak)(step)).item() for name, peak in peaks.items()}


def make_optimiser(
  stage: StageConfig, *, memory_rate: float = 1.0, discriminator: bool = False
) -> optax.GradientTransformation:
  """Returns Adam for one player; `memory_rate` is a factor of the rate for the subtree `memory`.

  The discriminator has its own rate, and beta1 = 0 (MAT, StyleGAN: no momentum against a moving player).
  """
  transformations = [
    optax.clip_by_global_norm(stage.clip_norm),
    optax.scale_by_adam(b1=0.0 if discriminator else stage.beta1, b2=BETA2),
    optax.scale_by_learning_rate(
      make_schedule(stage, stage.discriminator_rate if discriminator else stage.learning_rate)
    ),
  ]
  if memory_rate != 1.0:
    in_memory = lambda params: {name: name == "memory" for name in params}  # noqa: E731
    transformations.append(optax.masked(optax.scale(memory_rate), in_memory))
  return optax.chain(*transformations)


def generator_optimiser(config: Config, stage: str) -> optax.GradientTransformation:
  """Returns the optimiser of all networks but the discriminator."""
  trained_before = stage == "inpaint" and has_memory_stage(config) and not freezes_memory(config)
  return make_optimiser(stage_settings(config, stage), memory_rate=config.memory.finetune if trained_before else 1.0)


def discriminator_optimiser(config: Config, stage: str) -> optax.GradientTransformation:
  """Returns the optimiser of the discriminator."""
  return make_optimiser(stage_settings(config, stage), discriminator=True)


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
  """Moves the average towards the parameters; early steps average over the steps there are."""
  now = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e + (1.0 - now) * (p - e), ema, params)
