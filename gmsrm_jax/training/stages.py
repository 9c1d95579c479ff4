"""The two stages of training, in order, and what belongs to each: settings, random numbers, what the console shows."""

from __future__ import annotations

from typing import NamedTuple

from gmsrm_jax.config import Config, StageConfig


class Stage(NamedTuple):
  """The differences between the stages beside networks and losses."""

  section: str  # of the settings
  stream: int  # of random numbers
  shown: tuple[str, ...]  # metrics on the console


STAGES = {
  "memory": Stage("stage1", 1, ("loss", "l1", "perceptual", "adversarial", "quantisation", "perplexity", "used_slots")),
  "inpaint": Stage("stage2", 2, ("loss", "hole", "perceptual", "style", "adversarial", "retrieval", "read")),
}


def stage_settings(config: Config, stage: str) -> StageConfig:
  """Returns the settings of one stage."""
  return getattr(config, STAGES[stage].section)


def work_left(config: Config, stage: str, step: int = 0) -> float:
  """Returns how much a stage has to do from a step on, in steps of stage 1.

  A step of stage 2 takes about twice as long, one at half the size a third (both measured on two CPU cores).
  """
  settings = stage_settings(config, stage)
  half = min(round(settings.half_until * (settings.phase_steps or settings.steps)), settings.steps)
  half = settings.steps if settings.half_until == 1 else half  # as `steps.phase_at` has it
  whole = settings.steps - max(step, half)
  return (whole + max(half - step, 0) / 3) * (1.0 if stage == "memory" else 2.0)


def planned_stages(config: Config) -> list[str]:
  """Returns the stages that this run trains, in order."""
  skips_memory = config.run.init_from or not has_memory_stage(config)
  return [stage for stage in STAGES if stage != "memory" or not skips_memory]


def has_memory_stage(config: Config) -> bool:
  """Returns True where stage 1 is part of the experiment."""
  return config.memory.enabled and config.memory.pretrain


def has_teacher(config: Config) -> bool:
  """Returns True where stage 2 keeps stage 1's recognition of whole images.

  After a stage 1 of its own always: reports and grids show what it retrieves. Fine-tuning has it only where a term
  asks for it, because given weights may be without.
  """
  loss = config.loss
  asked = loss.retrieval > 0 or loss.read > 0 or loss.features == "recognition"
  return has_memory_stage(config) and (asked or not config.run.init_from)


def freezes_memory(config: Config) -> bool:
  """Returns True where stage 2 leaves the memory as stage 1 left it."""
  return has_memory_stage(config) and config.memory.finetune == 0


def needs_vgg16(config: Config) -> bool:
  """Returns True where a step takes the parameters of VGG16, for the feature terms or the discriminator."""
  compared = config.loss.features == "vgg16" and (config.loss.perceptual > 0 or config.loss.style > 0)
  return compared or (config.model.discriminator == "features" and config.loss.adversarial > 0)
