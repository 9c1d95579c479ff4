"""TFDS data sets are read without TensorFlow, whoever prepared them."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from gmsrm_jax.config import DataConfig
from gmsrm_jax.data import pictures, sources
from gmsrm_jax.errors import ConfigError


def png(seed):
  buffer = io.BytesIO()
  Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(buffer, "PNG")
  return buffer.getvalue()


def prepared(folder, name, splits, *, config=None, version="2.0.0", damaged=()):
  """Lets TFDS itself prepare a data set of random pictures."""

  class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)
    code_path = None  # TFDS would look there with importlib_resources, which it does not require
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

    def _info(self):
      features = {"image": tfds.features.Image(), "image/filename": tfds.features.Text()}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split, count) for split, count in splits.items()}

    def _generate_examples(self, split, count):
      for i in range(count):
        data = png(i)[:40] if i in damaged else png(i)
        yield f"{split}{i}", {"image": data, "image/filename": f"{i}.png"}

  Toy.name = name
  builder = Toy(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
  return builder.data_path


def opened(spec, split, **settings):
  return sources.open_source(DataConfig(train=str(spec), **settings), split)


def images_of(source):
  return {source[i].image.tobytes() for i in range(len(source))}


def test_celebahq_of_tfds_holds_out_a_fifteenth_of_its_one_split(tmp_path):
  folder = prepared(tmp_path, "celeb_a_hq", {"train": 30}, config="256")
  expected = {pictures.decode(png(i)).tobytes() for i in range(30)}
  for spec in (f"tfds:celeb_a_hq/256@{tmp_path}", folder):
    train, val = (opened(spec, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (28, 2)
    assert val.names == ["train-00000028", "train-00000029"]
    assert [val[i].name for i in range(2)] == val.names
    assert images_of(train) | images_of(val) == expected
    assert not images_of(train) & images_of(val)
    # All of it where the held-out images come from elsewhere.
    assert len(opened(spec, "train", val="elsewhere")) == 30
  assert "tensorflow" not in sys.modules


def test_a_data_set_with_its_own_validation_split_keeps_it(tmp_path):
  prepared(tmp_path, "places365_small", {"train": 5, "test": 4, "validation": 3}, version="2.1.0")
  spec = f"tfds:places365_small@{tmp_path}"
  train, val = (opened(spec, split) for split in ("train", "val"))
  assert (len(train), len(val)) == (5, 3)
  assert val.names == [f"validation-0000000{i}" for i in range(3)]
  other = sources.open_source(DataConfig(train="elsewhere", val=spec), "val")
  assert other.names == val.names
  assert sources.split_hash(train) != sources.split_hash(val)
  assert sources.split_hash(val) == sources.split_hash(other)


def test_a_damaged_record_is_replaced_and_named(tmp_path):
  prepared(tmp_path, "toy", {"train": 6}, damaged=[2])
  source = opened(f"tfds:toy@{tmp_path}", "train", val="elsewhere")
  names = [source[i].name for i in range(6)]
  assert len(source.bad_files) == 1
  assert len(set(names)) == 5


@pytest.mark.parametrize(
  ("spec", "parts"),
  [
    ("tfds:", ["names no data set", "tfds:celeb_a_hq/256"]),
    ("tfds:celeb_a_hq/256@{}", ["is not prepared in", "tfds build celeb_a_hq/256 --file_format=array_record"]),
    ("tfds:places365_small@{}", ["is not prepared in", "--data_dir={}"]),
    ("tfds:no_such_set@{}", ["TFDS cannot open it", "no_such_set", "check the name"]),
    ("tfds:celeb_a_hq/257@{}", ["TFDS cannot open it", "257"]),
  ],
)
def test_what_is_not_prepared_says_how_to(tmp_path, spec, parts):
  with pytest.raises(ConfigError) as error:
    opened(spec.format(tmp_path), "train")
  message = str(error.value)
  assert message.startswith("data.train='tfds:") and "\n" not in message
  for part in parts:
    assert part.format(tmp_path) in message
  assert not list(tmp_path.iterdir())


def test_other_formats_and_features_are_refused(tmp_path):
  folder = prepared(tmp_path, "toy", {"train": 2})
  info = folder / "dataset_info.json"
  whole = info.read_text()
  info.write_text(whole.replace('"array_record"', '"tfrecord"'))
  for spec in (f"tfds:toy@{tmp_path}", folder):
    with pytest.raises(
      ConfigError, match=r"is stored in .* as tfrecord, which cannot be read at random: .*array_record"
    ):
      opened(spec, "train")
  info.write_text(whole[:-40])
  with pytest.raises(ConfigError, match="holds no data set that TFDS can read"):
    opened(folder, "train")
  info.write_text(whole.replace('"train"', '"test"'))
  with pytest.raises(ConfigError, match="has no split 'train' but test"):
    opened(folder, "train")
  info.write_text(whole)
  features = folder / "features.json"
  features.write_text(features.read_text().replace('"image": {', '"picture": {', 1))
  with pytest.raises(ConfigError, match="has no feature 'image' but"):
    opened(folder, "train")
