"""The held-out images with their fixed holes, what fills them, and what is noted while they are scored."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from gmsrm_jax.arrays import image_from_uint8, image_to_uint8
from gmsrm_jax.config import Config
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name, mask_bytes
from gmsrm_jax.data.pipeline import EvaluationSet
from gmsrm_jax.data.sources import split_hash
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.evaluation.baselines import Fill
from gmsrm_jax.evaluation.scorer import Picture
from gmsrm_jax.models import codebook
from gmsrm_jax.models.inpainter import fill_pixels
from gmsrm_jax.models.memory import recognise
from gmsrm_jax.panels import save_panel
from gmsrm_jax.parallel.fixed_batches import in_fixed_batches
from gmsrm_jax.training.state import make_networks
from gmsrm_jax.training.weights import Weights

METHOD = "GM-SRM"
_AT_ONCE = 64  # images that the memory redraws at once


def make_fill(config: Config, params: Any) -> Fill:
  """The model's deterministic fill, composited, as a function of uint8 arrays."""
  return in_fixed_batches(functools.partial(fill_pixels, make_networks(config).inpaint), params)


class MemoryHealth:
  """How many slots the teacher uses for whole held-out images, and how well its reads can be drawn."""

  def __init__(self, config: Config, weights: Weights):
    assert weights.teacher is not None
    memory = {**weights.teacher["memory"], "generator": weights.params["memory"]["generator"]}
    network = make_networks(config).memory

    def redraw(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
      image = image_from_uint8(images)
      out = recognise(network, params, image)
      drawn = image_from_uint8(image_to_uint8(out.rendering.image))
      weights = jax.vmap(lambda w: codebook.mean_weights(w[None]))(out.retrieval.log_weights)
      return weights, metrics.psnr(drawn, image)

    self._program = in_fixed_batches(redraw, {**weights.teacher, "memory": memory})
    self._waiting: list[np.ndarray] = []
    self._usage: list[np.ndarray] = []
    self._psnr: list[np.ndarray] = []

  def add(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Takes a whole image."""
    self._waiting.append(image)
    if len(self._waiting) == _AT_ONCE:
      self._redraw()

  def _redraw(self) -> None:
    if self._waiting:
      weights, psnr = self._program(np.stack(self._waiting))
      self._usage.append(weights.astype(np.float64).sum(axis=0))
      self._psnr.append(psnr)
      self._waiting = []

  def describe(self) -> dict[str, float]:
    self._redraw()
    usage = np.sum(self._usage, axis=0)
    shares = jnp.asarray(usage / usage.sum(), jnp.float32)
    return {
      "slots": len(usage),
      "perplexity": float(codebook.perplexity(shares)),
      "used_slots": float(codebook.used_slots(shares)),
      "reconstruction_psnr": metrics.means({"psnr": np.concatenate(self._psnr)})["psnr"],
    }


class HeldOutPictures:
  """Each held-out image with its hole of every bucket, to be scored: decoded once, each hole drawn once.

  `weights` are those that fill them; with a teacher the memory's health is looked at, too.
  """

  def __init__(self, config: Config, evaluation: EvaluationSet, weights: Weights | None = None):
    self._config, self._evaluation = config, evaluation
    self._step = weights.step if weights else None
    self._memory = MemoryHealth(config, weights) if weights and weights.teacher is not None else None
    self._digest = hashlib.sha256()
    count = min(config.run.panel_images, len(evaluation))
    # Spread over the held-out set, not chosen by result.
    self._on_panels = {evaluation.names[index * len(evaluation) // count] for index in range(count)}
    self._panels: dict[str, dict[str, list[np.ndarray]]] = {}  # bucket, column

  def __len__(self) -> int:
    return len(self._evaluation) * len(BUCKETS)

  def __iter__(self) -> Iterator[Picture]:
    for index, name in enumerate(self._evaluation.names):
      decoded, image = self._evaluation[index]
      valid = decoded == name  # else the stand-in of a file that cannot be decoded, which has its own turn
      if valid and self._memory:
        self._memory.add(image)
      for bucket in BUCKETS:
        mask = self._evaluation.mask(index, bucket)
        self._digest.update(mask_bytes(name, bucket, mask))
        if valid:
          yield Picture(bucket_name(bucket), name, image, mask[..., None])

  def again(self, bucket: str, name: str) -> Picture:
    """One of them, to be shown."""
    index = self._evaluation.names.index(name)
    mask = self._evaluation.mask(index, next(bounds for bounds in BUCKETS if bucket_name(bounds) == bucket))
    return Picture(bucket, name, self._evaluation[index][1], mask[..., None])

  def watch(self, batch: Sequence[Picture], fills: Mapping[str, np.ndarray]) -> None:
    """Keeps the fills of a few images, which `save_panels` shows."""
    for row, (bucket, name, image, mask, _) in enumerate(batch):
      if name in self._on_panels:
        columns = {"image": image, "masked": np.where(mask > 0, np.uint8(255), image)}
        for title, picture in (columns | {method: fill[row] for method, fill in fills.items()}).items():
          self._panels.setdefault(bucket, {}).setdefault(title, []).append(picture)

  def save_panels(self, folder: pathlib.Path) -> None:
    """Writes, per bucket, every method's fill of a few images."""
    for bucket, columns in self._panels.items():
      panel = {title: np.stack(pictures) for title, pictures in columns.items()}
      save_panel(folder / f"eval_{bucket.rstrip('%')}.png", panel)

  def describe(self) -> dict[str, Any]:
    """The head of a report, with the hashes of images and masks; whole after the iteration."""
    count, size, holes = len(self._evaluation), self._config.model.image_size, self._evaluation.mask_source
    images_hash, masks_hash = split_hash(self._evaluation.source), self._digest.hexdigest()
    return {
      "experiment": self._config.name,
      "step": self._step,
      "title": f"{self._config.name}, step {self._step}",
      "summary": (
        f"{count} held-out images at {size}x{size}, one fixed mask per image and bucket; all methods composited and "
        f"scored as uint8. Images sha256 {images_hash[:12]}. Masks: {holes}; sha256 {masks_hash[:12]}."
      ),
      "notes": [],
      "protocol": {
        "images": count,
        "image_size": size,
        "images_sha256": images_hash,
        "masks_sha256": masks_hash,
        "masks": holes,
        "composite": True,
      },
      **({"memory": self._memory.describe()} if self._memory else {}),
    }
