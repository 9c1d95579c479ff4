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
from gmsrm_jax import Inpainter, overrides
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference import inpainter
from gmsrm_jax.training.state import release_params
from gmsrm_jax.training.weights import Weights, save_weights
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


def test_every_type_comes_back_as_it_was_given(model, tmp_path):
  image, mask = PHOTO[:32, :32], hole_of(32, 32)
  expected = model(image, mask)
  assert isinstance(expected, np.ndarray) and expected.dtype == np.uint8
  turned = Image.fromarray(image).rotate(90)  # anticlockwise, so that its tag says: turn it clockwise
  turned.getexif()[0x0112] = 6
  turned.save(tmp_path / "image.png", exif=turned.getexif())
  Image.fromarray(mask * 255).save(tmp_path / "mask.png")
  several = [turned, tmp_path / "image.png", str(tmp_path / "image.png"), jnp.asarray(image), image]
  filled = model(several, tmp_path / "mask.png")
  assert [type(one) for one in filled] == [Image.Image] * 3 + [type(jnp.zeros(1)), np.ndarray]
  batch = model(np.stack([image, image[::-1]]), np.stack([mask, mask[::-1]])[..., None])
  assert batch.shape == (2, *image.shape) and (batch[1] != batch[0]).any()
  shared = model(jnp.stack([image, image]), mask)
  assert isinstance(shared, jax.Array)
  for other in (*filled, batch[0], shared[1], model(image, mask > 0), model(image, mask * np.float32(1))):
    np.testing.assert_array_equal(np.asarray(other), expected)


def test_each_of_a_list_is_filled_as_it_is_alone(model):
  images = [Image.fromarray(PHOTO[:32, :30]), PHOTO[40:65, :32], PHOTO[:31, :31, 0]]
  masks = [hole_of(32, 30), Image.fromarray(255 * hole_of(25, 32)), jnp.asarray(hole_of(31, 31))]
  samples = model(images, masks, num_samples=2, seed=3)
  alone = [model(image, mask, num_samples=2, seed=3) for image, mask in zip(images, masks, strict=True)]
  for filled, expected in zip(samples, zip(*alone, strict=True), strict=True):
    for one, other in zip(filled, expected, strict=True):
      np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("shape", [(31, 32), (31, 32, 1), (2, 31, 32, 1)])
def test_grey_levels_stay_grey(model, shape):
  grey, mask = np.broadcast_to(PHOTO[:31, :32, :1], (*shape[:-3], 31, 32, 1)).reshape(shape), hole_of(31, 32)
  filled = model(grey, mask)
  assert filled.shape == shape
  known = np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) > 2)), shape) == 0
  np.testing.assert_array_equal(filled[known], grey[known])
  expected = Image.fromarray(model(np.repeat(PHOTO[:31, :32, :1], 3, axis=2), mask)).convert("L")
  np.testing.assert_array_equal(filled.reshape(-1, 31, 32)[-1], np.asarray(expected))


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


def test_each_step_is_told_and_what_compiles_is_told_once(model):
  fresh, steps = Inpainter(model.config, model.params), []
  mask = np.zeros((40, 300), np.uint8)
  mask[20:23, 5:295] = 1
  list(fresh.fills(PHOTO[:40, :300], mask, num_samples=2, before_step=steps.append))
  windows = steps[0].windows
  assert windows > inpainter.BATCH and windows % inpainter.BATCH
  places = [*range(0, windows // inpainter.BATCH * inpainter.BATCH, inpainter.BATCH)]
  places += range(places[-1] + inpainter.BATCH, windows + 1)
  assert [(step.sample, step.window) for step in steps] == [(sample, place) for sample in (0, 1) for place in places]
  assert [step.window for step in steps if step.phase == "detail"] == [windows, windows]
  firsts = [(step.sample, step.window) for step in steps if step.phase == "compiling"]
  assert firsts == [(0, 0), (0, windows // inpainter.BATCH * inpainter.BATCH)]


def test_detail_is_looked_for_three_times_as_fine_as_the_network_saw_at_most_in_the_photos_pixels(model, monkeypatch):
  scales = []
  monkeypatch.setattr(inpainter, "add_detail", lambda *arguments: scales.append(arguments[4]))
  size = model.config.model.image_size
  for side in (size // 4, size, 3 * size):  # a window is twice as wide: 1, 2 and 6 pixels for one that is seen
    mask = np.zeros((8 * size, 8 * size), np.uint8)
    mask[2 * size : 2 * size + side, size : size + side] = 1
    model(np.zeros((*mask.shape, 3), np.uint8), mask)
  assert scales == [1.0, 1.0, pytest.approx(2.0, rel=0.05)]


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
    (PHOTO[:8, :8], np.ones((8, 9)), {}, ["mask is 9x8", "image is 8x8"]),
    ([PHOTO[:8, :8]] * 2, [np.ones((8, 8)), np.ones((9, 8))], {}, ["mask[1] is 8x9", "image[1] is 8x8"]),
    (np.stack([PHOTO[:8, :8]] * 2), np.ones((3, 8, 8)), {}, ["3 masks", "2 images", "one for all"]),
    (PHOTO[:8, :8], [np.ones((8, 8))] * 2, {}, ["2 masks", "1 images"]),
    ([], np.ones((8, 8)), {}, ["image holds no picture", "give one"]),
    (PHOTO[:8, :8], [], {}, ["mask holds no picture"]),
    ([PHOTO[:8, :8]] * 3, [np.ones((8, 8))] * 2, {}, ["2 masks", "3 images"]),
    ("no such.png", np.ones((8, 8)), {}, ["no such.png: No such file"]),
    (PHOTO[:8, :8], "no such.png", {}, ["no such.png: No such file"]),
    (Image.new("F", (8, 8)), np.ones((8, 8)), {}, ["image", "floating-point"]),
    (PHOTO[:8, :8] / 255.0, np.ones((8, 8)), {}, ["image", "float64 8x8x3", "uint8"]),
    (PHOTO[None, :8, :8, :2], np.ones((8, 8)), {}, ["image[0]", "uint8 8x8x2", "[h w 3]"]),
    (PHOTO[:8, :8], np.full((8, 8), 300), {}, ["mask", "300"]),
    (PHOTO[:8, :8], np.full((8, 8), "x"), {}, ["mask", "<U1 8x8"]),
    *((PHOTO[:8, :8], np.ones((8, 8)), {"seed": seed}, [f"seed={seed}", "4294967295"]) for seed in (-1, 2**32, 10**20)),
    (PHOTO[:8, :8], np.ones((8, 8)), {"strategy": "corp"}, ["corp", "'crop'"]),
    (PHOTO[:8, :8], np.ones((8, 8)), {"detail": 1.5}, ["detail=1.5 is out of range", "a number from 0 to 1"]),
    (np.zeros((900, 900, 3), np.uint8), np.ones((900, 900)), {"strategy": "full"}, ["'full'", "900x900", "'auto'"]),
  ],
)
def test_what_does_not_fit_is_named(model, image, mask, options, parts):
  with pytest.raises(ConfigError) as error:
    model(image, mask, **options)
  assert [part for part in parts if part not in str(error.value)] == []


@pytest.mark.parametrize(
  ("options", "part"),
  [
    ({"detail": "x"}, "detail='x' is not a number: give a number from 0 to 1"),
    ({"detail": None}, "detail=None is not a number"),
    ({"num_samples": "2"}, "num_samples='2' is not a whole number: give a whole number of 1 or more"),
    ({"num_samples": 0}, "num_samples=0 is out of range"),
    ({"seed": 1.5}, "seed=1.5 is not a whole number: give a whole number from 0 to 4294967295"),
    ({"strategy": 3}, "strategy=3 is unknown: choose from auto"),
  ],
)
def test_a_value_of_another_type_is_named(model, options, part):
  # Not by a call, whose types are checked in tests alone.
  good = {"num_samples": 1, "seed": 0, "strategy": "auto", "detail": np.float32(0.5)}
  model.check(8, 8, **good)
  with pytest.raises(ConfigError) as error:
    model.check(8, 8, **good | options)
  assert part in str(error.value)


def test_what_is_no_picture_is_named():
  with pytest.raises(ConfigError, match=r"image\[1\] is of type list: give a PIL image, the path"):
    inpainter._read_pixels("image[1]", [1, 2])


def test_weights_are_a_folder_or_a_configuration_with_parameters(tmp_path):
  model = noisy_model()
  described = {"config": overrides.to_dict(model.config), "splits": {}}
  save_weights(tmp_path, Weights(model.params, 7), described, "float32")
  for again in (Inpainter(tmp_path), Inpainter(str(tmp_path)), Inpainter.from_checkpoint(tmp_path)):
    assert again.config == model.config and again.source.startswith(f"{tmp_path}: demo, 32x32, step 7")
  with pytest.raises(ConfigError, match="Config: give the folder of a run, or a Config and its parameters"):
    Inpainter(model.config)


def test_a_model_without_variation_has_one_fill():
  plain = Inpainter(small_config("variation.enabled=false"), {})
  with pytest.raises(ConfigError, match=r"num_samples=2: .*variation\.enabled=false"):
    plain(PHOTO[:8, :8], np.ones((8, 8), bool), num_samples=2)


def test_importing_the_package_imports_no_jax():
  code = "import sys, gmsrm_jax; assert 'jax' not in sys.modules; gmsrm_jax.Inpainter; assert 'jax' in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, cwd=run.__file__.rpartition("/")[0])
