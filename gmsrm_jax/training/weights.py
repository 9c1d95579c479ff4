"""Trained weights for use: from the checkpoint of a run, or as they are given out.

An export is a folder with `config.json` (the run's own, with the step) and `weights.safetensors`: the averaged
parameters under flat names such as 'decoder/up0/Dense_0/kernel'. Nothing in it depends on Orbax.
"""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from gmsrm_jax.config import Config
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import write_bytes, write_json
from gmsrm_jax.parallel.sharding import make_mesh
from gmsrm_jax.training.checkpoint import Checkpointer
from gmsrm_jax.training.run_folder import read_run
from gmsrm_jax.training.state import TrainState, abstract_state, release_params, with_shardings

WEIGHTS = "weights.safetensors"


class Weights(NamedTuple):
  """The trained weights of the inpainting network."""

  params: Any  # of the inpainter, memory included
  step: int  # of stage 2
  teacher: Any | None = None  # stage 1's view of whole images, where it is at hand
  stored: str = "float32"  # type in the file; in memory they are float32


def weights_of(state: TrainState) -> Weights:
  """Returns the averages of a state of stage 2."""
  return Weights(release_params(state), int(state.step), state.frozen.get("teacher"))


def load_state(config: Config, folder: pathlib.Path) -> TrainState:
  """Returns the newest state of stage 2 in a run's folder, on this process's devices.

  Raises:
    ConfigError: there is none, it is damaged, or of another configuration.
  """
  require(
    (folder / "checkpoints" / "inpaint").is_dir(),
    f"{folder} holds no checkpoint of stage 2: train there first, or name a folder that was",
  )
  saved = Checkpointer(folder, "inpaint", config.run)
  return saved.restore(with_shardings(config, "inpaint", make_mesh(config)), None)


def is_export(folder: pathlib.Path) -> bool:
  """Returns True for a folder that `save_weights` wrote, False for that of a run."""
  return (folder / WEIGHTS).exists()


def load_weights(config: Config, folder: pathlib.Path) -> Weights:
  """Returns the weights of a run's folder, or of an export. Raises ConfigError as `load_state`."""
  if not is_export(folder):
    return weights_of(load_state(config, folder))
  file, described = folder / WEIGHTS, read_run(folder)
  try:
    flat = safetensors.numpy.load_file(file)
  except (safetensors.SafetensorError, OSError) as error:
    raise ConfigError(f"{file} cannot be read ({' '.join(str(error).split())[:200]}): restore it") from None
  expected = flat_names(release_params(abstract_state(config, "inpaint")))
  shapes, known = ({name: leaf.shape for name, leaf in arrays.items()} for arrays in (flat, expected))
  strange = {name for name in shapes.keys() | known.keys() if shapes.get(name) != known.get(name)}
  require(
    not strange,
    f"{file} does not fit its configuration ({len(strange)} arrays, such as {min(strange, default='')}): restore both",
  )
  require(isinstance(described.get("step"), int), f"{folder / 'config.json'} does not name the step: restore it")
  params = flax.traverse_util.unflatten_dict({name: jnp.asarray(a, jnp.float32) for name, a in flat.items()}, sep="/")
  return Weights(params, described["step"], stored=str(next(iter(flat.values())).dtype))


def flat_names(params: Any) -> dict[str, Any]:
  """Returns the leaves under flat names, sorted."""
  return dict(sorted(flax.traverse_util.flatten_dict(params, sep="/").items()))


def save_weights(folder: pathlib.Path, weights: Weights, described: dict[str, Any], dtype: str) -> None:
  """Writes what `load_weights` reads into a folder, with what the run's config.json says.

  Raises:
    ConfigError: a weight is too large for the type, 'float32' or 'float16'.
  """
  flat = {name: np.asarray(leaf, order="C") for name, leaf in flat_names(jax.device_get(weights.params)).items()}
  limit = np.finfo(dtype).max
  large = [name for name, leaf in flat.items() if not (np.abs(leaf) <= limit).all()]
  require(not large, f"{large[0] if large else ''} does not fit into {dtype}: export float32")
  stored = {name: leaf.astype(dtype) for name, leaf in flat.items()}
  write_json(folder / "config.json", {**_without_paths(described), "step": weights.step, "weights": dtype})
  write_bytes(folder / WEIGHTS, safetensors.numpy.save(stored))


def _without_paths(value: Any) -> Any:
  """Keeps the last part of this machine's folders: the rest is private, and of no use elsewhere."""
  if isinstance(value, dict):
    return {key: _without_paths(item) for key, item in value.items()}
  if isinstance(value, str) and pathlib.PurePath(value).is_absolute():
    return pathlib.PurePath(value).name
  return value
