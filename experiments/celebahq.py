"""CelebA-HQ at 256x256 with irregular masks, one of the benchmarks the GM-SRM paper names.

The benchmark: 30,000 aligned faces; 28,000 for training and 2,000 held out is the commonest split. Expected under the
folder you start from (or set data.train), in any image format, at 256x256 or larger:

  data/celeba_hq/00001.jpg ...        or data256x256/..., CelebA-HQ-img/... below it

  python run.py --experiment=celebahq --platform=tpu

The last 2,000 in the order of their numbers are held out. Papers draw them in other ways (LaMa by lists): for those put
the images into data/celeba_hq/train and data/celeba_hq/val. What TFDS has prepared as ArrayRecord is read too; it
stores the images in the order of a hash, and its last 2,000 are held out:

  python run.py --experiment=celebahq --platform=tpu --set data.train=tfds:celeb_a_hq/256

The paper's schedule is not known to us. This one is ours: batch 32, Adam at 2e-4; stage 1 sees 3.2 M images, stage 2
9.6 M. The faces are aligned, so the whole square is taken and only mirrored: a crop would move the eyes.
"""

from __future__ import annotations

from gmsrm_jax.config import SIZES, Config, DataConfig, EvalConfig, RunConfig, StageConfig


def get_config() -> Config:
  """The full-length recipe for a GPU or a TPU slice."""
  return Config(
    name="celebahq",
    model=SIZES["base"],
    data=DataConfig(train="data/celeba_hq", crop_min=1.0, flip=True, threads=16, prefetch=256),
    stage1=StageConfig(steps=100_000, warmup=1_000),
    stage2=StageConfig(steps=300_000, warmup=1_000),
    eval=EvalConfig(batch_size=32, baselines="telea,navier_stokes,initial,mean"),
    run=RunConfig(batch_size=32, log_every=100, save_every=2_000, keep=3, panel_every=5_000, panel_images=8),
  )
