"""`gmsrm_jax.Inpainter`: pictures of any size and type in, the same type out, and only the hole changes."""

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
from gmsrm_jax.config import STRATEGIES
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


def _hole(height, width, share=0.3):
  mask = np.zeros((height, width), np.uint8)
  mask[
    height // 3 : height // 3 + max(1, int(height * share)), width // 4 : width // 4 + max(1, int(width * share))
  ] = 1
  return mask


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 90), (31, 32), (67, 45), (150, 133)])
def test_only_the_hole_changes_at_any_size(model, height, width, strategy):
  image, mask = PHOTO[:height, :width], _hole(height, width)
  filled = model(image, mask, strategy=strategy)
  np.testing.assert_array_equal(filled[mask == 0], image[mask == 0])
  assert (filled[mask > 0] != image[mask > 0]).any()


def test_what_lies_in_the_hole_is_not_looked_at(model):
  image, mask = PHOTO[:80, :90], _hole(80, 90)
  garish = np.where(mask[..., None] > 0, np.array([255, 0, 255], np.uint8), image)
  np.testing.assert_array_equal(model(image, mask), model(garish, mask))


def test_an_empty_hole_changes_nothing_and_a_full_one_changes_everything(model):
  image = PHOTO[:70, :40]
  np.testing.assert_array_equal(model(image, np.zeros((70, 40), np.uint8)), image)
  filled = model(image, np.ones((70, 40), np.uint8))
  assert (filled != image).any(axis=-1).mean() > 0.9


def test_every_type_comes_back_as_it_was_given(model):
  image, mask = PHOTO[:40, :50], _hole(40, 50)
  expected = model(image, mask)
  assert isinstance(expected, np.ndarray) and expected.dtype == np.uint8
  pil = model(Image.fromarray(image), Image.fromarray(mask * 255))
  assert isinstance(pil, Image.Image)
  device = model(jnp.asarray(image), jnp.asarray(mask))
  assert isinstance(device, jax.Array)
  batch = model(np.stack([image, image[::-1]]), np.stack([mask, mask[::-1]])[..., None])
  for other in (np.asarray(pil), np.asarray(device), batch[0], model(image, mask > 0)):
    np.testing.assert_array_equal(other, expected)
  assert batch.shape == (2, 40, 50, 3) and (batch[1] != batch[0]).any()
  np.testing.assert_array_equal(model(np.stack([image, image]), mask)[1], expected)


def test_samples_differ_sample_0_is_deterministic_and_seeds_repeat(model):
  image, mask = PHOTO[:60, :60], _hole(60, 60, 0.5)
  first = model(image, mask, num_samples=3, seed=5)
  again = model(image, mask, num_samples=3, seed=5)
  other = model(image, mask, num_samples=3, seed=6)
  np.testing.assert_array_equal(np.stack(first), np.stack(again))
  np.testing.assert_array_equal(first[0], model(image, mask))
  np.testing.assert_array_equal(first[0], other[0])
  pictures = [first[0], first[1], first[2], other[1], other[2]]
  assert all((a != b).any() for i, a in enumerate(pictures) for b in pictures[:i])


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
    model(PHOTO[:height, :width], _hole(height, width, float(rng.uniform(0.05, 0.6))))
  assert inpainter.predict._cache_size() <= 2


@pytest.mark.parametrize(
  ("image", "mask", "options", "message"),
  [
    (PHOTO[:8, :8], np.ones((8, 9)) > 0, {}, "mask of 1x8x9 does not fit image of 1x8x8x3"),
    (PHOTO[:8, :8] / 255.0, np.ones((8, 8)) > 0, {}, "image is an array of float64 8x8x3: give uint8"),
    (PHOTO[:8, :8, 0], np.ones((8, 8)) > 0, {}, "image is an array of uint8 8x8: give"),
    (PHOTO[:8, :8], np.full((8, 8), 2.0), {}, "mask is an array of float64 8x8 up to 2"),
    (PHOTO[:8, :8], np.ones((8, 8)) > 0, {"strategy": "corp"}, "did you mean 'crop'"),
    (PHOTO[:8, :8], np.ones((8, 8)) > 0, {"num_samples": 0}, "num_samples=0 must be"),
    (PHOTO[:8, :8], np.ones((8, 8)) > 0, {"seed": -1}, "seed=-1 must not be negative"),
    (np.zeros((900, 900, 3), np.uint8), np.ones((900, 900)) > 0, {"strategy": "full"}, "more than 4096: use 'auto'"),
  ],
)
def test_what_does_not_fit_is_refused_in_words(model, image, mask, options, message):
  with pytest.raises(ConfigError, match=message):
    model(image, mask, **options)


def test_a_model_without_variation_has_one_fill():
  plain = Inpainter(small_config("variation.enabled=false"), {})
  with pytest.raises(ConfigError, match=r"variation\.enabled=false"):
    plain(PHOTO[:8, :8], np.ones((8, 8), bool), num_samples=2)


def test_importing_the_package_imports_no_jax():
  code = "import sys, gmsrm_jax; assert 'jax' not in sys.modules; gmsrm_jax.Inpainter; assert 'jax' in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=run.__file__.rpartition("/")[0])
