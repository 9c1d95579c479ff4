"""--mode=inpaint: fills the holes of image files.

A photo of any size is reduced so that its short side is what the model was trained at, padded to the stride, filled,
enlarged again, and pasted into the hole alone: every pixel outside is written back as it was read.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image as PilImage
from tqdm import tqdm

from gmsrm_jax.arrays import image_from_uint8, mask_from_uint8
from gmsrm_jax.config import Config, ConfigError, from_dict, require
from gmsrm_jax.data import mask_files, sources
from gmsrm_jax.evaluate import load_trained_state
from gmsrm_jax.models.inpainter import apply_inpainter, draw_noise
from gmsrm_jax.state import make_networks, release_params
from gmsrm_jax.writer import read_run

MAX_ASPECT = 4
"""The model sees at most this many times its training side along the long side."""


class Pair(NamedTuple):
  """An image file and its mask file."""

  image: pathlib.Path
  mask: pathlib.Path


def pair_files(images: str, masks: str) -> list[Pair]:
  """Images with the masks of the same file stem; a single mask file goes with all of them.

  Raises:
    ConfigError: a path is missing or holds no image, two files share a stem, or an image has no mask.
  """
  image_files, hole_files = _files("--images", images), _files("--masks", masks)
  _by_stem("--images", image_files)  # Equal stems would write to one output file.
  if pathlib.Path(masks).is_file():
    return [Pair(image, hole_files[0]) for image in image_files]
  by_stem = _by_stem("--masks", hole_files)
  missing = [image.name for image in image_files if image.stem not in by_stem]
  require(
    not missing,
    f"--masks={masks} has no mask for {len(missing)} of {len(image_files)} images ({', '.join(missing[:5])}): "
    "name each mask like its image, or give one mask file for all",
  )
  return [Pair(image, by_stem[image.stem]) for image in image_files]


def _files(flag: str, path: str) -> list[pathlib.Path]:
  root = pathlib.Path(path)
  require(root.exists(), f"{flag}={path} does not exist: give an image file or a folder of images")
  if root.is_file():
    return [root]
  found = [root / name for name in sources.image_names(root)]
  require(bool(found), f"{flag}={path} holds no image ({', '.join(sources.SUFFIXES)}): give a folder that does")
  return found


def _by_stem(flag: str, files: list[pathlib.Path]) -> dict[str, pathlib.Path]:
  by_stem: dict[str, pathlib.Path] = {}
  for file in files:
    other = by_stem.setdefault(file.stem, file)
    require(other is file, f"{flag}: {other} and {file} share the name {file.stem!r}: rename one")
  return by_stem


def read_image(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  """Reads an image as upright RGB. Raises ConfigError when it cannot be decoded."""
  try:
    return sources.decode(path)
  except Exception as error:  # Pillow raises what it likes on a broken file.
    raise ConfigError(f"{path} cannot be decoded ({error}): replace the file") from error


def read_mask(
  path: pathlib.Path, height: int, width: int, image_path: pathlib.Path, *, invert: bool = False, dilate: int = 0
) -> UInt8[np.ndarray, "h w"]:
  """Reads the mask of an image, 1 in the hole (see `mask_files`); warns where it is empty or covers most of the image.

  Raises:
    ConfigError: it cannot be decoded, or its size is not that of the image.
  """
  mask = mask_files.read_mask(path, invert=invert, dilate=dilate)
  require(
    mask.shape == (height, width),
    f"{path} is {mask.shape[1]}x{mask.shape[0]} but {image_path} is {width}x{height}: "
    "make the mask as large as its image",
  )
  mask_files.warn_area(mask, str(path))
  return mask


def fit(height: int, width: int, config: Config) -> tuple[int, int]:
  """The size at which a photo is filled: short side `model.image_size`, long side at most MAX_ASPECT times that."""
  scale = min(config.model.image_size / min(height, width), MAX_ASPECT * config.model.image_size / max(height, width))
  return max(1, round(height * scale)), max(1, round(width * scale))


def fill(
  config: Config, params: Any, image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], key: Any | None = None
) -> UInt8[np.ndarray, "h w 3"]:
  """One fill of one photo; nothing outside the mask changes. Without a key it is the deterministic fill."""
  if not mask.any():
    return image.copy()
  height, width = image.shape[:2]
  rows, columns = fit(height, width, config)
  shrinks = rows < height
  # Hole pixels must not bleed into known ones when the photo is reduced.
  known = (1 - mask).astype(np.float32)
  method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  weight = cv2.resize(known, (columns, rows), interpolation=method)
  colour = cv2.resize(image * known[..., None], (columns, rows), interpolation=method)
  small = np.clip(np.round(colour / np.maximum(weight, 1e-6)[..., None]), 0, 255).astype(np.uint8)
  hole = (weight < 0.5).astype(np.uint8)

  stride = config.model.stride
  padding = ((0, -rows % stride), (0, -columns % stride))
  small = np.pad(small, (*padding, (0, 0)), mode="edge")
  # The padding is hole, so that invented pixels do not count as evidence.
  hole = np.pad(hole, padding, constant_values=1)
  predicted = np.asarray(_predict(config, params, small[None], hole[None, ..., None], key))[0, :rows, :columns]
  enlarged = cv2.resize(predicted, (width, height), interpolation=cv2.INTER_CUBIC)
  pixels = np.clip(np.round((enlarged + 1.0) * 127.5), 0, 255).astype(np.uint8)
  return np.where(mask[..., None] > 0, pixels, image)


@functools.partial(jax.jit, static_argnums=0)
def _predict(config: Config, params: Any, image: jax.Array, mask: jax.Array, key: Any | None) -> jax.Array:
  """The raw prediction where there is hole and the image elsewhere, so that enlarging blends with true colours."""
  image, hole = image_from_uint8(image), mask_from_uint8(mask)
  noise = None
  if key is not None and config.variation.enabled:
    noise = draw_noise(key, config.model, *image.shape[:3])
  out = apply_inpainter(make_networks(config).inpainter, params, image, hole, noise)
  return jnp.where(hole > 0.5, out.prediction, image)


def output_names(stem: str, num_samples: int) -> list[str]:
  """The files written for one photo."""
  return [f"{stem}.png"] if num_samples == 1 else [f"{stem}_{sample}.png" for sample in range(num_samples)]


def inpaint(
  *,
  images: str,
  masks: str,
  output: str,
  checkpoint: str | None,
  workdir: str,
  num_samples: int,
  seed: int,
  mask_invert: bool = False,
  mask_dilate: int = 0,
) -> None:
  """Fills every image of a file or folder and writes `OUTPUT/STEM.png`, or `STEM_0.png` … for several samples.

  Sample 0 of seed 0 is the deterministic fill; every other is drawn with noise of its own. `mask_invert` exchanges hole
  and known, `mask_dilate` then widens the hole by that many pixels of the photo.

  Raises:
    ConfigError: files, masks, checkpoint or output cannot be used.
  """
  root = pathlib.Path(checkpoint or workdir)
  pairs = pair_files(images, masks)
  config = from_dict(read_run(root)["config"])
  require(
    num_samples == 1 or config.variation.enabled,
    f"--num_samples={num_samples}: the model of {root} has variation.enabled=false, so all fills would be equal; use 1",
  )
  params = release_params(load_trained_state(config, root))
  folder = pathlib.Path(output)
  inputs = {file.resolve() for pair in pairs for file in pair}
  for pair in pairs:
    for name in output_names(pair.image.stem, num_samples):
      require(
        (folder / name).resolve() not in inputs,
        f"--output={output} would overwrite {folder / name}: choose another folder",
      )
  folder.mkdir(parents=True, exist_ok=True)
  for pair in tqdm(pairs, desc="inpaint", unit="image", disable=None):
    pixels = read_image(pair.image)
    height, width = pixels.shape[:2]
    mask = read_mask(pair.mask, height, width, pair.image, invert=mask_invert, dilate=mask_dilate)
    for sample, name in enumerate(output_names(pair.image.stem, num_samples)):
      plain = sample == 0 and seed == 0
      key = None if plain else jax.random.fold_in(jax.random.key(seed), sample)
      PilImage.fromarray(fill(config, params, pixels, mask, key)).save(folder / name)
  print(f"{len(pairs) * num_samples} pictures in {folder}")
