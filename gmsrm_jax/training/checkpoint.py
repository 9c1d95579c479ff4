"""Checkpoints with Orbax: a stage's whole state and the input's position, in `workdir/checkpoints/STAGE/STEP`."""

from __future__ import annotations

import json
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from gmsrm_jax.config import Config
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.parallel import backend, processes
from gmsrm_jax.parallel.sharding import tree_sharding
from gmsrm_jax.training.state import TrainState, abstract_state


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which leaves the question whether to stop to the training loop.

  JAX answers it for a count that grows over both stages; asked with a stage's own step, too, it would lose the count.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class _Damaged(Exception):
  """A checkpoint cannot be read."""


class _Misfit(Exception):
  """A checkpoint is of another configuration."""


class _Position:
  """Where an iterator is now: Orbax asks for it in the background, when the iterator may have gone on."""

  def __init__(self, iterator: Any):
    self._text = json.dumps(iterator.get_state(), indent=4)

  def get_state(self) -> bytes:
    """What grain writes into the file."""
    return self._text.encode()


class Checkpointer:
  """The checkpoints of one stage of one run. Saves in the background; a half-written one is never restored.

  Args:
    workdir: folder of the run.
    stage: 'memory' or 'inpaint'.
    keep: newest checkpoints kept.
    keep_best: kept besides, by the quality that `save` is given.
    go_on: whether a save that fails is only reported.
    owner: whether this program writes the run: then the remains of a save that was cut off are removed.
  """

  def __init__(
    self, workdir: str, stage: str, *, keep: int, keep_best: int = 0, go_on: bool = False, owner: bool = False
  ):
    self._directory = pathlib.Path(workdir).absolute() / "checkpoints" / stage
    self._go_on = go_on
    _silence()
    policies: list[Any] = [checkpoint_managers.LatestN(keep)]
    if keep_best:
      policies.append(
        checkpoint_managers.BestN(get_metric_fn=_quality, n=keep_best, keep_checkpoints_without_metrics=False)
      )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      best_fn=_quality if keep_best else None,  # only then is the quality written
      create=True,
      cleanup_tmp_directories=owner,
    )
    self._manager = _Manager(self._directory, options=options)

  def latest(self) -> int | None:
    """The newest complete step."""
    return self._manager.latest_step()

  def save(self, state: TrainState, iterator: Any, quality: float | None = None) -> None:
    """Starts to save under the state's own step; a step that is there already is left alone.

    Raises:
      SaveError: this save, or the one before it, cannot be written, disk full for example.
    """
    step = int(state.step)
    self.wait()
    if step == self._manager.latest_step():
      return
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(_Position(iterator))
    )
    metrics = None if quality is None else {"quality": quality}
    try:
      self._manager.save(step, args=items, metrics=metrics, force=True)
    except _FAILURES as error:
      self._failed(error)

  def wait(self) -> None:
    """Waits until what was saved is on disk.

    Raises:
      SaveError: it cannot be written.
    """
    try:
      self._manager.wait_until_finished()
    except _FAILURES as error:
      self._failed(error)

  def check(self) -> None:
    """The same without waiting: a save that goes on is not asked."""
    if not self._manager.is_saving_in_progress():
      self.wait()

  def _failed(self, error: Exception) -> None:
    if isinstance(error, jax.errors.JaxRuntimeError) or _is_of_another(error):
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
    """The newest state, laid out as `abstract` says; the iterator, if given, is set to where it was.

    The abstract tree carries today's shardings, so a checkpoint moves between topologies.

    Args:
      abstract: shapes, types and shardings.
      iterator: of `pipeline.training_iterator`.
      fall_back: report a damaged checkpoint, put it aside and use the one before it; otherwise it is an error.

    Raises:
      ConfigError: there is none, it is of another configuration, or it is damaged.
    """
    while True:
      step = self._manager.latest_step()
      if step is None:
        raise ConfigError(f"no checkpoint under {self._directory}: train first or name another folder")
      folder = self._directory / str(step)
      try:
        if jax.process_count() > 1:
          self._verify(folder, abstract)
        return self._read(step, abstract, iterator)
      except _Misfit as error:
        raise ConfigError(
          f"checkpoint {folder} does not fit this configuration ({error}): "
          "use the workdir's own config.json or another --workdir"
        ) from error
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

  def _read(self, step: int, abstract: TrainState, iterator: Any | None) -> TrainState:
    try:
      if iterator is not None:
        # Each process wrote the same position; as many files as there were processes then.
        positions = sorted((self._directory / str(step) / "data").glob("process_0-of-*.json"))
        if not positions:
          raise _Damaged("the position of the input is missing")
        iterator.set_state(json.loads(positions[0].read_text()))
      items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      return self._manager.restore(step, args=items)["state"]
    except (MemoryError, jax.errors.JaxRuntimeError, _Damaged):
      raise
    except Exception as error:  # TensorStore raises a plain Exception on a damaged file.
      if _is_of_another(error):
        raise
      raise _kind(error)(_reason(error)) from error

  def _verify(self, folder: pathlib.Path, abstract: TrainState) -> None:
    """Lets process 0 read everything; only then all do, because one that failed would leave the others waiting.

    Raises:
      _Damaged, _Misfit: on all processes.
    """
    code, text = 0, b""
    if jax.process_index() == 0:
      alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix=f"verify_{folder.parent.name}_{folder.name}"
      )
      target = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), abstract)
      try:
        with ocp.StandardCheckpointer(multiprocessing_options=alone) as reader:
          reader.restore(folder / "state", target)
        if not list((folder / "data").glob("process_0-of-*.json")):
          raise _Damaged("the position of the input is missing")
      except Exception as error:
        code, text = (2 if _kind(error) is _Misfit else 1), _reason(error).encode()[:200]
    message = np.zeros(201, np.uint8)
    message[0] = code
    message[1 : 1 + len(text)] = np.frombuffer(text, np.uint8)
    processes.wait_for_all("verified")
    code, *characters = np.asarray(multihost_utils.broadcast_one_to_all(message))
    if code:
      raise (_Misfit if code == 2 else _Damaged)(bytes(characters).rstrip(b"\0").decode(errors="replace"))

  def _put_aside(self, folder: pathlib.Path) -> pathlib.Path:
    """Moves a damaged checkpoint out of the way, into a folder beside the stage's."""
    place = self._directory.with_name(f"{self._directory.name}_damaged")
    aside = next(path for n in range(1000) if not (path := place / f"{folder.name}{f'-{n}' if n else ''}").exists())
    if jax.process_index() == 0:
      place.mkdir(exist_ok=True)
      folder.rename(aside)
    processes.wait_for_all("put aside")
    self._manager.reload()
    return aside

  def close(self) -> None:
    """Waits until everything is on disk, and ends the threads.

    Raises:
      SaveError: it cannot be written.
    """
    try:
      self.wait()
    finally:
      self._manager.close()


class SaveError(ConfigError):
  """A checkpoint cannot be written; the ones before it stay."""


_FAILURES = (OSError, ValueError, RuntimeError)
"""What Orbax and TensorStore raise when a file cannot be written: a full disk is a ValueError."""


def _is_of_another(error: Exception) -> bool:
  """Whether it is no file's fault, but that of a process which is gone."""
  return backend.is_shared() and backend.lost_another(error)


def _quality(metrics: Any) -> float:
  return metrics["quality"]


def _reason(error: Exception) -> str:
  """The first line of an error, with the cause that the user can change in front."""
  text = str(error)
  for cause in ("No space left on device", "Disk quota exceeded", "Permission denied", "File too large"):
    if cause in text:
      return cause
  return next(iter(text.strip().splitlines()), type(error).__name__)[:200]


def _kind(error: Exception) -> type[Exception]:
  text = str(error)
  return _Misfit if "stored shape" in text or "structures do not match" in text else _Damaged


def _silence() -> None:
  """Keeps Orbax's own reports off the console: each failure is reported once, in one line, by this module.

  After a failure TensorStore's threads still call the event loop that Orbax has closed, and Python prints it; and of
  all the arrays that could not be read Orbax asks one for its error, so asyncio prints some of the others.
  """
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  logging.getLogger("asyncio").addFilter(_is_news)
  if getattr(sys.excepthook, "__name__", "") != "_without_closed_loops":
    sys.excepthook = _filtered(sys.excepthook, lambda kind, error, trace: error)
  if getattr(sys.unraisablehook, "__name__", "") != "_without_closed_loops":
    sys.unraisablehook = _filtered(sys.unraisablehook, lambda report: report.exc_value)


def _is_news(record: logging.LogRecord) -> bool:
  """Whether a record is anything but an error of TensorStore that nobody asked for."""
  error = record.exc_info[1] if record.exc_info else None
  return not ("never retrieved" in record.getMessage() and "tensorstore" in str(error))


def _filtered(hook: Callable[..., Any], error_of: Callable[..., Any]) -> Callable[..., None]:
  """A hook for exceptions that nobody can catch, without those of a closed event loop."""

  def _without_closed_loops(*report: Any) -> None:
    if str(error_of(*report)) != "Event loop is closed":
      hook(*report)

  return _without_closed_loops


def with_shardings(config: Config, stage: str, mesh: Mesh) -> TrainState:
  """The abstract state of a stage, with where each array is to live."""
  abstract = abstract_state(config, stage)
  shardings = tree_sharding(abstract, mesh)
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
