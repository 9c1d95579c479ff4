"""--mode=inpaint: fills the holes of picture files of any size and writes all other pixels back as they were."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

import cv2
import numpy as np
from tqdm import tqdm

from gmsrm_jax.commands.flags import trained
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.errors import ConfigError, one_line, require
from gmsrm_jax.files import printable
from gmsrm_jax.inference import output_plan, photos
from gmsrm_jax.inference.file_pairs import pair_files
from gmsrm_jax.inference.inpainter import Inpainter, Step
from gmsrm_jax.panels import save_panel
from gmsrm_jax.parallel import backend
from gmsrm_jax.progress import ticking

SHEET_SIDE = 384
"""Longest side of a picture on a contact sheet, which shows the hole with what is around it, pixels."""

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
  has_sheet = flags.contact_sheet or flags.num_samples > 1
  jobs = output_plan.plan(pairs, flags.output, flags.format, num_samples=flags.num_samples, has_sheet=has_sheet)
  print(f"loading the weights of {trained(flags)}", flush=True)
  inpainter = Inpainter.from_checkpoint(trained(flags))
  print(f"weights: {inpainter.source}", flush=True)
  inpainter.check(1, 1, flags.num_samples, flags.seed, flags.strategy, flags.detail)
  failed, lossy = [], []
  layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}  {desc}"
  total = len(jobs) * flags.num_samples
  with tqdm(total=total, disable=None, dynamic_ncols=True, bar_format=layout) as bar:
    with ticking(bar) as say:
      for number, job in enumerate(jobs):
        try:
          if not _fill(inpainter, job, flags, bar, say):
            lossy.append(job.pair.image.name)
        except (ConfigError, OSError) as error:
          failed.append(one_line(error))
        bar.update((number + 1) * flags.num_samples - bar.n)
    bar.set_description_str("done")
  if lossy:
    _log.warning(
      f"{len(lossy)} of {len(jobs)} pictures are JPEG, which changes pixels outside the hole a little when it is "
      f"written ({', '.join(lossy[:3])}): --format=png keeps every bit"
    )
  require(len(jobs) > 1 or not failed, "; ".join(failed))
  done, where = len(jobs) - len(failed), flags.output
  what = f"{done} picture{'s' * (done != 1)}"
  if flags.num_samples > 1:
    what = f"{done * flags.num_samples} fills of {what}"
    where = f"{jobs[0].folder / jobs[0].stem}_0 to _{flags.num_samples - 1}" if len(jobs) == 1 else jobs[0].folder
  print(f"{what} in {where}")
  if has_sheet:
    print(f"side by side: {jobs[0].sheet if len(jobs) == 1 else jobs[0].folder / '*_sheet.png'}")
  require(
    not failed,
    f"{len(failed)} of {len(jobs)} pictures were not filled ({'; '.join(failed[:3])}); the others are in "
    f"{flags.output}",
  )


def _fill(
  inpainter: Inpainter, job: output_plan.Job, flags: argparse.Namespace, bar: tqdm, say: Callable[[str], None]
) -> bool:
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

  def tell(step: Step) -> None:
    """Shows what comes next."""
    of_windows = f" {step.window + 1} of {step.windows}" if step.phase == "filling" else ""
    text = f"{step.phase}{of_windows}: {printable(image.name)}"
    if step.phase == "compiling":
      text = "compiling: ten seconds or so, kept for next time"
      if bar.disable:
        print(text, flush=True)
    say(text)

  fills = inpainter.fills(photo.rgb, hole, **options, before_step=tell)
  for path, fill in zip(targets, fills, strict=True):
    photos.write_photo(photos.fill_hole(photo, fill, hole, opaque=mask is None), path, job.wanted)
    pictures[f"sample {len(pictures) - 2}"] = fill
    bar.update()
  if job.has_sheet:
    save_panel(job.sheet, {title: _around(hole, picture)[None] for title, picture in pictures.items()})
  return photos.output_format(photo, job.wanted) != "JPEG"


def _around(hole: np.ndarray, picture: np.ndarray) -> np.ndarray:
  """The part of a picture with the hole and half as much again around it, enlarged or reduced for a sheet."""
  rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
  if len(rows):
    margin = max(16, np.ptp(rows) // 4, np.ptp(columns) // 4)
    picture = picture[max(0, rows[0] - margin) : rows[-1] + margin, max(0, columns[0] - margin) : columns[-1] + margin]
  scale = SHEET_SIDE / max(picture.shape)
  size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
