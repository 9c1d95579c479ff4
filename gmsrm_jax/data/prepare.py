"""ArrayRecord shards of any source as TFDS lays them out, written without TensorFlow.

Every shard is written whole or not at all, and the description that makes the folder readable comes last. So a
preparation can be killed at any moment, and the same command goes on with the shards that are missing.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import tensorflow_datasets as tfds
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue] (compiled)
from etils import epath
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tqdm import tqdm

from gmsrm_jax.data import datasets, pictures, records, sources, workers
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import LOCK, TEMPORARY, write_json, write_text

Contents = dict[str, Any]
"""Contents of a shard: its split, names, bytes of each image, the names of bad images, and its own size."""

_DONE = "done"  # folder of one file per finished shard
_JPEG_QUALITY = 95
_RECORDS = "group_size:1,uncompressed"  # one image a group, as grain wants it; to compress JPEG or PNG again is no gain
_MIN_IMAGES, _MAX_IMAGES, _SHARDS = 8, 1024, 64
_NAMES = {"paris": "paris_street_view", "celebahq": "celeba_hq_folder", "places2": "places2_folder"}
_VERSION = "1.0.0"  # of the form in which the images lie there


def encoded(source: Path | bytes, side: int, image_format: str, name: str = "") -> bytes:
  """An image file with a short side of at most `side`, as JPEG or PNG; what needs no change keeps its bytes.

  Raises:
    PictureError: it cannot be decoded.
  """
  image = pictures.decode(source, name)
  data = source if isinstance(source, bytes) else source.read_bytes()
  if min(image.shape[:2]) <= side and _seen_alike(data):
    return data
  buffer = io.BytesIO()
  Image.fromarray(_shrunk(image, side)).save(
    buffer, image_format, **({"quality": _JPEG_QUALITY} if image_format == "jpeg" else {})
  )
  return buffer.getvalue()


def _seen_alike(data: bytes) -> bool:
  """True where any reader sees what `decode` sees: upright, 8 bits, without transparency."""
  with pictures.open_picture(data) as file:
    plain = file.format in ("JPEG", "PNG") and file.mode in ("RGB", "L") and "transparency" not in file.info
    return plain and pictures.orientation(file) == 1


def _shrunk(image: UInt8[ndarray, "_ _ 3"], side: int) -> UInt8[ndarray, "_ _ 3"]:
  """The image with `side` as its short side, if it was longer."""
  height, width = image.shape[:2]
  scale = side / min(height, width)
  if scale >= 1:
    return image
  size = (max(side, round(width * scale)), max(side, round(height * scale)))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _features() -> tfds.features.FeaturesDict:
  return tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), "name": tfds.features.Text()})


@dataclasses.dataclass(frozen=True)
class Shard:
  """A run of a split's images, to be stored in one file."""

  split: str
  path: Path
  stored: datasets.Files | records.Records
  side: int  # largest short side, pixels
  image_format: str  # of resized images

  @property
  def _note(self) -> Path:
    return self.path.parent / _DONE / f"{self.path.name}.json"

  def contents(self) -> Contents | None:
    """Contents of the finished shard; None where it must be written."""
    if not self._note.exists() or not self.path.exists():
      return None
    contents = json.loads(self._note.read_text(encoding="utf-8"))
    return contents if contents["size"] == self.path.stat().st_size else None

  def write(self) -> Contents:
    """Writes the shard beside its place, moves it there, then notes what it holds.

    Raises:
      ConfigError: the file cannot be written.
    """
    temporary = self.path.with_name(f".{self.path.name}.incomplete")
    contents: Contents = {"split": self.split, "names": [], "bytes": [], "bad": []}
    features = _features()
    try:
      writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), _RECORDS)
      for index, name in enumerate(self.stored.names):
        try:
          image = encoded(self.stored.open(index), self.side, self.image_format, name)
        except pictures.PictureError:
          contents["bad"].append(name)
          continue
        # As bytes, because a file's name may be no text.
        writer.write(features.serialize_example({"image": image, "name": os.fsencode(name)}))
        contents["names"].append(name)
        contents["bytes"].append(len(image))
      writer.close()
    except RuntimeError as error:  # what ArrayRecord makes of a full disk
      line = str(error).partition(";")[0]
      raise ConfigError(f"{temporary}: {line}: make room or change permissions, then run this again") from None
    contents["size"] = temporary.stat().st_size
    temporary.replace(self.path)
    write_json(self._note, contents)
    return contents


class Preparation:
  """Both splits of the data as shards in one folder.

  Raises:
    ConfigError: the folder holds another preparation, or other files.
  """

  def __init__(self, splits: dict[str, sources.ImageSource], folder: Path, side: int, image_format: str):
    self._splits, self._folder = splits, folder
    self._name = _NAMES.get(splits["train"].stored.layout, "image_folder")
    self._claim(
      {
        "builder": self._name,
        "data": {split: sources.split_hash(source) for split, source in splits.items()},
        "images": {split: len(source) for split, source in splits.items()},
        "short_side": side,
        "format": image_format,
      }
    )
    self._shards: list[Shard] = []
    for split, source in splits.items():
      borders = shard_borders(len(source))
      for index, border in enumerate(borders):
        path = Path(self._template(split).sharded_filepath(shard_index=index, num_shards=len(borders)))
        self._shards.append(Shard(split, path, source.stored.between(*border), side, image_format))

  def _claim(self, plan: dict[str, Any]) -> None:
    path, output = self._folder / datasets.PLAN, f"--output={self._folder}"
    if path.exists():
      before = json.loads(path.read_text(encoding="utf-8"))
      changed = [f"{key}={before.get(key)}, not {plan[key]}" for key in plan if before.get(key) != plan[key]]
      require(not changed, f"{output} holds a preparation of {'; '.join(changed)}: name another folder or remove it")
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    strange = sorted(entry.name for entry in self._folder.iterdir() if not entry.name.startswith(TEMPORARY))
    require(not strange, f"{output} holds other files ({', '.join(strange[:3])}): name an empty folder")
    write_json(path, plan)

  def _template(self, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
      epath.Path(self._folder), dataset_name=self._name, split=split, filetype_suffix="array_record"
    )

  def write(self) -> list[Contents]:
    """Writes the shards that are missing, on all cores, then the description; returns what the shards hold.

    Raises:
      ConfigError: more images than allowed cannot be decoded, or a process died.
    """
    (self._folder / _DONE).mkdir(exist_ok=True)
    done = [shard.contents() for shard in self._shards]
    self._check_bad(done)
    missing = [index for index, contents in enumerate(done) if contents is None]
    images = [len(shard.stored.names) for shard in self._shards]
    there = sum(images) - sum(images[index] for index in missing)
    # Spawned, so that no thread or lock of this process is copied half-way.
    pool = concurrent.futures.ProcessPoolExecutor(
      min(os.cpu_count() or 1, max(1, len(missing))),
      mp_context=multiprocessing.get_context("spawn"),
      initializer=workers.start_worker,
    )
    with pool, tqdm(total=sum(images), initial=there, desc="prepare", unit="image", disable=None) as progress:
      try:
        for index, contents in zip(missing, pool.map(Shard.write, [self._shards[i] for i in missing]), strict=True):
          done[index] = contents
          progress.update(images[index])
          self._check_bad(done)
      except BrokenProcessPool:
        raise ConfigError(
          f"a process that prepared images for {self._folder} was killed (out of memory?): run this again to go on"
        ) from None
      finally:
        # What runs is finished, so that nothing is done twice; what waits is dropped.
        pool.shutdown(cancel_futures=True)
    whole = [contents for contents in done if contents is not None]
    self._describe(whole)
    return whole

  def _check_bad(self, done: list[Contents | None]) -> None:
    for split, source in self._splits.items():
      bad = [contents["bad"] for contents in done if contents is not None and contents["split"] == split]
      sources.check_bad(source.where, sum(bad, []), len(source))

  def _describe(self, done: list[Contents]) -> None:
    """Lists the names, then writes TFDS's description, with the file that makes the folder readable last."""
    splits = []
    for split in self._splits:
      shards = [contents for contents in done if contents["split"] == split]
      listed = {key: [item for contents in shards for item in contents[key]] for key in ("names", "bytes")}
      write_json(self._folder / records.index_name(split), listed)
      lengths, size = [len(contents["names"]) for contents in shards], sum(contents["size"] for contents in shards)
      splits.append(tfds.core.SplitInfo(split, lengths, size, filename_template=self._template(split)))
    identity = DatasetIdentity(self._name, tfds.core.Version(_VERSION), os.fspath(self._folder), __name__)
    info = tfds.core.DatasetInfo(builder=identity, features=_features(), disable_shuffling=True)
    info.set_file_format("array_record")
    info.set_splits(tfds.core.SplitDict(splits))
    with tempfile.TemporaryDirectory(dir=self._folder / _DONE) as folder:
      info.write_to_directory(folder)
      for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == "dataset_info.json"):
        write_text(self._folder / file.name, file.read_text(encoding="utf-8"))
    for file in self._folder.glob(".*"):  # of processes that were killed
      if file.name != LOCK:
        file.unlink()
    shutil.rmtree(self._folder / _DONE)


def shard_borders(images: int) -> list[tuple[int, int]]:
  """Borders of shards: of at most 1,024 images; few images in up to 64 shards, for all cores to have work."""
  count = max(1, min(images // _MIN_IMAGES, _SHARDS), -(-images // _MAX_IMAGES))
  return [(index * images // count, (index + 1) * images // count) for index in range(count)]
