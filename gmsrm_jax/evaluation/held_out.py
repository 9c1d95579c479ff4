"""Fills of the held-out images, made while they are scored: each image is decoded once, each hole drawn once."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmsrm_jax.arrays import image_from_uint8, image_to_uint8
from gmsrm_jax.config import Config
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name, mask_bytes
from gmsrm_jax.data.pipeline import EvaluationSet
from gmsrm_jax.data.sources import split_hash
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.evaluation.baselines import Fill
from gmsrm_jax.evaluation.scorer import Batch
from gmsrm_jax.models import codebook
from gmsrm_jax.models.inpainter import fill_pixels
from gmsrm_jax.models.memory import recognise
from gmsrm_jax.panels import save_panel
from gmsrm_jax.parallel.fixed_batches import in_fixed_batches
from gmsrm_jax.training.state import make_networks

METHOD = "GM-SRM"


def make_fill(config: Config, params: Any) -> Fill:
  """The model's deterministic fill, composited, as a function of uint8 arrays."""
  return in_fixed_batches(functools.partial(fill_pixels, make_networks(config).inpaint), params)


class MemoryHealth:
  """How many slots the teacher uses for whole held-out images, and how well its reads can be drawn."""

  def __init__(self, config: Config, teacher: Any, generator: Any):
    self._config = config.memory
    self._usage: list[np.ndarray] = []
    self._psnr: list[np.ndarray] = []
    network = make_networks(config).memory

    def redraw(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
      image = image_from_uint8(images)
      out = recognise(network, params, image)
      drawn = image_from_uint8(image_to_uint8(out.rendering.image))
      weights = jax.vmap(lambda w: codebook.mean_weights(w[None]))(out.retrieval.log_weights)
      return weights, metrics.psnr(drawn, image)

    self._program = in_fixed_batches(redraw, {**teacher, "memory": {**teacher["memory"], "generator": generator}})

  def add(self, images: np.ndarray) -> None:
    """Takes whole images."""
    weights, psnr = self._program(images)
    self._usage.append(weights.astype(np.float64).sum(axis=0))
    self._psnr.append(psnr)

  def report(self) -> dict[str, float]:
    """Slots, perplexity, slots in use, and the PSNR of drawings in dB."""
    usage = np.sum(self._usage, axis=0)
    shares = jnp.asarray(usage / usage.sum(), jnp.float32)
    return {
      "slots": self._config.num_slots,
      "perplexity": float(codebook.perplexity(shares)),
      "used_slots": float(codebook.used_slots(shares)),
      "reconstruction_psnr": metrics.means({"psnr": np.concatenate(self._psnr)})["psnr"],
    }


class HeldOutResults:
  """See `scorer.Results`."""

  has_masks = True

  def __init__(
    self,
    config: Config,
    evaluation: EvaluationSet,
    fills: Mapping[str, Fill],
    memory: MemoryHealth | None = None,
    step: int = 0,
  ):
    self._config, self._evaluation, self._fills = config, evaluation, dict(fills)
    self._memory, self._step = memory, step
    self._digest = hashlib.sha256()
    count = min(config.run.panel_images, len(evaluation))
    # Spread over the held-out set, not chosen by result.
    self._on_panels = {evaluation.names[index * len(evaluation) // count] for index in range(count)}
    self._panels: dict[str, dict[str, list[np.ndarray]]] = {bucket_name(bucket): {} for bucket in BUCKETS}

  def least_size(self) -> tuple[int, int]:
    return self._config.model.image_size, self._config.model.image_size

  def count(self) -> int:
    return len(self._evaluation) * len(BUCKETS)

  def batches(self) -> Iterator[Batch]:
    step = self._config.eval.batch_size
    for start in range(0, len(self._evaluation), step):
      names, images, holes = [], [], []
      for index in range(start, min(start + step, len(self._evaluation))):
        name = self._evaluation.names[index]
        decoded, image = self._evaluation[index]
        masks = np.stack([self._evaluation.mask(index, bucket) for bucket in BUCKETS])
        for bucket, mask in zip(BUCKETS, masks, strict=True):
          self._digest.update(mask_bytes(name, bucket, mask))
        if decoded == name:  # else the stand-in of a file that cannot be decoded, which has its own turn
          names.append(name)
          images.append(image)
          holes.append(masks[..., None])
      if not names:
        continue
      if self._memory is not None:
        self._memory.add(np.stack(images))
      for place, bucket in enumerate(map(bucket_name, BUCKETS)):
        batch = self._filled(bucket, names, np.stack(images), np.stack([masks[place] for masks in holes]), self._fills)
        self._keep_for_panels(bucket, batch)
        yield batch

  def example(self, bucket: str, name: str, methods: Sequence[str]) -> Batch:
    index = self._evaluation.names.index(name)
    mask = self._evaluation.mask(index, next(bounds for bounds in BUCKETS if bucket_name(bounds) == bucket))
    return self._filled(bucket, [name], self._evaluation[index][1][None], mask[None, ..., None], methods)

  def describe(self) -> dict[str, Any]:
    config, size = self._config, self._config.model.image_size
    basis = {
      "images": len(self._evaluation),
      "image_size": size,
      "images_sha256": split_hash(self._evaluation.source),
      "masks_sha256": self._digest.hexdigest(),
      "masks": self._evaluation.mask_source,
      "composite": True,
    }
    head = {
      "experiment": config.name,
      "step": self._step,
      "title": f"{config.name}, step {self._step}",
      "summary": (
        f"{len(self._evaluation)} held-out images at {size}x{size}, one fixed mask per image and bucket; all methods "
        f"composited and scored as uint8. Images sha256 {basis['images_sha256'][:12]}. Masks: {basis['masks']}; sha256 "
        f"{basis['masks_sha256'][:12]}."
      ),
      "notes": [],
      "protocol": basis,
    }
    return head if self._memory is None else {**head, "memory": self._memory.report()}

  def save_panels(self, folder: pathlib.Path) -> None:
    """Writes a panel per bucket with every method's fill of a few images."""
    for bucket, columns in self._panels.items():
      if columns:  # none of whose images can be decoded
        panel = {title: np.stack(pictures) for title, pictures in columns.items()}
        save_panel(folder / f"eval_{bucket.rstrip('%')}.png", panel)

  def _filled(
    self, bucket: str, names: list[str], images: np.ndarray, masks: np.ndarray, methods: Iterable[str]
  ) -> Batch:
    fills = {method: self._fills[method](images, masks) for method in methods}
    return Batch([bucket] * len(names), names, images, masks, fills)

  def _keep_for_panels(self, bucket: str, batch: Batch) -> None:
    for row, name in enumerate(batch.names):
      if name in self._on_panels:
        masked = np.where(batch.masks[row] > 0, np.uint8(255), batch.images[row])
        fills = {method: fill[row] for method, fill in batch.fills.items()}
        for column, picture in {"image": batch.images[row], "masked": masked, **fills}.items():
          self._panels[bucket].setdefault(column, []).append(picture)
