"""--mode=masks: writes the fixed mask of every held-out image and bucket, with a manifest that anyone can check.

`OUTPUT/20-30/NAME.png` are 1-bit pictures, white in the hole. `OUTPUT/manifest.json` lists each mask with the sha256
of its packed bits, so the same settings give the same manifest on every machine; `--set eval.masks=OUTPUT` evaluates
with exactly these.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
from typing import Any

from PIL import Image
from tqdm import tqdm

from gmsrm_jax import overrides
from gmsrm_jax.commands.flags import configuration
from gmsrm_jax.config import Config
from gmsrm_jax.data import pipeline
from gmsrm_jax.data.masks import fixed
from gmsrm_jax.data.masks.fixed import BUCKETS, MANIFEST
from gmsrm_jax.errors import require
from gmsrm_jax.files import write_json
from gmsrm_jax.panels import save_image
from gmsrm_jax.training.run_folder import read_config


def run(flags: argparse.Namespace) -> None:
  """Writes the masks of an experiment, or those that a trained folder is evaluated with."""
  if flags.workdir:
    config = overrides.override(read_config(flags.workdir, flags.experiment), flags.set or [])
  else:
    config = configuration(flags)
  write_masks(config, flags.output)


def write_masks(config: Config, output: str) -> None:
  """Writes the masks that evaluating `config` uses.

  Raises:
    ConfigError: the held-out images or masks cannot be read, or the folder holds the masks of other settings.
  """
  evaluation = pipeline.evaluation_set(config)
  folder = pathlib.Path(output)
  head: dict[str, Any] = {
    "version": fixed.VERSION,
    "seed": config.eval.mask_seed,
    "size": config.model.image_size,
    "source": evaluation.mask_source,
  }
  if (folder / MANIFEST).exists():
    old = fixed.read_manifest(folder)
    names = {mask["name"] for mask in old["masks"]}
    same = all(old[key] == value for key, value in head.items()) and names == set(evaluation.names)
    require(same, f"--output={output} holds the masks of other settings or images: choose another folder")
  masks: list[dict[str, Any]] = []
  digest = hashlib.sha256()
  for index, name in enumerate(tqdm(evaluation.names, desc="masks", unit="image", disable=None)):
    for bucket in BUCKETS:
      mask = evaluation.mask(index, bucket)
      path = folder / fixed.mask_path(name, bucket)
      save_image(path, Image.fromarray(mask.astype(bool)))
      sha256 = fixed.mask_sha256(mask)
      masks.append({"name": name, "bucket": list(bucket), "area": float(mask.mean()), "sha256": sha256})
      digest.update(fixed.mask_bytes(name, bucket, mask))
  # Last, so that a folder without a manifest is one that was interrupted.
  write_json(folder / MANIFEST, {**head, "masks_sha256": digest.hexdigest(), "masks": masks})
  print(f"{len(masks)} masks in {folder}    sha256 {digest.hexdigest()}")
