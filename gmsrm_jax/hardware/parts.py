"""The step and the fill, taken apart: each part by itself, on arguments of the shapes that it has inside the whole.

A part runs the model's own submodules with the run's own parameters; what other parts would hand it is random. What is
trained inside the step has its gradients taken here, too, and what is frozen has none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask, composite
from gmsrm_jax.config import Config
from gmsrm_jax.models.blocks import push_pull_fill
from gmsrm_jax.models.inpainter import apply_teacher
from gmsrm_jax.parallel import sharding
from gmsrm_jax.training import losses, steps, variation
from gmsrm_jax.training.optimiser import update_ema
from gmsrm_jax.training.state import Networks, TrainState, make_networks, make_optimisers

STEP_PARTS = {
  "memory": ("encoder", "retrieval", "generator", "losses", "discriminator", "optimiser"),
  "inpaint": ("encoder", "teacher", "retrieval", "generator", "decoder", "losses", "discriminator", "optimiser"),
}
"""The parts of a stage's step. `losses` is the feature network; `teacher` the recognition of the whole image."""

FILL_PARTS = ("encoder", "retrieval", "generator", "decoder")
"""The parts of a fill."""


class Part(NamedTuple):
  """A function of what it is differentiated by (nothing: it only runs forwards) and of what it is not."""

  apply: Callable[[Any, Any], Any]
  trained: Any
  fixed: Any

  def run(self, trained: Any, fixed: Any) -> Any:
    """Forwards, and backwards where there is something to train; its own output serves as gradient of it."""
    if not jax.tree.leaves(trained):
      return self.apply(trained, fixed)
    out, pull = jax.vjp(lambda values: self.apply(values, fixed), trained)
    return out, pull(out)


def _pick(params: Mapping[str, Any], *beginnings: str) -> dict[str, Any]:
  """Of a module's parameters, those of the submodules whose names begin so."""
  return {name: value for name, value in params.items() if name.startswith(beginnings)}


def _pick_memory(params: Mapping[str, Any], *beginnings: str) -> dict[str, Any]:
  return {"memory": _pick(params["memory"], *beginnings)} if "memory" in params else {}


_RECALL = ("codebook", "retrieval", "expand", "contract")


def encode(module: Any, image: Image, mask: Mask) -> Any:
  """The inpainter's features, strengths of the variation and query."""
  features = module.encoder(push_pull_fill(image, mask), mask)
  strengths = ()
  if module.variation:
    strengths = tuple(nn.softplus(head(f)) for head, f in zip(module.strength, features, strict=True))
  return features, strengths, module.query(features[-1])


def recognise(module: Any, image: Image) -> Any:
  """The memory learner's query."""
  return module.query(module.recognition(image)[-1])


def recall(module: Any, query: jax.Array) -> Any:
  """What is read from the memory, and how it came about."""
  return module.memory.recall(query)


def generate(module: Any, read: jax.Array, noise: Any) -> Any:
  """What the memory draws."""
  return module.memory.generator(read, noise)


def decode(module: Any, features: Any, priors: Any, mask: Mask) -> Image:
  """The residual over the initial fill."""
  return module.decoder(features, priors, mask)


def _stand_ins(shapes: Any, mesh: Mesh | None = None) -> Any:
  """Random arrays of these shapes, split over the devices as a batch is; without a mesh on one device."""
  rng = np.random.default_rng(0)

  def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
    values = rng.standard_normal(shape.shape, np.float32).astype(shape.dtype)
    if mesh is None:
      return jax.device_put(values)
    # Three fills of two images may not divide; then every device has all of them.
    even = len(values) % mesh.size == 0
    return jax.device_put(values, sharding.batch_sharding(mesh) if even else sharding.replicated(mesh))

  return jax.tree.map(draw, shapes)


def fill_parts(config: Config, params: Any, image: Image, mask: Mask) -> dict[str, Part]:
  """The parts of the deterministic fill, forwards, on one device."""
  call = functools.partial(_call, make_networks(config).inpainter)
  features, _, query = jax.eval_shape(call(encode), params, image, mask)
  read, _ = jax.eval_shape(call(recall), params, query)
  priors = jax.eval_shape(call(generate), params, read, None).priors
  features, query, read, priors = _stand_ins((features, query, read, priors))
  memory = {"memory": params["memory"]}
  return {
    "encoder": Part(lambda _, a: call(encode)(*a), (), (_pick(params, "encoder", "query", "strength"), image, mask)),
    "retrieval": Part(lambda _, a: call(recall)(*a)[0], (), (memory, query)),
    # The fill needs the priors alone, not the image that the memory draws of them.
    "generator": Part(lambda _, a: call(generate)(*a, None).priors, (), (memory, read)),
    "decoder": Part(lambda _, a: call(decode)(*a), (), (_pick(params, "decoder"), features, priors, mask)),
  }


def _call(network: nn.Module, method: Callable) -> Callable[..., Any]:
  """A method of the network's as a function of (parameters, arguments)."""
  return lambda params, *arguments: network.apply({"params": params}, *arguments, method=method)


def step_parts(
  config: Config, stage: str, state: TrainState, batch: Mapping[str, jax.Array], feature_params: Any, mesh: Mesh
) -> dict[str, Part]:
  """The parts of a stage's step with the adversarial term, in the order of `STEP_PARTS`."""
  networks = make_networks(config)
  image, mask = jax.jit(steps.decode_batch)(batch)
  found = _memory_parts if stage == "memory" else _inpaint_parts
  parts, drawn, truth, hole = found(config, networks, state, image, mask, mesh)
  parts["losses"] = _losses_part(config, stage, networks, state, feature_params, drawn, image)
  parts["discriminator"] = _discriminator_part(networks, state, drawn, truth, hole)
  parts["optimiser"] = Part(functools.partial(_update, config, stage), (), (state,))
  return {name: parts[name] for name in STEP_PARTS[stage] if name in parts}


def _memory_parts(config: Config, networks: Networks, state: TrainState, image: Image, mask: Mask, mesh: Mesh) -> Any:
  """The learner's own parts, and what it draws of what."""
  call = functools.partial(_call, networks.learner)
  query = jax.eval_shape(call(recognise), state.params, image)
  read, _ = jax.eval_shape(call(recall), state.params, query)
  query, read, drawn = _stand_ins((query, read, jax.eval_shape(lambda: image)), mesh)
  parts = {
    "encoder": Part(lambda p, a: call(recognise)(p, *a), _pick(state.params, "recognition", "query"), (image,)),
    "retrieval": Part(lambda t, _: call(recall)(*t), (_pick_memory(state.params, *_RECALL), query), ()),
    # Stage 1 looks at the image alone.
    "generator": Part(lambda t, _: call(generate)(*t, None).image, (_pick_memory(state.params, "generator"), read), ()),
  }
  return parts, drawn, image, jnp.ones_like(mask)


def _inpaint_parts(config: Config, networks: Networks, state: TrainState, image: Image, mask: Mask, mesh: Mesh) -> Any:
  """The inpainter's own parts, and what it draws of what; with variation there are three fills of two images."""
  call = functools.partial(_call, networks.inpainter)
  varied = config.variation.enabled
  rows = variation.rows if varied else lambda x: x
  images, masks = jax.jit(lambda *arrays: tuple(map(rows, arrays)))(image, mask)
  frozen = {name: value for name, value in state.frozen.items() if name == "memory"}
  params = {**frozen, **state.params}
  features, strengths, query = jax.eval_shape(call(encode), params, image, mask)
  read, _ = jax.eval_shape(call(recall), params, query)
  noise = jax.eval_shape(lambda s: tuple(map(rows, s)), strengths) if varied else None
  features, read = jax.eval_shape(lambda *a: jax.tree.map(rows, a), features, read)
  priors = jax.eval_shape(call(generate), params, read, noise).priors
  query, read, noise, features, priors, drawn = _stand_ins(
    (query, read, noise, features, priors, jax.eval_shape(lambda: images)), mesh
  )

  encoder = _pick(state.params, "encoder", "query", "strength")
  recalling, generating = _pick_memory(state.params, *_RECALL), _pick_memory(state.params, "generator")
  parts = {
    "encoder": Part(lambda p, a: call(encode)(p, *a), encoder, (image, mask)),
    "retrieval": Part(
      lambda t, f: call(recall)({**f, **t[0]}, t[1]), (recalling, query), _pick_memory(frozen, *_RECALL)
    ),
    "generator": Part(
      lambda t, f: call(generate)({**f, **t[0]}, *t[1:]), (generating, read, noise), _pick_memory(frozen, "generator")
    ),
    "decoder": Part(lambda t, m: call(decode)(*t, m), (_pick(state.params, "decoder"), features, priors), masks),
  }
  if "teacher" in state.frozen and (config.loss.retrieval > 0 or config.loss.read > 0):
    teach = functools.partial(apply_teacher, networks.learner)
    parts["teacher"] = Part(lambda _, a: teach(*a), (), (state.frozen["teacher"], image))
  return parts, drawn, images, masks


def _losses_part(
  config: Config,
  stage: str,
  networks: Networks,
  state: TrainState,
  feature_params: Any,
  drawn: Float[Array, "r h w 3"],
  image: Image,
) -> Part:
  """The terms on features of what was drawn and of the truth; those on pixels are too small to tell."""
  inpaint = stage == "inpaint"
  if config.loss.features == "recognition":
    feature_params = state.frozen["teacher"] if inpaint else state.params

  def terms(drawn: Float[Array, "r h w 3"], fixed: Any) -> Any:
    extractor, image = fixed
    varied = inpaint and config.variation.enabled
    key = jax.random.key(config.run.seed)
    return steps.feature_terms(config, networks, key, extractor, drawn, image, style=inpaint, varied=varied)

  return Part(terms, drawn, (feature_params, image))


def _discriminator_part(networks: Networks, state: TrainState, drawn: Image, truth: Image, hole: Mask) -> Part:
  """The judgement that the generator learns from, and the discriminator's own step."""

  def judge(params: Any, stats: Any, image: Image, mask: Mask) -> Any:
    return networks.discriminator.apply({"params": params, "batch_stats": stats}, image, mask, update_stats=False)

  def both(trained: Any, fixed: Any) -> Any:
    (params, drawn), (stats, truth, mask) = trained, fixed
    fake = composite(drawn, truth, mask)
    learned = losses.hinge_generator(judge(jax.lax.stop_gradient(params), stats, fake, mask))
    images = jnp.concatenate([truth, jax.lax.stop_gradient(fake)])
    logits = judge(params, stats, images, jnp.concatenate([mask, mask]))
    real, unreal = jnp.split(logits, 2)
    return learned, losses.hinge_discriminator(real, unreal)

  return Part(both, (state.disc_params, drawn), (state.disc_stats, truth, hole))


def _update(config: Config, stage: str, _: Any, fixed: Any) -> Any:
  """Both optimisers and the average, with the parameters in the place of their gradients."""
  (state,) = fixed
  optimisers = make_optimisers(config, stage)
  updates, opt_state = optimisers.generator.update(state.params, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  moved, disc_opt_state = optimisers.discriminator.update(state.disc_params, state.disc_opt_state, state.disc_params)
  average = update_ema(state.ema, params, state.step, 0.999)
  return params, average, opt_state, optax.apply_updates(state.disc_params, moved), disc_opt_state
