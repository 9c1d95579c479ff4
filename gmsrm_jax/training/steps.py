"""The two pure train steps: memory pre-learning and inpainting, each updating generator side and discriminator.

A step maps (state, batch, feature_params) to (state, metrics). Randomness is a function of (seed, stream, step);
the loop decides how a step is compiled and sharded. A stage goes through phases, each with a step of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from gmsrm_jax.arrays import Image, Mask, PerImage, composite, hole_area, image_from_uint8, mask_from_uint8
from gmsrm_jax.config import Config
from gmsrm_jax.models import codebook
from gmsrm_jax.models.blocks import Shares, apply, hole_shares
from gmsrm_jax.models.inpainter import Inpainted, inpaint, reasons
from gmsrm_jax.models.memory import Recognised, recognise, recognition_features, teach
from gmsrm_jax.models.reasoning import Decided, reveal
from gmsrm_jax.models.retrieval import Retrieval, quantisation
from gmsrm_jax.pretrained import vgg16
from gmsrm_jax.training import adversary, losses, variation
from gmsrm_jax.training.microbatch import in_parts, recomputed
from gmsrm_jax.training.optimiser import generator_optimiser, update_ema
from gmsrm_jax.training.stages import STAGES, stage_settings
from gmsrm_jax.training.state import TrainState, compute_dtype, make_networks

Metrics = dict[str, jax.Array]


def step_key(config: Config, stage: str, step: jax.Array) -> Key[Array, ""]:
  """Returns the root of a step's randomness."""
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.run.seed), STAGES[stage].stream), step)


class Phase(NamedTuple):
  """The terms and sizes that a stage switches on or off on its way. By default all that the settings ask for."""

  adversarial: bool = True  # the adversarial term, and the discriminator's own step
  features: bool = True  # the perceptual and style terms
  varied: bool = True  # stage 2: every second image is filled twice
  half: bool = False  # images of half the size
  drawn: bool = True  # stage 2: fills are drawn; else only the slots of a hard memory are predicted


FULL = Phase()


def phase_at(config: Config, stage: str, step: int) -> Phase:
  """Returns the phase that a step of a stage, counted from 0, belongs to."""
  settings = stage_settings(config, stage)

  def begun(share: float) -> bool:
    # A share of 1 is never, also where the stage is made longer.
    return share < 1 and step >= round(share * (settings.phase_steps or settings.steps))

  return Phase(
    adversarial=config.loss.adversarial > 0 and begun(settings.adversarial_start),
    features=begun(settings.features_start),
    varied=stage == "inpaint" and config.variation.enabled and begun(config.variation.start),
    half=not begun(settings.half_until),
    drawn=stage == "memory" or begun(config.memory.reasoning_share),
  )


def decode_batch(batch: Mapping[str, jax.Array], *, half: bool = False) -> tuple[Image, Mask]:
  """Returns the pipeline's uint8 image and mask as floats; half the size where asked, by means of 2x2 pixels.

  A pixel of the halved mask is hole if any of its four was.
  """
  image, mask = image_from_uint8(batch["image"]), mask_from_uint8(batch["mask"])
  if half:
    image = einops.reduce(image, "b (h i) (w j) c -> b h w c", "mean", i=2, j=2)
    mask = einops.reduce(mask, "b (h i) (w j) c -> b h w c", "max", i=2, j=2)
  return image, mask


@jax.named_scope("features")
def feature_terms(
  config: Config,
  key: Key[Array, ""],
  feature_params: Any,
  drawn: Float[Array, "r h w 3"],
  image: Image,
  fills: variation.Fills,
  *,
  style: bool,
) -> dict[str, PerImage]:
  """Returns the perceptual and style terms that have a weight, on a random window where the setting asks for one."""
  functions = {}
  if config.loss.perceptual > 0:
    functions["perceptual"] = losses.perceptual
  if style and config.loss.style > 0:
    functions["style"] = losses.style
  if not functions:
    return {}
  if side := min(config.loss.feature_crop, image.shape[1]):
    corners = losses.window_corners(key, image.shape[0], image.shape[1], image.shape[2], side)
    image = losses.cut_windows(image, corners, side)
    drawn = losses.cut_windows(drawn, fills.rows(corners), side)

  @recomputed(config, "features")
  def extract(x: Image) -> tuple:
    if config.loss.features == "vgg16":
      layers = vgg16.LAYERS[: config.loss.vgg_stages]
      return vgg16.vgg16_features(feature_params, x, layers=layers, dtype=compute_dtype(config))
    return recognition_features(make_networks(config).memory, feature_params, x)

  of_drawn, of_image = extract(drawn), jax.tree.map(fills.rows, extract(image))
  terms = {name: function(of_drawn, of_image) for name, function in functions.items()}
  return {name: fills.per_image(term) for name, term in terms.items()}


def memory_step(
  state: TrainState, batch: Mapping[str, jax.Array], feature_params: Any, *, config: Config, phase: Phase = FULL
) -> tuple[TrainState, Metrics]:
  """Learns the memory: recognises, retrieves and redraws whole images, so that its slots hold what can be drawn."""
  networks = make_networks(config)
  image, _ = decode_batch(batch, half=phase.half)
  whole = jnp.ones_like(image[..., :1])
  window_key, revive_key = jax.random.split(step_key(config, "memory", state.step))

  def objective(params: Any, image: Image, whole: Mask):
    recognised = recognise(networks.memory, params, image)
    drawn = recognised.image
    # Stopped: the moving encoder must not make the term small by making its features small.
    extractor = feature_params if config.loss.features == "vgg16" else jax.lax.stop_gradient(params)
    with jax.named_scope("losses"):
      terms = {"l1": losses.l1(drawn, image)}
      if phase.features:
        once = variation.ONCE
        terms |= feature_terms(config, window_key, extractor, drawn, image, once, style=False)
      if config.memory.hard:
        queries = recognised.query.reshape(recognised.retrieval.read.shape)
        terms["quantisation"] = quantisation(queries, params["memory"]["codebook"]["keys"])
      else:
        terms["balance"] = losses.balance(codebook.mean_weights(recognised.retrieval.log_weights))
      if phase.adversarial:
        terms["adversarial"] = adversary.generator_term(config, state, drawn, image, whole, feature_params)
      total, means = losses.weigh(terms, config.loss)
    return total, (means, recognised)

  (total, (means, recognised)), grads = in_parts(objective, config.run.accumulate, len(image))(
    state.params, image, whole
  )
  state, metrics = _update(config, "memory", state, grads)
  metrics.update({"loss": total, **means})
  if phase.adversarial:
    real, fake = (adversary.see(config, x, whole, feature_params) for x in (image, recognised.image))
    given = {"real": real, "fake": fake, "shares": None, "group": 1}
    state, more = adversary.update_discriminator(config, "memory", state, **given)
    metrics.update(more)

  batch_usage = codebook.usage_of(config.memory, recognised.retrieval.log_weights)
  usage = codebook.USAGE_DECAY * state.usage + (1.0 - codebook.USAGE_DECAY) * batch_usage
  metrics["perplexity"] = codebook.perplexity(usage)
  metrics["used_slots"] = codebook.used_slots(usage)
  if config.memory.revive_every:
    state, usage, metrics["revived"] = _revive(config, state, usage, recognised, revive_key)
  return dataclasses.replace(state, usage=usage, step=state.step + 1), metrics


def _revive(
  config: Config, state: TrainState, usage: Array, recognised: Recognised, key: Key[Array, ""]
) -> tuple[TrainState, Array, Array]:
  """Re-seeds dead slots in parameters and average, on the steps that are due."""
  due = (state.step + 1) % config.memory.revive_every == 0
  old, reads = state.params["memory"]["codebook"], recognised.retrieval.read
  queries = recognised.query.reshape(reads.shape)
  if config.memory.hard:
    keys, new_usage, dead = codebook.revive_books(key, old["keys"], usage, queries)
    new = {"keys": keys}
  else:
    slots, new_usage, dead = codebook.revive(key, codebook.Slots(**old), usage, queries, reads)
    new = slots._asdict()
  new = jax.tree.map(lambda n, o: jnp.where(due, n, o), new, old)

  def put(params: Any, slots: Any) -> Any:
    return {**params, "memory": {**params["memory"], "codebook": slots}}

  # What changed goes into the average, too, which would otherwise drag a revived slot back to where it died.
  ema = jax.tree.map(lambda n, o, e: jnp.where(n != o, n, e), new, old, state.ema["memory"]["codebook"])
  state = dataclasses.replace(state, params=put(state.params, new), ema=put(state.ema, ema))
  return state, jnp.where(due, new_usage, usage), jnp.where(due, dead, 0.0)


def inpaint_step(
  state: TrainState, batch: Mapping[str, jax.Array], feature_params: Any, *, config: Config, phase: Phase = FULL
) -> tuple[TrainState, Metrics]:
  """Learns to fill holes, with the frozen memory as prior and the recognition of the whole image as teacher.

  With variation, every second image is filled twice (see `variation`).
  """
  networks = make_networks(config)
  image, mask = decode_batch(batch, half=phase.half)
  root = step_key(config, "inpaint", state.step)
  window_key, noise_key = jax.random.split(root)
  extractor = feature_params if config.loss.features == "vgg16" else state.frozen["teacher"]

  teacher = None
  if "teacher" in state.frozen and (config.loss.retrieval > 0 or config.loss.read > 0):
    teacher = teach(networks.memory, state.frozen["teacher"], image)
  decided = None
  if teacher is not None and reasons(config):
    hole = hole_shares(mask, len(config.model.widths))[-1].reshape(len(image), -1) > 0
    decided = reveal(jax.random.fold_in(root, 2), jnp.argmax(teacher.log_weights, axis=-1), hole)
  if not phase.drawn:
    assert teacher is not None, "the settings ask for one"
    return _predict_slots(config, state, image, mask, teacher, decided)
  varied = config.variation.enabled and phase.varied
  fills = variation.TWICE if varied else variation.ONCE
  noise = variation.row_noise(noise_key, config.model, image.shape[0]) if varied else None

  def objective(params: Any, image: Image, mask: Mask, teacher: Any, noise: Any, decided: Any):
    images, masks = fills.rows(image), fills.rows(mask)  # one for every fill
    out = inpaint(networks.inpaint, {**_frozen_memory(state), **params}, image, mask, noise, fills.rows, decided)
    inpainted = composite(out.prediction, images, masks)
    with jax.named_scope("losses"):
      terms = {
        "hole": fills.hole_score(out.prediction, image, mask, config.loss.hole_cell, config.model.stride),
        "valid": fills.per_image(losses.valid_l1(out.prediction, images, masks)),
        "memory_image": fills.per_image(losses.hole_l1(out.memory_image, images, masks)),
      }
      if phase.features:
        terms |= feature_terms(config, window_key, extractor, inpainted, image, fills, style=True)
      if teacher is not None and out.retrieval is not None:
        terms |= _retrieval_terms(config, teacher, out.retrieval, out.shares, decided)
      if phase.adversarial:
        prediction = out.prediction
        terms["adversarial"] = adversary.generator_term(config, state, prediction, images, masks, feature_params)
      total, means = losses.weigh(terms, config.loss)
    return total, (means, (out, inpainted))

  run = in_parts(objective, config.run.accumulate, len(image) // fills.images)
  (total, (means, (out, inpainted))), grads = run(state.params, image, mask, teacher, noise, decided)
  masks = fills.rows(mask)
  state, metrics = _update(config, "inpaint", state, grads)
  metrics.update({"loss": total, **means, **_observed(config, out, inpainted, mask, masks, varied=varied)})
  if phase.adversarial:
    shares = jax.tree.map(fills.rows, adversary.patch_shares(config, mask))
    real = jax.tree.map(fills.rows, adversary.see(config, image, mask, feature_params))
    fake = adversary.see(config, inpainted, masks, feature_params)
    given = {"real": real, "fake": fake, "shares": shares, "group": fills.rows_of_images}
    state, more = adversary.update_discriminator(config, "inpaint", state, **given)
    metrics.update(more)
  return dataclasses.replace(state, step=state.step + 1), metrics


def _frozen_memory(state: TrainState) -> dict[str, Any]:
  return {name: value for name, value in state.frozen.items() if name == "memory"}


def _retrieval_terms(
  config: Config, teacher: Retrieval, found: Retrieval, shares: Shares, decided: Decided | None
) -> dict[str, PerImage]:
  """Returns the terms that teach what to retrieve; a hard memory's slots that are decided already count for nothing."""
  hole = shares[-1].reshape(len(found.read), -1)
  # What is known is supervised, too: the generator draws the hole from the reads around it as well.
  supervised = hole + config.loss.retrieval_known * (1.0 - hole)
  terms = {"read": losses.read_loss(teacher.read, found.read, supervised)}
  if not config.memory.hard:
    return {"retrieval": losses.retrieval_kl(teacher.log_weights, found.log_weights, supervised), **terms}
  open_slots = jnp.repeat(supervised[:, None], config.memory.num_groups, axis=1)
  if decided is not None:
    open_slots = jnp.where(decided.flags, 0.0, open_slots)
  return {"retrieval": losses.choice(teacher.log_weights, found.log_weights, open_slots), **terms}


def _predict_slots(
  config: Config, state: TrainState, image: Image, mask: Mask, teacher: Retrieval, decided: Decided | None
) -> tuple[TrainState, Metrics]:
  """Learns to predict the slots of a hard memory and no more: no fill is drawn, which costs most of a step."""
  network = make_networks(config).inpaint

  def objective(params: Any, image: Image, mask: Mask, teacher: Retrieval, decided: Decided | None):
    retrieve = type(network).retrieve
    found, shares = apply(network, {**_frozen_memory(state), **params}, image, mask, decided, method=retrieve)
    terms = _retrieval_terms(config, teacher, found, shares, decided)
    total, means = losses.weigh(terms, config.loss)
    return total, (means, found.log_weights)

  run = in_parts(objective, config.run.accumulate, len(image))
  (total, (means, log_weights)), grads = run(state.params, image, mask, teacher, decided)
  state, metrics = _update(config, "inpaint", state, grads)
  used = codebook.perplexity(codebook.usage_of(config.memory, log_weights))
  return dataclasses.replace(state, step=state.step + 1), {"loss": total, **means, "perplexity": used, **metrics}


def _observed(
  config: Config,
  out: Inpainted,
  inpainted: Float[Array, "r h w 3"],
  mask: Mask,
  masks: Float[Array, "r h w 1"],
  *,
  varied: bool,
) -> Metrics:
  """Returns what is only logged: the holes' area, the use of the memory, how far two fills of an image differ."""
  metrics = {"hole_area": jnp.mean(hole_area(mask))}
  if out.retrieval is not None:
    metrics["perplexity"] = codebook.perplexity(codebook.usage_of(config.memory, out.retrieval.log_weights))
  if varied:
    metrics["strength"] = jnp.mean(jnp.stack([jnp.mean(s.astype(jnp.float32)) for s in out.strengths]))
    first, second = variation.both(inpainted)
    metrics["spread"] = jnp.mean(losses.hole_l1(first, second, variation.both(masks)[0]))
  return metrics


STEPS = {"memory": memory_step, "inpaint": inpaint_step}


@jax.named_scope("optimiser")
def _update(config: Config, stage: str, state: TrainState, grads: Any) -> tuple[TrainState, Metrics]:
  """Applies the generator side's gradients."""
  updates, opt_state = generator_optimiser(config, stage).update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  ema = update_ema(state.ema, params, state.step, stage_settings(config, stage).ema_decay)
  metrics = {"grad_norm": optax.tree.norm(grads)}
  for name, subtree in grads.items():
    metrics[f"grad_norm/{name}"] = optax.tree.norm(subtree)
  return dataclasses.replace(state, params=params, ema=ema, opt_state=opt_state), metrics
