from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax import arrays, overrides
from gmsrm_jax.config import SIZES
from gmsrm_jax.experiments import demo
from gmsrm_jax.models import inpainter as models
from gmsrm_jax.models import memory
from gmsrm_jax.models.blocks import push_pull_fill
from gmsrm_jax.models.context import rotate_by_position
from tests.small import shrink

CONFIG = shrink(demo.get_config())
MODEL = models.InpaintingNetwork(CONFIG)
SIDE = CONFIG.model.image_size


def _scene(height=SIDE, width=SIDE, seed=0):
  image = jax.random.uniform(jax.random.key(seed), (1, height, width, 3), minval=-1.0)
  return image, jnp.zeros((1, height, width, 1)).at[:, height // 4 : -height // 8, height // 8 : height // 2].set(1.0)


def _random_params(module, *inputs):
  """Parameters of a trained network's size, zero-initialised layers included; nothing is compiled for them."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    spread = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
    start = 1.0 if "scale" in jax.tree_util.keystr(path[-1:]) else 0.0
    return jnp.asarray(start + spread * rng.normal(size=leaf.shape), jnp.float32)

  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
  return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def params():
  return _random_params(MODEL, *_scene())


@pytest.fixture(scope="module")
def run():
  return jax.jit(lambda params, image, mask, noise=None: models.inpaint(MODEL, params, image, mask, noise))


@pytest.fixture(scope="module")
def outputs(params, run):
  return run(params, *_scene())


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_uint8_survives_the_trip_through_floats():
  pixels = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
  _equal(arrays.image_to_uint8(arrays.image_from_uint8(pixels)), pixels)


def test_what_lies_beyond_the_range_is_clipped():
  image = jnp.array([-9.0, -1.0, 1.0, 1.01, 9.0]).reshape(1, 1, 5, 1)
  assert arrays.image_to_uint8(image).ravel().tolist() == [0, 0, 255, 255, 255]


def test_a_composite_keeps_known_pixels_to_the_bit_and_takes_the_prediction_in_the_hole():
  pixels = jax.random.randint(jax.random.key(0), (1, SIDE, SIDE, 3), 0, 256).astype(jnp.uint8)
  image, mask = arrays.image_from_uint8(pixels), _scene()[1]
  known = np.broadcast_to(mask < 0.5, image.shape)
  filled = arrays.composite(jnp.where(known, jnp.nan, 0.25), image, mask)
  np.testing.assert_array_equal(np.asarray(filled)[known], np.asarray(image)[known])
  np.testing.assert_array_equal(np.asarray(arrays.image_to_uint8(filled))[known], np.asarray(pixels)[known])
  assert np.all(np.asarray(filled)[~known] == 0.25)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 0.5])
def test_nothing_in_the_hole_changes_any_output(params, run, outputs, garbage):
  image, mask = _scene()
  _equal(run(params, jnp.where(mask > 0.5, garbage, image), mask), outputs)


def test_the_gradient_is_zero_in_the_hole_and_nowhere_else(params):
  image, mask = _scene()

  @jax.jit
  def gradient(image):
    def objective(image):
      out = models.inpaint(MODEL, params, image, mask)
      parts = (out.prediction, out.memory_image, out.retrieval.read, out.retrieval.log_weights)
      return sum(jnp.sum(jnp.sin(3 * part)) for part in parts)

    return jax.grad(objective)(image)

  found, hole = np.asarray(gradient(image)), np.broadcast_to(np.asarray(mask) > 0.5, image.shape)
  assert np.all(found[hole] == 0) and np.all(found[~hole] != 0)


def test_only_context_blocks_carry_what_is_far_away_into_the_hole(params, run):
  # 96 columns with the hole at the left: push-pull, encoder and decoder together do not reach its left edge.
  image, mask = _scene(32, 96)
  other = image.at[:, :, -1].multiply(-1.0)
  edge = np.argwhere(np.asarray(mask)[0, ..., 0] > 0.5).min(axis=0)

  def near(prediction):
    return np.asarray(prediction)[0, edge[0] : edge[0] + 8, edge[1]]

  _equal(near(push_pull_fill(image, mask)), near(push_pull_fill(other, mask)))
  assert np.all(near(run(params, image, mask).prediction) != near(run(params, other, mask).prediction))

  config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, context_blocks=0))
  module = models.InpaintingNetwork(config)
  local = jax.jit(lambda image: models.inpaint(module, params, image, mask).prediction)
  _equal(near(local(image)), near(local(other)))
  assert np.any(local(image) != local(other))


def test_scores_of_rotated_queries_and_keys_depend_on_offsets_only():
  height, width, dim = 5, 6, 16
  query, key = jax.random.normal(jax.random.key(1), (2, dim))
  maps = (rotate_by_position(jnp.broadcast_to(x, (1, height, width, 1, dim))) for x in (query, key))
  scores = np.einsum("yxd,vud->yxvu", *(np.float64(m)[0, :, :, 0] for m in maps))
  by_offset = {}
  for y, x, v, u in np.ndindex(scores.shape):
    by_offset.setdefault((v - y, u - x), []).append(scores[y, x, v, u])
  assert max(np.ptp(values) for values in by_offset.values()) < 1e-5
  means = sorted(np.mean(values) for values in by_offset.values())
  assert min(np.diff(means)) > 1e-5, "two offsets have one score"
  np.testing.assert_allclose(by_offset[0, 0], np.dot(query, key), atol=1e-5)


def test_a_fresh_last_layer_predicts_the_push_pull_fill_whatever_the_others_hold(params, run):
  image, mask = _scene()
  fresh = jax.jit(lambda key: MODEL.init(key, image, mask)["params"]["decoder"]["to_pixels"])(jax.random.key(0))
  started = {**params, "decoder": {**params["decoder"], "to_pixels": fresh}}
  _equal(run(started, image, mask).prediction, push_pull_fill(image, mask))


def test_noise_varies_the_fill_and_no_noise_is_zero_noise(params, run, outputs):
  scene = _scene()
  first, second = (models.draw_noise(jax.random.key(seed), CONFIG.model, 1) for seed in (1, 2))
  still = run(params, *scene, tuple(jnp.zeros_like(n) for n in first))
  _equal(still, outputs)
  one, again, two = (run(params, *scene, noise).prediction for noise in (first, first, second))
  _equal(one, again)
  for other in (outputs.prediction, two):
    assert np.all(np.any(np.asarray(one != other), axis=-1)[np.asarray(scene[1])[..., 0] > 0.5])


def test_noise_is_drawn_anew_for_every_image_and_scale_and_is_one_idea_for_all_places():
  noise = models.draw_noise(jax.random.key(0), SIZES["tiny"], 64)
  assert [n.shape for n in noise] == [(64, 1, 1, 32), (64, 1, 1, 64), (64, 1, 1, 128)]
  rows = [np.asarray(n)[image].ravel()[:32] for n in noise for image in range(64)]
  assert len({row.tobytes() for row in rows}) == len(rows)
  for n in noise:
    assert abs(np.mean(n)) < 0.05 and abs(np.std(n) - 1) < 0.05


def test_the_twin_without_memory_and_variation_ignores_noise_and_retrieves_nothing():
  config = overrides.override(CONFIG, ["memory.enabled=false", "variation.enabled=false"])
  module, scene = models.InpaintingNetwork(config), _scene()
  params = _random_params(module, *scene)
  apply = jax.jit(lambda noise: models.inpaint(module, params, *scene, noise))
  one, two = (apply(models.draw_noise(jax.random.key(seed), config.model, 1)) for seed in (1, 2))
  _equal(one, two)
  assert one.retrieval is None and one.strengths == ()
  assert not any(name.startswith("strength") for name in params)


def test_computing_in_bfloat16_agrees_with_float32(params, outputs):
  module = models.InpaintingNetwork(CONFIG, jnp.bfloat16)
  half = jax.jit(lambda image, mask: models.inpaint(module, params, image, mask))(*_scene())
  image, mask = _scene()
  fill = push_pull_fill(image, mask)
  residual = outputs.prediction - fill
  error = np.sqrt(np.mean((half.prediction - outputs.prediction) ** 2) / np.mean(residual**2))
  assert 1e-4 < error < 0.03
  np.testing.assert_allclose(np.exp(half.retrieval.log_weights), np.exp(outputs.retrieval.log_weights), atol=0.02)
  for part in (half.prediction, half.memory_image, *half.retrieval):
    assert part.dtype == jnp.float32


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 96)])
def test_any_multiple_of_the_stride_is_filled_even_where_nothing_is_known(params, run, height, width):
  image = _scene(height, width)[0]
  out = run(params, image, jnp.ones((1, height, width, 1)))
  assert out.prediction.shape == image.shape
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out))


def _count(shapes):
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def _at(size, *assignments):
  config = overrides.override(demo.get_config(), [f"model.size={size}", *assignments])
  side = config.model.image_size
  module, scene = models.InpaintingNetwork(config), (jnp.zeros((1, side, side, 3)), jnp.zeros((1, side, side, 1)))
  return module, scene, jax.eval_shape(module.init, jax.random.key(0), *scene)["params"]


def test_base_keeps_its_budget():
  module, scene, shapes = _at("base")
  assert 10e6 < _count(shapes) <= 35e6
  cost = jax.jit(lambda p, *x: models.inpaint(module, p, *x).prediction).lower(shapes, *scene).cost_analysis()
  assert 20e9 < cost["flops"] <= 90e9


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_the_twin_without_memory_has_as_many_parameters(size):
  with_memory, twin = (_count(_at(size, f"memory.enabled={flag}")[2]) for flag in ("true", "false"))
  assert with_memory == pytest.approx(twin, rel=0.005)


def test_stage_2_takes_over_the_memory_of_stage_1():
  learner = memory.MemoryNetwork(CONFIG)
  image, mask = _scene()
  first, second = (
    jax.tree.map(
      lambda leaf: (leaf.shape, leaf.dtype), jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]["memory"]
    )
    for module, inputs in ((learner, (image,)), (MODEL, (image, mask)))
  )
  assert first == second


def test_the_teacher_retrieves_what_stage_1_does_and_needs_no_generator():
  learner = memory.MemoryNetwork(CONFIG)
  image, _ = _scene()
  params = _random_params(learner, image)
  lean = {**params, "memory": {name: params["memory"][name] for name in ("codebook", "retrieval")}}

  @jax.jit
  def both(image):
    return memory.recognise(learner, params, image).retrieval, memory.teach(learner, lean, image)

  _equal(*both(image))
