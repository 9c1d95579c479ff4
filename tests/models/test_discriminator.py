from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.experiments import demo
from gmsrm_jax.models.discriminator import Discriminator
from tests.small import shrink

MODULE = Discriminator(shrink(demo.get_config()).model)


@pytest.fixture(scope="module")
def scene():
  image = jax.random.uniform(jax.random.key(0), (1, 32, 64, 3), minval=-1.0)
  return image, jnp.zeros((1, 32, 64, 1)).at[:, 8:24, 8:24].set(1.0)


@pytest.fixture(scope="module")
def fresh(scene):
  return jax.jit(lambda key: MODULE.init(key, *scene, update_stats=False))(jax.random.key(1))


@pytest.fixture(scope="module")
def step():
  """Logits and new stats of an application that runs power iterations."""
  apply = jax.jit(lambda v, image, mask: MODULE.apply(v, image, mask, update_stats=True, mutable=["batch_stats"]))

  def run(variables, image, mask):
    logits, new = apply(variables, image, mask)
    return logits, {**variables, **new}

  return run


@pytest.fixture(scope="module")
def judge():
  return jax.jit(
    lambda v, image, mask: MODULE.apply(v, image, mask, update_stats=False, mutable=["batch_stats"]),
  )


@pytest.fixture(scope="module")
def settled(step, fresh, scene):
  """The variables after enough power iterations to converge."""
  variables = fresh
  for _ in range(200):
    _, variables = step(variables, *scene)
  return variables


def test_every_layer_is_divided_by_its_largest_singular_value(settled):
  stats = {name: leaf for layer in settled["batch_stats"].values() for name, leaf in layer.items()}
  kernels = {name: layer["kernel"] for name, layer in settled["params"].items()}
  assert len(kernels) == MODULE.config.discriminator_layers + 2
  for name, kernel in kernels.items():
    normalised = np.asarray(kernel / stats[f"{name}/kernel/sigma"]).reshape(-1, kernel.shape[-1])
    np.testing.assert_allclose(np.linalg.svd(normalised, compute_uv=False)[0], 1.0, rtol=0.01)


def test_the_length_of_a_kernel_does_not_change_the_logits(judge, settled, scene):
  longer = {name: {**layer, "kernel": 7 * layer["kernel"]} for name, layer in settled["params"].items()}
  np.testing.assert_allclose(
    judge({**settled, "params": longer}, *scene)[0], judge(settled, *scene)[0], rtol=1e-4, atol=1e-5
  )


def test_power_iterations_are_kept_only_when_asked(judge, step, fresh, scene):
  # Fresh kernels are divided by their first estimate already: trained ones have another length.
  trained = {**fresh, "params": jax.tree.map(lambda leaf: 3 * leaf, fresh["params"])}
  _, kept = judge(trained, *scene)
  jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], fresh["batch_stats"])
  _, moved = step(trained, *scene)
  before, after = (jax.tree.leaves(variables["batch_stats"]) for variables in (fresh, moved))
  assert all(np.any(a != b) for a, b in zip(after, before, strict=True))


def test_a_logit_judges_its_own_surroundings(judge, settled, scene):
  image, mask = scene
  logits = judge(settled, image, mask)[0]
  other = judge(settled, image.at[:, :, 60:].multiply(-1.0), mask)[0]
  changed = np.any(np.asarray(other != logits), axis=(0, 1, 3))
  # Eight pixels to a logit: the last columns of the image touch the right half and nothing else.
  assert changed[-1] and not changed[: changed.size // 2].any()


def test_the_mask_is_seen(judge, settled, scene):
  image, mask = scene
  assert np.all(np.any(np.asarray(judge(settled, image, 1 - mask)[0] != judge(settled, image, mask)[0]), axis=(1, 2)))
