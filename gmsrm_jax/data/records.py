"""Images in ArrayRecord files, as TensorFlow Datasets lays them out; TensorFlow itself is not needed.

A folder that `--mode=prepare` wrote brings a list of the images' names. Other TFDS folders do not: there an image's
name is its split and its position, such as 'train-00000012', which TFDS keeps fixed once a data set is prepared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gmsrm_jax.data.datasets import CELEBAHQ_SHARE, PLAN, wrong_tree
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import local_path

_HELD_OUT = ("val", "validation", "test")  # the first that a data set has is its held-out split


class Records:
  """A range of a TFDS split, read when it is asked for."""

  layout = "arrayrecord"

  def __init__(self, folder: str, split: str, names: list[str], sizes: list[int], first: int, rule: str):
    self.folder, self.split, self.names, self.rule = folder, split, names, rule
    self._sizes, self._first = sizes, first
    self._records: Any = None

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_records": None}

  def open(self, index: int) -> bytes:
    """The encoded image `index`."""
    if self._records is None:
      # Two threads may both do this: each gets a whole reader, and one of them stays.
      self._records = _random_access(_load(self.folder), self.split)
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example.FromString(self._records[self._first + index])  # pyright: ignore
    return example.features.feature["image"].bytes_list.value[0]

  def sizes(self) -> list[int]:
    """Bytes of each image, or of the file that it lies in where the former is not listed."""
    return self._sizes

  def between(self, start: int, stop: int) -> Records:
    """The images from `start` to before `stop`."""
    names, sizes = self.names[start:stop], self._sizes[start:stop]
    return Records(self.folder, self.split, names, sizes, self._first + start, self.rule)


def is_finished(folder: Path) -> bool:
  """True where the folder holds a data set that TFDS can read: its description is written last."""
  return (folder / "dataset_info.json").exists()


def index_name(split: str) -> str:
  """The file that lists the names and sizes of a prepared split."""
  return f"{split}.names.json"


def from_folder(root: Path, split: str, val_share: float, *, by_rule: bool, setting: str) -> Records:
  """A split of the TFDS data set in a folder.

  Raises:
    ConfigError: the folder is no such data set, its preparation is unfinished, or it has no such split or no images.
  """
  if not is_finished(root):
    unfinished = (root / PLAN).exists()
    raise ConfigError(
      f"{setting} is a preparation that was not finished: run its --mode=prepare again"
      if unfinished
      else f"{setting}: {wrong_tree('arrayrecord', root)}"
    )
  return _split_of(_load(str(root)), split, val_share, by_rule, setting)


def from_tfds(spec: str, split: str, val_share: float, *, by_rule: bool, setting: str) -> Records:
  """A split of a data set that was prepared with TFDS: 'tfds:NAME' or 'tfds:NAME@DATA_DIR'.

  Raises:
    ConfigError: TFDS does not know it, it is not prepared here or not as ArrayRecord, or as `from_folder`.
  """
  import tensorflow_datasets as tfds

  name, _, folder = spec.removeprefix("tfds:").partition("@")
  require(bool(name), f"{setting} names no data set: write tfds:NAME, such as tfds:celeb_a_hq/256")
  folder = str(local_path(folder, setting)) if folder else None
  way_out = (
    f"prepare it once, where TensorFlow is installed, with: tfds build {name} --file_format=array_record"
    f"{f' --data_dir={folder}' if folder else ''}"
  )
  try:
    builder = tfds.builder(name, data_dir=folder)
  except (ValueError, ImportError, OSError) as error:  # an unknown name, configuration or version is a ValueError
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise ConfigError(f"{setting}: TFDS cannot open it ({line}): check the name, or {way_out}") from None
  path = Path(os.fspath(builder.data_path))
  require(is_finished(path), f"{setting} is not prepared in {path}: {way_out}")
  return _split_of(_load(str(path)), split, val_share, by_rule, setting)


def _load(folder: str) -> Any:
  # Imported where it is needed: half a second that a folder of images does not take.
  import tensorflow_datasets as tfds

  try:
    return tfds.builder_from_directory(folder)
  except Exception as error:  # noqa: BLE001 - what TFDS and protobuf raise on a damaged file has no common class
    line = " ".join(str(error).split())[:200]
    raise ConfigError(f"{folder} holds no data set that TFDS can read ({line}): prepare it anew") from None


def _random_access(builder: Any, split: str) -> Sequence[bytes]:
  from tensorflow_datasets import decode

  # Records as they are stored: `decode` refuses an image that is cut off, where TFDS's own decoder returns it half
  # grey, and its parser takes a tenth of the time of an example for the one feature that is read.
  return builder.as_data_source(split, deserialize_method=decode.DeserializeMethod.RAW_BYTES)


def _split_of(builder: Any, split: str, val_share: float, by_rule: bool, setting: str) -> Records:
  splits, folder, features = builder.info.splits, os.fspath(builder.data_path), builder.info.features or {}
  require(
    "image" in features,
    f"{setting} has no feature 'image' but {', '.join(features) or 'none'}: choose a data set of images",
  )
  held = next((name for name in _HELD_OUT if name in splits), None)
  chosen = "train" if split == "train" or held is None else held
  require(chosen in splits, f"{setting} has no split {chosen!r} but {', '.join(splits) or 'none'}: prepare it anew")
  try:
    _random_access(builder, chosen)
  except NotImplementedError:
    raise ConfigError(
      f"{setting} is stored in {folder} as {builder.info.file_format.value}, which cannot be read at random: "
      "prepare it anew with tfds build --overwrite --file_format=array_record"
    ) from None
  names, sizes = _listed(Path(folder), splits[chosen], chosen)
  whole = Records(folder, chosen, names, sizes, 0, f"{builder.info.full_name}, {chosen}")
  if held is not None or not by_rule:
    return whole
  # TFDS stores examples in the order of a hash, so the last ones are a fixed draw from all.
  share = CELEBAHQ_SHARE if builder.name == "celeb_a_hq" else val_share
  require(len(names) > 1, f"{setting}: one image cannot be split in two: give data.val images of its own")
  border = len(names) - min(max(1, round(len(names) * share)), len(names) - 1)
  side = whole.between(0, border) if split == "train" else whole.between(border, len(names))
  side.rule += f", the last {len(names) - border} held out"
  return side


def _listed(folder: Path, info: Any, split: str) -> tuple[list[str], list[int]]:
  """Names and sizes from the list beside the records, or else by position and by the file they lie in."""
  index = folder / index_name(split)
  if index.exists():
    listed = json.loads(index.read_text(encoding="utf-8"))
    require(
      len(listed["names"]) == info.num_examples, f"{index} does not list {info.num_examples} images: prepare anew"
    )
    return listed["names"], listed["bytes"]
  lengths = [os.path.getsize(path) if os.path.exists(path) else -1 for path in map(os.fspath, info.filepaths)]
  sizes = [size for size, count in zip(lengths, info.shard_lengths, strict=True) for _ in range(count)]
  return [f"{split}-{position:08d}" for position in range(info.num_examples)], sizes
