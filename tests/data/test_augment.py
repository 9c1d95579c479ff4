"""Colour jitter: Pillow's enhancers are the reference; a strength bounds every factor."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from gmsrm_jax.data.augment import colour_jitter, jitter_matrix


@pytest.fixture(scope="module")
def photo():
  """Middling colours, so that nothing is clipped."""
  return cv2.resize(np.random.default_rng(0).integers(90, 150, (8, 8, 3), np.uint8), (40, 32))


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.5])
@pytest.mark.parametrize(
  ("place", "enhancer"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
def test_each_factor_does_what_pillow_does(photo, place, enhancer, factor):
  factors = [1.0, 1.0, 1.0]
  factors[place] = factor
  ours = cv2.transform(photo, jitter_matrix(photo, *factors))
  theirs = np.asarray(enhancer(Image.fromarray(photo)).enhance(factor))
  # Pillow rounds the grey that it blends with, too.
  assert np.abs(ours.astype(int) - theirs).max() <= 1
  assert (factor == 1.0) == np.array_equal(ours, photo)


def test_the_strength_bounds_the_factors_and_is_used_up():
  grey = np.full((4, 4, 3), 100, np.uint8)  # only brightness changes it
  rng = np.random.default_rng(0)
  levels = [int(colour_jitter(grey, rng, 0.4)[0, 0, 0]) for _ in range(300)]
  assert min(levels) >= 60 and max(levels) <= 140
  assert min(levels) < 65 and max(levels) > 135
