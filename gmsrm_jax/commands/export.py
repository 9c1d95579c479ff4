"""--mode=export: writes the trained inpainter as StableHLO and safetensors, to be run without this project's code.

Four files: `inpainter.stablehlo` (jax.export: any batch size, for cpu, cuda and tpu), `weights.safetensors` (flat
names, the program's first argument), `run_exported.py`, a complete example that needs jax, flatbuffers, numpy,
safetensors and Pillow alone, and `config.json`, with which this project reads the weights back.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, UInt32

from gmsrm_jax import overrides
from gmsrm_jax.arrays import Mask8, Rgb8
from gmsrm_jax.commands.flags import trained
from gmsrm_jax.config import Config
from gmsrm_jax.errors import MAX_SEED
from gmsrm_jax.files import check_inputs_stay, write_bytes, write_text
from gmsrm_jax.models.inpainter import draw_noise, fill_pixels
from gmsrm_jax.parallel import backend
from gmsrm_jax.training.run_folder import read_run
from gmsrm_jax.training.state import make_networks
from gmsrm_jax.training.weights import WEIGHTS, Weights, flat_names, load_weights, save_weights

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, EXAMPLE = "inpainter.stablehlo", "run_exported.py"

_EXAMPLE = '''"""Fills the hole of a {size}x{size} picture: python run_exported.py IMAGE MASK OUTPUT [SEED].

Needs jax, flatbuffers, numpy, safetensors and Pillow, and the two files beside this one. White in the mask is hole.
Other sizes are resized to {size}x{size} first; without a seed it is the deterministic fill.
"""

import pathlib
import sys

import jax
import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file

seed = sys.argv[4] if len(sys.argv) > 4 else "0"
if len(sys.argv) not in (4, 5) or not seed.isdecimal() or int(seed) > {largest}:
  sys.exit(f"error: {{sys.argv[1:]}}: give IMAGE MASK OUTPUT, and SEED from 0 to {largest} for a varied fill")

here = pathlib.Path(__file__).parent
program = jax.export.deserialize((here / "{program}").read_bytes())
weights = load_file(here / "{weights}")

image, mask = (ImageOps.exif_transpose(Image.open(path)) for path in sys.argv[1:3])
noise = np.float32(len(sys.argv) > 4)  # how much the fill is varied: 0 not at all, 1 as in training
size = ({size}, {size})
pixels = np.asarray(image.convert("RGB").resize(size))[None]
hole = (np.asarray(mask.convert("L").resize(size, Image.Resampling.NEAREST)) > 127).astype(np.uint8)
filled = program.call(weights, pixels, hole[None, :, :, None], np.uint32(int(seed)), noise)
Image.fromarray(np.asarray(filled)[0]).save(sys.argv[3])
'''


def run(flags: argparse.Namespace) -> None:
  """Exports the weights that the flags name.

  Raises:
    ConfigError: there is no trained model in the folder.
  """
  backend.check(flags.platform)
  checkpoint = trained(flags)
  described = read_run(checkpoint)
  config = overrides.from_dict(described["config"])
  weights = load_weights(config, pathlib.Path(checkpoint))
  check_inputs_stay([pathlib.Path(flags.output) / "config.json"], [pathlib.Path(checkpoint) / "config.json"])
  write(config, weights, described, pathlib.Path(flags.output), flags.weights)
  print(f"weights: {checkpoint}: {config.name}, step {weights.step}, as {flags.weights}")
  print(f"{PROGRAM}, {WEIGHTS} and {EXAMPLE} in {flags.output}: try python {flags.output}/{EXAMPLE} IMAGE MASK OUTPUT")


def write(config: Config, weights: Weights, described: dict[str, Any], folder: pathlib.Path, dtype: str) -> None:
  """Writes the four files: weights of this type with their description, the program for them, and the example."""
  save_weights(folder, weights, described, dtype)
  size = config.model.image_size
  (batch,) = export.symbolic_shape("b")
  program = export.export(jax.jit(make_program(config)), platforms=PLATFORMS)(
    {name: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)) for name, leaf in flat_names(weights.params).items()},
    jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8),
    jax.ShapeDtypeStruct((batch, size, size, 1), jnp.uint8),
    jax.ShapeDtypeStruct((), jnp.uint32),
    jax.ShapeDtypeStruct((), jnp.float32),
  )
  write_bytes(folder / PROGRAM, bytes(program.serialize()))
  write_text(folder / EXAMPLE, _EXAMPLE.format(size=size, program=PROGRAM, weights=WEIGHTS, largest=MAX_SEED))


def make_program(config: Config) -> Callable[..., Rgb8]:
  """Returns the program: `noise` 0 is the deterministic fill, 1 the variation of training."""
  network = make_networks(config).inpaint

  def program(
    weights: dict[str, Array], images: Rgb8, masks: Mask8, seed: UInt32[Array, ""], noise: Float[Array, ""]
  ) -> Rgb8:
    # Whatever they are stored as, the model computes as it did in training.
    single = {name: leaf.astype(jnp.float32) for name, leaf in weights.items()}
    params = flax.traverse_util.unflatten_dict(single, sep="/")
    drawn = None
    if config.variation.enabled:
      drawn = tuple(noise * n for n in draw_noise(jax.random.key(seed), config.model, images.shape[0]))
    return fill_pixels(network, params, images, masks, drawn)

  return program
