"""--mode=inpaint: fills the holes of picture files of any size; all pixels outside are written back as they were."""

from __future__ import annotations

import argparse
import logging
import pathlib

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

_log = logging.getLogger(__name__)

SHEET_SIDE = 256
"""Longest side of a picture on a contact sheet, pixels."""


def run(flags: argparse.Namespace) -> None:
  """Runs the mode."""
  require(
    flags.seed == 0 or flags.num_samples > 1,
    f"--seed={flags.seed} changes nothing: the first fill is the deterministic one; ask for more: --num_samples=4",
  )
  backend.check(flags.platform)
  inpaint(
    images=flags.images,
    masks=flags.masks,
    output=flags.output,
    checkpoint=trained(flags),
    num_samples=flags.num_samples,
    seed=flags.seed,
    strategy=flags.strategy,
    file_format=flags.format,
    contact_sheet=flags.contact_sheet,
    mask_invert=flags.mask_invert,
    mask_dilate=flags.mask_dilate,
  )


def read_hole(pair: Pair, photo: photos.Photo, *, invert: bool = False, dilate: int = 0) -> UInt8[np.ndarray, "h w"]:
  """The upright hole of a photo: from its mask file (see `hole_files`), or where it is itself less than half opaque.

  Raises:
    ConfigError: the mask cannot be decoded, is not of the photo's size, or the photo has no transparency.
  """
  height, width = photo.rgb.shape[:2]
  if pair.mask is not None:
    mask, name = hole_files.read_hole(pair.mask, invert=invert, dilate=dilate), str(pair.mask)
    require(
      mask.shape == (height, width),
      f"{pair.mask} is {mask.shape[1]}x{mask.shape[0]} but {pair.image} is {width}x{height}: "
      "make the mask as large as its image",
    )
  else:
    alpha = photo.alpha
    if alpha is None:
      raise ConfigError(f"{pair.image} has no transparency to take as its hole: give --masks")
    mask = hole_files.read_hole(Image.fromarray(alpha), invert=not invert, dilate=dilate)
    name = f"{pair.image} (its transparency)"
  hole_files.warn_area(mask, name)
  return mask


def output_names(name: str, num_samples: int) -> list[str]:
  """The files written for one photo: its own name, or `STEM_0.SUFFIX` … for several samples."""
  path = pathlib.PurePath(name)
  return [name] if num_samples == 1 else [f"{path.stem}_{sample}{path.suffix}" for sample in range(num_samples)]


def inpaint(
  *,
  images: str,
  masks: str | None,
  output: str,
  checkpoint: str,
  num_samples: int,
  seed: int,
  strategy: str,
  file_format: str,
  contact_sheet: bool,
  mask_invert: bool,
  mask_dilate: int,
) -> None:
  """Fills every picture of a file or folder and writes it to `output` under its own name.

  A picture that cannot be filled is named at the end; the others are written all the same.

  Raises:
    ConfigError: files, masks, checkpoint or output cannot be used.
  """
  pairs = pair_files(images, masks)
  inpainter = Inpainter.from_checkpoint(checkpoint)
  print(f"weights: {inpainter.source}")
  inpainter.check(1, 1, num_samples, seed, strategy)
  folder = pathlib.Path(output)
  inputs = {file.resolve() for pair in pairs for file in pair if file is not None}
  folder.mkdir(parents=True, exist_ok=True)
  failed: list[str] = []
  lossy: list[str] = []
  for pair in tqdm(pairs, desc="inpaint", unit="image", disable=None):
    try:
      photo = photos.read_photo(pair.image)
      mask = read_hole(pair, photo, invert=mask_invert, dilate=mask_dilate)
      name = photos.output_name(pair.image, photo, file_format)
      if not photos.output_format(photo, file_format)[1]:
        lossy.append(pair.image.name)
      names = output_names(name, num_samples)
      for target in names:
        require(
          (folder / target).resolve() not in inputs,
          f"--output={output} would overwrite {folder / target}: choose another folder",
        )
      inpainter.check(mask.shape[0], mask.shape[1], num_samples, seed, strategy)
      fills = []
      for target, fill in zip(
        names,
        inpainter.fills(photo.rgb, mask, num_samples=num_samples, seed=seed, strategy=strategy),
        strict=True,
      ):
        filled = photos.fill_hole(photo, fill, mask, opaque=pair.mask is None)
        photos.write_photo(filled, folder / target, file_format)
        fills.append(fill)
      if contact_sheet:
        _save_sheet(folder / f"{pair.image.stem}_sheet.png", photo.rgb, mask, fills)
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
  print(f"{(len(pairs) - len(failed)) * num_samples} pictures in {folder}")
  require(
    not failed,
    f"{len(failed)} of {len(pairs)} pictures were not filled ({'; '.join(failed[:3])}); the others are in {folder}",
  )


def _save_sheet(
  path: pathlib.Path, image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], fills: list[np.ndarray]
) -> None:
  """The photo, its hole and all samples side by side, reduced."""
  pictures = {"image": image, "hole": np.where(mask[..., None] > 0, np.uint8(255), image)}
  pictures |= {f"sample {n}": fill for n, fill in enumerate(fills)}
  scale = min(1.0, SHEET_SIDE / max(mask.shape))
  size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
  save_panel(path, {k: cv2.resize(p, size, interpolation=cv2.INTER_AREA)[None] for k, p in pictures.items()})
