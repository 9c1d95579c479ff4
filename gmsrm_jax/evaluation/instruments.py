"""What an evaluation measures with: one program for all numbers of a picture, and where its weights come from."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gmsrm_jax.arrays import Rgb8, image_from_uint8
from gmsrm_jax.config import EvalConfig
from gmsrm_jax.evaluation.protocols import PROTOCOLS, Protocol
from gmsrm_jax.parallel.fixed_batches import ByImage, in_fixed_batches
from gmsrm_jax.pretrained import inception, vgg16, weight_files

Embedding = Callable[[Any, Rgb8], jax.Array]


class Instruments(NamedTuple):
  """`measure(fills [b m h w 3], truth, masks)` gives (scores [b m], features of fills [b m d], of the truth [b d])."""

  protocol: Protocol
  measure: ByImage
  weights: dict[str, str]  # file to sha256
  notes: list[str]  # what could not be had


def _vgg16(networks: Any, pixels: Rgb8) -> jax.Array:
  return vgg16.vgg16_embedding(networks["vgg"], image_from_uint8(pixels))


def _inception(networks: Any, pixels: Rgb8) -> jax.Array:
  return inception.inception_features(networks["inception"], image_from_uint8(pixels))


def load(config: EvalConfig) -> Instruments:
  """Reads the networks that the protocol and the distances need.

  Raises:
    ConfigError: a file of weights is lost or altered, or `eval.inception_weights` names none.
  """
  protocol = PROTOCOLS[config.protocol]
  networks: dict[str, Any] = {"vgg": vgg16.load_vgg16(), **protocol.load_networks()}
  embeddings: dict[str, Embedding] = {"vgg16": _vgg16}
  files = {"alex": "alexnet", "vgg": "vgg16"}
  weights = {files[net]: weight_files.SHA256[files[net]] for net in networks}
  notes: list[str] = []
  if (path := _inception_path(config.inception_weights)) is None:
    notes.append(f"No FID: it needs {inception.NAME}; set eval.inception_weights to its path, or to download.")
  else:
    networks["inception"], weights["inception"] = inception.load_inception(path), inception.SHA256
    embeddings["inception"] = _inception
    notes.append(f"FID's pictures are resized to {inception.SIDE}x{inception.SIDE}: {inception.RESIZE}.")

  # What the formula gives for equal numbers: HINT's ends at 100 dB.
  best = {"psnr": 100.0 if protocol.name == "hint" else jnp.inf, "psnr_hole": jnp.inf}

  def measure(networks: Any, fills: jax.Array, truth: jax.Array, masks: jax.Array) -> Any:
    # One program for all methods: what is done to the truth is done once.
    scores = jax.vmap(protocol.score, in_axes=(None, 1, None, None), out_axes=1)(networks, fills, truth, masks)
    # A compiler may round fills and truth on ways of its own; whether they are equal the integers tell.
    equal = jnp.all(fills == truth[:, None], axis=(2, 3, 4))
    scores = {name: jnp.where(equal, best[name], value) if name in best else value for name, value in scores.items()}
    of_fills = {name: jax.vmap(embed, (None, 1), 1)(networks, fills) for name, embed in embeddings.items()}
    return scores, of_fills, {name: embed(networks, truth) for name, embed in embeddings.items()}

  return Instruments(protocol, in_fixed_batches(measure, networks), weights, notes)


def _inception_path(setting: str) -> pathlib.Path | None:
  """The file of Inception's weights; None where nobody has put one."""
  if setting == "download":
    return inception.download()
  return pathlib.Path(setting) if setting else inception.find_inception()
