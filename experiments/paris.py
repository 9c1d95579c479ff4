"""Paris StreetView at 256x256 with irregular masks, one of the benchmarks the GM-SRM paper names.

The benchmark: 14,900 training and 100 test photographs of 936x537 pixels, given out by their authors on request.
Expected under the folder you start from, as received (or set data.train to where it is):

  data/paris_street_view/paris_train_original/48.842502_2.344968_90_-004.JPG ...
  data/paris_street_view/paris_eval_gt/001_im.png ...

  python run.py --experiment=paris --platform=tpu

Both folders may lie deeper. Without the second, about one place in fifty is held out, by its latitude and longitude:
headings of one place are near copies. A TPU host reads ArrayRecord faster:

  python run.py --experiment=paris --mode=prepare --output=data/paris_records
  python run.py --experiment=paris --platform=tpu --set data.train=data/paris_records

The paper's schedule is not known to us. This one is ours: batch 32, Adam at 2e-4 as in RFR, which trains this set for
600k steps of batch 6 (3.6 M images); stage 2 here sees 9.6 M images, stage 1 sees 3.2 M. With 100 test images FID is
fragile: prefer KID, and never compare at the 0.5 dB level across papers, whose protocols differ.
"""

from __future__ import annotations

from gmsrm_jax.config import SIZES, Config, DataConfig, EvalConfig, RunConfig, StageConfig


def get_config() -> Config:
  """The full-length recipe for a GPU or a TPU slice."""
  return Config(
    name="paris",
    model=SIZES["base"],
    data=DataConfig(
      train="data/paris_street_view",
      # The photographs are 537 pixels high: smaller windows look like the close-up views of other papers' crops.
      crop_min=0.6,
      threads=16,
      prefetch=256,
    ),
    stage1=StageConfig(steps=100_000, warmup=1_000),
    stage2=StageConfig(steps=300_000, warmup=1_000),
    eval=EvalConfig(batch_size=32),
    run=RunConfig(batch_size=32, log_every=100, save_every=2_000, keep=3, panel_every=5_000, panel_images=8),
  )
