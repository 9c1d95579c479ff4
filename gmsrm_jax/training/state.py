"""The training state of a stage: one pytree that is initialised, sharded, stepped and saved as a whole."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from gmsrm_jax.config import Config
from gmsrm_jax.models.codebook import fresh_usage
from gmsrm_jax.models.discriminator import FEATURE_CHANNELS, Discriminator, FeatureDiscriminator
from gmsrm_jax.models.inpainter import InpaintingNetwork
from gmsrm_jax.models.memory import MemoryNetwork
from gmsrm_jax.parallel.sharding import tree_sharding
from gmsrm_jax.training.optimiser import discriminator_optimiser, generator_optimiser
from gmsrm_jax.training.stages import freezes_memory, has_memory_stage, has_teacher


@struct.dataclass
class TrainState:
  """Everything that changes in training, and the frozen parameters the step needs."""

  step: Any
  params: Any  # trained by this stage's optimiser
  ema: Any  # average of params
  frozen: Any  # stage 2: `memory` (unless it is trained) and `teacher`; stage 1: empty
  opt_state: Any
  disc_params: Any
  disc_stats: Any  # spectral norm's power-iteration vectors
  disc_opt_state: Any
  usage: Any  # stage 1: running mean of the retrieval weights, one per slot


class Networks(NamedTuple):
  """The modules of an experiment; they hold no parameters."""

  memory: MemoryNetwork
  inpaint: InpaintingNetwork
  discriminator: Discriminator | FeatureDiscriminator


def compute_dtype(config: Config) -> Any:
  """Returns bfloat16 where the back end computes in it, unless the setting says otherwise."""
  if config.run.compute_dtype == "auto":
    return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  return jnp.dtype(config.run.compute_dtype)


def make_networks(config: Config) -> Networks:
  """Returns the modules in the compute dtype of this run."""
  dtype = compute_dtype(config)
  of_features = config.model.discriminator == "features"
  discriminator = FeatureDiscriminator(dtype) if of_features else Discriminator(config.model, dtype)
  return Networks(MemoryNetwork(config, dtype), InpaintingNetwork(config, dtype), discriminator)


def _begin_discriminator(config: Config, key: jax.Array) -> Any:
  """Returns the variables of a fresh discriminator."""
  size = config.model.image_size
  seen: Any = jnp.zeros((1, size, size, 3)), jnp.ones((1, size, size, 1))
  if config.model.discriminator == "features":
    sides = [size // 2**level for level in range(len(FEATURE_CHANNELS))]
    features = [jnp.zeros((1, side, side, channels)) for side, channels in zip(sides, FEATURE_CHANNELS, strict=True)]
    seen = features, [jnp.ones((1, side, side, 1)) for side in sides]
  return make_networks(config).discriminator.init(key, *seen, update_stats=False)


def init_state(config: Config, stage: str, key: jax.Array, memory_params: Any | None = None) -> TrainState:
  """Returns a fresh state; jit or eval_shape it. Stage 2 after a stage 1 takes the averages of that one."""
  networks = make_networks(config)
  size = config.model.image_size
  image, mask = jnp.zeros((1, size, size, 3)), jnp.ones((1, size, size, 1))
  generator_key, discriminator_key = jax.random.split(key)
  discriminator = _begin_discriminator(config, discriminator_key)
  if stage == "memory":
    return first_state(config, stage, networks.memory.init(generator_key, image)["params"], {}, discriminator)
  params, frozen = networks.inpaint.init(generator_key, image, mask)["params"], {}
  if memory_params is not None:
    params = {**params, "memory": memory_params["memory"]}
    if has_teacher(config):
      # Not the generator: the teacher never draws while training.
      frozen["teacher"] = {
        **{name: memory_params[name] for name in ("recognition", "query")},
        "memory": {name: value for name, value in memory_params["memory"].items() if name != "generator"},
      }
  return first_state(config, stage, params, frozen, discriminator)


def first_state(config: Config, stage: str, params: Any, frozen: dict[str, Any], discriminator: Any) -> TrainState:
  """Returns the state of step 0 with these parameters; a memory that stage 2 leaves as it is joins what is frozen."""
  if stage == "inpaint" and freezes_memory(config):
    frozen = {**frozen, "memory": params["memory"]}
    params = {name: value for name, value in params.items() if name != "memory"}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # A copy: donated buffers must not be shared between two leaves.
    ema=jax.tree.map(jnp.copy, params),
    frozen=jax.tree.map(jnp.copy, frozen),
    opt_state=generator_optimiser(config, stage).init(params),
    disc_params=discriminator["params"],
    disc_stats=discriminator.get("batch_stats", {}),
    disc_opt_state=discriminator_optimiser(config, stage).init(discriminator["params"]),
    # Typed: a weak type would make the second step compile again.
    usage=fresh_usage(config.memory),
  )


def abstract_state(config: Config, stage: str) -> TrainState:
  """Returns shapes and types of `init_state`, without computing anything."""
  follows = stage == "inpaint" and has_memory_stage(config)
  memory = abstract_state(config, "memory").params if follows else None
  return jax.eval_shape(functools.partial(init_state, config, stage), jax.random.key(0), memory)


def with_shardings(config: Config, stage: str, mesh: Mesh) -> TrainState:
  """Returns the abstract state of a stage, with where each array is to live."""
  abstract = abstract_state(config, stage)
  shardings = tree_sharding(abstract, mesh)
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def release_params(state: TrainState) -> Any:
  """Returns what inference uses: the averaged parameters, and the frozen memory with them."""
  memory = {"memory": state.frozen["memory"]} if "memory" in state.frozen else {}
  return {**state.ema, **memory}
