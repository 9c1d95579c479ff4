"""Where the model looks: every hole pixel is seen, large holes reduced, small ones at full resolution."""

from __future__ import annotations

import numpy as np
import pytest

from gmsrm_jax.config import STRATEGIES
from gmsrm_jax.inference import tiling

SIZE = 32


def _disc(height, width, y, x, radius):
  rows, columns = np.ogrid[:height, :width]
  return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


def _scratches(height, width, seed=0, count=40):
  """Thin crossing lines all over the picture."""
  rng = np.random.default_rng(seed)
  mask = np.zeros((height, width), np.uint8)
  for _ in range(count):
    if rng.random() < 0.5:
      mask[rng.integers(height), rng.integers(width) :] = 1
    else:
      mask[rng.integers(height) :, rng.integers(width)] = 1
  return mask


MASKS = {
  "pixel": _disc(100, 140, 0, 139, 0),
  "small": _disc(300, 200, 150, 90, 6),
  "large": _disc(300, 400, 140, 200, 120),
  "corner": _disc(200, 200, 0, 0, 50),
  "two": np.maximum(_disc(200, 300, 50, 50, 10), _disc(200, 300, 150, 250, 30)),
  "all": np.ones((90, 70), np.uint8),
  "scratches": _scratches(200, 170),
  "row": np.eye(1, 300, 40, dtype=np.uint8),
  "border": 1 - np.pad(np.ones((60, 90), np.uint8), 20),
  "noise": (np.random.default_rng(1).random((80, 90)) < 0.3).astype(np.uint8),
  "one": np.ones((1, 1), np.uint8),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MASKS)
def test_patches_hold_every_hole_pixel_once_and_windows_see_all_of_them(name, strategy):
  mask = MASKS[name]
  held, largest = np.zeros(mask.shape, int), 0
  for patch in tiling.plan(mask, SIZE, strategy):
    rows, columns = patch.hole.shape
    held[patch.top : patch.top + rows, patch.left : patch.left + columns] += patch.hole
    seen = np.zeros(mask.shape, bool)
    for window in patch.windows:
      assert window.top >= 0 and window.left >= 0
      assert window.top + window.height <= mask.shape[0] and window.left + window.width <= mask.shape[1]
      seen[window.place] = True
      largest = max(largest, window.rows, window.columns)
    assert seen[patch.top : patch.top + rows, patch.left : patch.left + columns][patch.hole > 0].all()
  np.testing.assert_array_equal(held, mask)
  if strategy == "crop":
    assert largest <= SIZE


def test_no_hole_needs_no_window():
  assert list(tiling.plan(np.zeros((50, 60), np.uint8), SIZE, "auto")) == []


def test_a_small_hole_is_seen_at_full_resolution_and_a_large_one_reduced():
  (small,) = tiling.plan(MASKS["small"], SIZE, "auto")
  assert small.windows == (tiling.Window(134, 74, 32, 32, 32, 32),)
  (large,) = tiling.plan(MASKS["large"], SIZE, "auto")
  assert len(large.windows) == 1
  # The hole is 241 pixels thick: a window of twice that exceeds the photo, which is seen whole.
  assert large.windows == (tiling.Window(0, 0, 300, 400, 24, 32),)


def test_a_long_thin_hole_is_seen_at_full_resolution_through_several_windows():
  mask = np.zeros((50, 400), np.uint8)
  mask[25, 10:390] = 1
  (patch,) = tiling.plan(mask, SIZE, "crop")
  assert len(patch.windows) > 10
  assert all(window.rows == window.height == SIZE for window in patch.windows)
  # Windows overlap, and no hole pixel lies in the outer margin of all that see it.
  inner = np.zeros(400, bool)
  for window in patch.windows:
    inner[window.left + 3 : window.left + window.width - 3] = True
  assert inner[10:390].all()


def test_blending_equal_fills_gives_that_fill_and_changes_nothing_else():
  rng = np.random.default_rng(0)
  for name, mask in MASKS.items():
    image = rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    filled = image.copy()
    for patch in tiling.plan(mask, SIZE, "crop"):
      blend = tiling.Blend(patch, mask.shape)
      for window in patch.windows:
        blend.add(window, np.full((window.rows, window.columns, 3), 0.2, np.float32))
      blend.paste(filled)
    np.testing.assert_array_equal(filled[mask == 0], image[mask == 0], err_msg=name)
    assert (filled[mask > 0] == round(1.2 * 127.5)).all(), name


def test_blending_changes_gradually_from_one_window_to_the_next():
  mask = np.zeros((32, 200), np.uint8)
  mask[16, 5:195] = 1
  (patch,) = tiling.plan(mask, SIZE, "crop")
  blend, image = tiling.Blend(patch, mask.shape), np.zeros((32, 200, 3), np.uint8)
  for index, window in enumerate(patch.windows):
    blend.add(window, np.full((window.rows, window.columns, 3), -1.0 + 2.0 * (index % 2), np.float32))
  blend.paste(image)
  steps = np.abs(np.diff(image[16, 5:195, 0].astype(int)))
  assert image[16, 5:195].min() == 0 and image[16, 5:195].max() == 255
  assert steps.max() < 255 / 4


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
  assert tiling.padded_size(length, 7, 32, 8) == (expected, 32)
