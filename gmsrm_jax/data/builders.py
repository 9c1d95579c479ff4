"""TFDS builders of the data sets: any source as ArrayRecord shards, without TensorFlow.

A builder's shards can be written one by one, by any process and in any order, so `--mode=prepare` writes them in
parallel and skips those it has. `builder.download_and_prepare()` writes the same ones in a row.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import tensorflow_datasets as tfds
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] (compiled)
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from gmsrm_jax.data import pictures, sources
from gmsrm_jax.data.records import Records
from gmsrm_jax.errors import ConfigError

JPEG_QUALITY = 95
# One image a group, as grain wants it for random access. Brotli, the default, gains nothing on JPEG and PNG.
_RECORDS = "group_size:1,uncompressed"
_MIN_IMAGES, _MAX_IMAGES, _SHARDS = 8, 1024, 64


def _features() -> tfds.features.FeaturesDict:
  return tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), "name": tfds.features.Text()})


def _shrunk(image: UInt8[ndarray, "_ _ 3"], side: int) -> UInt8[ndarray, "_ _ 3"]:
  """The image with `side` as its short side, if it was longer."""
  height, width = image.shape[:2]
  scale = side / min(height, width)
  if scale >= 1:
    return image
  size = (max(side, round(width * scale)), max(side, round(height * scale)))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _as_it_is(data: bytes) -> bool:
  """Whether any reader sees in an encoded image what `decode` sees: upright, 8 bits, without transparency."""
  with pictures.open_picture(data) as file:
    plain = file.format in ("JPEG", "PNG") and file.mode in ("RGB", "L") and "transparency" not in file.info
    return plain and pictures.is_upright(file)


def encoded(source: Path | bytes, name: str, side: int, image_format: str) -> bytes:
  """An image file with a short side of at most `side`, as JPEG or PNG; what needs no change keeps its bytes.

  Raises:
    PictureError: as `decode`.
  """
  image = pictures.decode(source, name)
  data = source if isinstance(source, bytes) else source.read_bytes()
  if min(image.shape[:2]) <= side and _as_it_is(data):
    return data
  options = {"jpeg": {"quality": JPEG_QUALITY}, "png": {}}[image_format]
  buffer = io.BytesIO()
  Image.fromarray(_shrunk(image, side)).save(buffer, image_format, **options)
  return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Shard:
  """A run of a split's images, to be stored in one file."""

  stored: sources.Files | Records
  side: int  # largest short side, pixels
  image_format: str  # of resized images

  def examples(self, bad: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and features of each image; `bad` takes the names of those that cannot be decoded, and why."""
    for index, name in enumerate(self.stored.names):
      try:
        image = encoded(self.stored.open(index), name, self.side, self.image_format)
      except pictures.PictureError as error:
        bad[name] = error.why
      else:
        yield name, {"image": image, "name": os.fsencode(name)}  # a file's name may be no text

  def write(self, path: str) -> dict[str, Any]:
    """Writes the local file and returns what it holds: names, bytes of each image, and the images left out.

    Raises:
      ConfigError: the file cannot be written.
    """
    bad: dict[str, str] = {}
    names, sizes, features = [], [], _features()
    try:
      writer = array_record_module.ArrayRecordWriter(path, _RECORDS)
      for name, example in self.examples(bad):
        writer.write(features.serialize_example(example))
        names.append(name)
        sizes.append(len(example["image"]))
      writer.close()
    except RuntimeError as error:  # what ArrayRecord makes of a full disk
      line = str(error).partition(";")[0]
      raise ConfigError(f"{path}: {line}: make room or change permissions, then the same command goes on") from None
    return {"names": names, "bytes": sizes, "bad": bad, "size": os.path.getsize(path)}


def make_shards(source: sources.ImageSource, side: int, image_format: str) -> list[Shard]:
  """Cuts a split into shards of at most 1,024 images; a small one into up to 64, for all cores to have work."""
  count = len(source)
  number = max(1, min(count // _MIN_IMAGES, _SHARDS), -(-count // _MAX_IMAGES))
  borders = [index * count // number for index in range(number + 1)]
  return [
    Shard(source.stored.part(start, stop), side, image_format)
    for start, stop in zip(borders[:-1], borders[1:], strict=True)
  ]


class _FolderBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Stores the shards of each split in `data_dir` itself, whatever the data set's name and version."""

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = ""
  code_path = None  # where TFDS looks for checksums of downloads, with importlib_resources, which it does not require

  def __init__(self, *, shards: Mapping[str, Sequence[Shard]], data_dir: str):
    self.shards = shards
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _build_data_dir(self, given_data_dir: str | None) -> tuple[str, str]:
    assert given_data_dir is not None
    return os.path.dirname(given_data_dir), given_data_dir

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self, description=self.__doc__, features=_features(), disable_shuffling=True, homepage=self.HOMEPAGE
    )

  def _shard_iterators_per_split(self, dl_manager: Any) -> Mapping[str, Sequence[Callable[[], Iterator[Any]]]]:
    return {split: [functools.partial(shard.examples, {}) for shard in shards] for split, shards in self.shards.items()}

  def shard_name(self, split: str, index: int) -> str:
    """The file of a shard."""
    return self._template(split).sharded_filepath(shard_index=index, num_shards=len(self.shards[split])).name

  def set_lengths(self, lengths: Mapping[str, Sequence[int]], sizes: Mapping[str, int]) -> None:
    """Says how many images each shard of a split holds, and how many bytes the split has."""
    infos = [
      tfds.core.SplitInfo(split, list(lengths[split]), sizes[split], filename_template=self._template(split))
      for split in self.shards
    ]
    self.info.set_splits(tfds.core.SplitDict(infos))

  def _template(self, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
      self.data_path, dataset_name=self.name, split=split, filetype_suffix="array_record"
    )


class ParisStreetView(_FolderBuilder, skip_registration=True):
  """Paris StreetView (Doersch et al. 2012, What makes Paris look like Paris?), as given out by its authors."""

  HOMEPAGE = "https://github.com/pathak22/context-encoder"


class CelebaHqFolder(_FolderBuilder, skip_registration=True):
  """CelebA-HQ (Karras et al. 2018, Progressive growing of GANs), from a folder of images."""

  HOMEPAGE = "https://github.com/tkarras/progressive_growing_of_gans"


class Places2Folder(_FolderBuilder, skip_registration=True):
  """Places365-Standard (Zhou et al. 2017, Places: a 10 million image database), from its unpacked archives."""

  HOMEPAGE = "http://places2.csail.mit.edu"


class ImageFolder(_FolderBuilder, skip_registration=True):
  """Any images."""


BUILDERS = {"paris": ParisStreetView, "celebahq": CelebaHqFolder, "places2": Places2Folder}
