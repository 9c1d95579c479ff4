"""Counted operations: those of the textbook, and of XLA where it counts the same thing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from gmsrm_jax.hardware import flops


def convolve(x, kernel, strides=(1, 1), padding="SAME", spread=(1, 1), dilation=(1, 1), groups=1):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    spread,
    dilation,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def counted(function, *arguments) -> int:
  return flops.count(jax.jit(function).trace(*arguments).jaxpr)


IMAGE, KERNEL, GROUPED = jnp.ones((2, 11, 9, 4)), jnp.ones((3, 3, 4, 6)), jnp.ones((3, 3, 2, 6))


def test_a_convolution_of_known_size():
  # Without padding: 2 images, 9 x 7 positions, 6 channels out, 3 x 3 x 4 products each, a multiply-add is two.
  assert counted(lambda x, k: convolve(x, k, padding="VALID"), IMAGE, KERNEL) == 2 * 2 * 9 * 7 * 6 * 3 * 3 * 4
  # 1x1 kernels need no padding.
  assert counted(convolve, IMAGE, KERNEL[:1, :1]) == 2 * 2 * 11 * 9 * 6 * 4


def test_a_matrix_product_of_known_size():
  assert counted(jnp.dot, jnp.ones((5, 7)), jnp.ones((7, 3))) == 2 * 5 * 7 * 3
  einsum = lambda q, k: jnp.einsum("bqnd,gknd->bnqgk", q, k)  # noqa: E731
  assert counted(einsum, jnp.ones((2, 3, 4, 5)), jnp.ones((6, 7, 4, 5))) == 2 * (2 * 4 * 3 * 6 * 7) * 5


def gradients(**options):
  def forwards_and_backwards(x, kernel):
    out, pull = jax.vjp(lambda x, k: convolve(x, k, **options), x, kernel)
    return out, pull(out)

  return forwards_and_backwards


@pytest.mark.parametrize(
  ("function", "kernel"),
  [
    (convolve, KERNEL),
    (lambda x, k: convolve(x, k, (2, 2)), KERNEL),
    (lambda x, k: convolve(x, k, (2, 1), ((0, 1), (3, 2)), (1, 1), (2, 3)), KERNEL),
    (lambda x, k: convolve(x, k, (1, 1), ((1, 1), (2, 0)), (2, 3)), KERNEL),
    (lambda x, k: convolve(x, k, groups=2), GROUPED),
    (gradients(), KERNEL),
    (gradients(strides=(2, 2)), KERNEL),
    (gradients(strides=(2, 2), groups=2), GROUPED),
  ],
)
def test_xla_counts_as_many(function, kernel):
  assert counted(function, IMAGE, kernel) == jax.jit(function).lower(IMAGE, kernel).cost_analysis()["flops"] > 0


def test_two_images_are_twice_one():
  assert counted(convolve, IMAGE, KERNEL) == 2 * counted(convolve, IMAGE[:1], KERNEL)


def test_a_loop_counts_every_turn():
  def powers(x):
    return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=5)[0]

  assert counted(powers, jnp.ones((8, 8))) == 5 * 2 * 8**3
  with pytest.raises(ValueError, match="while loop"):
    counted(lambda x: jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ c, x), jnp.ones((8, 8)))


def test_inner_functions_count_and_what_nobody_needs_does_not():
  inner = jax.jit(lambda x: x @ x)
  recomputed = jax.checkpoint(lambda x: jnp.tanh(x @ x))
  one = 2 * 8**3
  x = jnp.ones((8, 8))
  assert counted(lambda x: inner(x) + inner(x).T, x) == 2 * one
  assert counted(lambda x: (x, inner(x))[0], x) == 0
  # Forwards once, backwards two products, and the forward one again.
  assert counted(jax.value_and_grad(lambda x: jnp.sum(recomputed(x))), x) == 4 * one
