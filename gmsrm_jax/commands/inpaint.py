"""--mode=inpaint: fills the holes of picture files of any size and writes all other pixels back as they were."""

from __future__ import annotations

import argparse
import logging
import pathlib

import cv2
import numpy as np
from tqdm import tqdm

from gmsrm_jax.commands.flags import trained
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.inference import photos
from gmsrm_jax.inference.file_pairs import pair_files
from gmsrm_jax.inference.inpainter import Inpainter
from gmsrm_jax.panels import save_panel
from gmsrm_jax.parallel import backend

SHEET_SIDE = 256
"""Longest side of a picture on a contact sheet, pixels."""

_log = logging.getLogger(__name__)


def run(flags: argparse.Namespace) -> None:
  """Fills every picture of a file or folder and writes it to the output folder under its own name.

  A picture that cannot be filled is named at the end; the others are written all the same.

  Raises:
    ConfigError: files, masks, checkpoint or output cannot be used.
  """
  require(
    flags.seed == 0 or flags.num_samples > 1,
    f"--seed={flags.seed} changes nothing: the first fill is the deterministic one; ask for more: --num_samples=4",
  )
  backend.check(flags.platform)
  pairs = pair_files(flags.images, flags.masks)
  inpainter = Inpainter.from_checkpoint(trained(flags))
  print(f"weights: {inpainter.source}")
  inpainter.check(1, 1, flags.num_samples, flags.seed, flags.strategy)
  pathlib.Path(flags.output).mkdir(parents=True, exist_ok=True)
  inputs = {file.resolve() for pair in pairs.items() for file in pair if file is not None}
  failed, lossy = [], []
  for image, mask in tqdm(pairs.items(), desc="inpaint", unit="image", disable=None):
    try:
      if not _fill(inpainter, image, mask, inputs, flags):
        lossy.append(image.name)
    except ConfigError as error:
      if len(pairs) == 1:
        raise
      failed.append(str(error))
  if lossy:
    _log.warning(
      f"{len(lossy)} of {len(pairs)} pictures are JPEG, which changes pixels outside the hole a little when it is "
      f"written ({', '.join(lossy[:3])}): --format=png keeps every bit"
    )
  print(f"{(len(pairs) - len(failed)) * flags.num_samples} pictures in {flags.output}")
  require(
    not failed,
    f"{len(failed)} of {len(pairs)} pictures were not filled ({'; '.join(failed[:3])}); the others are in "
    f"{flags.output}",
  )


def _fill(
  inpainter: Inpainter, image: pathlib.Path, mask: pathlib.Path | None, inputs: set, flags: argparse.Namespace
) -> bool:
  """Fills one picture and writes its samples; returns True if their format keeps every bit outside the hole."""
  photo = photos.read_photo(image)
  names = (str(image), str(mask))
  hole = photos.hole_of(photo, mask, names, invert=flags.mask_invert, dilate=flags.mask_dilate)
  hole_files.warn_area(hole, str(mask or f"{image} (its transparency)"))
  target = pathlib.Path(flags.output) / photos.output_name(image, photo, flags.format)
  targets = [target]
  if flags.num_samples > 1:
    targets = [target.with_name(f"{target.stem}_{sample}{target.suffix}") for sample in range(flags.num_samples)]
  for path in targets:
    require(path.resolve() not in inputs, f"--output={flags.output} would overwrite {path}: choose another folder")
  pictures = {"image": photo.rgb, "hole": np.where(hole[..., None] > 0, np.uint8(255), photo.rgb)}
  fills = inpainter.fills(photo.rgb, hole, num_samples=flags.num_samples, seed=flags.seed, strategy=flags.strategy)
  for path, fill in zip(targets, fills, strict=True):
    photos.write_photo(photos.fill_hole(photo, fill, hole, opaque=mask is None), path, flags.format)
    pictures[f"sample {len(pictures) - 2}"] = fill
  if flags.contact_sheet:
    scale = min(1.0, SHEET_SIDE / max(hole.shape))
    size = (max(1, round(hole.shape[1] * scale)), max(1, round(hole.shape[0] * scale)))
    reduced = {title: cv2.resize(p, size, interpolation=cv2.INTER_AREA)[None] for title, p in pictures.items()}
    save_panel(target.with_name(f"{image.stem}_sheet.png"), reduced)
  return photos.output_format(photo, flags.format) != "JPEG"
