"""Checkpoints with Orbax: a stage's whole state and the input's position, in `workdir/checkpoints/STAGE/STEP`."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint import checkpoint_managers

from gmsrm_jax.config import RunConfig
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.parallel import backend, processes
from gmsrm_jax.training.state import TrainState


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which leaves the question whether to stop to the training loop.

  JAX answers it for a count that grows over both stages; asked with a stage's own step, too, it would lose the count.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False

  def close(self) -> None:
    # Orbax waits for its removal of remains before a save alone: a program that ended earlier printed a traceback.
    if (removal := getattr(self, "_cleanup_tmp_directory_future", None)) is not None:
      removal.result()
    super().close()


class _Damaged(Exception):
  """A checkpoint cannot be read."""


class SaveError(ConfigError):
  """A checkpoint cannot be written; the ones before it stay."""


class Checkpointer:
  """The checkpoints of one stage of one run. Saves in the background; a half-written one is never restored.

  Keeps the newest ones and, where the settings say so, those of the best quality. The `owner`, who writes the run,
  removes the remains of a save that was cut off.
  """

  def __init__(self, workdir: str | os.PathLike[str], stage: str, settings: RunConfig, *, owner: bool = False):
    self._directory = pathlib.Path(workdir).absolute() / "checkpoints" / stage
    self._go_on = settings.if_save_fails == "go_on"
    policies: list[Any] = [checkpoint_managers.LatestN(settings.keep)]
    if settings.keep_best:
      best = {"get_metric_fn": _quality, "n": settings.keep_best, "keep_checkpoints_without_metrics": False}
      policies.append(checkpoint_managers.BestN(**best))
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      best_fn=_quality if settings.keep_best else None,  # only then is the quality written
      create=True,
      cleanup_tmp_directories=owner,
    )
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of every second that it waits
    self._manager = _Manager(self._directory, options=options)

  def latest(self) -> int | None:
    """Returns the newest complete step."""
    return self._manager.latest_step()

  def save(self, state: TrainState, iterator: Any, quality: float | None = None) -> None:
    """Starts to save under the state's own step, if it is not there. Raises SaveError, also for the save before it."""
    step = int(state.step)
    self.wait()
    if step == self._manager.latest_step():
      return
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(iterator.get_state()))
    try:
      self._check_room()
      self._manager.save(step, args=items, metrics=None if quality is None else {"quality": quality}, force=True)
    except _FAILURES as error:
      self._report(error)

  def wait(self) -> None:
    """Waits until what was saved is on disk. Raises SaveError where it cannot be written."""
    try:
      self._manager.wait_until_finished()
    except _FAILURES as error:
      self._report(error)

  def check(self) -> None:
    """Raises what `wait` raises, but does not wait."""
    if not self._manager.is_saving_in_progress():
      self.wait()

  def _check_room(self) -> None:
    """Raises OSError where the newest checkpoint would not fit again: Orbax would print a page for every array."""
    newest = self._directory / str(self.latest())
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    if size > shutil.disk_usage(self._directory).free:
      raise OSError("No space left on device")

  def _report(self, error: Exception) -> None:
    """Reports a save that failed, after which the newest complete checkpoint counts again."""
    if isinstance(error, jax.errors.JaxRuntimeError) or backend.lost_another(error):
      raise error  # No file's fault: a device, or another process.
    for remains in self._directory.glob("*.orbax-checkpoint-tmp*"):
      shutil.rmtree(remains, ignore_errors=True)  # They may be what fills the disk.
    self._manager.reload()
    last = self.latest()
    kept = "no checkpoint of this stage is there yet" if last is None else f"step {last} is kept"
    text = f"a checkpoint cannot be written to {self._directory} ({_reason(error)}): {kept}"
    if not self._go_on:
      raise SaveError(
        f"{text}; make room, then the same command goes on from there (run.if_save_fails=go_on trains on without)"
      ) from None
    print(f"warning: {text}; training goes on", file=sys.stderr)

  def restore(self, abstract: TrainState, iterator: Any | None, *, fall_back: bool = False) -> TrainState:
    """Returns the newest state, laid out as `abstract` says; the iterator, if given, is set to where it was.

    The abstract tree carries today's shardings, so a checkpoint moves between topologies. With `fall_back` a damaged
    checkpoint is reported and put aside, and the one before it is used; otherwise it is an error.

    Raises:
      ConfigError: there is none, it is of another configuration, or it is damaged.
    """
    while True:
      step = self._manager.latest_step()
      if step is None:
        raise ConfigError(f"no checkpoint under {self._directory}: train first or name another folder")
      folder = self._directory / str(step)
      try:
        return self._read(folder, abstract, iterator)
      except _Damaged as error:
        older = [other for other in self._manager.all_steps() if other < step]
        if not fall_back or not older:
          then = f"step {max(older)} is used instead" if older else "the stage starts again"
          raise ConfigError(f"checkpoint {folder} is damaged ({error}): delete this folder, and {then}") from error
        aside = self._put_aside(folder)
        if jax.process_index() == 0:
          print(
            f"warning: checkpoint {folder} is damaged ({error}): it is now {aside}, and step {max(older)} is used",
            file=sys.stderr,
          )

  def _read(self, folder: pathlib.Path, abstract: TrainState, iterator: Any | None) -> TrainState:
    # Process 0 reads all of it before they all do: one that failed alone would leave the others waiting.
    damage = processes.gather(_damage(folder) if jax.process_index() == 0 else "")[0]
    if damage:
      raise _Damaged(damage)
    try:
      items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      state = self._manager.restore(int(folder.name), args=items)["state"]
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:  # TensorStore raises a plain Exception on a damaged file.
      if backend.lost_another(error):
        raise
      if "stored shape" in str(error) or "structures do not match" in str(error):
        raise ConfigError(
          f"checkpoint {folder} does not fit this configuration ({_reason(error)}): "
          "use the workdir's own config.json or another --workdir"
        ) from error
      raise _Damaged(_reason(error)) from error
    if iterator is not None:
      iterator.set_state(_position(folder))
    return state

  def _put_aside(self, folder: pathlib.Path) -> pathlib.Path:
    """Moves a damaged checkpoint into a folder beside the stage's."""
    aside = self._directory.with_name(f"{self._directory.name}_damaged") / folder.name
    if jax.process_index() == 0:
      shutil.rmtree(aside, ignore_errors=True)
      aside.parent.mkdir(exist_ok=True)
      folder.rename(aside)
    processes.barrier("put aside")
    self._manager.reload()
    return aside

  def close(self) -> None:
    """Waits as `wait` does, and ends the threads."""
    try:
      self.wait()
    finally:
      self._manager.close()


_FAILURES = (OSError, ValueError, RuntimeError)
"""Errors of Orbax and TensorStore where a file cannot be written: a full disk is a ValueError."""


def _quality(metrics: Any) -> float:
  return metrics["quality"]


def _reason(error: Exception) -> str:
  """Returns the first line of an error, or the cause in it that the user can change."""
  text = str(error)
  for cause in ("No space left on device", "Disk quota exceeded", "Permission denied", "File too large"):
    if cause in text:
      return cause
  return next(iter(text.strip().splitlines()), type(error).__name__)[:200]


def _damage(folder: pathlib.Path) -> str:
  """Returns why a checkpoint cannot be read, or nothing.

  Reads one array after the other: Orbax reads all at once, and prints a traceback for every one that it gave up.
  """
  try:
    _position(folder)
    files = {"driver": "file", "path": f"{folder / 'state'}/"}
    arrays = tensorstore.KvStore.open({"driver": "ocdbt", "base": files}).result()
    for name in arrays.list().result():
      arrays.read(name).result()
  except (OSError, ValueError) as error:
    return _reason(error)
  return ""


def _position(folder: pathlib.Path) -> Any:
  # Older runs hold a file of grain's for each process, all of them alike.
  file = next((folder / "data").glob("metadata"), None) or next((folder / "data").glob("process_0-of-*.json"), None)
  if file is None:
    raise OSError("the position of the input is missing")
  return json.loads(file.read_text())
