"""Kills a tiny run again and again, restarts it until it is done, and compares it to the bit with one left alone.

`python -m benchmarks.reliability.torture --kills=20 --signal=KILL` (or TERM; `--processes=2` kills one of two). Half of
the kills wait for a checkpoint that is being written. After each one every complete checkpoint must be readable.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
import skimage.data
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = [
  "model.image_size=32",
  "model.widths=8,16",
  "model.heads=2",
  "model.context_blocks=0",
  "model.discriminator_width=8",
  "model.discriminator_layers=1",
  "memory.num_groups=4",
  "memory.slots_per_group=4",
  "memory.slot_dim=16",
  "memory.heads=2",
  "memory.revive_every=2",
  "data.threads=1",
  "data.prefetch=2",
  "loss.features=recognition",
  "loss.adversarial=0.3",
  "variation.enabled=true",
  "stage1.adversarial_start=0.5",
  "stage2.adversarial_start=0",
  "eval.batch_size=2",
  "run.batch_size=4",
  "run.log_every=1",
  "run.save_every=3",
  "run.panel_every=1000",
  "run.panel_images=2",
  "run.keep_best=1",
]


def write_photos(folder: pathlib.Path, count: int) -> None:
  """Crops of a photograph."""
  folder.mkdir(parents=True)
  for i in range(count):
    Image.fromarray(skimage.data.astronaut()[10 * i : 10 * i + 96, 15 * i : 15 * i + 100]).save(folder / f"{i:02}.png")


def start(
  cache: pathlib.Path, flags: list[str], processes: int, devices: int = 1, prng: str = "unsafe_rbg"
) -> list[subprocess.Popen[str]]:
  """The run, in as many processes."""
  environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
  environment |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_DEFAULT_PRNG_IMPL": prng,
  }
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  several = [f"--coordinator={address}", f"--num_processes={processes}"] if processes > 1 else []
  return [
    subprocess.Popen(
      [sys.executable, str(ROOT / "run.py"), *flags, *several, *([f"--process_id={index}"] if several else [])],
      cwd=cache,
      env=environment,
      stdout=subprocess.DEVNULL,
      stderr=(cache / f"stderr{index}").open("w"),
      text=True,
    )
    for index in range(processes)
  ]


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Everything in a checkpoint, by name."""
  logging.getLogger("absl").setLevel(logging.ERROR)
  with ocp.StandardCheckpointer() as reader:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    saved = reader.metadata(folder / "state").item_metadata.tree
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), saved)
    tree = reader.restore(folder / "state", target)
  position = json.loads((folder / "data" / "metadata").read_text())
  found = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  return found | {"position": np.asarray(position["next_index"])}


def complete(workdir: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints that count as complete."""
  return sorted(path for path in workdir.glob("checkpoints/*/*") if path.name.isdecimal())


def wait_for(processes: list[subprocess.Popen[str]], seconds: float) -> None:
  """Waits until all have ended; kills what has not by then."""
  deadline = time.monotonic() + seconds
  for process in processes:
    try:
      process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def position(workdir: pathlib.Path) -> int:
  """Steps of both stages that the log tells of."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
  whole = [json.loads(line) for line in lines if line.endswith("\n")]
  return len({(record["stage"], record["step"]) for record in whole})


def kill_once(
  processes: list[subprocess.Popen[str]], workdir: pathlib.Path, number: int, rng: random.Random, inside: bool
) -> str:
  """Waits for some steps, then for a random moment or for a save, and kills one of the processes."""
  log = workdir / "metrics.jsonl"
  before = log.stat().st_mtime_ns if log.exists() else 0
  deadline = time.monotonic() + 1200
  early = rng.random() < 0.2  # now and then before the first step

  def until(true: Callable[[], bool]) -> None:
    while not true() and time.monotonic() < deadline and all(process.poll() is None for process in processes):
      time.sleep(0.005)

  if early:
    time.sleep(rng.uniform(0, 6))
  else:
    # The log is rewritten once the checkpoint is read, and grows from there.
    until(lambda: log.exists() and log.stat().st_mtime_ns > before)
    steps = position(workdir) + rng.randint(0, 12) if log.exists() else 0
    until(lambda: position(workdir) >= steps)
  moment = "at random"
  if inside and not early:
    until(lambda: bool(list(workdir.glob("checkpoints/*/*.orbax-checkpoint-tmp*"))))
    moment = "inside a save"
    time.sleep(rng.uniform(0, 0.02))
  victim = rng.choice(processes)
  if victim.poll() is None:
    victim.send_signal(number)
    return moment
  return "too late"


def main() -> None:
  """Runs the comparison and prints what happened; exits with 1 where anything differs."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--steps", type=int, default=60, help="steps of each stage")
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  number, rng = getattr(signal, f"SIG{flags.signal}"), random.Random(flags.seed)

  base = pathlib.Path(tempfile.mkdtemp(prefix="torture"))
  write_photos(base / "photos", 11)
  write_photos(base / "held_out", 3)
  (base / "cache").mkdir()
  data = [f"data.train={base / 'photos'}", f"data.val={base / 'held_out'}"]
  stages = [f"stage1.steps={flags.steps}", f"stage2.steps={flags.steps}"]

  def command(name: str) -> list[str]:
    return [f"--workdir={base / name}", "--set", *data, *stages, *SETTINGS]

  began = time.monotonic()
  alone = start(base / "cache", command("alone"), flags.processes)
  wait_for(alone, 3600)
  codes = [process.returncode for process in alone]
  assert codes == [0] * flags.processes, (codes, (base / "cache" / "stderr0").read_text())
  print(f"left alone: {time.monotonic() - began:.0f} s", flush=True)

  workdir, kills, moments, unreadable, starts = base / "killed", 0, [], 0, 0
  while True:
    starts += 1
    processes = start(base / "cache", command("killed"), flags.processes)
    if kills < flags.kills:
      moment = kill_once(processes, workdir, number, rng, inside=kills % 2 == 1)
      kills += moment != "too late"
      wait_for(processes, 600)
      moments.append(f"{moment} -> {[process.returncode for process in processes]}")
      for folder in complete(workdir):
        try:
          arrays(folder)
        except Exception as error:
          unreadable += 1
          print(f"unreadable: {folder}: {str(error)[:200]}")
      steps = [f"{path.parent.name}/{path.name}" for path in complete(workdir)]
      print(f"{kills:3} {moments[-1]:44} {' '.join(steps)}", flush=True)
    else:
      wait_for(processes, 3600)
    if (workdir / "report.json").exists() and all(process.returncode == 0 for process in processes):
      break
    if starts > 3 * flags.kills + 10:
      sys.exit(f"not done after {starts} starts: " + (base / "cache" / "stderr0").read_text()[-2000:])

  different = [] if kills == flags.kills else [f"only {kills} kills before the run was done: more --steps"]
  for stage in ("memory", "inpaint"):
    one, other = (arrays(base / name / "checkpoints" / stage / str(flags.steps)) for name in ("alone", "killed"))
    different += [f"{stage}{key}" for key in one if one[key].tobytes() != other[key].tobytes()]
  reports = [(base / name / "report.json").read_text() for name in ("alone", "killed")]
  different += ["report.json"] if reports[0] != reports[1] else []
  warnings = [path.name for path in workdir.glob("checkpoints/*_damaged")]
  print(
    f"{kills} kills with SIG{flags.signal}, {flags.processes} processes, {starts} starts, "
    f"{sum('inside' in moment for moment in moments)} inside a save, {unreadable} unreadable checkpoints {warnings}, "
    f"{time.monotonic() - began:.0f} s; different: {different or 'nothing'}"
  )
  shutil.rmtree(base)
  sys.exit(bool(different or unreadable))


if __name__ == "__main__":
  main()
