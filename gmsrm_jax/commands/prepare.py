"""--mode=prepare: any source as ArrayRecord shards, which is what a TPU host reads fastest.

Every shard is written whole or not at all, and the description that makes the folder readable comes last. So a
preparation can be killed at any moment, and the same command goes on with the shards that are missing.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import signal
import tempfile
import threading
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from etils import epath
from tqdm import tqdm

from gmsrm_jax.commands.flags import configuration
from gmsrm_jax.config import Config
from gmsrm_jax.data import builders, records, sources
from gmsrm_jax.errors import ConfigError, require

PLAN = "prepare.json"  # what is being prepared from what: another preparation is refused
_DONE = "done"  # folder of one file per finished shard


def run(flags: argparse.Namespace) -> None:
  """Runs the mode."""
  prepare(configuration(flags), flags.output)


def prepare(config: Config, output: str) -> None:
  """Writes both splits of the data to a folder, from which `data.train` then trains; a finished one only says so.

  The folder may be a gs:// path, for which etils needs gcsfs.

  Raises:
    ConfigError: the data cannot be read, or the folder holds something else.
  """
  # The folder is looked at with the way out in mind: ImportError is what etils raises without gcsfs.
  try:
    directory = epath.Path(os.path.expanduser(output))
    there = directory.exists()
  except ImportError as error:
    raise ConfigError(f"--output={output}: {error}") from None
  require(not there or directory.is_dir(), f"--output={output} is a file: name a folder")
  splits = {split: _open(config, split) for split in ("train", "val")}
  builder = builders.BUILDERS.get(splits["train"].stored.layout, builders.ImageFolder)
  side = config.data.stored_side or math.ceil(config.model.image_size / config.data.crop_min)
  plan = {
    "builder": builder.name,
    "data": {split: sources.split_hash(source) for split, source in splits.items()},
    "images": {split: len(source) for split, source in splits.items()},
    "short_side": side,
    "format": config.data.stored_format,
  }
  _claim(directory, plan, output)
  for split, source in splits.items():
    print(f"{split}: {len(source)} images, {source.where} ({source.stored.layout}: {source.stored.rule})")
  if records.is_finished(directory):
    print(f"{output} is finished: train from it with --set data.train={output} data.val=")
    return

  shards = {split: builders.make_shards(source, side, config.data.stored_format) for split, source in splits.items()}
  dataset = builder(shards=shards, data_dir=os.fspath(directory))
  done = _write_shards(config, dataset, splits, directory)
  _describe(dataset, directory, done)
  total = sum(part["size"] for parts in done.values() for part in parts)
  kept = {split: sum(len(part["names"]) for part in parts) for split, parts in done.items()}
  left_out = [f"{split}/{name}" for split, parts in done.items() for part in parts for name in part["bad"]]
  print(
    f"{output}: {kept['train']} training images and {kept['val']} held out with a short side of at most {side}, "
    f"{total / 1e6:.1f} MB; train from it with --set data.train={output} data.val="
  )
  if left_out:
    print(f"left out {len(left_out)} that cannot be decoded: {', '.join(left_out)}")


def _open(config: Config, split: str) -> sources.ImageSource:
  source = sources.open_source(config.data, split)
  if isinstance(source, sources.ImageSource):
    return source
  raise ConfigError(
    f"data.{split}='skimage' needs no preparation: give data.train a folder of images and leave data.val= empty"
  )


def _write(path: Any, text: str) -> None:
  """Writes a file that is seen whole or not at all."""
  temporary = path.parent / f".{path.name}.incomplete"
  temporary.write_text(text)
  temporary.replace(path)


def _claim(directory: Any, plan: dict[str, Any], output: str) -> None:
  """Makes the folder this preparation's own.

  Raises:
    ConfigError: it belongs to another, or holds files of another kind.
  """
  path = directory / PLAN
  if path.exists():
    before = json.loads(path.read_text())
    changed = [key for key in plan if before.get(key) != plan[key]]
    names = {"data": "other images (their hash differs)", "images": "another number of images"}
    told = [names.get(key, f"{key}={before.get(key)}, not {plan[key]}") for key in changed]
    require(
      not changed, f"--output={output} holds a preparation of {'; '.join(told)}: name another folder or remove it"
    )
    return
  entries = [entry.name for entry in directory.iterdir()] if directory.exists() else []
  strange = [name for name in entries if name != f".{PLAN}.incomplete"]
  require(not strange, f"--output={output} holds other files ({', '.join(sorted(strange)[:3])}): name an empty folder")
  directory.mkdir(parents=True, exist_ok=True)
  _write(path, json.dumps(plan, indent=2) + "\n")


def _write_shards(
  config: Config, builder: Any, splits: dict[str, sources.ImageSource], directory: Any
) -> dict[str, list[dict[str, Any]]]:
  """Writes the shards that are missing, in parallel; returns what each holds, in order.

  Raises:
    ConfigError: more images than allowed cannot be decoded, or a process died.
  """
  (directory / _DONE).mkdir(parents=True, exist_ok=True)
  names = {split: [builder.shard_name(split, i) for i in range(len(of))] for split, of in builder.shards.items()}
  done: dict[str, list[Any]] = {
    split: [_finished(directory, name) for name in of_split] for split, of_split in names.items()
  }
  missing = [(split, index) for split, parts in done.items() for index, part in enumerate(parts) if part is None]
  images = {split: [len(shard.stored.names) for shard in of] for split, of in builder.shards.items()}
  total = sum(map(sum, images.values()))
  before = total - sum(images[split][index] for split, index in missing)
  if before:
    print(f"going on: {before} of {total} images are there")
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  workers = min(cores, max(1, len(missing)))
  # Spawned, so that no thread or lock of this process is copied half-way.
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=multiprocessing.get_context("spawn"), initializer=_follow_parent
  )
  with pool, tqdm(total=total, initial=before, desc="prepare", unit="image", disable=None) as progress:
    running = {
      pool.submit(_write_shard, builder.shards[split][index], os.fspath(directory), names[split][index]): (split, index)
      for split, index in missing
    }
    try:
      for split in splits:
        _check_bad(config, splits[split], done[split])
      for future in concurrent.futures.as_completed(running):
        split, index = running[future]
        done[split][index] = future.result()
        progress.update(images[split][index])
        _check_bad(config, splits[split], done[split])
    except BrokenProcessPool:
      raise ConfigError(
        f"a process that prepared images for {directory} was killed (out of memory?): the same command goes on"
      ) from None
    finally:
      # What runs is finished, so that nothing is done twice; what waits is dropped.
      pool.shutdown(cancel_futures=True)
  return done


def _check_bad(config: Config, source: sources.ImageSource, parts: list[Any]) -> None:
  bad = [name for part in parts if part is not None for name in part["bad"]]
  sources.check_bad(source.where, bad, len(source), config.data.max_bad_share)
  require(len(bad) < len(source), f"{source.where}: none of its {len(source)} image files can be decoded: replace them")


def _finished(directory: Any, name: str) -> dict[str, Any] | None:
  """What a finished shard holds; None where it must be written."""
  path = directory / _DONE / f"{name}.json"
  if not path.exists() or not (directory / name).exists():
    return None
  part = json.loads(path.read_text())
  return part if part["size"] == (directory / name).stat().length else None


def _follow_parent() -> None:
  """Ends a worker with the process that started it, even if that was killed; an interrupt is for that one alone."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def follow() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _write_shard(shard: builders.Shard, directory: str, name: str) -> dict[str, Any]:
  """Runs in a worker: writes a shard beside its place, moves it there, then notes what it holds."""
  target = epath.Path(directory) / name
  if "://" in directory:
    with tempfile.TemporaryDirectory() as folder:
      part = shard.write(os.path.join(folder, name))
      (epath.Path(folder) / name).copy(target, overwrite=True)
  else:
    temporary = os.path.join(directory, f".{name}.incomplete")
    part = shard.write(temporary)
    os.replace(temporary, target)
  _write(target.parent / _DONE / f"{name}.json", json.dumps(part))
  return part


def _describe(builder: Any, directory: Any, done: dict[str, list[dict[str, Any]]]) -> None:
  """Lists the names, then writes TFDS's description, with the file that makes the folder readable last."""
  for split, parts in done.items():
    listed = {key: [item for part in parts for item in part[key]] for key in ("names", "bytes")}
    _write(directory / records.index_name(split), json.dumps(listed))
  builder.set_lengths(
    {split: [len(part["names"]) for part in parts] for split, parts in done.items()},
    {split: sum(part["size"] for part in parts) for split, parts in done.items()},
  )
  with tempfile.TemporaryDirectory() as folder:
    builder.info.write_to_directory(folder)
    for file in sorted(epath.Path(folder).iterdir(), key=lambda file: file.name == "dataset_info.json"):
      _write(directory / file.name, file.read_text())
  for part in directory.glob(".*.incomplete"):  # of processes that were killed
    part.unlink()
  (directory / _DONE).rmtree()
