"""Checkpoints on a disk that is full, cut off or kept too long: what is reported, what stays, what is used instead."""

from __future__ import annotations

import contextlib
import gc
import resource
import shutil
import types

import jax
import numpy as np
import pytest

from gmsrm_jax.config import RunConfig
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.parallel import backend
from gmsrm_jax.training.checkpoint import Checkpointer, SaveError
from gmsrm_jax.training.state import TrainState

# What Orbax leaves unread of a damaged one complains when it is collected: here, and not in whatever test comes then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Position:
  """Stands for the input's iterator."""

  def __init__(self):
    self.index = 0

  def get_state(self):
    return {"next_index": self.index}

  def set_state(self, state):
    self.index = state["next_index"]


def state(step, size=200_000):
  """A state whose values do not compress."""
  values = np.random.default_rng(step).random(size).astype(np.float32)
  empty = dict.fromkeys(("frozen", "opt_state", "disc_params", "disc_stats", "disc_opt_state"), {})
  # Two arrays: a read that fails leaves another one unfinished.
  params = {"a": values, "b": values[::-1].copy()}
  tree = TrainState(step=np.int32(step), params=params, ema={"a": values}, usage=values[:3], **empty)
  return jax.tree.map(jax.numpy.asarray, tree)


ABSTRACT = jax.tree.map(
  lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])),
  state(0),
)


@pytest.fixture
def open_checkpointer(tmp_path):
  with contextlib.ExitStack() as stack:

    def open_it(*, owner=False, **settings):
      saved = Checkpointer(tmp_path, "inpaint", RunConfig(**{"keep": 2, **settings}), owner=owner)
      stack.callback(saved.close)
      return saved

    yield open_it
  gc.collect()


def save(saved, step, quality=None, size=200_000):
  position = Position()
  position.index = 4 * step
  saved.save(state(step, size), position, quality)
  position.index += 4  # the input goes on while the save does
  saved.wait()


def steps(tmp_path, stage="inpaint"):
  """Those that are whole; what a failed save left is removed in the background."""
  names = [path.name for path in (tmp_path / "checkpoints" / stage).iterdir()]
  return sorted(int(name) for name in names if name.isdigit())


def damage(tmp_path, step, files="d/*"):
  for path in (tmp_path / "checkpoints" / "inpaint" / str(step) / "state").rglob(files):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_newest_and_the_best_are_kept_also_by_the_next_program(tmp_path, open_checkpointer):
  saved = open_checkpointer(keep=2, keep_best=1)
  for step, quality in ((1, 20.0), (2, 25.0), (3, 21.0), (4, 22.0)):
    save(saved, step, quality, size=10)
  assert steps(tmp_path) == [2, 3, 4]
  again = open_checkpointer(keep=2, keep_best=1)
  save(again, 5, 23.0, size=10)
  assert steps(tmp_path) == [2, 4, 5]
  save(again, 6, 26.0, size=10)
  save(again, 7, 1.0, size=10)
  save(again, 8, 1.0, size=10)
  assert steps(tmp_path) == [6, 7, 8]


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_is_used(tmp_path, open_checkpointer, capfd):
  saved = open_checkpointer(keep=3)
  for step in (2, 4, 6):
    save(saved, step)
  damage(tmp_path, 6)
  (tmp_path / "checkpoints" / "inpaint" / "4" / "data" / "metadata").unlink()
  position = tmp_path / "checkpoints" / "inpaint" / "2" / "data" / "metadata"
  position.rename(position.with_name("process_0-of-1.json"))  # as older runs have it
  position = Position()
  restored = open_checkpointer(keep=3, owner=True).restore(ABSTRACT, position, fall_back=True)
  assert int(restored.step) == 2 and position.index == 8
  np.testing.assert_array_equal(restored.params["b"], state(2).params["b"])
  assert steps(tmp_path) == [2] and steps(tmp_path, "inpaint_damaged") == [4, 6]
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 2 and all(line.startswith("warning: checkpoint ") for line in lines)
  assert "6 is damaged" in lines[0] and "step 4 is used" in lines[0] and "step 2 is used" in lines[1]


@pytest.mark.parametrize("shared", [True, False])
def test_a_process_that_is_gone_is_neither_a_full_disk_nor_a_damaged_file(
  tmp_path, open_checkpointer, monkeypatch, shared
):
  saved = open_checkpointer()
  for step in (2, 4):
    save(saved, step)
  saved.wait()
  gone = ValueError("UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer")

  def fail(*args, **options):
    raise gone

  monkeypatch.setattr(backend, "is_shared", lambda: shared)
  with monkeypatch.context() as patch:
    patch.setattr(type(saved._manager), "wait_until_finished", fail)
    with pytest.raises(ValueError if shared else SaveError) as caught:
      saved.wait()
  assert (caught.value is gone) == shared
  with monkeypatch.context() as patch:
    patch.setattr(type(saved._manager), "restore", fail)
    with pytest.raises(ValueError if shared else ConfigError) as caught:
      saved.restore(ABSTRACT, None, fall_back=False)
  assert (caught.value is gone) == shared
  assert steps(tmp_path) == [2, 4]


@pytest.mark.parametrize("file", ["d/*", "_METADATA", "manifest.ocdbt"])
def test_a_damaged_checkpoint_is_refused_where_none_may_take_its_place(tmp_path, open_checkpointer, file):
  for step in (2, 4):
    save(open_checkpointer(), step)
  damage(tmp_path, 4, file)
  with pytest.raises(ConfigError, match="4 is damaged .* delete this folder, and step 2 is used"):
    open_checkpointer().restore(ABSTRACT, None)
  shutil.rmtree(tmp_path / "checkpoints" / "inpaint" / "2")
  with pytest.raises(ConfigError, match="4 is damaged .* the stage starts again"):
    open_checkpointer().restore(ABSTRACT, None, fall_back=True)
  assert steps(tmp_path) == [4]


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, open_checkpointer, monkeypatch, capfd):
  saved = open_checkpointer(keep=1)
  save(saved, 2)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10**6))  # half of what it takes
    with pytest.raises(SaveError, match="No space left on device.*step 2 is kept.*make room"):
      save(saved, 4)
  assert steps(tmp_path) == [2] and capfd.readouterr().err == ""
  save(saved, 6)
  assert steps(tmp_path) == [6]


@contextlib.contextmanager
def no_room():
  """No file of more than 100 kB can be written; the error differs from that of a full disk by its number alone."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a closed event loop
def test_where_nothing_more_can_be_written_the_last_checkpoint_stays(tmp_path, open_checkpointer):
  saved = open_checkpointer(keep=1)
  save(saved, 2)
  with no_room(), pytest.raises(SaveError, match="File too large.*step 2 is kept"):
    save(saved, 4)
  assert steps(tmp_path) == [2] and saved.latest() == 2
  assert int(open_checkpointer(keep=1).restore(ABSTRACT, None).step) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_that_is_told_to_go_on_saves_again_when_there_is_room(tmp_path, open_checkpointer, capfd):
  saved = open_checkpointer(keep=1, if_save_fails="go_on")
  save(saved, 2)
  with no_room():
    save(saved, 4)
    save(saved, 6)
  lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: a checkpoint cannot be")]
  assert len(lines) == 2 and all("File too large): step 2 is kept; training goes on" in line for line in lines)
  save(saved, 8)
  assert steps(tmp_path) == [8]


def test_the_remains_of_a_save_that_was_cut_off_go_when_the_run_goes_on(tmp_path, open_checkpointer):
  save(open_checkpointer(), 2)
  folder = tmp_path / "checkpoints" / "inpaint"
  shutil.copytree(folder / "2", folder / "4.orbax-checkpoint-tmp")
  assert open_checkpointer().latest() == 2
  assert (folder / "4.orbax-checkpoint-tmp").exists()
  # Removed in the background; the next save waits for that.
  save(open_checkpointer(owner=True), 6)
  assert steps(tmp_path) == [2, 6]


def test_the_remains_of_a_save_are_gone_before_the_folder_is_closed(tmp_path):
  Checkpointer(tmp_path, "inpaint", RunConfig(), owner=True).close()
  remains = tmp_path / "checkpoints" / "inpaint" / "3.orbax-checkpoint-tmp-1"
  remains.mkdir()
  for number in range(3000):
    (remains / str(number)).write_bytes(b"x")
  # What is closed at once, as by a refusal, leaves no thread behind that would be at it while Python ends.
  Checkpointer(tmp_path, "inpaint", RunConfig(), owner=True).close()
  assert not remains.exists()
