"""`Inpainter`: pictures of any size and type in, the same type out, and only the hole changes."""

from __future__ import annotations

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

import run
from gmsrm_jax import Inpainter
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference import inpainter
from gmsrm_jax.training.state import release_params
from tests.training.test_steps import initial, small_config

PHOTO = skimage.data.astronaut()


@functools.cache
def noisy_model() -> Inpainter:
  """Random weights everywhere, so that the last layer, too, passes on what it is given."""
  config = small_config()
  params = release_params(initial(config, "inpaint"))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(0), len(leaves))
  noisy = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
  return Inpainter(config, jax.tree.unflatten(tree, noisy))


@pytest.fixture(scope="module")
def model():
  return noisy_model()


def hole_of(height, width, share=0.3):
  mask = np.zeros((height, width), np.uint8)
  top, left = height // 3, width // 4
  mask[top : top + max(1, int(height * share)), left : left + max(1, int(width * share))] = 1
  return mask


@pytest.mark.parametrize(
  ("height", "width", "strategy"),
  [(1, 1, "auto"), (31, 32, "full"), (1, 90, "crop"), (67, 45, "full"), (67, 45, "resize"), (150, 133, "auto")],
)
def test_only_the_hole_changes_and_what_lies_in_it_is_not_looked_at(model, height, width, strategy):
  image, mask = PHOTO[:height, :width], hole_of(height, width)
  filled = model(image, mask, strategy=strategy)
  np.testing.assert_array_equal(filled[mask == 0], image[mask == 0])
  assert (filled[mask > 0] != image[mask > 0]).any()
  garish = np.where(mask[..., None] > 0, np.array([255, 0, 255], np.uint8), image)
  np.testing.assert_array_equal(model(garish, mask, strategy=strategy), filled)


def test_an_empty_hole_changes_nothing_and_a_full_one_changes_everything(model):
  image = PHOTO[:70, :40]
  np.testing.assert_array_equal(model(image, np.zeros((70, 40), np.uint8)), image)
  filled = model(image, np.ones((70, 40), np.uint8))
  assert (filled != image).any(axis=-1).mean() > 0.9


def test_every_type_comes_back_as_it_was_given(model):
  image, mask = PHOTO[:32, :32], hole_of(32, 32)
  expected = model(image, mask)
  assert isinstance(expected, np.ndarray) and expected.dtype == np.uint8
  turned = Image.fromarray(image).rotate(90)  # anticlockwise, so that its tag says: turn it clockwise
  turned.getexif()[0x0112] = 6
  pil = model(turned, Image.fromarray(mask * 255))
  assert isinstance(pil, Image.Image)
  device = model(jnp.asarray(image), jnp.asarray(mask))
  assert isinstance(device, jax.Array)
  batch = model(np.stack([image, image[::-1]]), np.stack([mask, mask[::-1]])[..., None])
  assert batch.shape == (2, *image.shape) and (batch[1] != batch[0]).any()
  shared = model(np.stack([image, image]), mask)
  for other in (pil, device, batch[0], shared[1], model(image, mask > 0), model(image, mask * np.float32(1))):
    np.testing.assert_array_equal(np.asarray(other), expected)


def test_samples_differ_sample_0_is_deterministic_and_seeds_repeat(model):
  image, mask = PHOTO[:31, :32], hole_of(31, 32, 0.5)
  first, again, other = (np.stack(model(image, mask, num_samples=3, seed=seed)) for seed in (5, 5, 6))
  np.testing.assert_array_equal(first, again)
  np.testing.assert_array_equal(first[0], model(image, mask))
  np.testing.assert_array_equal(first[0], other[0])
  assert len(np.unique([*first, *other[1:]], axis=0)) == 5


def test_a_window_is_filled_alike_alone_and_in_a_batch(model, monkeypatch):
  image, mask = PHOTO[:40, :300], np.zeros((40, 300), np.uint8)
  mask[20:23, 5:295] = 1  # many windows
  together = model(image, mask, num_samples=2)
  monkeypatch.setattr(inpainter, "BATCH", 1)
  alone = model(image, mask, num_samples=2)
  assert np.abs(np.stack(together).astype(int) - np.stack(alone)).max() <= 1


def test_many_sizes_compile_few_programs(model):
  inpainter.predict.clear_cache()
  rng = np.random.default_rng(0)
  for _ in range(20):
    height, width = (int(n) for n in rng.integers(33, 200, 2))
    model(PHOTO[:height, :width], hole_of(height, width, float(rng.uniform(0.05, 0.6))))
  assert inpainter.predict._cache_size() <= 2


@pytest.mark.parametrize(
  ("image", "mask", "options", "parts"),
  [
    (PHOTO[:8, :8], np.ones((8, 9)), {}, ["1x8x9", "1x8x8x3"]),
    (PHOTO[:8, :8] / 255.0, np.ones((8, 8)), {}, ["float64 8x8x3", "uint8"]),
    (PHOTO[:8, :8, 0], np.ones((8, 8)), {}, ["uint8 8x8", "[h w 3]"]),
    (PHOTO[:8, :8], np.full((8, 8), 300), {}, ["mask", "300"]),
    (PHOTO[:8, :8], np.ones((8, 8)), {"strategy": "corp"}, ["corp", "'crop'"]),
    (np.zeros((900, 900, 3), np.uint8), np.ones((900, 900)), {"strategy": "full"}, ["'full'", "4096", "'auto'"]),
  ],
)
def test_what_does_not_fit_is_named(model, image, mask, options, parts):
  with pytest.raises(ConfigError) as error:
    model(image, mask, **options)
  assert [part for part in parts if part not in str(error.value)] == []


def test_a_model_without_variation_has_one_fill():
  plain = Inpainter(small_config("variation.enabled=false"), {})
  with pytest.raises(ConfigError, match=r"num_samples=2: .*variation\.enabled=false"):
    plain(PHOTO[:8, :8], np.ones((8, 8), bool), num_samples=2)


def test_importing_the_package_imports_no_jax():
  code = "import sys, gmsrm_jax; assert 'jax' not in sys.modules; gmsrm_jax.Inpainter; assert 'jax' in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=run.__file__.rpartition("/")[0])
