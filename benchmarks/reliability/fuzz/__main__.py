"""Feeds generated pictures, masks, names and flags to the shell, to Python and over HTTP, and names what goes wrong.

`python -m benchmarks.reliability.fuzz --count=2000 --seed=0`. A fault is a traceback, a known pixel that changed in a
lossless format, a file that is lost or overwritten, an exit code other than 0 and 2, a refusal that is not one line, or
another library's noise. `--only=BATCH --keep=DIR` repeats one batch and keeps its files. Weights are random: what is
known does not depend on them.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import shutil
import sys
import tempfile

import jax
import numpy as np

from benchmarks.reliability.fuzz.calls import over_http, python, serving
from benchmarks.reliability.fuzz.pairs import Fault
from benchmarks.reliability.fuzz.shell import shell
from benchmarks.reliability.torture import SETTINGS
from gmsrm_jax import experiments, overrides
from gmsrm_jax.inference.inpainter import Inpainter
from gmsrm_jax.training import state


def model() -> Inpainter:
  """A tiny model of random weights."""
  config = overrides.override(experiments.load("demo"), [*SETTINGS, "run.compute_dtype=float32"])
  shapes = jax.eval_shape(lambda key: state.release_params(state.init_state(config, "inpaint", key)), jax.random.key(0))
  rng = np.random.default_rng(0)
  return Inpainter(config, jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes))


def fuzz(
  count: int, seed: int, only: int | None = None, keep: str | None = None
) -> tuple[list[Fault], dict[str, list[int]]]:
  """Runs batches until so many inputs were given; returns the faults, and inputs given and filled by interface."""
  inpainter, faults, counts = model(), [], collections.defaultdict(lambda: [0, 0])
  with serving(inpainter) as client:
    number = 0 if only is None else only
    while sum(given for given, _ in counts.values()) < count:
      rng = np.random.default_rng([seed, number])
      name = ("shell", "python", "shell", "http")[number % 4]
      with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "x"
        root.mkdir()
        run = {"shell": shell, "python": python, "http": over_http}[name]
        found, given, filled = run(rng, number, client if name == "http" else inpainter, root)  # pyright: ignore
        if keep:
          shutil.copytree(root, pathlib.Path(keep) / f"batch{number}", dirs_exist_ok=True)
      faults += found
      counts[name] = [counts[name][0] + given, counts[name][1] + filled]
      number += 1
      if only is not None:
        break
  return faults, counts


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--count", type=int, default=2000, help="inputs")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", type=int, help="this batch alone")
  parser.add_argument("--keep", help="copy the files of every batch to this folder")
  flags = parser.parse_args()
  faults, counts = fuzz(flags.count, flags.seed, flags.only, flags.keep)
  kinds = collections.defaultdict(list)
  for fault in faults:
    kinds[fault.interface, fault.what].append(fault)
  for (interface, what), found in sorted(kinds.items(), key=lambda item: -len(item[1])):
    print(f"\n{len(found)} x {interface}: {what}  (seed {flags.seed}, batches {[fault.batch for fault in found][:6]})")
    print("  " + ascii(found[0].detail)[1:-1].replace("\\n", "\n  "))
  print(json.dumps({"seed": flags.seed, "faults": len(faults), **counts}))
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
