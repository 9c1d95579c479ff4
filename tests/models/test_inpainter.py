from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax import arrays, overrides
from gmsrm_jax.config import SIZES
from gmsrm_jax.experiments import demo
from gmsrm_jax.models.blocks import push_pull_fill
from gmsrm_jax.models.inpainter import InpaintingNetwork, draw_noise, fill_pixels, inpaint
from gmsrm_jax.models.memory import MemoryNetwork, recognise, teach
from tests.small import shrink

CONFIG = shrink(demo.get_config())
MODEL = InpaintingNetwork(CONFIG)
SIDE = CONFIG.model.image_size


def _scene(height=SIDE, width=SIDE):
  image = jax.random.uniform(jax.random.key(0), (1, height, width, 3), minval=-1.0)
  return image, jnp.zeros((1, height, width, 1)).at[:, height // 4 : -height // 8, height // 8 : height // 2].set(1.0)


def _shapes(module, *inputs):
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def _random_params(module, *inputs):
  """Parameters of a trained network's size, zero-initialised layers included; nothing is compiled for them."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    spread = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    start = 1.0 if "scale" in jax.tree_util.keystr(path[-1:]) else 0.0
    return jnp.asarray(start + spread * rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, _shapes(module, *inputs))


@pytest.fixture(scope="module")
def params():
  return _random_params(MODEL, *_scene())


@pytest.fixture(scope="module")
def run():
  return jax.jit(lambda params, image, mask, noise=None: inpaint(MODEL, params, image, mask, noise))


@pytest.fixture(scope="module")
def outputs(params, run):
  return run(params, *_scene())


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_fill_keeps_known_pixels_to_the_bit_and_rounds_the_prediction_in_the_hole(params, run):
  image, mask = _scene()
  pixels = arrays.image_to_uint8(image)
  filled = np.asarray(jax.jit(lambda p, *x: fill_pixels(MODEL, p, *x))(params, pixels, mask.astype(jnp.uint8)))
  prediction = arrays.image_to_uint8(run(params, arrays.image_from_uint8(pixels), mask).prediction)
  hole = np.broadcast_to(mask > 0.5, filled.shape)
  np.testing.assert_array_equal(filled[~hole], np.asarray(pixels)[~hole])
  np.testing.assert_allclose(filled[hole].astype(int), np.asarray(prediction)[hole].astype(int), atol=1)


@pytest.mark.parametrize("garbage", [np.nan, 0.5])
def test_nothing_in_the_hole_changes_any_output(params, run, outputs, garbage):
  image, mask = _scene()
  _equal(run(params, jnp.where(mask > 0.5, garbage, image), mask), outputs)


def test_the_gradient_is_zero_in_the_hole_and_nowhere_else(params):
  image, mask = _scene()

  @jax.jit
  @jax.grad
  def gradient(image):
    out = inpaint(MODEL, params, image, mask)
    tensors = (out.prediction, out.memory_image, out.retrieval.read, out.retrieval.log_weights)
    return sum(jnp.sum(jnp.sin(3 * tensor)) for tensor in tensors)

  slope, hole = np.asarray(gradient(image)), np.broadcast_to(np.asarray(mask) > 0.5, image.shape)
  assert np.all(slope[hole] == 0) and np.all(slope[~hole] != 0)


def test_only_context_blocks_carry_what_is_far_away_into_the_hole(params, run):
  # 96 columns with the hole at the left: push-pull, encoder and decoder together do not reach its left edge.
  image, mask = _scene(32, 96)
  other = image.at[:, :, -1].multiply(-1.0)
  edge = np.argwhere(np.asarray(mask)[0, ..., 0] > 0.5).min(axis=0)

  def near(prediction):
    return np.asarray(prediction)[0, edge[0] : edge[0] + 8, edge[1]]

  _equal(near(push_pull_fill(image, mask)), near(push_pull_fill(other, mask)))
  assert np.all(near(run(params, image, mask).prediction) != near(run(params, other, mask).prediction))

  module = InpaintingNetwork(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, context_blocks=0)))
  local = jax.jit(lambda image: inpaint(module, params, image, mask).prediction)
  _equal(near(local(image)), near(local(other)))
  assert np.any(local(image) != local(other))


def test_without_its_last_layer_the_network_predicts_the_push_pull_fill(params, run):
  image, mask = _scene()
  last = jax.tree.map(jnp.zeros_like, params["decoder"]["to_pixels"])  # as it is initialised
  started = {**params, "decoder": {**params["decoder"], "to_pixels": last}}
  _equal(run(started, image, mask).prediction, push_pull_fill(image, mask))


def test_noise_varies_the_fill_and_no_noise_is_zero_noise(params, run, outputs):
  scene = _scene()
  first, second = (draw_noise(jax.random.key(seed), CONFIG.model, 1) for seed in (1, 2))
  _equal(run(params, *scene, tuple(jnp.zeros_like(n) for n in first)), outputs)
  one, two = (run(params, *scene, noise).prediction for noise in (first, second))
  for other in (outputs.prediction, two):
    assert np.all(np.any(np.asarray(one != other), axis=-1)[np.asarray(scene[1])[..., 0] > 0.5])


def test_noise_is_drawn_anew_for_every_image_and_scale_and_is_one_idea_for_all_places():
  noise = draw_noise(jax.random.key(0), SIZES["tiny"], 64)
  assert [n.shape for n in noise] == [(64, 1, 1, 32), (64, 1, 1, 64), (64, 1, 1, 128)]
  rows = [np.asarray(n)[image].ravel()[:32] for n in noise for image in range(64)]
  assert len({row.tobytes() for row in rows}) == len(rows)
  for n in noise:
    assert abs(np.mean(n)) < 0.05 and abs(np.std(n) - 1) < 0.05


def test_computing_in_bfloat16_agrees_with_float32(params, outputs):
  module, (image, mask) = InpaintingNetwork(CONFIG, jnp.bfloat16), _scene()
  half = jax.jit(lambda image, mask: inpaint(module, params, image, mask))(image, mask)
  residual = outputs.prediction - push_pull_fill(image, mask)
  error = np.sqrt(np.mean((half.prediction - outputs.prediction) ** 2) / np.mean(residual**2))
  assert 1e-4 < error < 0.03
  np.testing.assert_allclose(np.exp(half.retrieval.log_weights), np.exp(outputs.retrieval.log_weights), atol=0.02)
  assert {x.dtype for x in (half.prediction, half.memory_image, *half.retrieval)} == {jnp.dtype("float32")}


def test_the_smallest_multiple_of_the_stride_is_filled_even_where_nothing_is_known(params, run):
  out = run(params, _scene(8, 8)[0], jnp.ones((1, 8, 8, 1)))
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))


def _at(size, *assignments):
  config = overrides.override(demo.get_config(), [f"model.size={size}", *assignments])
  return InpaintingNetwork(config), _scene(config.model.image_size, config.model.image_size)


def _count(module, scene):
  return sum(leaf.size for leaf in jax.tree.leaves(_shapes(module, *scene)))


@pytest.mark.parametrize(("size", "most"), [("tiny", 5e6), ("base", 35e6)])
def test_the_twin_without_memory_has_as_many_parameters_and_retrieves_nothing(size, most):
  module, scene = _at(size, "memory.enabled=false", "variation.enabled=false")
  with_memory = _count(*_at(size, "variation.enabled=false"))
  assert with_memory == pytest.approx(_count(module, scene), rel=0.005) and with_memory <= most
  out = jax.eval_shape(lambda *x: inpaint(module, *x), _shapes(module, *scene), *scene)
  assert out.retrieval is None and out.strengths == ()


def test_stage_2_takes_over_the_memory_of_stage_1():
  image, mask = _scene()
  first, second = (_shapes(MemoryNetwork(CONFIG), image), _shapes(MODEL, image, mask))
  assert first["memory"] == second["memory"]


def test_the_teacher_retrieves_what_stage_1_does_and_needs_no_generator():
  network, (image, _) = MemoryNetwork(CONFIG), _scene()
  params = _random_params(network, image)
  lean = {**params, "memory": {name: params["memory"][name] for name in ("codebook", "retrieval")}}
  _equal(*jax.jit(lambda image: (recognise(network, params, image).retrieval, teach(network, lean, image)))(image))
