"""run.init_from: stage 2 begins with weights that were trained before, of a run's checkpoint or exported."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gmsrm_jax import overrides
from gmsrm_jax.config import Config
from gmsrm_jax.errors import require
from gmsrm_jax.files import local_path
from gmsrm_jax.training.run_folder import read_config
from gmsrm_jax.training.stages import has_teacher
from gmsrm_jax.training.state import TrainState, abstract_state, first_state, init_state, release_params
from gmsrm_jax.training.weights import is_export, load_state, load_weights


def check_source(config: Config) -> None:
  """Raises ConfigError for no weights, those of another model, or no teacher where the losses need one."""
  folder = local_path(config.run.init_from, "run.init_from")
  named = f"run.init_from={config.run.init_from}"
  exported = is_export(folder)
  require(
    exported or (folder / "checkpoints" / "inpaint").is_dir(),
    f"{named} holds no checkpoint of stage 2 and no export: name the folder of a trained run, or exported weights",
  )
  source = read_config(folder)
  ours, theirs = abstract_state(config, "inpaint"), abstract_state(source, "inpaint")
  fits = release_params(ours) == release_params(theirs)
  different = overrides.differences(source, config)
  of_model = [line for line in different if line.startswith(("model.", "memory.", "variation."))]
  require(fits, f"{named} is another model ({'; '.join(of_model)}): give the same settings")
  require(
    not has_teacher(config) or (has_teacher(source) and not exported),
    f"{named} has no teacher ({'an export is without' if exported else 'its losses needed none'}): "
    "set loss.retrieval=0 loss.read=0 and loss.features=vgg16, or name a run that has one",
  )


def begin_with(config: Config, key: jax.Array, where: Any) -> TrainState:
  """Returns stage 2 at step 0 with the weights of `run.init_from`, laid out as `where` says; optimisers start anew.

  A run's checkpoint brings its discriminator, if that of this run is alike, and, where the losses need it, its teacher;
  an export brings neither: the discriminator starts anew, from the key. The new run may freeze the memory where the
  trained one did not.
  """
  folder = local_path(config.run.init_from, "run.init_from")
  if is_export(folder):
    trained, weights = None, load_weights(config, folder).params
  else:
    # Laid out as it was trained, but for today's devices.
    source = read_config(folder)
    trained = load_state(dataclasses.replace(source, run=dataclasses.replace(source.run, fsdp=config.run.fsdp)), folder)
    weights = release_params(trained)

  another_judge = trained and jax.tree.map(jnp.shape, trained.disc_params) != _judge_shapes(config)
  if another_judge and jax.process_index() == 0:
    print(f"{config.run.init_from} has another discriminator: this run's starts anew")

  def begin(trained: TrainState | None, weights: Any) -> TrainState:
    fresh = init_state(config, "inpaint", key)
    frozen = {"teacher": trained.frozen["teacher"]} if trained and has_teacher(config) else {}
    own = trained if trained and not another_judge else fresh
    discriminator = {"params": own.disc_params, "batch_stats": own.disc_stats}
    return first_state(config, "inpaint", weights, frozen, discriminator)

  return jax.jit(begin, out_shardings=where)(trained, weights)


def _judge_shapes(config: Config) -> Any:
  return jax.tree.map(jnp.shape, abstract_state(config, "inpaint").disc_params)
