"""The discriminator's side of both stages: its step, and how hard it pulls on the generator; `losses` has its loss."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask, PerImage, composite
from gmsrm_jax.config import Config
from gmsrm_jax.models.blocks import Shares, hole_shares
from gmsrm_jax.models.discriminator import FEATURE_LAYERS
from gmsrm_jax.pretrained import vgg16
from gmsrm_jax.training import losses
from gmsrm_jax.training.microbatch import in_parts, recomputed
from gmsrm_jax.training.optimiser import discriminator_optimiser
from gmsrm_jax.training.state import TrainState, compute_dtype, make_networks


@jax.custom_vjp
def fix_gradient_norm(image: Image, norm: PerImage) -> Image:
  """Returns the image itself; on the way back, the gradient of each image is scaled to the length `norm`.

  Serves as VQGAN's adaptive weight does (Esser et al. 2021), without its second backward pass (ours): however steep the
  discriminator has become, its pull on the image keeps a set proportion to the other terms'.
  """
  del norm
  return image


def _fix_forward(image: Image, norm: PerImage) -> tuple[Image, PerImage]:
  return image, norm


def _fix_backward(norm: PerImage, gradient: Image) -> tuple[Image, PerImage]:
  length = jnp.sqrt(jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=(1, 2, 3)))
  scale = norm / jnp.maximum(length, 1e-12)
  return gradient * scale[:, None, None, None].astype(gradient.dtype), jnp.zeros_like(norm)


fix_gradient_norm.defvjp(_fix_forward, _fix_backward)


def hole_l1_gradient_norm(mask: Mask) -> PerImage:
  """Returns the length of the gradient of the batch mean of `hole_l1`, per image: 1 / (b sqrt(3 hole pixels))."""
  pixels = jnp.maximum(jnp.sum(mask.astype(jnp.float32), axis=(1, 2, 3)), 1.0)
  return 1.0 / (mask.shape[0] * jnp.sqrt(3.0 * pixels))


def see(config: Config, image: Image, mask: Mask, feature_params: Any) -> tuple[Any, Any]:
  """Returns what the discriminator sees: pixels and mask, or features of VGG16 and the hole's share of their places."""
  if config.model.discriminator == "pixels":
    return image, mask
  features = vgg16.vgg16_features(feature_params, image, layers=FEATURE_LAYERS, dtype=compute_dtype(config))
  return features, patch_shares(config, mask)


@jax.named_scope("adversary")
def generator_term(
  config: Config, state: TrainState, prediction: Image, image: Image, mask: Mask, feature_params: Any
) -> PerImage:
  """Returns the generator's hinge loss, which pulls as hard as an L1 term of weight `loss.adversarial` would.

  A mean over the maps of logits. The discriminator's power iterations are left alone.
  """
  norm = config.loss.adversarial * hole_l1_gradient_norm(mask)
  fake = composite(fix_gradient_norm(prediction, norm), image, mask)
  discriminator = make_networks(config).discriminator
  judge = recomputed(config, "discriminator")(functools.partial(discriminator.apply, update_stats=False))
  variables = {"params": state.disc_params, "batch_stats": state.disc_stats}
  logits = cast(tuple, judge(variables, *see(config, fake, mask, feature_params)))
  return jnp.mean(jnp.stack([losses.hinge_generator(of_scale) for of_scale in logits]), axis=0)


def patch_shares(config: Config, mask: Mask) -> Shares:
  """Returns the hole's share of each of the discriminator's patches, for every map of logits."""
  if config.model.discriminator == "features":
    return (mask, *hole_shares(mask, len(FEATURE_LAYERS) - 1))
  return hole_shares(mask, config.model.discriminator_layers + 1)[-1:]


def _in_turn(a: Float[Array, "b ..."], b: Float[Array, "b ..."]) -> Float[Array, "_2b ..."]:
  """Returns one row of each in turn: put one after the other, half of them would change devices."""
  return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


@jax.named_scope("adversary")
def update_discriminator(
  config: Config, stage: str, state: TrainState, *, real: Any, fake: Any, shares: Sequence[Any] | None, group: int
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Makes one step of the discriminator on the fakes that the generator's step has just drawn.

  `real` and `fake` are what it sees of both (`see`). `shares` are the hole's of each patch; without them all of a fake
  is fake. `group` rows belong together (see `variation.Fills`): a batch that goes through in parts is cut between
  groups. The loss is a mean over the maps of logits.
  """
  discriminator, fake = make_networks(config).discriminator, jax.lax.stop_gradient(fake)
  rows = len(jax.tree.leaves(real)[0])

  def objective(params: Any, real: Any, fake: Any, shares: Any):
    variables = {"params": params, "batch_stats": state.disc_stats}
    apply = functools.partial(discriminator.apply, update_stats=True, mutable=["batch_stats"])
    logits, new = recomputed(config, "discriminator")(apply)(variables, *jax.tree.map(_in_turn, real, fake))
    pairs = [of_scale.reshape(-1, 2, *of_scale.shape[1:]) for of_scale in cast(tuple, logits)]
    holes = shares or [None] * len(pairs)
    scores = [losses.hinge_discriminator(p[:, 0], p[:, 1], hole=h) for p, h in zip(pairs, holes, strict=True)]
    means = [jnp.mean(jnp.stack([jnp.mean(p[:, side]) for p in pairs])) for side in (0, 1)]
    # The power iterations look at the parameters alone: those of all parts are equal.
    return jnp.mean(jnp.stack(scores)), ((new.get("batch_stats", {}), *means), ())

  (loss, ((stats, real_mean, fake_mean), _)), grads = in_parts(objective, config.run.accumulate, rows // group)(
    state.disc_params, real, fake, shares
  )
  optimiser = discriminator_optimiser(config, stage)
  updates, opt_state = optimiser.update(grads, state.disc_opt_state, state.disc_params)
  params = optax.apply_updates(state.disc_params, updates)
  metrics = {
    "disc_loss": loss,
    "disc_real": real_mean,
    "disc_fake": fake_mean,
    "disc_grad_norm": optax.tree.norm(grads),
  }
  return dataclasses.replace(state, disc_params=params, disc_stats=stats, disc_opt_state=opt_state), metrics
