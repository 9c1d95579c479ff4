"""--mode=inpaint: fills the holes of picture files of any size and writes all other pixels back as they were."""

from __future__ import annotations

import argparse
import logging
import pathlib
from collections.abc import Collection

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from gmsrm_jax.commands.flags import trained
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.inference import photos
from gmsrm_jax.inference.file_pairs import Pair, pair_files
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
  inputs = {file.resolve() for pair in pairs for file in pair if file is not None}
  failed, lossy = [], []
  for pair in tqdm(pairs, desc="inpaint", unit="image", disable=None):
    try:
      if not _fill(inpainter, pair, inputs, flags):
        lossy.append(pair.image.name)
    except ConfigError as error:
      if len(pairs) == 1:
        raise
      failed.append(str(error))
  if lossy:
    _log.warning(
      "%d of %d pictures are JPEG, which changes pixels outside the hole a little when it is written (%s): "
      "--format=png keeps every bit",
      len(lossy),
      len(pairs),
      ", ".join(lossy[:3]),
    )
  print(f"{(len(pairs) - len(failed)) * flags.num_samples} pictures in {flags.output}")
  require(
    not failed,
    f"{len(failed)} of {len(pairs)} pictures were not filled ({'; '.join(failed[:3])}); the others are in "
    f"{flags.output}",
  )


def _fill(inpainter: Inpainter, pair: Pair, inputs: Collection[pathlib.Path], flags: argparse.Namespace) -> bool:
  """Fills one picture and writes its samples; returns True if their format keeps every bit outside the hole."""
  photo = photos.read_photo(pair.image)
  mask = _read_hole(pair, photo, flags)
  name = pathlib.Path(flags.output) / photos.output_name(pair.image, photo, flags.format)
  targets = [name]
  if flags.num_samples > 1:
    targets = [name.with_name(f"{name.stem}_{sample}{name.suffix}") for sample in range(flags.num_samples)]
  for target in targets:
    require(target.resolve() not in inputs, f"--output={flags.output} would overwrite {target}: choose another folder")
  pictures = {"image": photo.rgb, "hole": np.where(mask[..., None] > 0, np.uint8(255), photo.rgb)}
  fills = inpainter.fills(photo.rgb, mask, num_samples=flags.num_samples, seed=flags.seed, strategy=flags.strategy)
  for sample, (target, fill) in enumerate(zip(targets, fills, strict=True)):
    photos.write_photo(photos.fill_hole(photo, fill, mask, opaque=pair.mask is None), target, flags.format)
    pictures[f"sample {sample}"] = fill
  if flags.contact_sheet:
    scale = min(1.0, SHEET_SIDE / max(mask.shape))
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    reduced = {title: cv2.resize(p, size, interpolation=cv2.INTER_AREA)[None] for title, p in pictures.items()}
    save_panel(name.with_name(f"{pair.image.stem}_sheet.png"), reduced)
  return photos.output_format(photo, flags.format) != "JPEG"


def _read_hole(pair: Pair, photo: photos.Photo, flags: argparse.Namespace) -> UInt8[np.ndarray, "h w"]:
  """Reads a photo's hole from its mask file, or where it is itself less than half opaque.

  Raises:
    ConfigError: the mask cannot be decoded or is not of the photo's size, or the photo has no transparency.
  """
  height, width = photo.rgb.shape[:2]
  if pair.mask is not None:
    name, mask = str(pair.mask), hole_files.read_hole(pair.mask, invert=flags.mask_invert, dilate=flags.mask_dilate)
    require(
      mask.shape == (height, width),
      f"{pair.mask} is {mask.shape[1]}x{mask.shape[0]} but {pair.image} is {width}x{height}: "
      "make the mask as large as its image",
    )
  elif photo.alpha is not None:
    name, opaque = f"{pair.image} (its transparency)", Image.fromarray(photo.alpha)
    mask = hole_files.read_hole(opaque, invert=not flags.mask_invert, dilate=flags.mask_dilate)
  else:
    raise ConfigError(f"{pair.image} has no transparency to take as its hole: give --masks")
  hole_files.warn_area(mask, name)
  return mask
