"""Times a start: `--help`, the import, and the first training step of the demo, cold and warm.

  python -m benchmarks.speed.start [--repeats=3] [--output=FILE.json]

Each is a process of its own; numbers are medians. *Cold* compiles into an empty folder (run.compile_cache), *warm*
finds there what the cold start before it has left; both end with the first step of stage 1, read from the clock of
`metrics.jsonl` appearing. Processor seconds stand beside: other people's work disturbs them least.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

ROOT = pathlib.Path(__file__).resolve().parents[2]
HELP_LIMIT = 1.5  # seconds
WARM_FACTOR = 3.0  # times as soon as cold


class Took(NamedTuple):
  """Seconds of one process."""

  wall: float
  cpu: float


def took(command: Sequence[str]) -> Took:
  """Runs a command to its end."""
  before, begin = os.times(), time.perf_counter()
  subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  wall, after = time.perf_counter() - begin, os.times()
  children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
  return Took(wall, children)


def first_step(cache: pathlib.Path, workdir: pathlib.Path) -> Took:
  """Starts the demo and stops it when its first record is there, which is that of the first step."""
  command = [sys.executable, "run.py", f"--workdir={workdir}", "--set", "run.log_every=1", f"run.compile_cache={cache}"]
  environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
  before, begin = os.times(), time.perf_counter()
  process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
  record = workdir / "metrics.jsonl"
  while not (record.exists() and record.stat().st_size):
    if process.poll() is not None:
      raise SystemExit(f"the demo ended before its first step, with code {process.returncode}")
    time.sleep(0.05)
  wall = time.perf_counter() - begin
  process.kill()
  process.wait()
  after = os.times()
  children = (after.children_user - before.children_user) + (after.children_system - before.children_system)
  return Took(wall, children)


def heavy_modules(statement: str) -> list[str]:
  """Which of the heavy packages a fresh interpreter has after the statement."""
  heavy = ("jax", "flax", "optax", "orbax", "grain", "cv2", "skimage", "tensorboardX", "numpy")
  program = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
  return json.loads(done.stdout.replace("'", '"'))


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints, and writes the numbers as JSON if asked to."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
  parser.add_argument("--output", metavar="FILE", help="where the JSON goes")
  flags = parser.parse_args(argv)
  found: dict[str, list[Took]] = {"help": [], "import": [], "interface": [], "cold": [], "warm": []}
  for _ in tqdm(range(flags.repeats), unit="turn", disable=None):
    found["help"].append(took(["run.py", "--help"]))
    found["import"].append(took(["-c", "import gmsrm_jax"]))
    found["interface"].append(took(["-c", "from gmsrm_jax import Inpainter"]))
    with tempfile.TemporaryDirectory() as folder:
      base = pathlib.Path(folder)
      for name in ("cold", "warm"):
        found[name].append(first_step(base / "cache", base / name))
  rows = {
    name: {"wall_s": statistics.median(t.wall for t in each), "cpu_s": statistics.median(t.cpu for t in each)}
    for name, each in found.items()
  }
  for name, row in rows.items():
    print(f"{name:10} {row['wall_s']:8.2f} s, {row['cpu_s']:8.2f} processor seconds")
  print(f"imported with the package: {heavy_modules('import gmsrm_jax') or 'nothing heavy'}")
  ratio = rows["cold"]["wall_s"] / rows["warm"]["wall_s"]
  for name, good in (
    (f"--help within {HELP_LIMIT} s", rows["help"]["wall_s"] < HELP_LIMIT),
    (f"warm {ratio:.1f} times as soon as cold, at least {WARM_FACTOR}", ratio >= WARM_FACTOR),
  ):
    print(f"{name}: {'yes' if good else 'NO'}")
  if flags.output:
    text = json.dumps({"repeats": flags.repeats, "load": os.getloadavg(), **rows}, indent=2)
    pathlib.Path(flags.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
