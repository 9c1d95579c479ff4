"""Street photographs at 128x128 on two CPU cores: the recipe that the shipped weights began with.

A stand-in for Paris StreetView, for everybody who has a folder of photographs and no accelerator. Any folder will do,
read recursively:

  python run.py --experiment=street --set data.train=my/photos data.val=my/held_out

gmsrm_jax/pretrained/street/README.md tells which photographs the weights have seen, which settings were others then,
and how they score.

The schedule is ours. Stage 2 learns the layout of large holes at half the size first, where a step costs a third; L1
alone leads until the last fifth, which adds VGG16 features and second fills. The discriminator takes part in stage 1
alone; "For looks" in docs/train.md is the round after this one, in which it leads stage 2. Four context blocks instead
of two: on the bottleneck grid they cost next to nothing, and what belongs into a large hole is decided there.
"""

from __future__ import annotations

import dataclasses

from gmsrm_jax.config import SIZES, Config, DataConfig, EvalConfig, LossConfig, RunConfig, StageConfig, VariationConfig


def get_config() -> Config:
  """A quarter of an hour for stage 1 and one and a half hours for stage 2, on two cores that do nothing else."""
  return Config(
    name="street",
    model=dataclasses.replace(SIZES["small"], context_blocks=4),
    data=DataConfig(train="data/street", crop_min=0.6, jitter=0.1, threads=1, prefetch=16),
    # Four stages of VGG16 on windows: the fifth would cost more than all others on a CPU.
    loss=LossConfig(vgg_stages=4, feature_crop=64, adversarial=1.0),
    stage1=StageConfig(
      steps=1500, warmup=50, learning_rate=3e-4, discriminator_rate=3e-4, adversarial_start=0.7, ema_decay=0.99
    ),
    variation=VariationConfig(start=0.82),
    stage2=StageConfig(
      steps=7600,
      warmup=100,
      learning_rate=4e-4,
      discriminator_rate=3e-4,
      half_until=0.5625,
      features_start=0.82,
      adversarial_start=1.0,
      beta1=0.5,
      ema_decay=0.998,
    ),
    eval=EvalConfig(batch_size=10),
    run=RunConfig(batch_size=4, log_every=25, save_every=200, panel_every=400, keep=3),
  )
