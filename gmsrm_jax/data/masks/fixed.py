"""The fixed holes of the held-out images: drawn, read back from a manifest, or picked from a set of mask files.

Whatever `eval.masks` names, the hole is a function of (image name, bucket, `eval.mask_seed`) and of the files alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from gmsrm_jax.config import Config, EvalConfig, MaskConfig
from gmsrm_jax.data.masks import draw, hole_files
from gmsrm_jax.errors import require
from gmsrm_jax.files import local_path

MANIFEST = "manifest.json"
VERSION = 1

Bucket = tuple[float, float]

BUCKETS: tuple[Bucket, ...] = tuple((tenths / 10, (tenths + 1) / 10) for tenths in range(6))
"""Hole-area ranges (lower, upper] the field reports on, as shares of the image."""


def bucket_name(bucket: Bucket) -> str:
  """'20-30%'."""
  return f"{bucket[0] * 100:.0f}-{bucket[1] * 100:.0f}%"


def mask_bytes(name: str, bucket: Bucket, mask: UInt8[np.ndarray, "_ _"]) -> bytes:
  """The bytes that a mask adds to the one hash over all in their order, by which reports and manifests are compared."""
  return f"{name}\0{bucket}\0".encode("utf-8", "surrogateescape") + np.packbits(mask).tobytes()


def mask_sha256(mask: UInt8[np.ndarray, "h w"]) -> str:
  """Hash of the packed bits, which unlike a PNG do not depend on who compressed them."""
  return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()


def mask_path(name: str, bucket: Bucket) -> str:
  """The place of an image's mask in a manifest's folder: 20-30/NAME.png, the name with its folders and suffix."""
  return f"{bucket_name(bucket).rstrip('%')}/{name}.png"


class DrawnMasks:
  """Holes drawn by the weights of `mask.*`."""

  def __init__(self, config: MaskConfig, seed: int, size: int):
    draw.check_folders(config)
    self._config, self._seed, self._size = config, seed, size
    self.source = f"generated, one per image and bucket, eval.mask_seed={seed}"

  def mask(self, name: str, bucket: Bucket) -> UInt8[np.ndarray, "_ _"]:
    return draw.evaluation_mask(name, bucket, self._seed, self._size, self._size, self._config)


class ManifestMasks:
  """Holes that `--mode=masks` wrote; each is compared with the manifest when it is read."""

  def __init__(self, folder: Path, size: int, names: Sequence[str]):
    self._folder, self._setting = folder, f"eval.masks={str(folder)!r}"
    manifest = read_manifest(folder)
    require(
      manifest["size"] == size,
      f"{self._setting} holds masks of {manifest['size']} pixels, but model.image_size={size}: "
      "write them again with --mode=masks",
    )
    self._sha256 = {(row["name"], tuple(row["bucket"])): row["sha256"] for row in manifest["masks"]}
    missing = [name for name in names if any((name, bucket) not in self._sha256 for bucket in BUCKETS)]
    require(
      not missing,
      f"{self._setting} has no masks for {len(missing)} of {len(names)} held-out images ({', '.join(missing[:3])}): "
      "write them again with --mode=masks and the same data.val",
    )
    self.source = f"manifest {folder.name}, sha256 {manifest['masks_sha256']}: {manifest['source']}"

  def mask(self, name: str, bucket: Bucket) -> UInt8[np.ndarray, "_ _"]:
    path = self._folder / mask_path(name, bucket)
    require(path.is_file(), f"{self._setting}: {path} is missing: write the masks again with --mode=masks")
    mask = hole_files.read_hole(path)
    require(
      mask_sha256(mask) == self._sha256[name, bucket],
      f"{self._setting}: {path} was changed since the manifest was written (its sha256 differs): "
      "restore the file, or write the masks again with --mode=masks",
    )
    return mask


class PickedMasks:
  """Holes picked by hash from the files whose area lies in the bucket; the nearest pixel where sizes differ."""

  def __init__(self, config: EvalConfig, size: int):
    setting = f"eval.masks={config.masks!r}"
    self._files = hole_files.MaskFiles(config.masks, "eval.masks", invert=config.mask_invert, dilate=config.mask_dilate)
    self._size, self._seed = size, config.mask_seed
    count = len(self._files)
    if config.mask_bucket == "index":
      whole = len(BUCKETS) * hole_files.NVIDIA_PER_BUCKET
      require(
        count == whole,
        f"eval.mask_bucket='index' needs NVIDIA's {whole} test masks, but {setting} holds {count} masks: "
        "use eval.mask_bucket=area",
      )
      by_bucket = np.arange(count).reshape(len(BUCKETS), -1).tolist()
      self._buckets = dict(zip(BUCKETS, by_bucket, strict=True))
    else:
      indices = tqdm(range(count), desc="mask areas", unit="mask", disable=None)
      areas = np.array([self._resized(index).mean() for index in indices])
      self._buckets = {b: np.flatnonzero((areas > b[0]) & (areas <= b[1])).tolist() for b in BUCKETS}
    empty = [bucket_name(bucket) for bucket, members in self._buckets.items() if not members]
    require(
      not empty,
      f"{setting}: none of its {count} masks covers {' or '.join(empty)} of the image: "
      "add masks of that area, or leave eval.masks empty to draw them",
    )
    self.source = (
      f"{count} masks of {Path(config.masks).name}{', inverted' * config.mask_invert}"
      f"{f', dilated by {config.mask_dilate} pixels' if config.mask_dilate else ''}, buckets by {config.mask_bucket}, "
      f"picked by name, bucket and eval.mask_seed={config.mask_seed}"
    )

  def _resized(self, index: int) -> UInt8[np.ndarray, "_ _"]:
    return hole_files.resize_mask(self._files[index], self._size, self._size)

  def mask(self, name: str, bucket: Bucket) -> UInt8[np.ndarray, "_ _"]:
    members = self._buckets[bucket]
    return self._resized(members[draw.fixed_seed(name, bucket, self._seed) % len(members)])


EvaluationMasks = DrawnMasks | ManifestMasks | PickedMasks


def open_masks(config: Config, names: Sequence[str]) -> EvaluationMasks:
  """The holes of the held-out images `names`, where `eval.masks` says.

  Raises:
    ConfigError: `eval.masks` cannot be read, or lacks masks of an image or a bucket.
  """
  size, settings = config.model.image_size, config.eval
  folder = local_path(settings.masks, "eval.masks") if settings.masks else None
  if folder and not (folder / MANIFEST).is_file():
    return PickedMasks(settings, size)
  for name, value in (("mask_invert", settings.mask_invert), ("mask_dilate", settings.mask_dilate)):
    require(not value, f"eval.{name}={value} changes mask files, not drawn masks: leave it out")
  return ManifestMasks(folder, size, names) if folder else DrawnMasks(config.mask, settings.mask_seed, size)


def read_manifest(folder: Path) -> dict:
  """The manifest of a folder that `--mode=masks` wrote.

  Raises:
    ConfigError: it is damaged, or of another version.
  """
  path = folder / MANIFEST
  try:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    whole = {"size", "seed", "source", "masks_sha256"} <= manifest.keys() and manifest["version"] == VERSION
    whole = whole and all({"name", "bucket", "sha256"} <= mask.keys() for mask in manifest["masks"])
  except (ValueError, KeyError, TypeError, AttributeError):
    whole = False
  require(whole, f"{path} is no manifest of masks, or of another version: write it again with --mode=masks")
  return manifest
