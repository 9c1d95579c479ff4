"""Detail from the known part of a picture: what is copied, where, and how much of it."""

import cv2
import numpy as np
import pytest

from gmsrm_jax.inference import detail

WHOLE = (slice(0, 128), slice(0, 128))


def wall(size: int = 128, period: int = 16) -> np.ndarray:
  """A picture that repeats itself, with an edge of its own in each period."""
  rng = np.random.default_rng(0)
  tile = cv2.GaussianBlur(rng.integers(0, 256, (period, period, 3)).astype(np.float32), (0, 0), 0.8)
  return np.tile(tile, (size // period, size // period, 1)).astype(np.uint8)


def blurred(image: np.ndarray, mask: np.ndarray, sigma: float = detail.BAND) -> np.ndarray:
  """The picture with a fill that has its colours and nothing fine."""
  return np.where(mask[..., None] > 0, cv2.GaussianBlur(image, (0, 0), sigma), image)


def added(image: np.ndarray, mask: np.ndarray, scale: float = 1.0, strength: float = 1.0, place=WHOLE) -> np.ndarray:
  result = image.copy()
  detail.add_detail(result, mask, mask[place] > 0, place, scale, strength)
  return result


@pytest.fixture(scope="module")
def hole() -> np.ndarray:
  mask = np.zeros((128, 128), np.uint8)
  mask[40:84, 36:90] = 1
  mask[5:9, 100:120] = 1  # another hole, which is not asked for
  return mask


def error(a: np.ndarray, b: np.ndarray, mask: np.ndarray, scale: float = 1.0) -> float:
  """The mean error beyond the rim."""
  return float(np.abs(a.astype(float) - b)[cv2.distanceTransform(mask, cv2.DIST_L2, 5) >= scale * detail.RIM].mean())


def test_what_repeats_comes_back(hole):
  truth = wall()
  fill = blurred(truth, hole)
  assert error(added(fill, hole), truth, hole) < 0.3 * error(fill, truth, hole)


def test_at_twice_the_scale_twice_as_coarse_detail_comes_back(hole):
  truth, mask = (np.kron(a, np.ones((2, 2, 1)[: a.ndim], np.uint8)) for a in (wall(), hole))
  fill = blurred(truth, mask, 2 * detail.BAND)
  result = added(fill, mask, 2.0, place=(slice(0, 256), slice(0, 256)))
  assert error(result, truth, mask, 2.0) < 0.3 * error(fill, truth, mask, 2.0)


def test_only_the_hole_that_is_asked_for_changes_and_no_strength_changes_nothing(hole):
  fill, place = blurred(wall(), hole), (slice(30, 100), slice(30, 100))
  result, asked = added(fill, hole, place=place), np.zeros_like(hole)
  asked[place] = hole[place]
  assert (result[asked == 0] == fill[asked == 0]).all() and (result != fill).any()
  np.testing.assert_array_equal(added(fill, hole, strength=0.0), fill)


def test_a_fill_rougher_than_the_picture_becomes_as_fine_as_it(hole):
  rng = np.random.default_rng(1)
  noise = rng.normal(0, 10, (128, 128, 1)).repeat(3, axis=2)
  picture, deep = np.clip(128 + noise, 0, 255).astype(np.uint8), (slice(50, 74), slice(46, 80))
  rough = np.where(hole[..., None] > 0, np.clip(128 + 2.2 * noise, 0, 255), picture).astype(np.uint8)

  def power(image):
    return float(np.square(image[deep].astype(float) - 128).mean())

  assert power(rough) > 4 * power(picture)
  assert 0.7 < power(added(rough, hole)) / power(picture) < 1.3


def test_the_fill_stays_where_it_meets_the_picture(hole):
  fill = blurred(wall(), hole)
  change = np.abs(added(fill, hole).astype(float) - fill).max(axis=-1)
  depth = cv2.distanceTransform(np.pad(hole, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
  assert change[depth == 1].mean() < 0.3 * change[depth >= detail.RIM].mean()


def test_nothing_comes_from_a_hole(hole):
  """Another hole may hold anything."""
  fill = blurred(wall(), hole)
  other = fill.copy()
  other[5:9, 100:120] = np.random.default_rng(2).integers(0, 256, (4, 20, 3))
  place = (slice(30, 100), slice(30, 100))
  first, second = added(fill, hole, place=place), added(other, hole, place=place)
  # The blur of the base reaches a little beyond the other hole; sources keep away from it as far.
  np.testing.assert_allclose(first[place].astype(int), second[place], atol=1)


def test_a_place_that_is_lent_nothing_keeps_its_fill():
  """The known corner is flat, so what is rough in a flat part of the fill comes from the rough part of it."""
  mask = np.ones((128, 128), np.uint8)
  mask[:32, :32] = 0
  fill = np.full((128, 128, 3), 128, np.uint8)
  fill[:40, 88:] = np.random.default_rng(4).integers(60, 196, (40, 40, 3))
  np.testing.assert_allclose(added(fill, mask)[70:].astype(int), fill[70:], atol=1)


def test_without_known_pixels_the_fill_stays():
  mask = np.ones((64, 64), np.uint8)
  image = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
  np.testing.assert_array_equal(added(image, mask, place=(slice(0, 64), slice(0, 64))), image)


def test_a_hole_larger_than_a_block_is_covered_once(monkeypatch, hole):
  monkeypatch.setattr(detail, "BLOCK", 24)
  truth = wall()
  fill = blurred(truth, hole)
  assert error(added(fill, hole), truth, hole) < 0.5 * error(fill, truth, hole)
  counts = np.zeros((128, 128), int)
  for block in detail._blocks(hole > 0, 24):
    counts[block] += 1
  assert counts.max() == 1 and (counts[hole > 0] == 1).all()


def test_a_cell_takes_its_neighbours_offset_though_another_place_looks_a_little_more_alike():
  colours, sources, targets = np.zeros((9, 27, 1, 1), np.float32), np.ones((9, 27), bool), np.zeros((9, 27), bool)
  targets[2:7, 11:16] = True
  sources[targets] = False
  colours[:, :9], colours[:, 18:] = 10.0, 10.5
  colours[4, 4] = 11.0  # what the cell in the middle has at the first offset
  looks, offsets = detail.Looks(colours, np.ones((9, 27, 1))), np.array([(0, -9), (0, 9)])
  chosen = detail._choose(looks, sources, targets, offsets, np.ones(2))
  assert (chosen[targets] == 0).all() and (chosen[~targets] == -1).all()
  # An offset that is much commoner outweighs a little likeness.
  assert (detail._choose(looks, sources, targets, offsets, np.array([1e-3, 1.0]))[targets] == 1).all()


@pytest.mark.parametrize("apart", [0, 6])
def test_cells_vote_for_the_source_that_looks_most_like_them_by_what_is_trusted(monkeypatch, apart):
  monkeypatch.setattr(detail, "_BEST", 1)
  rng = np.random.default_rng(5)
  colours, trust = rng.normal(0, 5, (8, 9, 4, 3)), rng.choice((0.0, 2.0), (8, 9, 4))
  sources, cells = rng.random((8, 9)) < 0.9, np.array([(2, 1), (7, 0)])
  votes = detail._votes(detail.Looks(colours, trust), sources, cells, apart)
  for cell in cells:
    costs = {
      tuple(place - cell): (np.square(colours[tuple(cell)] - colours[tuple(place)]) * trust[tuple(cell)][:, None]).sum()
      for place in np.argwhere(sources)
      if np.abs(place - cell).max() >= apart
    }
    y, x = min(costs, key=costs.__getitem__)
    around = votes[8 + y - 1 : 8 + y + 2, 9 + x - 1 : 9 + x + 2]
    assert around.max() > 0.3 * votes.max()
  assert (votes > 0).sum() <= 2 * 81


def test_offsets_by_which_the_known_part_repeats_itself_are_common_though_the_fill_shows_nothing():
  rng = np.random.default_rng(6)
  colours = np.tile(rng.normal(0, 30, (4, 9, 9, 3)), (4, 3, 1, 1))
  targets = np.zeros((16, 27), bool)
  targets[5:11, 10:17] = True
  colours[targets] = rng.normal(0, 30, (42, 9, 3))
  offsets, common = detail._common_offsets(detail.Looks(colours, np.ones((16, 27, 9))), ~targets, targets)
  assert {(0, 9), (0, -9), (8, 0), (-8, 0)} <= {tuple(offset) for offset in offsets[common > 0.3].tolist()}


def test_a_faint_pattern_is_taken_for_what_it_is_a_mean_of_not_for_a_flat_place():
  y, x = np.mgrid[:128, :256]
  pattern = 60 * np.sin(2 * np.pi * y / 16) * np.sin(2 * np.pi * x / 16)
  strength = np.where(x < 128, 1.0, 0.0)
  mask = np.zeros((128, 256), np.uint8)
  mask[36:92, 164:228] = 1
  shown = (128 + np.where(mask > 0, share, strength) * pattern for share in (1.0, 0.3))
  truth, fill = (np.round(values)[..., None].repeat(3, axis=-1).astype(np.uint8) for values in shown)
  result = added(fill, mask, place=(slice(0, 128), slice(0, 256)))
  assert error(result, truth, mask) < 0.4 * error(fill, truth, mask)


def test_what_is_not_known_is_not_lent():
  values, known = np.random.default_rng(7).normal(size=(16, 32, 3)).astype(np.float32), np.ones((16, 32), bool)
  known[4:12, 20:28] = False
  lent, covered = detail._lend(values, known, np.zeros((4, 8), int), np.array([(0.0, 3.0)]))
  np.testing.assert_allclose(covered[:, :20, 0], known[:, 12:], atol=1e-6)
  np.testing.assert_allclose(lent[:, :20], values[:, 12:] * known[:, 12:, None], atol=1e-5)
  assert (covered[:, 20:] == 0).all()


def test_an_offset_becomes_exact_to_the_pixel():
  """A wall whose period is no multiple of a cell."""
  truth = wall(126, 18)
  known, chosen = np.ones((126, 126), bool), np.full((31, 31), -1)
  known[56:68, 56:68], chosen[14:17, 14:17] = False, 0
  steps = detail._to_the_pixel(truth[:124, :124].astype(np.float32), known[:124, :124], chosen, np.array([(9, 0)]))
  np.testing.assert_array_equal(steps * detail.CELL, [(36, 0)])
  steps = detail._to_the_pixel(truth[:124, :124].astype(np.float32), known[:124, :124], chosen, np.array([(0, -5)]))
  np.testing.assert_array_equal(steps * detail.CELL, [(0, -18)])


@pytest.mark.parametrize("step", [(0, 0), (3, -2), (-4, 5), (9, 0), (0, -30)])
def test_a_moved_box_is_that_of_counting(step):
  grid, box = np.arange(7 * 8).reshape(7, 8), (1, 2, 5, 6)
  here, there = detail._moved(box, np.array(step), grid.shape)
  expected = [
    (grid[y, x], grid[y + step[0], x + step[1]])
    for y in range(1, 6)
    for x in range(2, 8)
    if 0 <= y + step[0] < 7 and 0 <= x + step[1] < 8
  ]
  assert list(zip(grid[here].ravel(), grid[there].ravel(), strict=True)) == expected


@pytest.mark.parametrize(
  ("roughness", "inside", "energy"),
  [(0.0, 0.0, 1.0), (0.5, 0.0, 0.8125), (1.0, 0.0, 1.0), (3.0, 0.0, 1.0), (0.5, 1.0, 1.0), (3.0, 1.0, 1.0)],
)
def test_lent_and_own_detail_have_no_more_energy_together_than_what_is_lent(roughness, inside, energy):
  """For a share r^2 of the energy 1 - r^2 is copied and r^2 kept: 1 - r^2 + r^4, by hand."""
  rng = np.random.default_rng(0)
  lent, own = rng.normal(0, (10.0, 10.0 * roughness), (256, 256, 3, 2)).astype(np.float32).transpose(3, 0, 1, 2)
  everywhere = np.ones((256, 256), np.float32)
  of_lent, of_own = detail._mixture(own, lent, everywhere, inside * everywhere)
  mixed = of_lent[..., None] * lent + of_own[..., None] * own
  assert np.square(mixed).mean() == pytest.approx(100.0 * energy, rel=0.03)
  assert inside == 0.0 or not of_own.any()
