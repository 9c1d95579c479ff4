"""--mode=prepare: any source as ArrayRecord shards, which is what a TPU host reads fastest."""

from __future__ import annotations

import argparse
import math

from gmsrm_jax.commands.flags import configuration
from gmsrm_jax.config import Config
from gmsrm_jax.data import records, sources
from gmsrm_jax.data.prepare import Preparation
from gmsrm_jax.files import claimed, local_path


def run(flags: argparse.Namespace) -> None:
  """Writes both splits to --output as ArrayRecord shards."""
  prepare(configuration(flags), flags.output)


def prepare(config: Config, output: str) -> None:
  """Writes both splits of the data to a folder, from which `data.train` then trains; a finished one only says so.

  Raises:
    ConfigError: the data cannot be read, or the folder holds something else.
  """
  folder = local_path(output, "--output")
  splits = {split: sources.open_source(config.data, split) for split in ("train", "val")}
  side = config.data.stored_side or math.ceil(config.model.image_size / config.data.crop_min)
  preparation = Preparation(splits, folder, side, config.data.stored_format)
  for split, source in splits.items():
    print(f"{split}: {len(source)} images, {source.where} ({source.stored.layout}: {source.stored.rule})")
  way_on = f"train from it with --set data.train={output} data.val="
  if records.is_finished(folder):
    print(f"{output} is finished: {way_on}")
    return
  with claimed(folder):
    done = preparation.write()
  kept = {split: sum(len(shard["names"]) for shard in done if shard["split"] == split) for split in splits}
  size = sum(shard["size"] for shard in done)
  print(
    f"{output}: {kept['train']} training images and {kept['val']} held out with a short side of at most {side}, "
    f"{size / 1e6:.1f} MB; {way_on}"
  )
  left_out = [f"{shard['split']}/{name}" for shard in done for name in shard["bad"]]
  if left_out:
    print(f"left out {len(left_out)} that cannot be decoded: {', '.join(left_out)}")
