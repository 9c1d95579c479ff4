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
from gmsrm_jax.models.inpainter import draw_noise, fill_pixels, varies
from gmsrm_jax.parallel import backend
from gmsrm_jax.training.run_folder import read_run
from gmsrm_jax.training.state import make_networks
from gmsrm_jax.training.weights import WEIGHTS, Weights, flat_names, load_weights, save_weights

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, EXAMPLE = "inpainter.stablehlo", "run_exported.py"

_EXAMPLE = '''"""Fills the hole of a photograph: python run_exported.py IMAGE MASK OUTPUT [SEED].

Needs jax, flatbuffers, numpy, safetensors and Pillow, and the two files beside this one. White in the mask is hole.
The model sees a square around the hole at {size}x{size}; its fill is put back at the photograph's own size, and all
else stays as it is, except in a JPEG, which changes a little everywhere. Written are 8 bits of RGB: 16 bits are rounded
to 8; transparency, colour profile and EXIF are left out. Without a seed it is the deterministic fill.
"""

import pathlib
import sys

import jax
import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file

FORMATS = ".png .jpg .jpeg .tif .tiff .bmp"


def stop(message):
  print(f"error: {{message}}", file=sys.stderr)
  sys.exit(2)


def read(path, mode):
  if not path.is_file():
    stop(f"{{path}} does not exist, or is no file: give the path of a picture")
  try:
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode[0] in "IF":  # more than 8 bits, which Pillow would cut off at 255
      levels = np.asarray(picture)
      if picture.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError("neither 8 nor 16 bits a channel")
      picture = Image.fromarray(np.round(levels / 257).astype(np.uint8))
    return np.array(picture.convert(mode))
  except Exception as error:  # decoders raise nearly anything
    stop(f"{{path}} cannot be read ({{error}}): save it anew, as an 8-bit PNG")


if len(sys.argv) == 1:
  print(__doc__)
  sys.exit(2)
seed = sys.argv[4] if len(sys.argv) > 4 else "0"
if len(sys.argv) not in (4, 5) or not seed.isdecimal() or int(seed) > {largest}:
  stop(f"{{sys.argv[1:]}}: give IMAGE MASK OUTPUT, and SEED from 0 to {largest} for a varied fill")
image, mask, output = map(pathlib.Path, sys.argv[1:4])
photo, hole = read(image, "RGB"), read(mask, "L") > 127
if photo.shape[:2] != hole.shape:
  sizes = [f"{{path}} is {{side[1]}}x{{side[0]}}" for path, side in ((mask, hole.shape), (image, photo.shape))]
  stop(f"{{' but '.join(sizes)}}: make the mask as large as its image")
if not hole.any():
  stop(f"{{mask}} has no hole: paint it white")
if output.suffix.lower() not in FORMATS.split() or not output.parent.is_dir():
  stop(f"{{output}} cannot be written: name a file ({{FORMATS}}) in a folder that is there")
if output.exists() and (output.samefile(image) or output.samefile(mask)):
  stop(f"{{output}} is an input and would be overwritten: choose another OUTPUT")

# A square twice as wide as the hole, or as large as the model; less where the photograph ends.
places = [np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0)]
side = max({size}, 2 * max(place[-1] + 1 - place[0] for place in places))
box = []
for place, length in zip(places, hole.shape):
  start = (place[0] + place[-1] + 1 - side) // 2
  start = max(0, min(start, length - side))
  box.append(slice(start, min(start + side, length)))
box = tuple(box)
wide = hole[box].shape[::-1]

here = pathlib.Path(__file__).parent
try:
  program = jax.export.deserialize((here / "{program}").read_bytes())
  weights = load_file(here / "{weights}")
except OSError as error:
  stop(f"{{error}}: put {program} and {weights} beside {{__file__}}")
noise = np.float32(len(sys.argv) > 4)  # how much the fill is varied: 0 not at all, 1 as in training
pixels = np.asarray(Image.fromarray(photo[box]).resize(({size}, {size})))
# A pixel that holds any of the hole is hole.
seen = np.asarray(Image.fromarray(hole[box].astype(np.float32)).resize(({size}, {size}), Image.Resampling.BOX)) > 0
filled = program.call(weights, pixels[None], seen[None, :, :, None].astype(np.uint8), np.uint32(int(seed)), noise)
photo[box][hole[box]] = np.asarray(Image.fromarray(np.asarray(filled)[0]).resize(wide))[hole[box]]
try:
  Image.fromarray(photo).save(output, quality=95)
except OSError as error:
  stop(f"{{output}} cannot be written ({{error}}): choose another OUTPUT")
print(f"{{output}}: {{photo.shape[1]}}x{{photo.shape[0]}}, of which {{hole.mean():.1%}} were filled")
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
    if varies(config):
      drawn = tuple(noise * n for n in draw_noise(jax.random.key(seed), config.model, images.shape[0]))
    return fill_pixels(network, params, images, masks, drawn)

  return program
