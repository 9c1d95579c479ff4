"""Times this project beside plain PyTorch, the same networks and train steps (`benchmarks/torch_twin`), in one run.

  python -m benchmarks.speed.beside_torch                 # CPU: fills of tiny, small, base; both train steps
  python -m benchmarks.speed.beside_torch --platform=gpu  # bfloat16 on both sides, the best batch of each

JAX, PyTorch eager and `torch.compile` each live in a process of their own, as they would in use: in one process they
would share allocators and fight over thread pools. The processes take turns, round by round, A B C A B C …, and
sleep while another works, so what else the machine does hits all alike; every round gives a ratio, and the table
shows medians with quartiles. On the CPU each has all the cores that this process may use (XLA takes them by itself,
PyTorch is told). Arrays lie on the device before the clock starts, bytes in and bytes out; a call ends when its
result is there. PyTorch runs channels_last, without gradients in inference, with fused Adam in training, and autocast
to bfloat16 on a GPU, where both may search the list of batches for their best throughput.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

SIDES = ("jax", "eager", "compile")
CPU_CASES = (
  *(("inference", size, 1) for size in ("tiny", "small", "base")),
  *(("inference", size, batch) for size, batch in (("tiny", 16), ("small", 8), ("base", 4))),
  *((stage, size, 8) for size in ("tiny", "small") for stage in ("memory", "inpaint")),
)
GPU_BATCHES = {"inference": (1, 8, 32, 64, 128), "memory": (8, 16, 32, 64), "inpaint": (8, 16, 32, 64)}


class Side:
  """A worker process; it answers one line of JSON for each line of JSON."""

  def __init__(self, name: str, platform_name: str, settings: Sequence[str]):
    module = "benchmarks.speed.jax_worker" if name == "jax" else "benchmarks.speed.torch_worker"
    command = [sys.executable, "-m", module, platform_name, name, *settings]
    # Another's memory must find room on the GPU. (OpenMP's threads spin for a millisecond after a turn, then sleep.)
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    self.name = name
    # A file, not a pipe: compilers write more than a pipe holds, and nobody reads it meanwhile.
    self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`close` does)
    self.process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
    )

  def ask(self, **request: Any) -> dict[str, Any]:
    """The answer, or {'error': …} when the worker refused or died."""
    assert self.process.stdin is not None and self.process.stdout is not None
    try:
      self.process.stdin.write(json.dumps(request) + "\n")
      self.process.stdin.flush()
      for line in self.process.stdout:
        if line.startswith("{"):  # compilers print what they like
          return json.loads(line)
    except BrokenPipeError:
      pass
    self.process.wait()
    self.log.seek(0)
    return {"error": " ".join(self.log.read().strip().splitlines()[-1:]) or "ended without a word"}

  def close(self) -> None:
    """Ends the worker."""
    self.process.communicate()
    self.log.close()


def quartiles(values: Sequence[float]) -> list[float]:
  """Lower quartile, median, upper quartile."""
  return [float(q) for q in np.quantile(values, (0.25, 0.5, 0.75))]


def race(sides: Sequence[Side], case: tuple[str, str, int], rounds: int, seconds: float) -> dict[str, Any]:
  """Prepares one case on every side and lets them take turns; seconds per call, and ratios to JAX of each round."""
  kind, size, batch = case
  row: dict[str, Any] = {"kind": kind, "size": size, "batch": batch, "errors": {}, "prepare_s": {}}
  ready: dict[Side, int] = {}
  for side in sides:
    began = time.perf_counter()
    answer = side.ask(do="prepare", kind=kind, size=size, batch=batch)
    if "error" in answer:
      row["errors"][side.name] = answer["error"]
      continue
    row["prepare_s"][side.name] = time.perf_counter() - began
    ready[side] = max(1, round(seconds / answer["seconds"]))
  times: dict[str, list[float]] = {side.name: [] for side in ready}
  for _ in range(rounds):
    for side, count in ready.items():
      answer = side.ask(do="time", count=count)
      times[side.name].append(answer.get("seconds", float("nan")))
  for side in ready:
    side.ask(do="drop")
  row["seconds"] = {name: quartiles(values) for name, values in times.items()}
  if "jax" in times:
    row["ratio"] = {
      name: quartiles([other / ours for other, ours in zip(values, times["jax"], strict=True)])
      for name, values in times.items()
      if name != "jax"
    }
  return row


def best_batches(sides: Sequence[Side], kind: str, size: str, batches: Sequence[int], rounds: int) -> dict[str, Any]:
  """The fastest images per second of every side, over all batches; a batch that does not fit is passed over."""
  rows = [race(sides, (kind, size, batch), rounds, 1.0) for batch in batches]
  best = {}
  for side in sides:
    rates = {row["batch"]: row["batch"] / row["seconds"][side.name][1] for row in rows if side.name in row["seconds"]}
    if rates:
      batch = max(rates, key=lambda b: rates[b])
      best[side.name] = {"batch": batch, "images_per_s": rates[batch]}
  return {"kind": kind, "size": size, "best": best, "rows": rows}


HEADER = (
  "| what | size | batch | JAX, ms | eager, ms | compiled, ms | eager / JAX | compiled / JAX |\n" + "|---" * 8 + "|"
)


def table_row(row: dict[str, Any]) -> str:
  """One line of the table in Markdown."""

  def spread(values: Sequence[float] | None, scale: float, digits: int) -> str:
    if values is None:
      return "—"
    low, middle, high = (f"{scale * v:.{digits}f}" for v in values)
    return f"{middle} ({low}–{high})"

  seconds, ratio = row["seconds"], row.get("ratio", {})
  cells = [spread(seconds.get(name), 1e3, 1) for name in SIDES]
  cells += [spread(ratio.get(name), 1.0, 2) for name in SIDES[1:]]
  return f"| {row['kind']} | {row['size']} | {row['batch']} | " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a table, then writes or prints JSON."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--platform", default="cpu", choices=("cpu", "gpu"))
  parser.add_argument("--sides", default=",".join(SIDES), help="of jax, eager, compile (default: all)")
  parser.add_argument("--only", default="", help="cases that start so, such as inference:base, with commas")
  parser.add_argument("--rounds", type=int, default=9, help="turns of each side (default: 9)")
  parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn (default: 0.5)")
  parser.add_argument("--size", default="base", help="GPU: the size whose best batch is searched (default: base)")
  parser.add_argument("--json", default="", metavar="FILE", help="where the numbers go (default: printed)")
  parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings over those of street")
  flags = parser.parse_args(argv)

  sides = [Side(name, flags.platform, flags.set) for name in flags.sides.split(",")]
  rows: list[dict[str, Any]] = []
  try:
    print(HEADER, flush=True)
    cases = [
      case
      for case in CPU_CASES
      if not flags.only or any(f"{case[0]}:{case[1]}:{case[2]}".startswith(o) for o in flags.only.split(","))
    ]
    if flags.platform == "gpu":
      for kind, batches in GPU_BATCHES.items():
        found = best_batches(sides, kind, flags.size, batches, flags.rounds)
        rows.append(found)
        for row in found["rows"]:
          print(table_row(row), flush=True)
        for name, best in found["best"].items():
          print(f"best of {name}: {best['images_per_s']:.1f} images/s at {best['batch']}", flush=True)
    else:
      for case in cases:
        rows.append(race(sides, case, flags.rounds, flags.seconds))
        print(table_row(rows[-1]), flush=True)
        for name, error in rows[-1]["errors"].items():
          print(f"  {name}: {error}", flush=True)
    versions = {side.name: side.ask(do="describe") for side in sides}
  finally:
    for side in sides:
      side.close()
  result = {
    "machine": {"cores": len(os.sched_getaffinity(0)), "cpu": platform.processor() or platform.machine()},
    "load_average": os.getloadavg(),
    "sides": versions,
    "rows": rows,
  }
  if flags.json:
    pathlib.Path(flags.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
  else:
    print(json.dumps(result))


if __name__ == "__main__":
  main()
