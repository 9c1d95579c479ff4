"""Four devices compute what one computes, and what cannot be divided is refused."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from gmsrm_jax import overrides
from gmsrm_jax.config import REMAT
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.hardware.tpu import collectives
from gmsrm_jax.parallel import sharding
from gmsrm_jax.training import steps, variation
from tests.training.test_steps import BARE, initial, leaves, make_step, photo_batch, small_config


def _fsdp(ways, **changes):
  config = small_config(*BARE)
  return dataclasses.replace(config, run=dataclasses.replace(config.run, fsdp=ways, **changes))


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(_fsdp(2))


def test_the_largest_axis_that_divides_is_split(mesh):
  shapes = {
    "convolution": (3, 3, 64, 128),
    "odd": (3, 5, 7),
    "largest is odd": (4, 9, 6),
    "small": (2, 2),
    "step": (),
  }
  tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
  specs = {name: s.spec for name, s in sharding.tree_sharding(tree, mesh, min_size=100).items()}
  assert specs == {
    "convolution": PartitionSpec(None, None, None, "fsdp"),
    "odd": PartitionSpec(),
    "largest is odd": PartitionSpec(None, None, "fsdp"),
    "small": PartitionSpec(),
    "step": PartitionSpec(),
  }
  whole = sharding.tree_sharding(tree, sharding.make_mesh(_fsdp(1)), min_size=100)
  assert {s.spec for s in whole.values()} == {PartitionSpec()}


def test_what_cannot_be_divided_is_refused_with_the_way_out(mesh):
  with pytest.raises(ConfigError, match="run.fsdp=3 does not divide the 4 devices: choose a divisor of 4"):
    sharding.make_mesh(_fsdp(3))
  for size, advice in ((6, "use 4"), (2, "use 4"), (10, "use 8")):
    with pytest.raises(ConfigError, match=f"run.batch_size={size} is not divisible by the 4 devices: {advice}"):
      sharding.check_batch(_fsdp(2, batch_size=size), mesh)
  sharding.check_batch(_fsdp(2, batch_size=8), mesh)
  sharding.check_batch(_fsdp(2, batch_size=8, accumulate=2), mesh)
  with pytest.raises(ConfigError, match="run.batch_size=12 is not divisible by 4 devices x run.accumulate=2: use 8"):
    sharding.check_batch(_fsdp(2, batch_size=12, accumulate=2), mesh)


def _assert_close(expected, actual):
  """Equal up to float32 rounding of the largest entry of each leaf."""
  expected, actual = leaves(expected), leaves(actual)
  assert expected.keys() == actual.keys()
  for name, value in expected.items():
    scale = max(np.abs(value).max(initial=0.0), 1e-6)
    np.testing.assert_allclose(actual[name] / scale, value / scale, atol=2e-4, err_msg=name)


def _assert_same_step(one, other):
  (state, metrics), (other_state, other_metrics) = one, other
  _assert_close(metrics, other_metrics)
  # Adam's moments are the gradients; its updates would blow the rounding of a gradient near zero up to the rate.
  for moment in ("mu", "nu"):
    _assert_close(optax.tree.get(state.opt_state, moment), optax.tree.get(other_state.opt_state, moment))
    _assert_close(optax.tree.get(state.disc_opt_state, moment), optax.tree.get(other_state.disc_opt_state, moment))
  _assert_close(state.disc_stats, other_state.disc_stats)
  _assert_close(state.usage, other_state.usage)


@functools.cache
def _one_device(stage):
  """Settings, first state, and the step from there on one device.

  The terms that are no mean over images are left out, and the known pixels: at first the prediction is the photo
  there, and the sign of a difference of zero is anybody's rounding.
  """
  config = small_config(*BARE, "loss.balance=0", "loss.valid=0", "memory.revive_every=0", "stage1.clip_norm=1e9")
  begin = initial(config, stage)
  return config, begin, make_step(config, stage)(begin, photo_batch(), {})


@pytest.mark.parametrize("stage", ["memory", "inpaint"])
def test_the_sharded_step_equals_that_of_one_device(stage, mesh):
  config, begin, (one, one_metrics) = _one_device(stage)
  where = sharding.tree_sharding(begin, mesh, min_size=64)
  split = [name for name, s in leaves_of_shardings(where).items() if s.spec != PartitionSpec()]
  assert any("params" in name for name in split) and any("opt_state" in name for name in split)
  whole = sharding.replicated(mesh)
  step = jax.jit(
    functools.partial(steps.STEPS[stage], config=config),
    in_shardings=(where, sharding.batch_sharding(mesh), whole),
    out_shardings=(where, whole),
  )
  arguments = (jax.device_put(begin, where), sharding.global_batch(photo_batch(), mesh), {})
  program = step.lower(*arguments).compile()
  many, many_metrics = program(*arguments)
  if stage == "memory":
    # What a device was given of the batch stays there: parameters are gathered, gradients are summed, nothing else.
    moved = {found.kind for found in collectives.collectives(program.as_text(), 4)}
    assert "all-reduce" in moved and moved <= {"all-reduce", "all-gather", "reduce-scatter"}
  assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(many)} == {4}

  _assert_same_step((one, one_metrics), (many, many_metrics))
  rate = config.stage1.learning_rate
  for name, value in leaves(one.params).items():
    np.testing.assert_allclose(leaves(many.params)[name], value, atol=2.1 * rate, err_msg=name)


def test_an_image_that_is_filled_twice_stays_on_its_device(mesh):
  split = sharding.batch_sharding(mesh)

  def score(x):
    rows = variation.TWICE.rows(x)
    return variation.TWICE.per_image(jnp.sum(rows, axis=1)), *variation.both(rows)

  def moved(batch):
    program = jax.jit(score, in_shardings=split, out_shardings=(split, None, None))
    return collectives.collectives(program.lower(jax.ShapeDtypeStruct((batch, 5), jnp.float32)).compile().as_text(), 4)

  assert moved(8) == moved(16) == []
  assert moved(12) != []  # three images a device: every second pair lies on two of them


def leaves_of_shardings(tree):
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("stage", ["memory", "inpaint"])
def test_a_batch_in_parts_with_everything_recomputed_is_the_same_step(stage):
  config, begin, one = _one_device(stage)
  parts = dataclasses.replace(config, run=dataclasses.replace(config.run, accumulate=2, remat=",".join(REMAT)))
  step = make_step(parts, stage)
  _assert_same_step(one, step(begin, photo_batch(), {}))
  # Compared too much only if it really went in parts.
  text = str(jax.make_jaxpr(functools.partial(steps.STEPS[stage], config=parts))(begin, photo_batch(), {}))
  assert f"{len(photo_batch()['image']) // 2},{parts.model.image_size},{parts.model.image_size},3]" in text


def test_each_group_can_be_recomputed_in_the_backward_pass():
  config = small_config(*BARE)
  begin = initial(config, "inpaint")
  config = overrides.override(config, ["loss.perceptual=0.1", "loss.features=recognition"])

  def recomputations(remat):
    changed = dataclasses.replace(config, run=dataclasses.replace(config.run, remat=remat))
    step = functools.partial(steps.STEPS["inpaint"], config=changed)
    return str(jax.make_jaxpr(step)(begin, photo_batch(), {})).count("remat")

  assert recomputations("") == 0
  assert all(recomputations(group) > 0 for group in REMAT)
