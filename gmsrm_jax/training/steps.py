"""The two pure train steps: memory pre-learning and inpainting, each updating generator side and discriminator.

A step maps (state, batch, feature_params) to (state, metrics). Randomness is a function of (seed, stream, step);
the loop decides how a step is compiled and sharded. What a stage switches on or off on its way is its `Phase`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from gmsrm_jax.arrays import Image, Mask, composite, hole_area, image_from_uint8, mask_from_uint8
from gmsrm_jax.config import Config
from gmsrm_jax.models import codebook
from gmsrm_jax.models.blocks import Shares, hole_shares
from gmsrm_jax.models.inpainter import inpaint
from gmsrm_jax.models.memory import Recognised, recognise, recognition_features, teach
from gmsrm_jax.pretrained import vgg16
from gmsrm_jax.training import losses, variation
from gmsrm_jax.training.microbatch import in_parts, recomputed
from gmsrm_jax.training.optimiser import update_ema
from gmsrm_jax.training.state import Networks, TrainState, compute_dtype, make_networks, make_optimisers

Metrics = dict[str, jax.Array]

_STREAMS = {"memory": 1, "inpaint": 2}


def step_key(config: Config, stage: str, step: jax.Array) -> Key[Array, ""]:
  """The root of a step's randomness."""
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.run.seed), _STREAMS[stage]), step)


class Phase(NamedTuple):
  """What the steps of a part of a stage do; a step is compiled for each. By default all that the settings ask for."""

  adversarial: bool = True  # the adversarial term, and the discriminator's own step
  features: bool = True  # the perceptual and style terms
  varied: bool = True  # stage 2: every second image is filled twice
  half: bool = False  # images of half the size


FULL = Phase()


def phase_at(config: Config, stage: str, step: int) -> Phase:
  """The phase that a step of a stage, counted from 0, belongs to."""
  settings = config.stage1 if stage == "memory" else config.stage2

  def begun(share: float) -> bool:
    return step >= round(share * settings.steps)

  return Phase(
    adversarial=config.loss.adversarial > 0 and begun(settings.adversarial_start),
    features=begun(settings.features_start),
    varied=stage == "inpaint" and config.variation.enabled and begun(config.variation.start),
    half=not begun(settings.half_until),
  )


def decode_batch(batch: Mapping[str, jax.Array], *, half: bool = False) -> tuple[Image, Mask]:
  """The pipeline's uint8 image and mask as floats; half the size where asked, by means of 2x2 pixels.

  A pixel of the halved mask is hole if any of its four was.
  """
  image, mask = image_from_uint8(batch["image"]), mask_from_uint8(batch["mask"])
  if half:
    image = einops.reduce(image, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)
    mask = einops.reduce(mask, "b (h i) (w j) c -> b h w c", "max", i=2, j=2)
  return image, mask


def feature_terms(
  config: Config,
  networks: Networks,
  key: Key[Array, ""],
  feature_params: Any,
  drawn: Float[Array, "r h w 3"],
  image: Image,
  *,
  style: bool,
  varied: bool,
) -> dict[str, Float[Array, " b"]]:
  """The perceptual and style terms that have a weight, on a random window where the setting asks for one."""
  wanted = {"perceptual": config.loss.perceptual > 0, "style": style and config.loss.style > 0}
  if not any(wanted.values()):
    return {}
  if side := min(config.loss.feature_crop, image.shape[1]):
    corners = losses.window_corners(key, image.shape[0], image.shape[1], image.shape[2], side)
    image = losses.cut_windows(image, corners, side)
    drawn = losses.cut_windows(drawn, variation.rows(corners) if varied else corners, side)

  @recomputed(config, "features")
  def extract(x: Image) -> tuple:
    if config.loss.features == "vgg16":
      layers = vgg16.LAYERS[: config.loss.vgg_stages]
      return vgg16.vgg16_features(feature_params, x, layers=layers, dtype=compute_dtype(config))
    return recognition_features(networks.memory, feature_params, x)

  found, wished = extract(drawn), extract(image)
  if varied:
    wished = jax.tree.map(variation.rows, wished)
  functions = {"perceptual": losses.perceptual, "style": losses.style}
  terms = {name: functions[name](found, wished) for name, on in wanted.items() if on}
  return {name: variation.per_image(term) for name, term in terms.items()} if varied else terms


def memory_step(
  state: TrainState, batch: Mapping[str, jax.Array], feature_params: Any, *, config: Config, phase: Phase = FULL
) -> tuple[TrainState, Metrics]:
  """Stage 1: recognise, retrieve and redraw whole images, so that the codebook holds what the generator can draw."""
  networks = make_networks(config)
  image, _ = decode_batch(batch, half=phase.half)
  whole = jnp.ones_like(image[..., :1])
  window_key, revive_key = jax.random.split(step_key(config, "memory", state.step))

  def objective(params: Any, image: Image, whole: Mask):
    recognised = recognise(networks.memory, params, image)
    drawn = recognised.rendering.image
    # Stopped: the moving encoder must not make the term small by making its features small.
    extractor = feature_params if config.loss.features == "vgg16" else jax.lax.stop_gradient(params)
    terms = {
      "l1": losses.l1(drawn, image),
      **(
        feature_terms(config, networks, window_key, extractor, drawn, image, style=False, varied=False)
        if phase.features
        else {}
      ),
      "balance": losses.balance(codebook.mean_weights(recognised.retrieval.log_weights)),
    }
    if phase.adversarial:
      terms["adversarial"] = _generator_term(config, networks, state, drawn, image, whole)
    total, means = _weigh(config, terms)
    return total, (means, recognised)

  (total, (means, recognised)), grads = in_parts(objective, config.run.accumulate, len(image))(
    state.params, image, whole
  )
  state, metrics = _update(config, "memory", state, grads)
  metrics.update({"loss": total, **means})
  if phase.adversarial:
    state, more = _update_discriminator(
      config, "memory", networks, state, real=image, fake=recognised.rendering.image, mask=whole, share=None, group=1
    )
    metrics.update(more)

  batch_usage = codebook.mean_weights(recognised.retrieval.log_weights)
  usage = codebook.USAGE_DECAY * state.usage + (1.0 - codebook.USAGE_DECAY) * batch_usage
  metrics["perplexity"] = codebook.perplexity(usage)
  metrics["used_slots"] = codebook.used_slots(usage, codebook.REVIVE_BELOW)
  if config.memory.revive_every:
    state, usage, metrics["revived"] = _revive(config, state, usage, recognised, revive_key)
  return dataclasses.replace(state, usage=usage, step=state.step + 1), metrics


def _revive(
  config: Config, state: TrainState, usage: Array, recognised: Recognised, key: Key[Array, ""]
) -> tuple[TrainState, Array, Array]:
  """Re-seeds dead slots in parameters and average, on the steps that are due."""
  due = (state.step + 1) % config.memory.revive_every == 0
  old = state.params["memory"]["codebook"]
  new, new_usage, dead = codebook.revive(
    key,
    codebook.Slots(**old),
    usage,
    recognised.query.reshape(recognised.retrieval.read.shape),
    recognised.retrieval.read,
    revive_below=codebook.REVIVE_BELOW,
  )
  new = jax.tree.map(lambda n, o: jnp.where(due, n, o), new._asdict(), old)

  def put(params: Any, slots: Any) -> Any:
    return {**params, "memory": {**params["memory"], "codebook": slots}}

  # What changed goes into the average, too, which would otherwise drag a revived slot back to where it died.
  ema = jax.tree.map(lambda n, o, e: jnp.where(n != o, n, e), new, old, state.ema["memory"]["codebook"])
  state = dataclasses.replace(state, params=put(state.params, new), ema=put(state.ema, ema))
  return state, jnp.where(due, new_usage, usage), jnp.where(due, dead, 0.0)


def inpaint_step(
  state: TrainState, batch: Mapping[str, jax.Array], feature_params: Any, *, config: Config, phase: Phase = FULL
) -> tuple[TrainState, Metrics]:
  """Stage 2: fill holes, with the frozen memory as prior and the recognition of the whole image as teacher.

  With variation, every second image is filled twice (see `variation`).
  """
  networks = make_networks(config)
  image, mask = decode_batch(batch, half=phase.half)
  window_key, noise_key = jax.random.split(step_key(config, "inpaint", state.step))
  frozen_memory = {name: value for name, value in state.frozen.items() if name == "memory"}
  extractor = feature_params if config.loss.features == "vgg16" else state.frozen["teacher"]

  teacher = None
  if "teacher" in state.frozen and (config.loss.retrieval > 0 or config.loss.read > 0):
    teacher = teach(networks.memory, state.frozen["teacher"], image)
  varied = config.variation.enabled and phase.varied
  noise, rows, fold, groups = None, _same, _same, len(image)
  if varied:
    noise = variation.row_noise(noise_key, config.model, image.shape[0])
    rows, fold, groups = variation.rows, variation.per_image, len(image) // 2

  def objective(params: Any, image: Image, mask: Mask, teacher: Any, noise: Any):
    images, masks = rows(image), rows(mask)  # one for every fill
    out = inpaint(networks.inpaint, {**frozen_memory, **params}, image, mask, noise, rows)
    inpainted = composite(out.prediction, images, masks)
    terms = {
      "hole": variation.hole_score(out.prediction, image, mask, config.model.stride)
      if varied
      else losses.hole_l1(out.prediction, image, mask),
      "valid": fold(losses.valid_l1(out.prediction, images, masks)),
      "memory_image": fold(losses.hole_l1(out.memory_image, images, masks)),
      **(
        feature_terms(config, networks, window_key, extractor, inpainted, image, style=True, varied=varied)
        if phase.features
        else {}
      ),
    }
    if teacher is not None and out.retrieval is not None:
      hole = out.shares[-1].reshape(len(image), -1)
      # What is known is supervised, too: the generator draws the hole from the reads around it as well.
      supervised = hole + config.loss.retrieval_known * (1.0 - hole)
      terms["retrieval"] = losses.retrieval_kl(teacher.log_weights, out.retrieval.log_weights, supervised)
      terms["read"] = losses.read_loss(teacher.read, out.retrieval.read, supervised)
    if phase.adversarial:
      terms["adversarial"] = _generator_term(config, networks, state, out.prediction, images, masks)
    total, means = _weigh(config, terms)
    return total, (means, (out, inpainted))

  (total, (means, (out, inpainted))), grads = in_parts(objective, config.run.accumulate, groups)(
    state.params, image, mask, teacher, noise
  )
  images, masks = rows(image), rows(mask)
  state, metrics = _update(config, "inpaint", state, grads)
  metrics.update({"loss": total, **means, "hole_area": jnp.mean(hole_area(mask))})
  if out.retrieval is not None:
    metrics["perplexity"] = codebook.perplexity(codebook.mean_weights(out.retrieval.log_weights))
  if varied:
    metrics["strength"] = jnp.mean(jnp.stack([jnp.mean(s.astype(jnp.float32)) for s in out.strengths]))
    first, second = variation.fills(inpainted)
    metrics["spread"] = jnp.mean(losses.hole_l1(first, second, variation.fills(masks)[0]))
  if phase.adversarial:
    share = rows(_patch_share(config, out.shares))
    state, more = _update_discriminator(
      config, "inpaint", networks, state, real=images, fake=inpainted, mask=masks, share=share, group=3 if varied else 1
    )
    metrics.update(more)
  return dataclasses.replace(state, step=state.step + 1), metrics


def _same(x: Array) -> Array:
  return x


STEPS = {"memory": memory_step, "inpaint": inpaint_step}


def _weigh(config: Config, terms: Mapping[str, Any]) -> tuple[Float[Array, ""], Metrics]:
  """The weighted sum and the means of the terms that have a weight; the others are left out of step and log."""
  weights = _weights(config)
  return losses.weigh({name: term for name, term in terms.items() if weights[name] > 0}, weights)


def _weights(config: Config) -> dict[str, float]:
  """The weight of every term, by its name."""
  names = (
    "l1",
    "hole",
    "valid",
    "memory_image",
    "perceptual",
    "style",
    "adversarial",
    "retrieval",
    "read",
    "balance",
  )
  return {name: getattr(config.loss, name) for name in names}


def _update(config: Config, stage: str, state: TrainState, grads: Any) -> tuple[TrainState, Metrics]:
  """Applies the generator side's gradients."""
  settings = config.stage1 if stage == "memory" else config.stage2
  updates, opt_state = make_optimisers(config, stage).generator.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = update_ema(state.ema, params, state.step, settings.ema_decay)
  metrics = {"grad_norm": optax.tree.norm(grads)}
  for name, subtree in grads.items():
    metrics[f"grad_norm/{name}"] = optax.tree.norm(subtree)
  return dataclasses.replace(state, params=params, ema=ema, opt_state=opt_state), metrics


def _judge(
  config: Config, networks: Networks, params: Any, stats: Any, image: Image, mask: Mask
) -> Float[Array, "b _h _w 1"]:
  """The discriminator's logits, its power iterations left alone."""
  apply = functools.partial(networks.discriminator.apply, update_stats=False)
  return cast(Array, recomputed(config, "discriminator")(apply)({"params": params, "batch_stats": stats}, image, mask))


def _generator_term(
  config: Config, networks: Networks, state: TrainState, prediction: Image, image: Image, mask: Mask
) -> Float[Array, " b"]:
  """The generator's hinge loss; it pulls on the hole as hard as an L1 term of weight `loss.adversarial` would."""
  norm = config.loss.adversarial * losses.hole_l1_gradient_norm(mask)
  fake = composite(losses.fix_gradient_norm(prediction, norm), image, mask)
  return losses.hinge_generator(_judge(config, networks, state.disc_params, state.disc_stats, fake, mask))


def _in_turn(a: Float[Array, "b ..."], b: Float[Array, "b ..."]) -> Float[Array, "_2b ..."]:
  """The rows of both, one of each in turn: put one after the other, half of them would change devices."""
  return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


def _patch_share(config: Config, shares: Shares) -> Float[Array, "b _h _w 1"]:
  """The hole's share of each of the discriminator's patches, whose grid may be coarser than the bottleneck's."""
  level = config.model.discriminator_layers + 1
  return (shares + hole_shares(shares[-1], max(level - len(shares), 0)))[level - 1]


def _update_discriminator(
  config: Config,
  stage: str,
  networks: Networks,
  state: TrainState,
  *,
  real: Image,
  fake: Image,
  mask: Mask,
  share: Float[Array, "b _h _w 1"] | None,
  group: int,
) -> tuple[TrainState, Metrics]:
  """One step of the other player, on the fakes that the generator's step has just drawn.

  `share` is the hole's of each patch; without it all of a fake is fake.

  `group` rows belong together (see `variation.rows`): a batch that goes through in parts is cut between groups.
  """
  fake = jax.lax.stop_gradient(fake)

  def objective(params: Any, real: Image, fake: Image, mask: Mask, share: Any):
    variables = {"params": params, "batch_stats": state.disc_stats}
    apply = functools.partial(networks.discriminator.apply, update_stats=True, mutable=["batch_stats"])
    logits, new = recomputed(config, "discriminator")(apply)(variables, _in_turn(real, fake), _in_turn(mask, mask))
    pairs = logits.reshape(len(real), 2, *logits.shape[1:])
    real_logits, fake_logits = pairs[:, 0], pairs[:, 1]
    loss = jnp.mean(losses.hinge_discriminator(real_logits, fake_logits, hole=share))
    # The power iterations look at the parameters alone: those of all parts are equal.
    return loss, ((new["batch_stats"], jnp.mean(real_logits), jnp.mean(fake_logits)), ())

  (loss, ((stats, real_mean, fake_mean), _)), grads = in_parts(objective, config.run.accumulate, len(real) // group)(
    state.disc_params, real, fake, mask, share
  )
  updates, opt_state = make_optimisers(config, stage).discriminator.update(
    grads, state.disc_opt_state, state.disc_params
  )
  params = optax.apply_updates(state.disc_params, updates)
  metrics = {
    "disc_loss": loss,
    "disc_real": real_mean,
    "disc_fake": fake_mean,
    "disc_grad_norm": optax.tree.norm(grads),
  }
  return dataclasses.replace(state, disc_params=params, disc_stats=stats, disc_opt_state=opt_state), metrics
