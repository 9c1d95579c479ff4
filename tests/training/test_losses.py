from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.config import LossConfig
from gmsrm_jax.training import losses
from tests import reference


def _images(seed, batch=3, side=8):
  rng = np.random.default_rng(seed)
  prediction, image = rng.uniform(-1, 1, (2, batch, side, side, 3)).astype(np.float32)
  mask = (rng.uniform(size=(batch, side, side, 1)) < 0.3).astype(np.float32)
  return jnp.asarray(prediction), jnp.asarray(image), jnp.asarray(mask)


def _features(seed, batch=2):
  rng = np.random.default_rng(seed)
  shapes = ((batch, 8, 6, 5), (batch, 4, 3, 7))
  return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def _log_weights(seed, shape=(2, 2, 5, 7)):
  return jax.nn.log_softmax(2 * jax.random.normal(jax.random.key(seed), shape), axis=-1)


def _close(actual, expected, tolerance=1e-5):
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_l1_terms_equal_numpy():
  prediction, image, mask = _images(0)
  mask = mask.at[0].set(0).at[1].set(1)  # without a pixel to look at they are 0
  _close(losses.hole_l1(prediction, image, mask), reference.masked_l1(prediction, image, mask))
  _close(losses.valid_l1(prediction, image, mask), reference.masked_l1(prediction, image, 1 - mask))
  _close(losses.l1(prediction, image), reference.masked_l1(prediction, image, jnp.ones_like(mask)))


def test_feature_losses_equal_numpy():
  a, b = _features(3), _features(4)
  _close(losses.perceptual(a, b), reference.perceptual(a, b))
  _close(losses.style(a, b), reference.style(a, b))


@pytest.mark.parametrize("loss", [losses.perceptual, losses.style])
def test_target_features_receive_no_gradient(loss):
  a, b = _features(6), _features(7)
  to_features, to_target = jax.jit(jax.grad(lambda x, y: jnp.sum(loss(x, y)), argnums=(0, 1)))(a, b)
  assert all(np.any(leaf != 0) for leaf in to_features)
  assert all(np.all(leaf == 0) for leaf in to_target)


def test_retrieval_kl_equals_numpy():
  teacher, student = _log_weights(0), _log_weights(1)
  hole = jax.random.uniform(jax.random.key(2), (2, 5))
  expected = reference.retrieval_kl(np.exp(np.float64(teacher)), np.exp(np.float64(student)), np.float64(hole))
  _close(losses.retrieval_kl(teacher, student, hole), expected)


def test_retrieval_kl_is_positive_and_zero_only_for_equal_weights():
  teacher, student, hole = _log_weights(3), _log_weights(4), jnp.ones((2, 5))
  np.testing.assert_allclose(losses.retrieval_kl(teacher, teacher, hole), 0, atol=1e-7)
  assert np.all(losses.retrieval_kl(teacher, student, hole) > 0.1)
  one_place = jnp.where(jnp.arange(5).reshape(1, 1, 5, 1) == 2, student, teacher)
  assert np.all(losses.retrieval_kl(teacher, one_place, hole) > 0.01)
  np.testing.assert_allclose(losses.retrieval_kl(teacher, one_place, hole.at[:, 2].set(0)), 0, atol=1e-7)


def test_choice_is_the_surprise_at_the_teachers_likeliest_slots_that_count():
  rng = np.random.default_rng(5)
  teacher, student = (rng.normal(size=(2, 3, 4, 6)) for _ in range(2))
  student = student - np.log(np.exp(student).sum(axis=-1, keepdims=True))
  weight = rng.integers(0, 3, (2, 3, 4)).astype(np.float64)
  total = np.zeros(2)
  for place in np.ndindex(2, 3, 4):
    total[place[0]] -= weight[place] * student[place][teacher[place].argmax()]
  found = losses.choice(*(jnp.asarray(x, jnp.float32) for x in (teacher, student, weight)))
  np.testing.assert_allclose(found, total / weight.sum(axis=(1, 2)), rtol=1e-5)


def test_retrieval_kl_survives_slots_of_no_weight():
  teacher = jnp.log(jnp.array([1.0, 0.0, 0.0])).reshape(1, 1, 1, 3)
  student = jnp.log(jnp.array([0.5, 0.5, 0.0])).reshape(1, 1, 1, 3)
  measure = jax.value_and_grad(lambda x: jnp.sum(losses.retrieval_kl(teacher, x, jnp.ones((1, 1)))))
  value, slope = jax.jit(measure)(student)
  _close(value, np.log(2))
  assert np.all(np.isfinite(slope))


def test_only_the_student_learns_and_only_in_the_hole():
  teacher, student, hole = _log_weights(5), _log_weights(6), jnp.ones((2, 5)).at[:, 3:].set(0)
  both = lambda loss: jax.jit(jax.grad(lambda t, s: jnp.sum(loss(t, s, hole)), argnums=(0, 1)))  # noqa: E731
  to_teacher, to_student = both(lambda t, s, h: losses.retrieval_kl(t, jax.nn.log_softmax(s), h))(teacher, student)
  assert np.all(to_teacher == 0) and np.all(to_student[:, :, 3:] == 0) and np.any(to_student[:, :, :3] != 0)
  reads = teacher[:, 0], student[:, 0]
  to_teacher, to_student = both(losses.read_loss)(*reads)
  assert np.all(to_teacher == 0) and np.all(to_student[:, 3:] == 0) and np.all(to_student[:, :3] != 0)


def test_read_loss_equals_numpy():
  rng = np.random.default_rng(9)
  teacher, student = jnp.asarray(rng.normal(size=(2, 3, 5, 6)), jnp.float32)
  hole = jnp.asarray(rng.uniform(size=(3, 5)), jnp.float32).at[2].set(0)
  _close(losses.read_loss(teacher, student, hole), reference.read_loss(teacher, student, np.float64(hole)))


def test_balance_is_the_distance_in_entropy_from_uniform_use():
  p = jnp.exp(_log_weights(7, (4, 9)))
  _close(losses.balance(p), reference.balance(p))
  np.testing.assert_allclose(losses.balance(jnp.full((4, 9), 1 / 9)), 0, atol=1e-6)
  one = jnp.zeros((1, 9)).at[0, 3].set(1)
  _close(losses.balance(one), np.log(9))
  assert np.all(np.isfinite(jax.jit(jax.grad(losses.balance))(one)))


def test_weigh_adds_weighted_means_and_leaves_out_what_has_no_weight():
  terms = {"hole": jnp.array([1.0, 3.0]), "balance": jnp.array(0.5), "style": jnp.array([4.0, 4.0])}
  total, means = losses.weigh(terms, LossConfig(hole=6.0, balance=0.1, style=0.0))
  _close(total, 6 * 2 + 0.05)
  assert {name: float(mean) for name, mean in means.items()} == {"hole": 2.0, "balance": 0.5}


def test_per_image_terms_do_not_mix_the_images_of_a_batch():
  prediction, image, mask = _images(10)
  fake = prediction[..., :1]
  a, b = _features(11), _features(12)
  log_weights, hole = (_log_weights(9), _log_weights(10)), jnp.ones((2, 5))
  cases = [
    (losses.hole_l1, (prediction, image, mask)),
    (losses.valid_l1, (prediction, image, mask)),
    (losses.l1, (prediction, image)),
    (losses.hinge_generator, (fake,)),
    (losses.hinge_discriminator, (fake, image[..., :1])),
    (losses.perceptual, (a, b)),
    (losses.style, (a, b)),
    (losses.retrieval_kl, (*log_weights, hole)),
    (losses.read_loss, (a[0][:, 0], b[0][:, 0], jnp.ones((2, 6)).at[0, 1:].set(0))),
  ]
  for loss, arguments in cases:
    second = jax.tree.map(lambda x: x[1:2], arguments)
    loss_of_all, loss_of_second = jax.jit(lambda x, y, f=loss: (f(*x), f(*y)))(arguments, second)
    np.testing.assert_allclose(loss_of_all[1:2], loss_of_second, rtol=1e-5, err_msg=loss.__name__)


def test_half_precision_inputs_are_summed_in_float32():
  image = jnp.zeros((1, 64, 64, 3), jnp.bfloat16)
  assert losses.l1(image + 0.5, image).dtype == jnp.float32
  # 12,288 equal terms would stall far below their sum in bfloat16.
  _close(losses.hole_l1(image + 0.5, image, jnp.ones((1, 64, 64, 1), jnp.bfloat16)), [0.5])
  _close(losses.style((image + 0.5,), (image,)), [0.25 / 3])


def test_random_windows_reach_every_place_and_the_gradient_returns_to_it():
  place = jnp.broadcast_to(jnp.arange(5.0).reshape(1, 5, 1, 1), (200, 5, 5, 1))
  corners = losses.window_corners(jax.random.key(1), 200, 5, 5, 3)
  assert {tuple(corner) for corner in np.asarray(corners)} == {(row, column) for row in range(3) for column in range(3)}
  slope = jax.grad(lambda x: losses.cut_windows(x, corners, 3).sum())(place)
  np.testing.assert_array_equal(slope.sum(axis=(1, 2, 3)), 9)
  row = np.arange(5)[None]
  np.testing.assert_array_equal(slope.sum(axis=(2, 3)) > 0, (row >= corners[:, :1]) & (row < corners[:, :1] + 3))


def test_hinge_equals_numpy():
  rng = np.random.default_rng(8)
  real, fake = jnp.asarray(2 * rng.normal(size=(2, 3, 4, 5, 1)), jnp.float32)
  hole = jnp.asarray(rng.uniform(size=(3, 4, 5, 1)), jnp.float32)
  everything = reference.hinge_discriminator(real, fake, np.ones_like(hole))
  np.testing.assert_allclose(losses.hinge_generator(fake), -np.float64(fake).mean(axis=(1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(losses.hinge_discriminator(real, fake), everything, rtol=1e-5)
  by_hole = losses.hinge_discriminator(real, fake, hole=hole)
  np.testing.assert_allclose(by_hole, reference.hinge_discriminator(real, fake, hole), rtol=1e-5)
