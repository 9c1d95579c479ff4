"""Fills without learning: none sees the hole, none touches what is known, each is the method it is named after."""

from __future__ import annotations

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data

from gmsrm_jax.arrays import image_from_uint8, image_to_uint8, mask_from_uint8
from gmsrm_jax.config import BASELINES, EvalConfig
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.evaluation.baselines import baselines, mean_fill
from gmsrm_jax.models.blocks import push_pull_fill

FILLS = baselines(",".join(BASELINES))


@pytest.fixture(scope="module")
def pictures():
  photo = skimage.data.astronaut()
  images = np.stack([photo[i * 40 : i * 40 + 32, 200:232] for i in range(3)])
  masks = np.zeros((3, 32, 32, 1), np.uint8)
  masks[0, 5:20, 8:25] = 1
  masks[1, :, 16:] = 1
  masks[2, 3, 3] = 1
  return images, masks


@pytest.mark.parametrize("title", FILLS)
def test_known_pixels_stay_and_the_hole_is_not_seen(title, pictures):
  images, masks = pictures
  filled = FILLS[title](images, masks)
  assert filled.dtype == np.uint8
  known = np.broadcast_to(masks == 0, filled.shape)
  np.testing.assert_array_equal(filled[known], images[known])
  assert (filled[~known] != images[~known]).mean() > 0.5
  np.testing.assert_array_equal(FILLS[title](np.where(masks > 0, 255 - images, images), masks), filled)


@pytest.mark.parametrize("title", FILLS)
def test_a_fill_does_not_depend_on_its_batch(title, pictures):
  images, masks = pictures
  alone = np.concatenate([FILLS[title](images[i : i + 1], masks[i : i + 1]) for i in range(3)])
  np.testing.assert_array_equal(alone, FILLS[title](images, masks))


def test_mean_fill_is_the_mean_of_the_known():
  image = np.zeros((1, 2, 2, 3), np.uint8)
  image[0, 0, 0], image[0, 0, 1], image[0, 1, 0], image[0, 1, 1] = 10, 20, 60, 200
  mask = np.zeros((1, 2, 2, 1), np.uint8)
  mask[0, 1, 1] = 1
  assert mean_fill(image, mask)[0, 1, 1].tolist() == [30, 30, 30]


def test_biharmonic_continues_a_slope_and_the_mean_does_not():
  rows, columns = np.mgrid[:32, :32]
  slope = np.repeat((20 + 3 * rows + 2 * columns)[None, ..., None], 3, axis=3).astype(np.uint8)
  masks = np.zeros((1, 32, 32, 1), np.uint8)
  masks[0, 10:20, 12:22] = 1
  np.testing.assert_array_equal(FILLS["biharmonic"](slope, masks), slope)
  assert np.abs(FILLS["mean fill"](slope, masks).astype(int) - slope).max() > 10


def test_opencv_runs_the_method_of_the_row(pictures):
  images, masks = pictures
  grey = mean_fill(images, masks)[0]
  for title, method in (("Telea", cv2.INPAINT_TELEA), ("Navier-Stokes", cv2.INPAINT_NS)):
    np.testing.assert_array_equal(FILLS[title](images, masks)[0], cv2.inpaint(grey, masks[0, ..., 0], 3.0, method))
  assert (FILLS["Telea"](images, masks) != FILLS["Navier-Stokes"](images, masks)).any()


def test_the_initial_fill_is_that_of_the_network_but_for_rounding(pictures):
  images, masks = (array[:, :31, :29] for array in pictures)
  expected = image_to_uint8(push_pull_fill(image_from_uint8(jnp.asarray(images)), mask_from_uint8(jnp.asarray(masks))))
  apart = np.where(masks > 0, np.abs(FILLS["initial fill"](images, masks).astype(int) - np.asarray(expected)), 0)
  assert apart.max() <= 1 and (apart > 0).mean() < 1e-3


def test_biharmonic_bears_a_hole_without_an_end(pictures):
  images, masks = pictures
  everything = FILLS["biharmonic"](images, np.ones_like(masks))
  np.testing.assert_array_equal(everything, mean_fill(images, np.ones_like(masks)))
  np.testing.assert_array_equal(FILLS["biharmonic"](images, np.zeros_like(masks)), images)


def test_the_setting_chooses_the_fills():
  assert list(baselines("mean, telea")) == ["mean fill", "Telea"] and baselines("") == {}
  with pytest.raises(ConfigError, match="eval.baselines='tela'.*'telea'"):
    EvalConfig(baselines="mean,tela")
  with pytest.raises(ConfigError, match="mean,mean.* twice"):
    EvalConfig(baselines="mean,mean")
