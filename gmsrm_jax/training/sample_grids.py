"""The fixed sample grid: what the model makes of the same few held-out images, at every stage of a run."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gmsrm_jax.arrays import (
  Image,
  Mask8,
  Rgb8,
  composite,
  image_from_uint8,
  image_to_uint8,
  mask_from_uint8,
  masked_mean,
)
from gmsrm_jax.config import Config
from gmsrm_jax.data.masks.fixed import BUCKETS
from gmsrm_jax.data.pipeline import EvaluationSet
from gmsrm_jax.models.inpainter import inpaint
from gmsrm_jax.models.memory import recognise
from gmsrm_jax.panels import save_panel
from gmsrm_jax.parallel.sharding import replicated
from gmsrm_jax.pretrained import lpips
from gmsrm_jax.training.state import TrainState, make_networks, release_params

_BUCKETS = BUCKETS[2:]
"""Whose masks the images take in turn: 20-30 to 50-60 %, large holes being the point."""

_COLUMNS = ("masked", "prediction", "inpainted", "memory's drawing", "teacher's read")


def make_grid(
  config: Config, stage: str, mesh: Mesh, evaluation: EvaluationSet
) -> tuple[Callable[[TrainState, pathlib.Path], dict[str, float]], Callable[[TrainState], float]]:
  """Returns two functions of a state: one draws the grid of its averages into a file, one measures these.

  What is measured is the PSNR in dB: in stage 1 of the whole pictures that it draws again, in stage 2 of the holes. All
  processes must call the second. The first returns the same, and LPIPS of the whole pictures, for the averages and for
  the parameters themselves, of the pictures as they are drawn.
  """
  networks = make_networks(config)
  images, masks = _choose(config, evaluation)

  def draw(params: Any, teacher: Any, images: Rgb8, masks: Mask8) -> dict[str, Image]:
    image, mask = image_from_uint8(images), mask_from_uint8(masks)
    if stage == "memory":
      return {"memory's drawing": recognise(networks.memory, params, image).image}
    out = inpaint(networks.inpaint, params, image, mask)
    columns = {
      "masked": image * (1.0 - mask),
      "prediction": out.prediction,
      "inpainted": composite(out.prediction, image, mask),
      "memory's drawing": out.memory_image,
    }
    if teacher is not None:
      # What the frozen generator makes of the teacher's read: the semantics the student is to infer.
      whole = {**teacher, "memory": {**teacher["memory"], "generator": params["memory"]["generator"]}}
      columns["teacher's read"] = recognise(networks.memory, whole, image).image
    return columns

  def measure(params: Any, images: Rgb8, masks: Mask8) -> jax.Array:
    drawn = draw(params, None, images, masks)["memory's drawing" if stage == "memory" else "prediction"]
    mask = jnp.ones_like(drawn[..., :1]) if stage == "memory" else mask_from_uint8(masks)
    return jnp.mean(-10.0 * jnp.log10(masked_mean(((drawn - image_from_uint8(images)) * 0.5) ** 2, mask)))

  # The pictures are arguments: as constants, XLA would spend seconds folding them.
  drawing = jax.jit(lambda *arguments: jax.tree.map(image_to_uint8, draw(*arguments)))
  measuring = jax.jit(measure, out_shardings=replicated(mesh))

  def compare(alexnet: Any, drawn: Rgb8, images: Rgb8, masks: Mask8) -> dict[str, jax.Array]:
    fill, image, mask = image_from_uint8(drawn), image_from_uint8(images), mask_from_uint8(masks)
    mask = jnp.ones_like(mask) if stage == "memory" else mask
    psnr = jnp.mean(-10.0 * jnp.log10(masked_mean(((fill - image) * 0.5) ** 2, mask)))
    small = min(image.shape[1:3]) < 32  # for AlexNet
    return {"psnr": psnr} | ({} if small else {"lpips": jnp.mean(lpips.lpips(alexnet, fill, image))})

  comparing = jax.jit(compare)

  def write(state: TrainState, path: pathlib.Path) -> dict[str, float]:
    values, judged = {}, "memory's drawing" if stage == "memory" else "inpainted"
    for name, params in (("model", state.params), ("average", state.ema)):
      released = release_params(dataclasses.replace(state, ema=params))
      columns = drawing(released, state.frozen.get("teacher"), images, masks)
      told = comparing(lpips.load_alexnet(), columns[judged], images, masks)
      values |= {f"held_out/{metric}_{name}": float(value) for metric, value in told.items()}
    shown = {name: np.asarray(columns[name]) for name in _COLUMNS if name in columns}  # jit has sorted them
    save_panel(path, {"image": images, **shown})
    return values

  return write, lambda state: float(measuring(release_params(state), images, masks))


def _choose(config: Config, evaluation: EvaluationSet) -> tuple[np.ndarray, np.ndarray]:
  """Returns images [b h w 3] and masks [b h w 1], uint8, spread over the held-out set."""
  count = min(config.run.panel_images, len(evaluation))
  chosen = [index * len(evaluation) // count for index in range(count)]
  images = [evaluation[index][1] for index in chosen]
  masks = [evaluation.mask(index, _BUCKETS[row % len(_BUCKETS)]) for row, index in enumerate(chosen)]
  return np.stack(images), np.stack(masks)[..., None]
