"""The length of the discriminator's pull on the generator."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gmsrm_jax import overrides
from gmsrm_jax.arrays import composite
from gmsrm_jax.experiments import street
from gmsrm_jax.models.blocks import push_pull_fill
from gmsrm_jax.pretrained import vgg16
from gmsrm_jax.training import adversary, losses
from gmsrm_jax.training.state import init_state, make_networks
from tests.small import shrink


def test_the_adversarial_pull_has_the_length_of_an_l1_terms_gradient():
  """Whatever scale and direction the discriminator's gradient has; the value itself is untouched."""
  rng = np.random.default_rng(0)
  image, prediction, slope = (jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32) for _ in range(3))
  mask = jnp.zeros((2, 8, 8, 1)).at[0, :2].set(1.0).at[1, 1:7, 3:].set(1.0)
  norm = adversary.hole_l1_gradient_norm(mask)

  def length(function):
    return jnp.sqrt(jnp.sum(jnp.square(jax.grad(function)(prediction)), axis=(1, 2, 3)))

  expected = length(lambda p: jnp.mean(losses.hole_l1(p, image, mask)))
  np.testing.assert_allclose(norm, expected, rtol=1e-6)

  def pull(scale):
    return lambda p: scale * jnp.sum(adversary.fix_gradient_norm(p, norm) * mask * slope)

  for scale in (1e-3, 1.0, 1e3):
    np.testing.assert_allclose(length(pull(scale)), expected, rtol=1e-5)
  np.testing.assert_array_equal(adversary.fix_gradient_norm(prediction, norm), prediction)
  fixed, free = (jax.grad(f)(prediction) for f in (pull(1.0), lambda p: jnp.sum(p * mask * slope)))
  cosine = jnp.sum(fixed * free, axis=(1, 2, 3)) / (jnp.linalg.norm(free.reshape(2, -1), axis=1) * expected)
  np.testing.assert_allclose(cosine, 1.0, rtol=1e-5)


def test_a_discriminator_of_features_learns_to_tell_smooth_fills_from_what_was_there():
  """In a few steps on four pictures, to well under the loss of chance; its pull has the set length, too."""
  settings = ["model.discriminator=features", "stage2.discriminator_rate=3e-3", "stage2.warmup=0"]
  config = overrides.override(shrink(street.get_config()), settings)
  state = jax.jit(lambda key: init_state(config, "inpaint", key))(jax.random.key(0))
  params = jax.tree.map(jnp.asarray, vgg16.load_vgg16())
  size = config.model.image_size
  image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, size, size, 3)), jnp.float32)
  mask = jnp.zeros((4, size, size, 1)).at[:, 4:-4, 4:-4].set(1.0)
  smooth = jax.jit(push_pull_fill)(image, mask)
  shares = adversary.patch_shares(config, mask)
  see = jax.jit(functools.partial(adversary.see, config))
  real, fake = (see(x, mask, params) for x in (image, smooth))
  # Best where nothing can be told: a patch that is all hole costs 2 whatever is said, one of share s costs 2s.
  chance = float(np.mean([jnp.mean(2 * share) for share in shares]))

  @jax.jit
  def step(state):
    return adversary.update_discriminator(config, "inpaint", state, real=real, fake=fake, shares=shares, group=1)

  judge = jax.jit(functools.partial(make_networks(config).discriminator.apply, update_stats=False))
  of_real, of_fake = (judge({"params": state.disc_params}, *seen) for seen in (real, fake))
  state, first = step(state)
  scores = [
    np.mean(jax.nn.relu(1 - r)) + np.mean(s * jax.nn.relu(1 + f) + (1 - s) * jax.nn.relu(1 - f))
    for r, f, s in zip(of_real, of_fake, shares, strict=True)
  ]
  np.testing.assert_allclose(first["disc_loss"], np.mean(scores), rtol=1e-4)
  for _ in range(15):
    state, last = step(state)
  assert float(last["disc_loss"]) < 0.5 * chance < float(first["disc_loss"])
  assert float(last["disc_real"]) > float(last["disc_fake"]) + 0.5

  def term(prediction):
    return jnp.mean(adversary.generator_term(config, state, prediction, image, mask, params))

  gradient = jax.jit(jax.grad(term))(composite(smooth, image, mask))
  length = jnp.sqrt(jnp.sum(jnp.square(gradient), axis=(1, 2, 3)))
  np.testing.assert_allclose(length, config.loss.adversarial * adversary.hole_l1_gradient_norm(mask), rtol=1e-4)
