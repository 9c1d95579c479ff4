"""--mode=memory: draws what the slots of a memory stand for, and which of them are read for the hole of a picture."""

from __future__ import annotations

import argparse
import pathlib

from gmsrm_jax.commands.flags import trained
from gmsrm_jax.errors import require
from gmsrm_jax.files import check_inputs_stay
from gmsrm_jax.inference import photos
from gmsrm_jax.inference.file_pairs import pair_files
from gmsrm_jax.inference.inpainter import Inpainter
from gmsrm_jax.inference.memory_pictures import draw_slots, find_reads, sheet_of_reads, sheet_of_slots
from gmsrm_jax.panels import save_image
from gmsrm_jax.parallel import backend

CELLS, TOP = 6, 8
"""Cells of a hole, and slots of each, that are shown."""


def run(flags: argparse.Namespace) -> None:
  """Writes `slots.png`, and `STEM_reads.png` for every picture.

  Raises:
    ConfigError: there is no memory, a picture has no hole, an output is an input, or files cannot be used.
  """
  require(not flags.masks or bool(flags.images), "--masks without --images belong to no picture: give --images, too")
  backend.check(flags.platform)
  output = pathlib.Path(flags.output)
  pairs = pair_files(flags.images, flags.masks, flags.output) if flags.images else []
  slots, sheets = output / "slots.png", [output / f"{pair.stem}_reads.png" for pair in pairs]
  check_inputs_stay([slots, *sheets], [path for pair in pairs for path in (pair.image, pair.mask) if path])
  inpainter = Inpainter.from_checkpoint(trained(flags))
  print(f"weights: {inpainter.source}", flush=True)
  drawn = draw_slots(inpainter)
  save_image(slots, sheet_of_slots(drawn))
  for (image, mask, _), sheet in zip(pairs, sheets, strict=True):
    photo = photos.read_photo(image)
    hole = photos.hole_of(photo, mask, (str(image), str(mask)), invert=flags.mask_invert, dilate=0)
    require(bool(hole.any()), f"{mask or image} has no hole, so nothing is read for it: paint the hole white")
    reads = find_reads(inpainter, photo.rgb, hole, cells=CELLS, top=TOP)
    save_image(sheet, sheet_of_reads(reads, drawn, inpainter.config.model.stride))
    print(
      f"{image.name}: a cell of the hole reads {reads.perplexity.mean():.0f} of {drawn.shape[0] * drawn.shape[1]} slots"
    )
  print(f"slots: {slots}" + (f", reads: {output / '*_reads.png'}" if pairs else ""))
