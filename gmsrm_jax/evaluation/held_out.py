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

from gmsrm_jax import experiments
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
from gmsrm_jax.parallel.fixed_batches import ByImage, in_fixed_batches
from gmsrm_jax.training.state import make_networks
from gmsrm_jax.training.weights import Weights

METHOD = "GM-SRM"


def make_fill(config: Config, params: Any) -> Fill:
  """The model's deterministic fill, composited, as a function of uint8 arrays."""
  return in_fixed_batches(functools.partial(fill_pixels, make_networks(config).inpaint), params)


def make_redraw(config: Config, weights: Weights) -> ByImage:
  """The teacher's view of whole uint8 images: mean weights of the slots, and the PSNR in dB of what it draws."""
  assert weights.teacher is not None
  network = make_networks(config).memory
  memory = {**weights.teacher["memory"], "generator": weights.params["memory"]["generator"]}

  def redraw(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    image = image_from_uint8(images)
    out = recognise(network, params, image)
    drawn = image_from_uint8(image_to_uint8(out.image))
    slots = jax.vmap(lambda w: codebook.usage_of(config.memory, w[None]))(out.retrieval.log_weights)
    return slots, metrics.psnr(drawn, image)

  return in_fixed_batches(redraw, {**weights.teacher, "memory": memory})


class HeldOutPictures:
  """Each held-out image with its hole of every bucket, to be scored: decoded once, each hole drawn once.

  `weights` are those that fill them; with a teacher the memory's health is looked at, too.
  """

  def __init__(self, config: Config, evaluation: EvaluationSet, weights: Weights | None = None):
    self._config, self._evaluation = config, evaluation
    self.least_size = (config.model.image_size, config.model.image_size)
    self._step = weights.step if weights else None
    self._redraw = make_redraw(config, weights) if weights and weights.teacher is not None else None
    self._redrawn: list[tuple[np.ndarray, np.ndarray]] = []  # weights of slots and PSNR
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
      for bucket in BUCKETS:
        mask = self._evaluation.mask(index, bucket)
        self._digest.update(mask_bytes(name, bucket, mask))
        if decoded == name:  # else the stand-in of a file that cannot be decoded, which has its own turn
          yield Picture(bucket_name(bucket), name, image, mask[..., None])

  def read_again(self, bucket: str, name: str) -> Picture:
    """Reads one picture and its hole again, for the pictures of the report."""
    index = self._evaluation.names.index(name)
    mask = self._evaluation.mask(index, next(bounds for bounds in BUCKETS if bucket_name(bounds) == bucket))
    return Picture(bucket, name, self._evaluation[index][1], mask[..., None])

  def watch(self, batch: Sequence[Picture], fills: Mapping[str, np.ndarray]) -> None:
    """Redraws each image once from the memory, and keeps the fills of those that `save_panels` shows."""
    whole = [picture.image for picture in batch if picture.bucket == bucket_name(BUCKETS[0])]
    if self._redraw and whole:
      self._redrawn.append(self._redraw(np.stack(whole)))
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
    head = {
      "experiment": self._config.name,
      "step": self._step,
      "title": f"{self._config.name}, step {self._step}",
      "notes": experiments.limits(self._config.name),
      "protocol": {
        "images": len(self._evaluation),
        "image_size": self._config.model.image_size,
        "images_sha256": split_hash(self._evaluation.source),
        "masks_sha256": self._digest.hexdigest(),
        "masks": self._evaluation.mask_source,
        "composite": True,
      },
    }
    return head | ({"memory": self._memory()} if self._redrawn else {})

  def _memory(self) -> dict[str, float]:
    """The number of slots that the teacher uses, and the quality of its reads drawn again."""
    usage = np.concatenate([slots for slots, _ in self._redrawn]).astype(np.float64).sum(axis=0)
    psnr = np.concatenate([psnr for _, psnr in self._redrawn])
    shares = jnp.asarray(usage / usage.sum(axis=-1, keepdims=True), jnp.float32)
    return {
      "slots": usage.size,
      "perplexity": float(codebook.perplexity(shares)),
      "used_slots": float(codebook.used_slots(shares)),
      "reconstruction_psnr": metrics.means({"psnr": psnr})["psnr"],
    }
