"""The fixed sample panel: what the model makes of the same few held-out images, at every stage of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from gmsrm_jax.arrays import composite, image_from_uint8, image_to_uint8, mask_from_uint8, masked_mean
from gmsrm_jax.config import BUCKETS, Config
from gmsrm_jax.data.pipeline import EvaluationSet
from gmsrm_jax.models.inpainter import inpaint
from gmsrm_jax.models.memory import recognise
from gmsrm_jax.panels import save_panel
from gmsrm_jax.parallel.sharding import replicated
from gmsrm_jax.training.state import TrainState, make_networks, release_params

PANEL_BUCKETS = (2, 3, 4, 5)
"""Buckets whose masks the rows take in turn: 20-30 to 50-60 %, large holes being the point."""

_COLUMNS = ("masked", "prediction", "inpainted", "memory's drawing", "teacher's read")


def panel_inputs(config: Config, evaluation: EvaluationSet) -> tuple[np.ndarray, np.ndarray]:
  """The panel's images [b h w 3] and masks [b h w 1], uint8; spread over the held-out set."""
  count = min(config.run.panel_images, len(evaluation))
  chosen = [index * len(evaluation) // count for index in range(count)]
  images = [evaluation[index][1] for index in chosen]
  masks = [evaluation.mask(index, BUCKETS[PANEL_BUCKETS[row % len(PANEL_BUCKETS)]]) for row, index in enumerate(chosen)]
  return np.stack(images), np.stack(masks)[..., None]


def make_panel_writer(
  config: Config, stage: str, images: UInt8[np.ndarray, "b h w 3"], masks: UInt8[np.ndarray, "b h w 1"]
) -> Callable[[TrainState, pathlib.Path], None]:
  """A function that draws the panel of a state, with the averaged parameters, into a PNG file."""
  networks = make_networks(config)

  # The pictures are arguments: as constants, XLA would spend seconds folding them.
  @jax.jit
  def memory_columns(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    drawn = recognise(networks.memory, params, image_from_uint8(images)).rendering.image
    return {"memory's drawing": image_to_uint8(drawn)}

  @jax.jit
  def inpaint_columns(params: Any, teacher: Any, images: jax.Array, masks: jax.Array) -> dict[str, jax.Array]:
    image, mask = image_from_uint8(images), mask_from_uint8(masks)
    out = inpaint(networks.inpaint, params, image, mask)
    columns = {
      "masked": image_to_uint8(image * (1.0 - mask)),
      "prediction": image_to_uint8(out.prediction),
      "inpainted": image_to_uint8(composite(out.prediction, image, mask)),
      "memory's drawing": image_to_uint8(out.memory_image),
    }
    if teacher is not None:
      # What the frozen generator makes of the teacher's read: the semantics the student is to infer.
      whole = {**teacher, "memory": {**teacher["memory"], "generator": params["memory"]["generator"]}}
      read = recognise(networks.memory, whole, image).rendering.image
      columns["teacher's read"] = image_to_uint8(read)
    return columns

  def write(state: TrainState, path: pathlib.Path) -> None:
    if stage == "memory":
      columns = memory_columns(state.ema, images)
    else:
      columns = inpaint_columns(release_params(state), state.frozen.get("teacher"), images, masks)
    shown = {name: np.asarray(columns[name]) for name in _COLUMNS if name in columns}  # jit has sorted them
    save_panel(path, {"image": images, **shown})

  return write


def make_grid(
  config: Config, stage: str, mesh: Mesh, evaluation: EvaluationSet
) -> tuple[Callable[[TrainState, pathlib.Path], None], Callable[[TrainState], float]]:
  """Returns what draws the grid of a state into a file, and what measures the quality of the same fills."""
  pictures = panel_inputs(config, evaluation)
  return make_panel_writer(config, stage, *pictures), make_quality(config, stage, mesh, *pictures)


def make_quality(
  config: Config,
  stage: str,
  mesh: Mesh,
  images: UInt8[np.ndarray, "b h w 3"],
  masks: UInt8[np.ndarray, "b h w 1"],
) -> Callable[[TrainState], float]:
  """A function that tells how well a state's averages do on the panel's pictures: PSNR in dB, higher is better.

  Stage 1 is judged by the whole pictures that it draws again, stage 2 by its holes. All processes must call it.
  """
  networks = make_networks(config)

  def psnr(params: Any, images: jax.Array, masks: jax.Array) -> jax.Array:
    image, mask = image_from_uint8(images), mask_from_uint8(masks)
    if stage == "memory":
      drawn, mask = recognise(networks.memory, params, image).rendering.image, jnp.ones_like(mask)
    else:
      drawn = inpaint(networks.inpaint, params, image, mask).prediction
    return jnp.mean(-10.0 * jnp.log10(masked_mean(((drawn - image) * 0.5) ** 2, mask)))

  jitted = jax.jit(psnr, out_shardings=replicated(mesh))
  return lambda state: float(jitted(release_params(state) if stage == "inpaint" else state.ema, images, masks))
