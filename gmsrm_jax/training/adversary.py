"""The discriminator's side of both stages: its step, and how hard it pulls on the generator; `losses` has its loss."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gmsrm_jax.arrays import Image, Mask, PerImage, composite
from gmsrm_jax.config import Config
from gmsrm_jax.models.blocks import Shares, hole_shares
from gmsrm_jax.training import losses
from gmsrm_jax.training.microbatch import in_parts, recomputed
from gmsrm_jax.training.optimiser import discriminator_optimiser
from gmsrm_jax.training.state import TrainState, make_networks


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


@jax.named_scope("adversary")
def generator_term(config: Config, state: TrainState, prediction: Image, image: Image, mask: Mask) -> PerImage:
  """Returns the generator's hinge loss, which pulls as hard as an L1 term of weight `loss.adversarial` would.

  The discriminator's power iterations are left alone.
  """
  norm = config.loss.adversarial * hole_l1_gradient_norm(mask)
  fake = composite(fix_gradient_norm(prediction, norm), image, mask)
  discriminator = make_networks(config).discriminator
  judge = recomputed(config, "discriminator")(functools.partial(discriminator.apply, update_stats=False))
  variables = {"params": state.disc_params, "batch_stats": state.disc_stats}
  return losses.hinge_generator(cast(Array, judge(variables, fake, mask)))


def patch_shares(config: Config, shares: Shares) -> Float[Array, "b _h _w 1"]:
  """Returns the hole's share of each of the discriminator's patches, which may be coarser than the bottleneck."""
  level = config.model.discriminator_layers + 1
  return (shares + hole_shares(shares[-1], max(level - len(shares), 0)))[level - 1]


def _in_turn(a: Float[Array, "b ..."], b: Float[Array, "b ..."]) -> Float[Array, "_2b ..."]:
  """Returns one row of each in turn: put one after the other, half of them would change devices."""
  return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])


@jax.named_scope("adversary")
def update_discriminator(
  config: Config, stage: str, state: TrainState, *, real: Image, fake: Image, mask: Mask, share: Any, group: int
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Makes one step of the discriminator on the fakes that the generator's step has just drawn.

  `share` is the hole's of each patch; without it all of a fake is fake. `group` rows belong together (see
  `variation.Fills`): a batch that goes through in parts is cut between groups.
  """
  discriminator, fake = make_networks(config).discriminator, jax.lax.stop_gradient(fake)

  def objective(params: Any, real: Image, fake: Image, mask: Mask, share: Any):
    variables = {"params": params, "batch_stats": state.disc_stats}
    apply = functools.partial(discriminator.apply, update_stats=True, mutable=["batch_stats"])
    logits, new = recomputed(config, "discriminator")(apply)(variables, _in_turn(real, fake), _in_turn(mask, mask))
    pairs = logits.reshape(len(real), 2, *logits.shape[1:])
    real_logits, fake_logits = pairs[:, 0], pairs[:, 1]
    loss = jnp.mean(losses.hinge_discriminator(real_logits, fake_logits, hole=share))
    # The power iterations look at the parameters alone: those of all parts are equal.
    return loss, ((new["batch_stats"], jnp.mean(real_logits), jnp.mean(fake_logits)), ())

  (loss, ((stats, real_mean, fake_mean), _)), grads = in_parts(objective, config.run.accumulate, len(real) // group)(
    state.disc_params, real, fake, mask, share
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
