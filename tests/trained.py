"""One tiny run from the first step to the report, for all tests of a session, and processes like its own."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import skimage.data
from PIL import Image

import run
from gmsrm_jax.config import RunConfig
from gmsrm_jax.training import logger
from gmsrm_jax.training.checkpoint import Checkpointer

ROOT = pathlib.Path(run.__file__).parent
STEPS = 6
TRUNCATED = "photo03.jpg"
ODD = os.fsdecode(b"photo\xff.png")

# As tests.small, with two scales only; four images a batch, because a test process sees four devices.
SETTINGS = (
  "model.image_size=32 model.widths=8,16 model.heads=2 model.context_blocks=0 model.discriminator_width=8 "
  "model.discriminator_layers=1 memory.num_groups=4 memory.slots_per_group=4 memory.slot_dim=16 memory.heads=2 "
  "memory.revive_every=2 data.threads=1 data.prefetch=2 loss.features=recognition loss.feature_crop=0 "
  "loss.adversarial=0.3 variation.enabled=true "
  f"stage1.steps={STEPS} stage2.steps={STEPS} stage1.adversarial_start=0.5 stage2.adversarial_start=0 "
  "stage2.half_until=0.5 variation.start=0.5 "  # both stages have a phase change after their first checkpoint
  "eval.batch_size=2 run.batch_size=4 run.log_every=1 run.save_every=2 run.panel_every=4 run.panel_images=2"
).split()

BRIEFLY = ("eval.max_images=1", "eval.baselines=")
"""For runs whose report nobody looks at."""


class Trained(NamedTuple):
  """A finished run, what it was made from and what it said. Nobody may change any of it."""

  workdir: pathlib.Path
  photos: pathlib.Path
  held_out: pathlib.Path
  cache: pathlib.Path  # compiled programs: a copy for this process and those that it starts
  out: str = ""
  err: str = ""

  def flags(self, workdir: pathlib.Path, *changes: str) -> list[str]:
    """Its command line in another folder, with these settings instead of its own."""
    settings = [f"data.train={self.photos}", f"data.val={self.held_out}", *SETTINGS]
    changed = {change.partition("=")[0] for change in changes}
    kept = [setting for setting in settings if setting.partition("=")[0] not in changed]
    return [f"--workdir={workdir}", "--set", *kept, *changes]


def write_photos(folder: pathlib.Path, count: int, size: int = 96) -> None:
  """Crops of two photographs, JPEG and PNG in turn, no two of one size."""
  folder.mkdir(parents=True)
  photos = (skimage.data.astronaut(), skimage.data.coffee())
  for i in range(count):
    top, left = 20 * i, 30 * i
    crop = photos[i % 2][top : top + size + 4 * i, left : left + size + 20]
    Image.fromarray(crop).save(folder / f"photo{i:02d}.{'png' if i % 2 == 0 else 'jpg'}")


def environment(cache: pathlib.Path, devices: int = 1) -> dict[str, str]:
  """That of a process which sees so many devices, and no launcher."""
  others = ("JAX_", "XLA_", "SLURM_", "OMPI_", "KUBERNETES_")
  return {key: value for key, value in os.environ.items() if not key.startswith(others)} | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg",  # compiles in a tenth of the time
    "JAX_NUM_CPU_DEVICES": str(devices),
  }


def start(flags: Sequence[str], cache: pathlib.Path, **variables: str) -> subprocess.Popen[str]:
  """run.py in a process of its own, with more environment variables."""
  return subprocess.Popen(
    # Where the tests run in the background Ctrl-C is ignored, and a shell leaves it so.
    ["env", "--default-signal=INT", sys.executable, str(ROOT / "run.py"), *flags],
    cwd=cache,
    env=environment(cache) | variables,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def ends(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
  """Exit code, output and errors of each; none outlives the test."""
  try:
    texts = [process.communicate(timeout=500) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def finish(flags: Sequence[str], cache: pathlib.Path) -> tuple[str, str]:
  """Output and errors of a process that ends well."""
  ((code, out, err),) = ends([start(flags, cache)])
  assert code == 0, out + err
  return out, err


def train_once(base: pathlib.Path) -> Trained:
  """The run under this folder, which the first process that asks trains. One photo of 11 is cut off."""
  base.mkdir(exist_ok=True)
  described = Trained(base / "run", base / "photos", base / "held_out", base / "cache")
  said = base / "said.json"
  with (base / "lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not said.exists():
      write_photos(described.photos, 11)
      broken = described.photos / TRUNCATED
      broken.write_bytes(broken.read_bytes()[:1500])
      write_photos(described.held_out, 3, size=80)
      for folder in (described.photos, described.held_out):  # a name that is no UTF-8
        (folder / "photo02.png").rename(folder / ODD)
      described.cache.mkdir()
      said.write_text(json.dumps(finish(described.flags(described.workdir), described.cache)))
  out, err = json.loads(said.read_text())
  # JAX writes its cache without a lock: no two processes of a session share one.
  own = pathlib.Path(shutil.copytree(described.cache, base / f"cache_{os.getpid()}"))
  return described._replace(cache=own, out=out, err=err)


def wait_for_step(started: Sequence[subprocess.Popen[str]], workdir: pathlib.Path, stage: str, step: int) -> None:
  """Until a run, which must not end, has logged a step."""
  log, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
  while not (log.exists() and any(r["stage"] == stage and r["step"] >= step for r in logger.read_metrics(log))):
    assert all(process.poll() is None for process in started), [process.communicate() for process in started]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def one_line(err: str) -> str:
  """The only line on standard error."""
  lines = err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), err
  return lines[0]


def refused(capsys, flags: Sequence[str]) -> str:
  """The one line of a command that exits with code 2, in this process."""
  assert run.main(list(flags)) == 2
  return one_line(capsys.readouterr().err)


def restore(workdir: pathlib.Path, target, stage: str = "inpaint"):
  """The newest checkpoint of a stage."""
  saved = Checkpointer(workdir, stage, RunConfig())
  try:
    return saved.restore(target, None)
  finally:
    saved.close()


def saved_arrays(workdir: pathlib.Path, stage: str, step: int = STEPS) -> dict[str, np.ndarray]:
  """Every array of a checkpoint by its path."""
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(workdir / "checkpoints" / stage / str(step) / "state")
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
