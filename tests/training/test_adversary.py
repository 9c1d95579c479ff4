"""The length of the discriminator's pull on the generator."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gmsrm_jax.training import adversary, losses


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
