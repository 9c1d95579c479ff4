"""Checkpoints with Orbax: a stage's whole state and the input iterator, in `workdir/checkpoints/STAGE/STEP`."""

from __future__ import annotations

import pathlib
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from gmsrm_jax.config import Config, ConfigError
from gmsrm_jax.sharding import tree_sharding
from gmsrm_jax.state import TrainState, abstract_state


class Checkpointer:
  """The checkpoints of one stage of one run. Saves in the background; a half-written one is never restored."""

  def __init__(self, workdir: str, stage: str, *, keep: int):
    self._directory = pathlib.Path(workdir).absolute() / "checkpoints" / stage
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(self._directory, options=options)

  def latest(self) -> int | None:
    """The newest complete step."""
    return self._manager.latest_step()

  def save(self, state: TrainState, iterator: Any) -> None:
    """Starts to save under the state's own step; a step that is there already is left alone."""
    step = int(state.step)
    if step == self._manager.latest_step():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator)),
    )

  def restore(self, abstract: TrainState, iterator: Any | None) -> TrainState:
    """The newest state, laid out as `abstract` says; the iterator, if given, is set to where it was.

    The abstract tree carries today's shardings, so a checkpoint moves between topologies.
    """
    items: dict[str, Any] = {"state": ocp.args.StandardRestore(abstract)}
    if iterator is not None:
      items["data"] = grain.checkpoint.CheckpointRestore(iterator)
    step = self._manager.latest_step()
    if step is None:
      raise ConfigError(f"no checkpoint under {self._directory}: train first or name another folder")
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))["state"]
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:  # TensorStore raises a plain Exception on a damaged file.
      reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
      folder = self._directory / str(step)
      if "stored shape" in str(error) or "structures do not match" in str(error):
        raise ConfigError(
          f"checkpoint {folder} does not fit this configuration ({reason}): "
          "use the workdir's own config.json or another --workdir"
        ) from error
      older = [other for other in self._manager.all_steps() if other < step]
      then = f"step {max(older)} is used instead" if older else "the stage starts again"
      raise ConfigError(f"checkpoint {folder} is damaged ({reason}): delete this folder, and {then}") from error

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._manager.wait_until_finished()
    self._manager.close()


def with_shardings(config: Config, stage: str, mesh: Mesh) -> TrainState:
  """The abstract state of a stage, with where each array is to live."""
  abstract = abstract_state(config, stage)
  shardings = tree_sharding(abstract, mesh)
  return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
