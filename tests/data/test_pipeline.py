"""The pipeline: one function of (seed, stream, index), whatever the threads, processes and restarts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from gmsrm_jax.config import SIZES, Config, DataConfig, RunConfig
from gmsrm_jax.data import pipeline
from gmsrm_jax.data.masks import draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Seven images of other sizes; image i is of level 30 * i + 20 with a gradient of its own."""
  path = tmp_path_factory.mktemp("images")
  for i in range(7):
    height, width = 70 + 10 * i, 120 - 5 * i
    level = np.full((height, width, 3), 30 * i + 20, np.uint8)
    level[..., 0] += np.linspace(0, 20, width).astype(np.uint8)
    level[..., 1] += np.linspace(0, 20, height).astype(np.uint8)[:, None]
    Image.fromarray(level).save(path / f"{i}.png")
  return str(path)


@pytest.fixture(scope="module")
def config(folder):
  return Config(
    name="test",
    model=SIZES["tiny"],
    data=DataConfig(train=folder, val=folder),
    run=RunConfig(batch_size=4, seed=5),
  )


def _with(config, group, **changes):
  return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **changes)})


def _take(iterator, count):
  return [next(iterator) for _ in range(count)]


def _assert_equal(first, second):
  assert len(first) == len(second)
  for one, other in zip(first, second, strict=True):
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])


def _image_ids(batch):
  return [int(round((float(np.median(image[..., 2])) - 20) / 30)) for image in batch["image"]]


@pytest.mark.parametrize(
  ("stream", "images", "holes"),
  [
    ("memory", "3a765c938a00 ed8046d13cd2 83468989c078", "febf04c4682f 3659dc3f7eb5 a3023420a36e"),
    ("inpaint", "f55f650ab7af 3504f7d89e5a 513d4b771db1", "a9261ea30740 41c3282817d5 4dccb63c9ef8"),
  ],
)
def test_a_seed_means_the_batches_that_it_meant_when_runs_were_measured(config, stream, images, holes):
  # Whoever changes these restarts every measured run.
  batches = _take(pipeline.training_iterator(config, stream), 3)
  for name, recorded in (("image", images), ("mask", holes)):
    assert [hashlib.sha256(batch[name].tobytes()).hexdigest()[:12] for batch in batches] == recorded.split()


def test_jitter_changes_colours_and_neither_windows_nor_holes(config):
  plain = _take(pipeline.training_iterator(config, "memory"), 2)
  varied = _take(pipeline.training_iterator(_with(config, "data", jitter=0.3), "memory"), 2)
  _assert_equal(varied, _take(pipeline.training_iterator(_with(config, "data", jitter=0.3, threads=4), "memory"), 2))
  for one, other in zip(plain, varied, strict=True):
    np.testing.assert_array_equal(one["mask"], other["mask"])
    for before, after in zip(one["image"], other["image"], strict=True):
      assert (before != after).any()
      # The gradient of green runs down every image, whatever its brightness.
      assert np.corrcoef(before[..., 1].ravel(), after[..., 1].ravel())[0, 1] > 0.9


def test_the_synthetic_batch_is_always_the_same_and_reads_no_data(config):
  made = _with(config, "data", synthetic=True, train="")
  iterator = pipeline.training_iterator(made, "inpaint")
  batches = _take(iterator, 3)
  _assert_equal([batches[0]] * 2, batches[1:])
  assert batches[0]["image"].shape == (4, 64, 64, 3) and batches[0]["mask"].shape == (4, 64, 64, 1)
  assert batches[0]["image"].dtype == batches[0]["mask"].dtype == np.uint8
  assert set(np.unique(batches[0]["mask"])) == {0, 1}
  state = iterator.get_state()
  resumed = pipeline.training_iterator(made, "inpaint")
  resumed.set_state(state)
  _assert_equal(_take(resumed, 1), batches[:1])
  parts = [next(pipeline.training_iterator(made, "inpaint", rows)) for rows in ([0, 2], [3])]
  _assert_equal(parts, [{name: value[rows] for name, value in batches[0].items()} for rows in ([0, 2], [3])])


def test_stream_and_seed_change_the_order_and_the_holes(config):
  first = _take(pipeline.training_iterator(config, "memory"), 4)
  for other_config, stream in ((config, "inpaint"), (_with(config, "run", seed=6), "memory")):
    other = _take(pipeline.training_iterator(other_config, stream), 4)
    assert [_image_ids(batch) for batch in first] != [_image_ids(batch) for batch in other]
    assert not any(np.array_equal(one["mask"], two["mask"]) for one, two in zip(first, other, strict=True))


def test_each_epoch_holds_every_image_once_in_a_new_order_with_new_crops_and_holes(config):
  batches = _take(pipeline.training_iterator(_with(config, "run", batch_size=14), "memory"), 2)
  epochs = [{key: value[start : start + 7] for key, value in batch.items()} for batch in batches for start in (0, 7)]
  orders = [_image_ids(epoch) for epoch in epochs]
  assert all(sorted(order) == list(range(7)) for order in orders)
  assert len({tuple(order) for order in orders}) > 1
  crops = [epoch["image"][order.index(6)].tobytes() for epoch, order in zip(epochs, orders, strict=True)]
  holes = [epoch["mask"][order.index(6)].tobytes() for epoch, order in zip(epochs, orders, strict=True)]
  assert len(set(crops)) == len(set(holes)) == 4


@pytest.mark.parametrize(
  ("shares", "workers"), [(([0, 1], [2, 3]), 0), (([2], [0], [1], [3]), 0), (([0, 3], [1, 2]), 1)]
)
def test_the_processes_make_the_rows_of_one_batch(config, shares, workers):
  whole = _take(pipeline.training_iterator(config, "inpaint"), 5)
  for rows in shares:
    iterator = pipeline.training_iterator(_with(config, "data", workers=workers), "inpaint", rows)
    with contextlib.closing(iterator):
      _assert_equal(_take(iterator, 5), [{name: value[rows] for name, value in batch.items()} for batch in whole])


@pytest.mark.parametrize(("before", "after"), [(4, 1), (4, 2), (1, 2), (2, 4)])
def test_a_position_is_continued_by_any_number_of_processes(config, before, after):
  def share(index, count):
    return range(index * 4 // count, (index + 1) * 4 // count)

  whole = _take(pipeline.training_iterator(config, "inpaint"), 5)
  states = []
  for index in range(before):
    iterator = pipeline.training_iterator(config, "inpaint", share(index, before))
    _take(iterator, 3)
    states.append(json.loads(json.dumps(iterator.get_state())))
  assert states == [{"next_index": 12}] * before
  for index in range(after):
    iterator = pipeline.training_iterator(config, "inpaint", share(index, after))
    iterator.set_state(states[0])
    rows = list(share(index, after))
    _assert_equal(_take(iterator, 2), [{name: value[rows] for name, value in batch.items()} for batch in whole[3:]])


def test_flip_mirrors_half_of_the_images_and_may_be_switched_off(config):
  def rises(flip):
    many = _with(_with(config, "data", flip=flip), "run", batch_size=64)
    (batch,) = _take(pipeline.training_iterator(many, "memory"), 1)
    red = batch["image"][..., 0].astype(int)
    return red[:, :, -1].mean(1) > red[:, :, 0].mean(1)

  assert rises(flip=False).all()
  assert 16 < rises(flip=True).sum() < 48


def test_crops_are_squares_between_crop_min_and_the_short_side(config, tmp_path):
  # Red is the column and green the row, in pixels: a crop's span over 64 pixels gives its side.
  rows, columns = np.mgrid[:128, :200].astype(np.uint8)
  Image.fromarray(np.dstack([columns, rows, rows])).save(tmp_path / "x.png")
  many = _with(_with(config, "data", train=str(tmp_path), crop_min=0.6, flip=False), "run", batch_size=64)
  (batch,) = _take(pipeline.training_iterator(many, "memory"), 1)
  image = batch["image"].astype(int)
  across = (image[:, 32, -1, 0] - image[:, 32, 0, 0]) * 64 / 63
  down = (image[:, -1, 32, 1] - image[:, 0, 32, 1]) * 64 / 63
  np.testing.assert_allclose(across, down, atol=3)
  assert across.min() > 0.6 * 128 - 4
  assert across.max() < 128 + 4
  assert across.max() - across.min() > 30
  assert image[:, 32, 0, 0].min() < 15
  assert image[:, 32, -1, 0].max() > 185


def test_evaluation_images_are_centre_squares_in_name_order(config, tmp_path):
  for name, turned in (("b.png", False), ("a.png", True)):
    pixels = np.zeros((128, 384, 3), np.uint8)
    pixels[:, 128:256] = 255
    Image.fromarray(pixels.swapaxes(0, 1) if turned else pixels).save(tmp_path / name)
  images = pipeline.evaluation_set(_with(config, "data", val=str(tmp_path)))
  assert [images[i][0] for i in range(len(images))] == images.names == ["a.png", "b.png"]
  for i in range(2):
    assert images[i][1].shape == (64, 64, 3)
    assert (images[i][1] == 255).all()


def test_evaluation_masks_do_not_depend_on_the_other_images(config):
  images, fewer = pipeline.evaluation_set(config), pipeline.evaluation_set(_with(config, "eval", max_images=3))
  assert fewer.names == images.names[:3]
  assert len(fewer) == 3
  with pytest.raises(IndexError):
    fewer[3]
  bucket = (0.3, 0.4)
  for i in range(3):
    np.testing.assert_array_equal(images.mask(i, bucket), fewer.mask(i, bucket))
    expected = draw.evaluation_mask(images.names[i], bucket, config.eval.mask_seed, 64, 64, config.mask)
    np.testing.assert_array_equal(images.mask(i, bucket), expected)
  assert (images.mask(0, bucket) != images.mask(1, bucket)).any()
  reseeded = pipeline.evaluation_set(_with(config, "eval", mask_seed=1))
  assert (reseeded.mask(0, bucket) != images.mask(0, bucket)).any()


def test_the_stand_in_of_an_undecodable_held_out_file_keeps_its_own_name(config, tmp_path):
  for i in range(3):
    Image.new("RGB", (80, 70), (i, i, i)).save(tmp_path / f"{i}.png")
  (tmp_path / "1.png").write_bytes(b"x")
  images = pipeline.evaluation_set(_with(config, "data", val=str(tmp_path)))
  assert images.names == ["0.png", "1.png", "2.png"]
  assert [images[i][0] for i in range(3)] == ["0.png", "2.png", "2.png"]
  assert images.source.bad_files == ["1.png"]
