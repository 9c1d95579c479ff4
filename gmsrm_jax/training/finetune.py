"""run.init_from: stage 2 begins with weights that were trained before, of a run's checkpoint or exported."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from gmsrm_jax import overrides
from gmsrm_jax.config import Config
from gmsrm_jax.errors import require
from gmsrm_jax.training.run_folder import read_config
from gmsrm_jax.training.stages import has_teacher
from gmsrm_jax.training.state import TrainState, abstract_state, init_state, release_params, restart
from gmsrm_jax.training.weights import flat_names, is_export, load_state, load_weights

_MODEL_SETTINGS = ("model.", "memory.", "variation.")


def check_source(config: Config) -> None:
  """Refuses weights that `begin_with` could not use, before anything is written.

  Raises:
    ConfigError: the folder holds no weights, those of another model, or no teacher where the losses need one.
  """
  folder = pathlib.Path(config.run.init_from)
  named = f"run.init_from={config.run.init_from}"
  exported = is_export(folder)
  require(
    exported or (folder / "checkpoints" / "inpaint").is_dir(),
    f"{named} holds no checkpoint of stage 2 and no export: name the folder of a trained run, or exported weights",
  )
  source = _config_of(folder)
  ours, theirs = abstract_state(config, "inpaint"), abstract_state(source, "inpaint")
  fits = _shapes(release_params(ours)) == _shapes(release_params(theirs))
  fits = fits and (exported or _shapes(ours.disc_params) == _shapes(theirs.disc_params))
  differ = [line for line in overrides.differences(source, config) if line.startswith(_MODEL_SETTINGS)]
  require(fits, f"{named} is another model ({'; '.join(differ)}): give the same settings")
  require(
    not has_teacher(config) or (has_teacher(source) and not exported),
    f"{named} has no teacher ({'an export is without' if exported else 'its losses needed none'}): "
    "set loss.retrieval=0 loss.read=0 and loss.features=vgg16, or name a run that has one",
  )


def begin_with(config: Config, key: jax.Array, where: Any) -> TrainState:
  """Returns stage 2 at step 0 with the weights of `run.init_from`, laid out as `where` says.

  A run's checkpoint brings its discriminator and, where the losses need it, its teacher; an export brings
  neither: the discriminator starts anew, from the key.
  """
  folder = pathlib.Path(config.run.init_from)
  if is_export(folder):
    fresh = functools.partial(init_state, config, "inpaint")
    again = jax.jit(lambda key, params: restart(config, fresh(key), params), out_shardings=where)
    return again(key, load_weights(config, folder).params)
  # Laid out as it was trained, but for today's devices.
  source = _config_of(folder)
  source = dataclasses.replace(source, run=dataclasses.replace(source.run, fsdp=config.run.fsdp))
  again = jax.jit(lambda trained: restart(config, trained, release_params(trained)), out_shardings=where)
  return again(load_state(source, folder))


def _config_of(folder: pathlib.Path) -> Config:
  return read_config(folder)


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
  return {name: leaf.shape for name, leaf in flat_names(params).items()}
