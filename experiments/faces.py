"""Aligned faces at 128x128 on two CPU cores: a stand-in for CelebA-HQ, for everybody without an accelerator.

Any folder of aligned faces will do, read recursively:

  python run.py --experiment=faces --set data.train=my/faces data.val=my/held_out

The schedule is that of `street`, shorter: ours. The faces are aligned, so the whole square is taken and only mirrored:
a crop would move the eyes. No weights are shipped: the faces at hand may be used for research alone. docs/results.md
has what this reached.
"""

from __future__ import annotations

import dataclasses

from gmsrm_jax.config import SIZES, Config, DataConfig, EvalConfig, LossConfig, RunConfig, StageConfig, VariationConfig


def get_config() -> Config:
  """An hour and a half on one core."""
  return Config(
    name="faces",
    model=dataclasses.replace(SIZES["small"], context_blocks=4),
    data=DataConfig(train="data/faces", crop_min=1.0, threads=1, prefetch=16),
    # Four stages of VGG16 on windows: the fifth would cost more than all others on a CPU.
    loss=LossConfig(vgg_stages=4, feature_crop=64, adversarial=1.0),
    variation=VariationConfig(start=0.925),
    stage1=StageConfig(
      steps=700, warmup=50, learning_rate=3e-4, discriminator_rate=3e-4, adversarial_start=0.7, ema_decay=0.99
    ),
    stage2=StageConfig(
      steps=5400,
      warmup=100,
      learning_rate=4e-4,
      discriminator_rate=3e-4,
      half_until=0.74,
      features_start=0.925,
      adversarial_start=1.0,
      beta1=0.5,
      ema_decay=0.998,
    ),
    eval=EvalConfig(batch_size=10),
    run=RunConfig(batch_size=4, log_every=25, save_every=200, panel_every=400, keep=3),
  )
