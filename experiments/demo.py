"""A small demonstration on the photographs that come with scikit-image: nothing to download, minutes on a CPU.

It shows that both stages learn and that the memory is used; it says nothing about quality on a benchmark. Trained and
evaluated on crops of the same few photographs.

  python run.py

Read runs/demo/report.md and look at runs/demo/samples when it is done.
"""

from __future__ import annotations

from gmsrm_jax.config import SIZES, Config, DataConfig, EvalConfig, LossConfig, RunConfig, StageConfig


def get_config() -> Config:
  """64x64 pixels, both stages and the evaluation within six minutes on two CPU cores."""
  return Config(
    name="demo",
    model=SIZES["tiny"],
    # Held-out tiles are a quarter of a photograph high, so training windows must come as near.
    data=DataConfig(train="demo"),
    # Four stages of VGG16 on small windows: the fifth would see 2x2 positions and cost more than all others on a CPU.
    loss=LossConfig(features="vgg16", vgg_stages=4, feature_crop=32, style=5.0, adversarial=0.3),
    # The adversarial term from the start: a step of its own for before would take longer to compile than to run.
    stage1=StageConfig(steps=250, warmup=30, learning_rate=5e-4, adversarial_start=0.0, ema_decay=0.98),
    stage2=StageConfig(steps=500, warmup=50, learning_rate=3e-4, adversarial_start=0.0, ema_decay=0.98),
    # Each further baseline adds a fifth to the time of the evaluation.
    eval=EvalConfig(batch_size=8, baselines="telea,initial,mean"),
    run=RunConfig(batch_size=8, log_every=20, save_every=150, panel_every=150),
  )
