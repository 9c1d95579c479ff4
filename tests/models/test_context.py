from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax.models import blocks
from gmsrm_jax.models.context import ContextTransfer, rotate_by_position


@pytest.mark.parametrize(("oblique", "head"), [(False, 0), (True, 0), (True, 1), (True, 2)])
def test_scores_of_rotated_queries_and_keys_depend_on_offsets_only(oblique, head):
  height, width, dim = 5, 6, 16
  query, key = jax.random.normal(jax.random.key(1), (2, dim))
  shape = (1, height, width, 3, dim)
  maps = (rotate_by_position(jnp.broadcast_to(x, shape), oblique=oblique) for x in (query, key))
  scores = np.einsum("yxd,vud->yxvu", *(np.float64(m)[0, :, :, head] for m in maps))
  by_offset = {}
  for y, x, v, u in np.ndindex(scores.shape):
    by_offset.setdefault((v - y, u - x), []).append(scores[y, x, v, u])
  assert max(np.ptp(values) for values in by_offset.values()) < 1e-5
  assert min(np.diff(sorted(np.mean(values) for values in by_offset.values()))) > 1e-5, "two offsets have one score"
  np.testing.assert_allclose(by_offset[0, 0], np.dot(query, key), atol=1e-5)


def test_the_second_of_two_oblique_heads_looks_along_the_diagonals():
  """Channels of one axis do not see an offset along the other one."""
  x = jax.random.normal(jax.random.key(2), (16,)).reshape(2, 2, 4)
  for axis, blind, seen in ((0, (2, -2), (2, 2)), (1, (2, 2), (2, -2))):
    vector = x.at[:, 1 - axis].set(0.0).reshape(16)
    places = rotate_by_position(jnp.broadcast_to(vector, (1, 5, 5, 2, 16)), oblique=True)[0, :, :, 1]
    score = {offset: float(places[2, 2] @ places[2 + offset[0], 2 + offset[1]]) for offset in (blind, seen)}
    assert score[blind] == pytest.approx(float(vector @ vector), rel=1e-4)
    assert abs(score[seen] - score[blind]) > 0.1


@pytest.fixture(scope="module")
def transfer():
  """Random features at 1/2 and 1/4 of a 16x16 picture whose left half is hole, and a fresh ContextTransfer."""
  rng = np.random.default_rng(0)
  fine = jnp.asarray(rng.normal(size=(1, 8, 8, 8)), jnp.float32)
  bottom = jnp.asarray(rng.normal(size=(1, 4, 4, 16)), jnp.float32)
  shares = blocks.hole_shares(jnp.zeros((1, 16, 16, 1)).at[:, :, :8].set(1.0), 2)
  module = ContextTransfer()
  params = module.init(jax.random.key(0), (fine, bottom), shares)["params"]

  def lend(fine, bottom, **changes):
    return module.apply({"params": {**params, **changes}}, (fine, bottom), shares)

  return lend, fine, bottom


def test_a_transfer_changes_all_of_the_hole_and_nothing_else(transfer):
  lend, fine, bottom = transfer
  lent, kept = lend(fine, bottom)
  np.testing.assert_array_equal(kept, bottom)
  np.testing.assert_array_equal(lent[:, :, 4:], fine[:, :, 4:])
  assert np.abs(lent - fine)[:, :, :4].max(axis=-1).min() > 0


def test_a_transfer_lends_known_features_and_none_of_the_hole(transfer):
  lend, fine, bottom = transfer
  received = np.abs(jax.grad(lambda f: jnp.sum(jnp.square(lend(f, bottom)[0] - f)))(fine))
  assert received[:, :, 4:].max() > 1e-3
  assert received[:, :, :4].max() < 1e-4 * received[:, :, 4:].max()


def test_a_transfer_copies_the_cell_that_looks_alike(transfer):
  """A hole cell that equals one known cell at the bottleneck receives that cell's fine features, place by place."""
  lend, fine, bottom = transfer
  alike = bottom.at[0, 0, 0].set(bottom[0, 2, 3])

  def corner(f):
    return jnp.sum(jnp.square((lend(f, alike, log_scale=jnp.float32(5.0))[0] - f)[0, 1, 0]))

  source = np.abs(jax.grad(corner)(fine)[0]).sum(axis=-1)
  assert source[5, 6] > 0.99 * source.sum()
