"""Pictures of the memory: what each slot stands for, and which slots are read for the hole of a picture (ours)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import cv2
import einops
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from gmsrm_jax.arrays import Mask8, Rgb8, image_from_uint8, image_to_uint8, mask_from_uint8
from gmsrm_jax.config import Config
from gmsrm_jax.errors import require
from gmsrm_jax.inference import tiling
from gmsrm_jax.inference.inpainter import Inpainter
from gmsrm_jax.models.blocks import apply
from gmsrm_jax.models.inpainter import inpaint
from gmsrm_jax.models.retrieval import slot_values
from gmsrm_jax.training.state import make_networks

SIDE = 4
"""Positions along a side of the grid on which a slot is drawn."""
TILE = 96
"""Side of a drawn slot beside a picture, pixels."""
_GAP = 4


class Reads(NamedTuple):
  """Slots that are read for some cells of a hole, in the order of rows, as the model sees the picture."""

  seen: UInt8[np.ndarray, "h w 3"]  # the picture as the model sees it, the hole white
  cells: Int[np.ndarray, "c 2"]  # row and column of each cell of the bottleneck grid
  slots: Int[np.ndarray, "c t"]  # numbers of the slots that count most, group by group
  weights: Float[np.ndarray, "c t"]  # theirs, a mean over heads; all slots' sum to one
  perplexity: Float[np.ndarray, " c"]  # slots in even use, exp(entropy) of those weights


def draw_slots(inpainter: Inpainter) -> UInt8[np.ndarray, "g k s s 3"]:
  """Draws each slot: what the memory's generator makes of its value at every position of a small grid.

  A slot of a hard memory is a part of what is read; the other parts are then the means of their groups.

  Raises:
    ConfigError: the model has no memory.
  """
  config = inpainter.config
  require(config.memory.enabled, "these weights have memory.enabled=false: there is no memory to show")
  drawn = _draw_slots(config, inpainter.params)
  return np.asarray(drawn).reshape(config.memory.num_groups, config.memory.slots_per_group, *drawn.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def _draw_slots(config: Config, params: Any) -> Rgb8:
  values = slot_values(config.memory, params["memory"]["codebook"])[:, None, None]
  grid = jnp.broadcast_to(values, (len(values), SIDE, SIDE, values.shape[-1]))
  network = make_networks(config).inpaint
  return image_to_uint8(apply(network, params, grid, method=lambda net, read: net.memory.generator(read)[1]))


def find_reads(
  inpainter: Inpainter, image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], *, cells: int, top: int
) -> Reads:
  """Looks up which slots are read for cells at equal distances in a hole; the model sees the whole picture, reduced.

  Args:
    image: the picture.
    mask: 1 in the hole.
    cells: how many cells; fewer where the hole has fewer.
    top: how many slots of each.

  Raises:
    ConfigError: the mask has no hole, or one that is not seen in the reduced picture.
  """
  require(bool(mask.any()), "the mask has no hole: paint it white")
  config = inpainter.config
  model = config.model
  (patch,) = tiling.plan(mask, model.image_size, "resize")
  seen, hole = tiling.view(image, mask, patch.windows[0])
  require(
    bool(hole.any()),
    f"the hole is too thin for the model, which sees the whole picture at {hole.shape[1]}x{hole.shape[0]}: give a "
    "thicker one, or a part of the picture",
  )
  padding = [(0, tiling.padded_length(side, model.image_size, model.stride) - side) for side in hole.shape]
  padded = np.pad(seen, (*padding, (0, 0))), np.pad(hole, padding, constant_values=1)
  weights = np.asarray(_mean_weights(config, inpainter.params, padded[0][None], padded[1][None, ..., None]))
  shares = cv2.resize(
    hole.astype(np.float32), None, fx=1 / model.stride, fy=1 / model.stride, interpolation=cv2.INTER_AREA
  )
  inside = np.argwhere(shares >= min(0.999, shares.max()))
  chosen = inside[np.linspace(0, len(inside) - 1, min(cells, len(inside))).round().astype(int)]
  read = weights.reshape(padded[1].shape[0] // model.stride, -1, weights.shape[-1])[tuple(chosen.T)]
  slots = np.argsort(-read, axis=-1, kind="stable")[:, :top]
  entropy = -np.sum(read * np.log(np.maximum(read, 1e-12)), axis=-1)
  white = np.where(hole[..., None] > 0, np.uint8(255), seen)
  return Reads(white, chosen, slots, np.take_along_axis(read, slots, axis=-1), np.exp(entropy))


@functools.partial(jax.jit, static_argnums=0)
def _mean_weights(config: Config, params: Any, images: Rgb8, holes: Mask8) -> Float[Array, "q s"]:
  image, mask = image_from_uint8(images), mask_from_uint8(holes)
  retrieval = inpaint(make_networks(config).inpaint, params, image, mask).retrieval
  assert retrieval is not None, "slots were drawn, so there is a memory"
  weights = jnp.exp(retrieval.log_weights[0])
  if config.memory.hard:
    return einops.rearrange(weights, "n q s -> q (n s)") / len(weights)
  return jnp.mean(weights, axis=0)


def sheet_of_slots(drawn: UInt8[np.ndarray, "g k s s 3"]) -> Image.Image:
  """Lays all slots out, a row per group."""
  groups, count, side = drawn.shape[:3]
  sheet = np.full((groups, side + _GAP, count, side + _GAP, 3), 255, np.uint8)
  sheet[:, :side, :, :side] = drawn.transpose(0, 2, 1, 3, 4)
  return Image.fromarray(sheet.reshape(groups * (side + _GAP), -1, 3)[:-_GAP, :-_GAP])


def sheet_of_reads(reads: Reads, drawn: UInt8[np.ndarray, "g k s s 3"], stride: int) -> Image.Image:
  """Shows the picture with numbered cells, and for each the slots that count most, with their weights."""
  font = ImageFont.load_default(12)  # in a smaller one a space is not seen
  height = max(len(reads.cells) * (TILE + 20), 2 * TILE)
  scale = height / reads.seen.shape[0]
  picture = Image.fromarray(reads.seen).resize((round(reads.seen.shape[1] * scale), height))
  marks = ImageDraw.Draw(picture)
  for number, (row, column) in enumerate(reads.cells):
    left, top = column * stride * scale, row * stride * scale
    marks.rectangle((left, top, left + stride * scale, top + stride * scale), outline="red", width=2)
    marks.text((left + 4, top + 2), str(number + 1), fill="red", font=font)
  left = picture.width + 3 * _GAP
  sheet = Image.new("RGB", (left + 24 + reads.slots.shape[1] * (TILE + _GAP), height), "white")
  sheet.paste(picture, (0, 0))
  draw, flat = ImageDraw.Draw(sheet), drawn.reshape(-1, *drawn.shape[2:])
  for number, (slots, weights) in enumerate(zip(reads.slots, reads.weights, strict=True)):
    top = number * (TILE + 20)
    draw.text((left, top + 4), str(number + 1), fill="red", font=font)
    for place, (slot, weight) in enumerate(zip(slots, weights, strict=True)):
      x = left + 24 + place * (TILE + _GAP)
      sheet.paste(Image.fromarray(flat[slot]).resize((TILE, TILE), Image.Resampling.BICUBIC), (x, top))
      draw.text((x, top + TILE + 2), f"slot {slot}: {100 * weight:.1f} %", fill="black", font=font)
  return sheet
