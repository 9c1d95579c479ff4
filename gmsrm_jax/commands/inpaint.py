"""--mode=inpaint: fills the holes of picture files of any size and writes all other pixels back as they were."""

from __future__ import annotations

import argparse
import logging

import cv2
import numpy as np
from tqdm import tqdm

from gmsrm_jax.commands.flags import trained
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.errors import ConfigError, one_line, require
from gmsrm_jax.inference import output_plan, photos
from gmsrm_jax.inference.file_pairs import pair_files
from gmsrm_jax.inference.inpainter import Inpainter
from gmsrm_jax.panels import save_panel
from gmsrm_jax.parallel import backend

SHEET_SIDE = 256
"""Longest side of a picture on a contact sheet, pixels."""

_log = logging.getLogger(__name__)


def run(flags: argparse.Namespace) -> None:
  """Fills every picture and writes it to the output folder under its own name, or the only one to the output file.

  A picture that cannot be filled or written is named at the end; the others are written all the same.

  Raises:
    ConfigError: files, masks, checkpoint or output cannot be used.
  """
  require(
    flags.seed == 0 or flags.num_samples > 1,
    f"--seed={flags.seed} changes nothing: the first fill is the deterministic one; ask for more: --num_samples=4",
  )
  backend.check(flags.platform)
  pairs = pair_files(flags.images, flags.masks, flags.output)
  jobs = output_plan.plan(
    pairs, flags.output, flags.format, num_samples=flags.num_samples, has_sheet=flags.contact_sheet
  )
  inpainter = Inpainter.from_checkpoint(trained(flags))
  print(f"weights: {inpainter.source}")
  inpainter.check(1, 1, flags.num_samples, flags.seed, flags.strategy, flags.detail)
  failed, lossy = [], []
  for job in tqdm(jobs, desc="inpaint", unit="image", disable=None):
    try:
      if not _fill(inpainter, job, flags):
        lossy.append(job.pair.image.name)
    except (ConfigError, OSError) as error:
      failed.append(one_line(error))
  if lossy:
    _log.warning(
      f"{len(lossy)} of {len(jobs)} pictures are JPEG, which changes pixels outside the hole a little when it is "
      f"written ({', '.join(lossy[:3])}): --format=png keeps every bit"
    )
  require(len(jobs) > 1 or not failed, "; ".join(failed))
  count, where = (
    (len(jobs) - len(failed)) * flags.num_samples,
    flags.output if flags.num_samples == 1 else jobs[0].folder,
  )
  print(f"{count} picture{'s' * (count != 1)} in {where}")
  require(
    not failed,
    f"{len(failed)} of {len(jobs)} pictures were not filled ({'; '.join(failed[:3])}); the others are in "
    f"{flags.output}",
  )


def _fill(inpainter: Inpainter, job: output_plan.Job, flags: argparse.Namespace) -> bool:
  """Fills one picture and writes its samples; returns True if their format keeps every bit outside the hole."""
  image, mask, _ = job.pair
  photo = photos.read_photo(image)
  if photo.frames > 1:
    _log.warning(f"{image} holds {photo.frames} pictures or pages: the first alone is filled and written")
  names = (str(image), str(mask))
  hole = photos.hole_of(photo, mask, names, invert=flags.mask_invert, dilate=flags.mask_dilate)
  hole_files.warn_area(hole, str(mask or f"{image} (its transparency)"))
  targets = job.samples(job.suffix(photo))
  pictures = {"image": photo.rgb, "hole": np.where(hole[..., None] > 0, np.uint8(255), photo.rgb)}
  options = {name: getattr(flags, name) for name in ("num_samples", "seed", "strategy", "detail")}
  fills = inpainter.fills(photo.rgb, hole, **options)
  for path, fill in zip(targets, fills, strict=True):
    photos.write_photo(photos.fill_hole(photo, fill, hole, opaque=mask is None), path, job.wanted)
    pictures[f"sample {len(pictures) - 2}"] = fill
  if flags.contact_sheet:
    scale = min(1.0, SHEET_SIDE / max(hole.shape))
    size = (max(1, round(hole.shape[1] * scale)), max(1, round(hole.shape[0] * scale)))
    reduced = {title: cv2.resize(p, size, interpolation=cv2.INTER_AREA)[None] for title, p in pictures.items()}
    save_panel(job.sheet, reduced)
  return photos.output_format(photo, job.wanted) != "JPEG"
