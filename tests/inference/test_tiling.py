"""Windows of the model: every hole pixel is seen, large holes reduced, small ones at full resolution."""

from __future__ import annotations

import numpy as np
import pytest

from gmsrm_jax.config import STRATEGIES
from gmsrm_jax.inference import tiling

SIZE = 32


def disc(height, width, y, x, radius):
  rows, columns = np.ogrid[:height, :width]
  return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


def line(height, width, row):
  mask = np.zeros((height, width), np.uint8)
  mask[row, 5:-5] = 1
  return mask


MASKS = {
  "pixel": disc(100, 140, 0, 139, 0),
  "small": disc(300, 200, 150, 90, 6),
  "large": disc(300, 400, 140, 200, 120),
  "corner": disc(200, 200, 0, 0, 50),
  "two": np.maximum(disc(200, 300, 50, 50, 10), disc(200, 300, 150, 250, 30)),
  "all": np.ones((90, 70), np.uint8),
  "line": line(32, 400, 16),
  "cross": np.maximum(line(200, 170, 40), line(170, 200, 90).T),
  "border": 1 - np.pad(np.ones((60, 90), np.uint8), 20),
  "noise": (np.random.default_rng(1).random((80, 90)) < 0.3).astype(np.uint8),
  "one": np.ones((1, 1), np.uint8),
  "none": np.zeros((50, 60), np.uint8),
}


def fill_windows(mask, colour):
  """The hole of a random image filled with each window's colour."""
  before = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
  after = before.copy()
  for patch in tiling.plan(mask, SIZE, "crop"):
    fills = [np.full((w.rows, w.columns, 3), colour(i), np.float32) for i, w in enumerate(patch.windows)]
    tiling.paste(after, patch, zip(patch.windows, fills, strict=True))
  return before, after


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MASKS)
def test_patches_hold_every_hole_pixel_once_and_windows_see_all_of_them(name, strategy):
  mask = MASKS[name]
  held = np.zeros(mask.shape, int)
  for patch in tiling.plan(mask, SIZE, strategy):
    seen = np.zeros(mask.shape, bool)
    for window in patch.windows:
      assert window.top >= 0 and window.left >= 0
      assert window.top + window.height <= mask.shape[0] and window.left + window.width <= mask.shape[1]
      assert strategy != "crop" or max(window.rows, window.columns) <= SIZE
      seen[window.place] = True
    held[patch.place] += patch.hole
    assert seen[patch.place][patch.hole].all()
  np.testing.assert_array_equal(held, mask)


def test_a_small_hole_is_seen_at_full_resolution_and_a_large_one_reduced():
  (small,) = tiling.plan(MASKS["small"], SIZE, "auto")
  assert small.windows == [tiling.Window(134, 74, 32, 32, 32, 32)]
  (large,) = tiling.plan(MASKS["large"], SIZE, "auto")
  # The hole is 241 pixels thick: a window of twice that exceeds the photo, which is seen whole.
  assert large.windows == [tiling.Window(0, 0, 300, 400, 24, 32)]


def test_a_long_thin_hole_is_seen_at_full_resolution_through_windows_that_overlap():
  (patch,) = tiling.plan(MASKS["line"], SIZE, "crop")
  assert len(patch.windows) > 10
  assert all(window.rows == window.height == SIZE for window in patch.windows)
  # No hole pixel lies in the outer margin of all that see it.
  inner = np.zeros(400, bool)
  for window in patch.windows:
    inner[window.left + 3 : window.left + window.width - 3] = True
  assert inner[5:395].all()


@pytest.mark.parametrize("name", MASKS)
def test_blending_equal_fills_gives_that_fill_and_changes_nothing_else(name):
  mask = MASKS[name]
  before, after = fill_windows(mask, lambda _: 0.2)
  np.testing.assert_array_equal(after[mask == 0], before[mask == 0])
  assert (after[mask > 0] == round(1.2 * 127.5)).all()


def test_blending_changes_gradually_from_one_window_to_the_next():
  _, after = fill_windows(MASKS["line"], lambda i: -1.0 + 2.0 * (i % 2))
  filled = after[16, 5:395, 0].astype(int)
  assert filled.min() == 0 and filled.max() == 255
  assert np.abs(np.diff(filled)).max() < 255 / 4


def test_no_colour_of_the_hole_bleeds_into_what_a_reduced_window_shows():
  mask = MASKS["large"]
  image = np.full((*mask.shape, 3), 100, np.uint8)
  image[mask > 0] = 255
  (patch,) = tiling.plan(mask, SIZE, "crop")
  seen, hole = tiling.view(image, mask, patch.windows[0])
  assert (seen[hole == 0] == 100).all()
  assert hole.mean() == pytest.approx(mask.mean(), abs=0.06)


@pytest.mark.parametrize(("length", "expected"), [(1, 32), (32, 32), (33, 40), (40, 40), (41, 56), (100, 128)])
def test_a_view_is_padded_to_one_of_few_sizes(length, expected):
  assert tiling.padded_length(length, 32, 8) == expected
