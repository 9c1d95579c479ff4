"""Holes: exact areas, one function of the seed, kinds that differ in shape."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from gmsrm_jax.config import BUCKETS, MASK_KINDS, ConfigError, MaskConfig
from gmsrm_jax.data import masks


def _rng(seed):
  return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("area", [*BUCKETS, (0.05, 0.6), (0.25, 0.25), (0.97, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (40, 90)])
def test_the_area_lies_in_the_range_and_the_hole_is_never_empty(kind, area, shape):
  for seed in range(12):
    mask = masks.draw_kind(kind, _rng(seed), *shape, area)
    assert mask.shape == shape
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 1}
    assert mask.sum() >= 1
    assert area[0] <= mask.mean() <= area[1]


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_degenerate_images_get_a_hole(kind, shape):
  for seed in range(5):
    assert masks.draw_kind(kind, _rng(seed), *shape, (0.0, 1.0)).sum() >= 1


@pytest.mark.parametrize("kind", [kind for kind in MASK_KINDS if kind != "centre"])
def test_areas_spread_over_the_whole_range(kind):
  areas = [masks.draw_kind(kind, _rng(seed), 64, 64, (0.1, 0.5)).mean() for seed in range(200)]
  counts, _ = np.histogram(areas, bins=4, range=(0.1, 0.5))
  assert counts.min() > 25  # 50 expected in each quarter


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_a_mask_is_a_function_of_the_seed(kind):
  first, again, other = (masks.draw_kind(kind, _rng(seed), 64, 64, (0.1, 0.6)) for seed in (3, 3, 4))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_thin_strokes_are_thinner_than_medium_and_medium_than_thick():
  def half_width(kind):
    depths = []
    for seed in range(10):
      mask = masks.draw_kind(kind, _rng(seed), 128, 128, (0.2, 0.25))
      depths.append(cv2.distanceTransform(mask, cv2.DIST_L2, 5)[mask > 0].mean())
    return np.mean(depths)

  assert half_width("thin") < 0.7 * half_width("medium")
  assert half_width("medium") < 0.8 * half_width("thick")


def test_the_centre_square_is_one_centred_square():
  mask = masks.draw_kind("centre", _rng(0), 64, 64, (0.2, 0.3))
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  assert mask.sum() == len(rows) * len(columns)
  assert len(rows) == len(columns)
  assert abs(rows[0] + rows[-1] - 63) <= 1
  assert abs(columns[0] + columns[-1] - 63) <= 1


def test_rectangles_have_straight_sides():
  # A union of up to four boxes and their one-pixel growth has few distinct rows; strokes have one per image row.
  distinct = {
    kind: np.mean([len(np.unique(masks.draw_kind(kind, _rng(s), 64, 64, (0.2, 0.3)), axis=0)) for s in range(10)])
    for kind in ("rectangles", "free_form")
  }
  assert distinct["rectangles"] < 0.5 * distinct["free_form"]


def test_a_remainder_too_small_for_a_stroke_leaves_no_speck():
  specks = 0
  for kind in ("free_form", "thick", "medium"):
    for seed in range(300):
      mask = masks.draw_kind(kind, _rng(seed), 128, 128, (0.1, 0.4))
      _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
      specks += int(stats[1:, cv2.CC_STAT_AREA].min() < 16)
  assert specks <= 2  # 0 of 900; strokes for every remainder leave 7


def test_weights_choose_the_kind():
  weights = {kind: 0.0 for kind in MASK_KINDS} | {"centre": 2.0}
  only_centre = MaskConfig(**weights, area_min=0.25, area_max=0.25)
  expected = np.zeros((64, 64), np.uint8)
  expected[16:48, 16:48] = 1
  for seed in range(5):
    np.testing.assert_array_equal(masks.draw(_rng(seed), 64, 64, only_centre), expected)


def test_training_masks_follow_the_settings_range():
  config = MaskConfig(area_min=0.3, area_max=0.35)
  areas = [masks.draw(_rng(seed), 64, 64, config).mean() for seed in range(60)]
  assert min(areas) >= 0.3
  assert max(areas) <= 0.35


def test_a_range_without_a_whole_pixel_is_refused():
  for area in [(0.0, 0.0), (0.5001, 0.5002), (0.0, 0.003)]:
    with pytest.raises(ConfigError, match="no whole number .* 256 pixels: widen"):
      masks.draw_kind("thin", _rng(0), 16, 16, area)


def test_an_unknown_kind_is_refused_with_a_suggestion():
  with pytest.raises(ConfigError, match="did you mean 'thick'"):
    masks.draw_kind("thik", _rng(0), 16, 16, (0.1, 0.2))


def test_evaluation_masks_lie_above_the_lower_and_up_to_the_upper_bound():
  config = MaskConfig()
  for bucket in BUCKETS:
    for i in range(30):
      mask = masks.evaluation_mask(f"{i}.png", bucket, 0, 20, 20, config)
      assert bucket[0] < mask.mean() <= bucket[1]
  # 0.25 of 16 x 16 is 64 pixels exactly: excluded below, included above.
  assert masks.evaluation_mask("a", (0.25, 0.254), 0, 16, 16, config).sum() == 65
  assert masks.evaluation_mask("a", (0.247, 0.25), 0, 16, 16, config).sum() == 64
  with pytest.raises(ConfigError, match="holds no whole number"):
    masks.evaluation_mask("a", (0.25, 0.25), 0, 16, 16, config)


def test_every_share_that_is_a_whole_number_of_pixels_is_hit_in_spite_of_rounding():
  for count in range(1, 101):
    assert masks.draw_kind("thin", _rng(count), 10, 10, (count / 100, count / 100)).sum() == count


def test_evaluation_masks_depend_on_name_bucket_and_seed_and_on_nothing_else():
  config = MaskConfig()
  names = [f"folder/{i}.jpg" for i in range(8)]

  def draw_all(order):
    return {name: masks.evaluation_mask(name, (0.2, 0.3), 7, 64, 64, config) for name in order}

  forward, backward = draw_all(names), draw_all(names[::-1])
  for name in names:
    np.testing.assert_array_equal(forward[name], backward[name])
  assert len({mask.tobytes() for mask in forward.values()}) == len(names)
  reference = forward[names[0]]
  assert (reference != masks.evaluation_mask(names[0], (0.2, 0.3), 8, 64, 64, config)).any()
  assert (reference != masks.evaluation_mask(names[0], (0.2, 0.31), 7, 64, 64, config)).any()


def test_evaluation_masks_mix_the_kinds_by_weight():
  kinds = MaskConfig(free_form=0, thick=0, medium=0, thin=0, rectangles=0, centre=1)
  centred = [masks.evaluation_mask(f"{i}", (0.2, 0.3), 0, 32, 32, kinds) for i in range(5)]
  assert all((mask == mask[::-1, ::-1]).mean() > 0.85 for mask in centred)
