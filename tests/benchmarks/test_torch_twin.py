"""The networks, losses and optimisers agree with the same ones written a second time, in PyTorch.

Tolerances: float32 rounds at 6e-8, sums of hundreds of products in another order differ by some 1e-6 of the largest
value, and that through a dozen layers: 1e-4 lies a factor of ten above what is seen, a wrong formula far above 1e-3.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.torch_twin import convert, memory, models, vgg
from benchmarks.torch_twin.steps import Trainer
from gmsrm_jax import config as config_lib
from gmsrm_jax import experiments, overrides
from gmsrm_jax.models import codebook
from gmsrm_jax.pretrained import vgg16
from gmsrm_jax.training import losses, stages, state, steps, variation
from tests.small import shrink

STEP = 10
SETTINGS = [
  *(
    "model.widths=8,16",
    "model.discriminator_layers=1",
    "model.oblique=true",
    "model.smooth_upsampling=true",
    "loss.feature_crop=16",
    "loss.vgg_stages=2",
    "loss.retrieval_known=0.5",
  ),
  *("stage1.steps=50", "stage2.steps=50", "stage1.warmup=3", "stage2.warmup=3"),
  *("stage1.clip_norm=0.5", "stage2.clip_norm=0.5", "run.batch_size=4"),
  # So large that a step shows beside the parameters' own rounding.
  *(f"stage{i}.{name}=0.02" for i in (1, 2) for name in ("learning_rate", "discriminator_rate")),
]


@functools.cache
def small_config(*changes: str) -> config_lib.Config:
  return overrides.override(shrink(experiments.load("demo")), [*SETTINGS, *changes])


def perturbed(tree, seed=0):
  """Every parameter random, of the size it has in a network that is trained: many start at 0, which hides mistakes."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    kind, noise = path[-1].key, rng.standard_normal(leaf.shape)
    if kind == "kernel":
      noise /= np.sqrt(np.prod(leaf.shape[:-1]))
    elif kind in ("bias", "scale"):
      noise = 0.2 * noise + (kind == "scale")
    elif kind.endswith("_scale"):
      noise = 1.5 + 0.2 * noise
    return jnp.asarray(noise, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, tree)


def moments(tree):
  """An optimiser's state as after some steps: where Adam's second moment is 0, rounding decides a step's sign."""
  rng = np.random.default_rng(3)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path)
    if "count" in name:
      return np.full(leaf.shape, STEP, leaf.dtype)
    noise = rng.standard_normal(leaf.shape)
    return (1e-3 + 1e-3 * noise**2 if ".nu" in name else 1e-2 * noise).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, tree)


def random_state(config, stage):
  abstract = state.abstract_state(config, stage)
  disc_params = perturbed(abstract.disc_params, 4)
  # Some patches beyond the hinge's margin, some not: else real and fake pull this bias apart with equal force.
  disc_params["to_logits"]["bias"] = jnp.full((1,), 0.9)
  stats = jax.tree_util.tree_map_with_path(
    lambda path, leaf: np.ones(()) if path[-1].key.endswith("sigma") else np.ones(leaf.shape), abstract.disc_stats
  )
  return abstract.replace(
    step=jnp.asarray(STEP, jnp.int32),
    params=perturbed(abstract.params),
    ema=perturbed(abstract.ema, 1),
    frozen=perturbed(abstract.frozen, 2),
    opt_state=moments(abstract.opt_state),
    disc_params=disc_params,
    disc_stats=jax.tree.map(np.float32, stats),
    disc_opt_state=moments(abstract.disc_opt_state),
    usage=np.full(abstract.usage.shape, 1 / abstract.usage.size, np.float32),
  )


def photo_batch():
  rng = np.random.default_rng(5)
  mask = np.zeros((4, 32, 32, 1), np.uint8)
  for i in range(4):
    mask[i, 4 : 20 + i, 6 : 22 + 2 * i] = 1
  return {"image": rng.integers(0, 256, (4, 32, 32, 3), np.uint8), "mask": mask}


def nchw(array):
  return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2)


def agree(ours, twin, what, rtol=1e-4, of_largest=2e-5):
  ours = np.asarray(ours)
  twin = twin.detach().numpy() if isinstance(twin, torch.Tensor) else np.asarray(twin)
  assert ours.shape == twin.shape, what
  np.testing.assert_allclose(twin, ours, rtol=rtol, atol=of_largest * np.abs(ours).max(initial=1e-6), err_msg=what)


def test_the_memory_twin_without_a_codebook_reads_the_same():
  config = small_config("memory.enabled=false")
  ours = state.make_networks(config).inpaint
  params = perturbed(state.abstract_state(config, "inpaint").params)
  network = models.Inpainter(config)
  convert.load(network, params)
  query = jax.random.normal(jax.random.key(0), (2, 4, 4, config.memory.slot_dim))
  read, _ = ours.apply({"params": params}, query, method=lambda module, q: module.memory.recall(q))
  with torch.no_grad():
    agree(read, network.memory.recall(nchw(query))[0].permute(0, 2, 3, 1), "read")


class Compared:
  """One step of a stage from the same random state, in both."""

  def __init__(self, stage: str):
    # Stage 1 looks through its own recognition encoder, stage 2 through VGG16.
    network = "recognition" if stage == "memory" else "vgg16"
    self.config = config = small_config(f"loss.features={network}")
    self.stage = stage
    self.before = before = random_state(config, stage)
    batch = photo_batch()
    weights = vgg16.load_vgg16() if stage == "inpaint" else {}
    step = functools.partial(steps.STEPS[stage], config=config)
    self.after, self.metrics = jax.jit(step)(before, batch, weights)

    window_key, noise_key = jax.random.split(steps.step_key(config, stage, before.step))
    corners = torch.from_numpy(np.array(losses.window_corners(window_key, 4, 32, 32, config.loss.feature_crop))).long()
    teacher = None
    if stage == "inpaint":
      teacher = models.Learner(config)
      convert.load(teacher, before.frozen["teacher"], partial=True)
    self.twin = twin = Trainer(
      config, stage, teacher=teacher, vgg=vgg.load_vgg16(weights["convolutions"], 2) if weights else None
    )
    convert.load(twin.model, before.params, {k: v for k, v in before.frozen.items() if k != "teacher"})
    convert.load(twin.discriminator, before.disc_params, before.disc_stats)
    twin.step = STEP
    for player, opt_state, ema in (
      (twin.generator_player, before.opt_state, before.ema),
      (twin.discriminator_player, before.disc_opt_state, None),
    ):
      adam = opt_state[1]
      convert.load_player(player, STEP, adam.mu, adam.nu, ema)
    image, mask = nchw(batch["image"]), nchw(batch["mask"])
    if stage == "memory":
      self.terms = twin.memory_step(image, corners)
    else:
      noise = tuple(map(nchw, variation.row_noise(noise_key, config.model, 4)))
      self.terms = twin.inpaint_step(image, mask, noise, corners)


@pytest.fixture(scope="module", params=stages.STAGES)
def compared(request):
  return Compared(request.param)


def test_every_loss_term_agrees(compared):
  expected = {
    "memory": {"l1", "perceptual", "balance", "adversarial"},
    "inpaint": {"hole", "valid", "memory_image", "perceptual", "style", "retrieval", "read", "adversarial"},
  }
  assert set(compared.terms) == expected[compared.stage] | {"loss", "grad_norm", "disc_loss", "disc_grad_norm"}
  for name, value in compared.terms.items():
    agree(compared.metrics[name], value, name)
  # Both sides are clipped, or the test would not see how.
  assert compared.metrics["grad_norm"] > compared.config.stage1.clip_norm
  assert compared.metrics["disc_grad_norm"] > compared.config.stage1.clip_norm


def players(compared):
  twin, before, after = compared.twin, compared.before, compared.after
  return (
    (twin.generator_player, before.opt_state, after.opt_state, after.params),
    (twin.discriminator_player, before.disc_opt_state, after.disc_opt_state, after.disc_params),
  )


def test_the_gradient_of_every_parameter_agrees(compared):
  # What Adam's first moment gained is the clipped gradient; a discriminator's first moment is its gradient.
  for player, before, after, params in players(compared):
    beta = player.adam.param_groups[0]["betas"][0]
    old, new = convert.convert(before[1].mu), convert.convert(after[1].mu)
    assert set(player.names) == set(convert.convert(params))
    gradients = {name: (new[name] - beta * old[name]) / (1 - beta) for name in player.names}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in zip(player.names, player.params, strict=True):
      twin = (player.adam.state[parameter]["exp_avg"] - beta * old[name]) / (1 - beta)
      assert gradients[name].abs().max() > 1e-5 * largest, f"{name} has no gradient to compare"
      # Taken from a difference: rounding is that of the moment.
      np.testing.assert_allclose(
        twin, gradients[name], rtol=1e-3, atol=1e-4 * gradients[name].abs().max() + 1e-8, err_msg=name
      )


def moved_alike(before, after, twin, name):
  """Compares what a step changed; rounding is that of the value itself."""
  ours, theirs = (after - before).numpy(), (twin.detach() - before).numpy()
  rounding = 3e-7 * np.abs(before.numpy()).max(initial=1e-3)
  assert np.abs(ours).max() > 100 * rounding, f"{name} hardly moved"
  np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=rounding, err_msg=name)


def test_parameters_and_averages_move_alike(compared):
  befores = compared.before.params, compared.before.disc_params
  for (player, _, _, after), before in zip(players(compared), befores, strict=True):
    before, after = convert.convert(before), convert.convert(after)
    for name, parameter in zip(player.names, player.params, strict=True):
      moved_alike(before[name], after[name], parameter, name)
  player = compared.twin.generator_player
  before, after = convert.convert(compared.before.ema), convert.convert(compared.after.ema)
  for name, average in zip(player.names, player.ema, strict=True):
    moved_alike(before[name], after[name], average, name)


def test_power_iterations_and_usage_agree_after_the_step(compared):
  stats = convert.convert(compared.after.disc_stats)
  for name, tensor in compared.twin.discriminator.state_dict().items():
    if name in stats:
      agree(stats[name].numpy(), tensor, name)
  if compared.stage == "memory":
    agree(compared.after.usage, compared.twin.usage, "usage")


def test_dead_slots_are_revived_alike():
  config = small_config()
  params = perturbed(state.abstract_state(config, "memory").params)["memory"]
  rng, key = np.random.default_rng(9), jax.random.key(3)
  usage = np.full(16, 0.08, np.float32)
  usage[[1, 4, 5, 6, 7]] = 0.0  # a slot, and a whole group
  queries, reads = (rng.standard_normal((2, 8, 16)).astype(np.float32) for _ in range(2))
  slots, after, dead = codebook.revive(
    key, codebook.Slots(**params["codebook"]), *map(jnp.asarray, (usage, queries, reads))
  )
  assert dead == 5

  network = memory.Codebook(config.memory)
  tensors = convert.convert({"memory": {name: params[name] for name in ("codebook", "retrieval")}})
  network.load_state_dict({name.removeprefix("memory.codebook."): tensor for name, tensor in tensors.items()})
  anchor_key, slot_key = jax.random.split(key)
  chosen = jax.random.randint(anchor_key, (4,), 0, 16)
  unit = [
    x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-6) for x in (np.asarray(slots.anchors), queries.reshape(16, 16))
  ]
  picks = jax.random.categorical(slot_key, jnp.asarray(unit[0] @ unit[1].T / 0.1)[:, None], axis=-1, shape=(4, 4))
  ema = [torch.zeros_like(p) for p in (network.anchors, network.keys, network.values)]
  flat_arrays = [torch.from_numpy(x.reshape(16, 16)) for x in (queries, reads)]
  indices = [torch.from_numpy(np.array(x)).long() for x in (chosen, picks)]
  twin = memory.revive(network, ema, torch.from_numpy(usage), *flat_arrays, 0.05, *indices)
  agree(after, twin, "usage")
  for name, average in zip(("anchors", "keys", "values"), ema, strict=True):
    new = getattr(slots, name)
    agree(new, getattr(network, name), name)
    assert int((average != 0).any(dim=-1).sum()) == (1 if name == "anchors" else 5)
