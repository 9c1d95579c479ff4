"""Places2 (Places365-Standard) at 256x256 with irregular masks, one of the benchmarks the GM-SRM paper names.

The benchmark: 1,803,460 training and 36,500 validation photographs. The archives train_256_places365standard.tar and
val_256.tar unpack to (or set data.train to where they are):

  data/places2/data_256/<letter>/<class>[/<sub>]/NNNNNNNN.jpg
  data/places2/val_256/Places365_val_00000001.jpg ...

  python run.py --experiment=places2 --platform=tpu

1.8 M small files are slow to list and to read: prepare them once as ArrayRecord, to the bit as they are, or read what
TFDS has prepared so:

  python run.py --experiment=places2 --mode=prepare --output=data/places2_records
  python run.py --experiment=places2 --platform=tpu --set data.train=data/places2_records
  python run.py --experiment=places2 --platform=tpu --set data.train=tfds:places365_small

These 256-pixel files were resized without keeping the aspect. Papers test on all of the validation set, on its first
2,000 photographs or on 30,000; here the first 2,000 by name (`--set eval.max_images=0` takes all).

The paper's schedule is not known to us. This one is ours: batch 64; stage 1 sees 12.8 M images (7 passes), stage 2
32 M (18 passes). The memory has twice the groups of the other experiments, for 365 kinds of scene.
"""

from __future__ import annotations

from gmsrm_jax.config import SIZES, Config, DataConfig, EvalConfig, MemoryConfig, RunConfig, StageConfig


def get_config() -> Config:
  """The full-length recipe for a TPU slice or a machine with several GPUs."""
  return Config(
    name="places2",
    model=SIZES["base"],
    memory=MemoryConfig(num_groups=32),
    data=DataConfig(train="data/places2", crop_min=1.0, flip=True, threads=32, prefetch=512),
    stage1=StageConfig(steps=200_000, warmup=2_000),
    stage2=StageConfig(steps=500_000, warmup=2_000),
    eval=EvalConfig(batch_size=32, max_images=2_000, baselines="telea,navier_stokes,initial,mean"),
    run=RunConfig(batch_size=64, log_every=100, save_every=2_000, keep=3, panel_every=5_000, panel_images=8),
  )
