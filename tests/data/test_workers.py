"""Worker processes: the batches, their order and their restarts are those of one process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import run
from gmsrm_jax.config import SIZES, Config, DataConfig, RunConfig
from gmsrm_jax.data import pipeline
from gmsrm_jax.errors import ConfigError

ROOT = pathlib.Path(run.__file__).parent

# What a program that trains does with its input, and no more.
PROGRAM = """
import json, multiprocessing, sys
import grain, orbax.checkpoint as ocp
from gmsrm_jax import overrides
from gmsrm_jax.data import pipeline

if __name__ == "__main__":
  config = overrides.from_dict(json.loads(open(sys.argv[1]).read()))
  iterator = pipeline.training_iterator(config, "memory")
  with ocp.CheckpointManager(sys.argv[2]) as manager:
    for step in range(1, 10**6):
      next(iterator)
      if step == 3:
        manager.save(step, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
        manager.wait_until_finished()
        print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(7):
    Image.fromarray(rng.integers(0, 255, (40 + i, 50, 3), np.uint8)).save(folder / f"{i}.jpg")
  return Config(
    name="test",
    model=SIZES["tiny"],
    data=DataConfig(train=str(folder), val=str(folder), prefetch=4),
    run=RunConfig(batch_size=4, seed=5),
  )


def with_workers(config, workers, **changes):
  return dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers, **changes))


def digests(iterator, count):
  batches = [next(iterator) for _ in range(count)]
  return [hashlib.sha256(batch["image"].tobytes() + batch["mask"].tobytes()).hexdigest() for batch in batches]


@pytest.fixture(scope="module")
def expected(config):
  """The stream of threads: five batches of four of seven images, so epochs end within batches."""
  return digests(pipeline.training_iterator(config, "memory"), 5)


def gone(pids, seconds):
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    if not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids):
      return True
    time.sleep(0.05)
  return False


def test_batches_and_restarts_are_those_of_threads(config, expected):
  iterator = pipeline.training_iterator(with_workers(config, 2), "memory")
  assert digests(iterator, 2) == expected[:2]
  state = json.loads(json.dumps(iterator.get_state()))
  assert digests(iterator, 3) == expected[2:]
  iterator.set_state(state)  # also an iterator that is running goes back
  assert digests(iterator, 1) == expected[2:3]
  iterator.close()
  with pytest.raises(ValueError, match="closed"):
    next(iterator)

  threads = pipeline.training_iterator(config, "memory")
  threads.set_state(state)
  assert digests(threads, 3) == expected[2:]
  assert threads.get_state() == {"next_index": 20}
  single = pipeline.training_iterator(with_workers(config, 1), "memory")
  single.set_state(threads.get_state())
  assert single.get_state() == {"next_index": 20}
  assert digests(single, 1) == digests(threads, 1)
  single.close()


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_after_kill_9_no_worker_stays_and_the_checkpoint_goes_on_with_the_next_batch(config, expected, tmp_path):
  (tmp_path / "program.py").write_text(PROGRAM)
  (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(with_workers(config, 2))))
  process = subprocess.Popen(
    [sys.executable, "program.py", "config.json", str(tmp_path / "checkpoints")],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  pids = json.loads(process.stdout.readline())
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  assert len(pids) == 2 and gone(pids, 60)

  resumed = pipeline.training_iterator(config, "memory")
  with ocp.CheckpointManager(tmp_path / "checkpoints") as manager:
    manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(resumed)))
  assert digests(resumed, 2) == expected[3:]


def test_an_error_of_a_worker_reaches_the_caller_as_it_is(config, tmp_path):
  for i in range(4):
    (tmp_path / f"{i}.png").write_bytes(b"x")
  iterator = pipeline.training_iterator(with_workers(config, 1, train=str(tmp_path)), "memory")
  with pytest.raises(ConfigError, match="of 4 image files cannot be decoded"):
    next(iterator)
  iterator.close()


def test_what_a_worker_imports_and_runs_starts_no_back_end(config):
  program = (
    "import sys, jax, numpy as np; from jax._src import xla_bridge\n"
    "from gmsrm_jax.data import pipeline; from gmsrm_jax import overrides\n"
    "import json; config = overrides.from_dict(json.loads(sys.argv[1]))\n"
    "next(pipeline.training_iterator(config, 'memory')); print(xla_bridge._backends)"
  )
  text = json.dumps(dataclasses.asdict(config))
  done = subprocess.run(
    [sys.executable, "-c", program, text], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
  )
  assert done.stdout.strip() == "{}"
