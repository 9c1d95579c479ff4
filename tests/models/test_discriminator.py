from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.experiments import demo
from gmsrm_jax.models.discriminator import Discriminator, FeatureDiscriminator
from tests.small import shrink

MODULE = Discriminator(shrink(demo.get_config()).model)


@pytest.fixture(scope="module")
def scene():
  image = jax.random.uniform(jax.random.key(0), (1, 32, 64, 3), minval=-1.0)
  return image, jnp.zeros((1, 32, 64, 1)).at[:, 8:24, 8:24].set(1.0)


@pytest.fixture(scope="module")
def judge():
  """Logits and variables after an application, which runs power iterations if asked."""

  @jax.jit
  def apply(update, variables, image, mask):
    def branch(update_stats):
      return lambda v: MODULE.apply(v, image, mask, update_stats=update_stats, mutable=["batch_stats"])

    logits, new = jax.lax.cond(update, branch(True), branch(False), variables)
    return logits[0], {**variables, **new}

  return apply


@pytest.fixture(scope="module")
def settled(judge, scene):
  """The variables after enough power iterations to converge."""
  variables = jax.jit(lambda key: MODULE.init(key, *scene, update_stats=False))(jax.random.key(1))
  for _ in range(200):
    _, variables = judge(True, variables, *scene)
  return variables


def test_every_layer_is_divided_by_its_largest_singular_value(settled):
  stats = {name: leaf for layer in settled["batch_stats"].values() for name, leaf in layer.items()}
  kernels = {name: layer["kernel"] for name, layer in settled["params"].items()}
  assert len(kernels) == MODULE.config.discriminator_layers + 2
  for name, kernel in kernels.items():
    normalised = np.asarray(kernel / stats[f"{name}/kernel/sigma"]).reshape(-1, kernel.shape[-1])
    np.testing.assert_allclose(np.linalg.svd(normalised, compute_uv=False)[0], 1.0, rtol=0.01)


def test_power_iterations_are_kept_only_when_asked(judge, settled, scene):
  # Kernels of another length, whose estimates are no longer right.
  longer = {**settled, "params": jax.tree.map(lambda leaf: 3 * leaf, settled["params"])}
  kept, moved = (judge(update, longer, *scene)[1]["batch_stats"] for update in (False, True))
  jax.tree.map(np.testing.assert_array_equal, kept, settled["batch_stats"])
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(kept), strict=True))


def test_a_logit_judges_its_own_surroundings_and_sees_the_mask(judge, settled, scene):
  image, mask = scene
  logits = judge(False, settled, image, mask)[0]
  other = judge(False, settled, image.at[:, :, 60:].multiply(-1.0), mask)[0]
  changed = np.any(np.asarray(other != logits), axis=(0, 1, 3))
  # Eight pixels to a logit: the last columns of the image touch the right half and nothing else.
  assert changed[-1] and not changed[: changed.size // 2].any()
  assert np.all(judge(False, settled, image, 1 - mask)[0] != logits)


def test_a_head_judges_directions_of_features_near_its_place_and_the_share_of_the_hole():
  heads = FeatureDiscriminator()
  features = [jax.random.normal(jax.random.key(level), (1, 12, 12, 8)) for level in (0, 1)]
  shares = [jnp.zeros((1, 12, 12, 1))] * 2
  variables = heads.init(jax.random.key(2), features, shares, update_stats=False)

  def logits(features, shares):
    return [np.asarray(x) for x in heads.apply(variables, features, shares, update_stats=False)]

  before = logits(features, shares)
  assert [x.shape for x in before] == [(1, 12, 12, 1)] * 2
  # What counts is which channels are active, not how much: VGG16's maps differ in scale by a hundred.
  louder = logits([100 * features[0], features[1]], shares)
  np.testing.assert_allclose(louder[0], before[0], rtol=0.01, atol=0.01)
  moved = logits([features[0].at[:, 5, 5].multiply(-1.0), features[1]], shares)
  changed = (moved[0] != before[0])[0, ..., 0]
  assert changed[4:7, 4:7].all() and changed.sum() == 9
  np.testing.assert_array_equal(moved[1], before[1])
  holed = logits(features, [shares[0].at[:, 2, 2].set(1.0), shares[1]])
  assert ((holed[0] != before[0])[0, ..., 0]).sum() == 9
