"""The train steps: what learns, what stays, what is logged; the same inputs give the same outputs."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from gmsrm_jax import config as config_lib
from gmsrm_jax import experiments, overrides
from gmsrm_jax.models import codebook
from gmsrm_jax.models.reasoning import Decided
from gmsrm_jax.models.retrieval import Retrieval
from gmsrm_jax.training import stages, state, steps
from tests.small import shrink

# Two scales compile in half the time of tests.small's three.
SMALL = [
  "model.widths=8,16",
  "model.discriminator_layers=1",
  *("stage1.steps=200", "stage2.steps=200", "stage1.warmup=0", "stage2.warmup=0"),
  *("stage1.learning_rate=0.003", "stage2.learning_rate=0.003"),
]


@functools.cache
def small_config(*changes: str) -> config_lib.Config:
  changed = {change.partition("=")[0] for change in changes}
  kept = [setting for setting in SMALL if setting.partition("=")[0] not in changed]
  return overrides.override(shrink(experiments.load("demo")), [*kept, *changes])


def photo_batch(count: int = 4) -> dict[str, np.ndarray]:
  """Crops of a photograph, each with a hole of its own size."""
  photo, masks = skimage.data.astronaut(), np.zeros((count, 32, 32, 1), np.uint8)
  for i in range(count):
    masks[i, 4 : 20 + i, 6 : 22 + 2 * i] = 1
  return {"image": np.stack([photo[40 * i :][:96:3, 100 + 60 * i :][:, :96:3] for i in range(count)]), "mask": masks}


@functools.cache
def make_step(config, stage, **phase):
  return jax.jit(functools.partial(steps.STEPS[stage], config=config, phase=steps.Phase(**phase)))


@functools.cache
def initial(config, stage):
  memory = None
  if stage == "inpaint" and stages.has_memory_stage(config):
    memory = initial(config, "memory").ema
  return jax.jit(functools.partial(state.init_state, config, stage))(
    jax.random.key(7, impl="unsafe_rbg"), memory
  )  # compiles in a tenth of the time


def leaves(tree):
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unchanged(before, after):
  before, after = leaves(before), leaves(after)
  return [name for name in before if before[name].tobytes() == after[name].tobytes()]


@pytest.fixture(scope="module")
def batch():
  return photo_batch()


@pytest.fixture(scope="module", params=stages.STAGES)
def trained(request, batch):
  """A stage's compiled step, its first state and the states and metrics after one and two steps."""
  config = small_config()
  step = make_step(config, request.param)
  states, metrics = [initial(config, request.param)], []
  for _ in range(2):
    after, logged = step(states[-1], batch, {})
    states.append(after)
    metrics.append(logged)
  return request.param, config, step, states, metrics


def test_every_parameter_learns_within_two_steps(trained):
  _, _, _, states, _ = trained
  # Two, because the last layer of the decoder starts at zero and passes nothing back in the first.
  assert unchanged(states[0].params, states[2].params) == []
  assert unchanged(states[0].ema, states[2].ema) == []
  # As long as no logit is beyond its margin, real and fake pull the hinge's last bias apart with equal force.
  assert set(unchanged(states[0].disc_params, states[2].disc_params)) <= {"['to_logits']['bias']"}
  assert unchanged(states[0].disc_stats, states[2].disc_stats) == []
  assert int(states[2].step) == 2


def test_what_is_frozen_stays_to_the_bit(trained):
  stage, _, _, states, _ = trained
  assert unchanged(states[0].frozen, states[2].frozen) == list(leaves(states[0].frozen))
  assert set(states[0].frozen) == (set() if stage == "memory" else {"memory", "teacher"})
  assert ("memory" in states[0].params) == (stage == "memory")


def test_a_step_is_a_pure_function_compiled_once(trained, batch):
  _, _, step, states, metrics = trained
  again, logged = step(states[0], batch, {})
  assert unchanged(states[1], again) == list(leaves(again))
  assert unchanged(metrics[0], logged) == list(leaves(logged))
  assert step._cache_size() == 1


def test_the_total_is_the_weighted_sum_of_the_logged_terms(trained):
  stage, config, _, _, metrics = trained
  weights = {name: getattr(config.loss, name) for name in metrics[1] if hasattr(config.loss, name)}
  expected = {
    "memory": {"l1", "perceptual", "balance", "adversarial"},
    "inpaint": {"hole", "valid", "memory_image", "perceptual", "style", "retrieval", "read", "adversarial"},
  }
  assert set(weights) == expected[stage]
  total = sum(float(metrics[1][name]) * weight for name, weight in weights.items())
  np.testing.assert_allclose(metrics[1]["loss"], total, rtol=1e-5)
  assert all(np.isfinite(value) for value in metrics[1].values())


def test_slots_are_predicted_without_drawing_and_then_a_fill_is_drawn_from_them(batch):
  hard = ("memory.kind=hard", "memory.reasoning_blocks=1", "memory.reasoning_share=0.5", "variation.enabled=false")
  config = small_config(*BARE, *hard)
  half = config.stage2.steps // 2
  assert [steps.phase_at(config, "inpaint", step).drawn for step in (0, half - 1, half)] == [False, False, True]
  assert steps.phase_at(config, "memory", 0).drawn
  begin = initial(config, "inpaint")
  drawn = {}
  for phase in (False, True):
    step = make_step(config, "inpaint", adversarial=False, varied=False, drawn=phase)
    after, metrics = step(*step(begin, batch, {})[:1], batch, {})
    assert all(np.isfinite(value) for value in metrics.values()) and int(after.step) == 2
    idle = {name.split("'")[1] for name in unchanged(begin.params, after.params)}
    drawn[phase] = ("hole" in metrics, idle)
    # The surprise at first: the slots of a fresh network are about equally likely.
    assert 0 < metrics["retrieval"] < 3 * np.log(config.memory.slots_per_group)
  assert drawn == {False: (False, {"decoder"}), True: (True, set())}


def test_a_slot_that_is_decided_counts_for_nothing_and_its_neighbours_do():
  config = small_config(*BARE, "memory.kind=hard", "variation.enabled=false")
  books, slots = config.memory.num_groups, config.memory.slots_per_group
  rng = np.random.default_rng(0)
  logits = [jnp.asarray(rng.normal(size=(2, books, 4, slots)), jnp.float32) for _ in range(2)]
  teacher, student = (Retrieval(jnp.zeros((2, 4, config.memory.slot_dim)), jax.nn.log_softmax(x)) for x in logits)
  decided = Decided(jnp.zeros((2, books, 4), jnp.int32), jnp.zeros((2, books, 4), bool).at[0, 1, 2].set(True))
  shares = (jnp.ones((2, 2, 2, 1)),)

  def term(log_weights):
    found = student._replace(log_weights=log_weights)
    return jnp.sum(steps._retrieval_terms(config, teacher, found, shares, decided)["retrieval"])

  moved = np.abs(jax.grad(term)(student.log_weights)).max(axis=-1) > 0
  np.testing.assert_array_equal(moved, ~np.asarray(decided.flags))


def test_one_batch_is_learned_by_heart(trained, batch):
  stage, _, step, states, metrics = trained
  now, logged = states[0], metrics[0]
  term = "l1" if stage == "memory" else "hole"
  for _ in range(80):
    now, logged = step(now, batch, {})
  assert logged[term] < 0.5 * metrics[0][term], (logged[term], metrics[0][term])


def test_a_dead_slot_is_revived_in_the_due_step_also_in_the_average(trained, batch):
  stage, config, step, states, _ = trained
  if stage != "memory":
    pytest.skip("slots are revived in stage 1")
  usage = np.full(config.memory.num_slots, 1 / (config.memory.num_slots - 1), np.float32)
  usage[5] = 0
  group, slot = divmod(5, config.memory.slots_per_group)
  # So far below the threshold that this step's own share of the usage does not lift it.
  assert 0.01 * 1.0 / config.memory.num_slots < codebook.REVIVE_BELOW / config.memory.num_slots
  moved = {}
  for due, at in ((False, 0), (True, config.memory.revive_every - 1)):
    begin = states[0].replace(usage=usage, step=np.int32(at))
    after, logged = step(begin, batch, {})
    old, new = begin.params["memory"]["codebook"]["keys"], after.params["memory"]["codebook"]["keys"]
    moved[due] = np.abs(np.asarray(new - old)).max(axis=-1)
    assert float(logged["revived"]) == due
    average = after.ema["memory"]["codebook"]
    for name in ("keys", "values"):
      equal = np.array_equal(average[name][group, slot], after.params["memory"]["codebook"][name][group, slot])
      assert equal == due
    if due:
      np.testing.assert_allclose(after.usage[5], 1 / config.memory.num_slots, rtol=1e-6)
  # Adam moves an entry by its rate at most; a revival replaces it.
  assert moved[True][group, slot] > 0.1 and moved[False].max() < 0.01
  others = np.delete(moved[True].reshape(-1), 5)
  assert others.max() < 0.01


# Without feature terms the network of vgg16 is never asked for.
BARE = ("loss.features=vgg16", "loss.perceptual=0", "loss.style=0", "model.context_blocks=0")


def test_what_is_known_is_taught_as_far_as_the_setting_says(batch):
  """Nothing of the first batch is hole, all of the second is."""
  taught, begin = {}, initial(small_config(*BARE), "inpaint")
  for weight in (0.0, 1.0):
    changes = [] if weight == config_lib.LossConfig().retrieval_known else [f"loss.retrieval_known={weight}"]
    step = make_step(small_config(*BARE, *changes), "inpaint", adversarial=False)
    for hole in (0, 1):
      _, metrics = step(begin, {**batch, "mask": np.full_like(batch["mask"], hole)}, {})
      taught[weight, hole] = np.array([metrics["retrieval"], metrics["read"]])
  np.testing.assert_array_equal(taught[0.0, 0], 0)
  assert np.all(taught[1.0, 0] > 0)
  np.testing.assert_array_equal(taught[0.0, 1], taught[1.0, 1])


def test_phases_follow_the_shares_of_a_stage():
  config = small_config(
    *("stage1.half_until=0.5", "stage1.features_start=0.1", "stage1.adversarial_start=1"),
    *("stage2.half_until=0.2", "stage2.features_start=0.4", "variation.start=0.6", "stage2.adversarial_start=0.8"),
  )

  def begins(stage):
    """The steps where something changes, and what is on from there."""
    phases = [steps.phase_at(config, stage, step) for step in range(200)]
    return {step: phases[step] for step in range(200) if step == 0 or phases[step] != phases[step - 1]}

  off = steps.Phase(adversarial=False, features=False, varied=False, half=True)
  assert begins("memory") == {0: off, 20: off._replace(features=True), 100: off._replace(features=True, half=False)}
  assert begins("inpaint") == {
    0: off,
    40: off._replace(half=False),
    80: off._replace(half=False, features=True),
    120: steps.Phase(adversarial=False),
    160: steps.Phase(),
  }
  # By default everything but the adversarial term is on from the first step.
  assert steps.phase_at(small_config("stage2.adversarial_start=0.3"), "inpaint", 59) == steps.Phase(adversarial=False)
  never = small_config("loss.adversarial=0", "variation.enabled=false")
  assert steps.phase_at(never, "inpaint", 199) == steps.Phase(adversarial=False, varied=False)


def test_what_has_no_weight_and_what_a_phase_switches_off_is_left_out(batch):
  def logged(*changes, **phase):
    config = small_config(*changes)
    step = functools.partial(steps.inpaint_step, config=config, phase=steps.Phase(**phase))
    return set(jax.eval_shape(step, state.abstract_state(config, "inpaint"), batch, {})[1])

  everything = logged()
  weights = ("style", "retrieval", "read", "valid", "memory_image")
  assert everything - logged(*(f"loss.{name}=0" for name in weights)) == set(weights)
  assert everything - logged(features=False) == {"perceptual", "style"}
  assert everything - logged(varied=False) == {"strength", "spread"}
  assert "adversarial" in everything - logged(adversarial=False)


def test_half_the_size_is_the_step_of_a_model_of_that_size():
  """Every 2x2 pixels are alike here, so that halving is exact; 64 pixels, halved, are the 32 of the smaller one."""
  small = photo_batch()
  large = {name: value.repeat(2, axis=1).repeat(2, axis=2) for name, value in small.items()}
  # A lone pixel of hole makes its whole 2x2 hole; what the image holds there is not known then.
  large["mask"][:, 60, 60], small["mask"][:, 30, 30] = 1, 1
  config = small_config(*BARE)
  begin = initial(config, "inpaint")
  wide = dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=64))
  _, expected = make_step(config, "inpaint", adversarial=False)(begin, small, {})
  _, found = make_step(wide, "inpaint", adversarial=False, half=True)(begin, large, {})
  assert set(found) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  "changes",
  [
    ("memory.enabled=false", "variation.enabled=false"),
    ("memory.pretrain=false", "memory.num_groups=1"),
    ("memory.finetune=0.1", "loss.retrieval=0"),
    ("memory.kind=hard", "memory.finetune=0.1"),
  ],
)
def test_ablations_are_settings(changes, batch):
  config = small_config(*BARE, *changes)
  begin = initial(config, "inpaint")
  step = make_step(config, "inpaint", adversarial=False)
  after, metrics = step(*step(begin, batch, {})[:1], batch, {})
  assert all(np.isfinite(value) for value in metrics.values())
  # With one group there is nothing to choose between.
  idle = {"['memory']['codebook']['anchors']", "['memory']['retrieval']['group_scale']"}
  assert set(unchanged(begin.params, after.params)) == (idle if config.memory.num_groups == 1 else set())
  assert ("retrieval" in metrics) == (stages.has_memory_stage(config) and config.loss.retrieval > 0)
  assert ("perplexity" in metrics) == config.memory.enabled
  assert ("strength" in metrics) == config.variation.enabled
  assert "memory" in begin.params and "memory" not in begin.frozen
  assert ("teacher" in begin.frozen) == stages.has_memory_stage(config)

  if config.memory.finetune and not config.memory.hard:
    # Adam's first step moves every entry that has a gradient by the rate, the memory's by a tenth of it.
    first, _ = step(begin, batch, {})
    moved = {name: np.abs(leaves(first.params)[name] - value).max() for name, value in leaves(begin.params).items()}
    rate = config.stage2.learning_rate
    np.testing.assert_allclose(moved["['decoder']['to_pixels']['bias']"], rate, rtol=0.01)
    np.testing.assert_allclose(max(moved[name] for name in moved if "'memory'" in name), 0.1 * rate, rtol=0.01)


def test_noise_differs_from_step_to_step_and_from_seed_to_seed():
  config, other = small_config(), small_config("run.seed=1")
  keys = [
    steps.step_key(config, "inpaint", jnp.asarray(0)),
    steps.step_key(config, "inpaint", jnp.asarray(1)),
    steps.step_key(config, "memory", jnp.asarray(0)),
    steps.step_key(other, "inpaint", jnp.asarray(0)),
  ]
  assert len({jax.random.key_data(key).tobytes() for key in keys}) == 4
