"""Compares the parameters after ten steps of each stage on many topologies with those of one device.

`python -m benchmarks.reliability.topologies` trains on one process with one and with eight simulated devices, and on
two and four processes, replicated and with FSDP; then it continues the run of eight devices, stopped half-way, on two
and on one.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import tempfile
import time

import numpy as np

from benchmarks.reliability import torture

STEPS = 10


def differences(one: pathlib.Path, other: pathlib.Path) -> str:
  """The largest and mean difference of the parameters after each stage, and of the losses on the way."""
  found = []
  for stage in ("memory", "inpaint"):
    a, b = (torture.arrays(folder / "checkpoints" / stage / str(STEPS)) for folder in (one, other))
    names = [name for name in a if name.startswith("['params']")]
    gaps = np.concatenate([np.abs(a[name] - b[name]).ravel() for name in names])
    scale = np.concatenate([np.abs(a[name]).ravel() for name in names])
    moved = f"largest {gaps.max():.1e}, mean {gaps.mean():.1e} of {scale.mean():.1e}"
    found.append(f"{stage}: {moved}, data {'equal' if a['position'] == b['position'] else 'DIFFERENT'}")
  return "; ".join(found)


def main() -> None:
  """Prints one line per topology."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rate", default="2e-4", help="learning rate of all networks")
  flags = parser.parse_args()
  base = pathlib.Path(tempfile.mkdtemp(prefix="topologies"))
  torture.write_photos(base / "photos", 11)
  torture.write_photos(base / "held_out", 3)
  (base / "cache").mkdir()
  rates = [f"{stage}.{name}={flags.rate}" for stage in ("stage1", "stage2") for name in ("learning_rate",)]
  rates += [f"{stage}.discriminator_rate={flags.rate}" for stage in ("stage1", "stage2")]
  changed = {"run.batch_size", "run.save_every", "memory.num_groups", "memory.slots_per_group", "memory.slot_dim"}
  kept = [setting for setting in torture.SETTINGS if setting.partition("=")[0] not in changed]
  settings = [f"data.train={base / 'photos'}", f"data.val={base / 'held_out'}", *kept, *rates]
  # Not loss.valid: known pixels are exact at first, and the sign of a difference of zero is anybody's rounding.
  settings += [
    "loss.valid=0",
    # Keys and values just large enough for FSDP to shard them.
    "memory.num_groups=16",
    "memory.slots_per_group=32",
    "memory.slot_dim=128",
    "run.batch_size=8",
    f"stage1.steps={STEPS}",
    f"stage2.steps={STEPS}",
    "run.save_every=5",
    "run.keep=9",
  ]

  def train(name: str, processes: int, devices: int, *changes: str) -> pathlib.Path:
    began = time.monotonic()
    command = [f"--workdir={base / name}", "--set", *settings, *changes]
    # The default generator: the fast one of the other tests draws other numbers where an array is split.
    started = torture.start(base / "cache", command, processes, devices, "threefry2x32")
    torture.wait_for(started, 3600)
    codes = [process.returncode for process in started]
    if any(codes):
      raise SystemExit(f"{name}: {codes} " + (base / "cache" / "stderr0").read_text()[-2000:])
    text = differences(base / "one", base / name) if name != "one" else "the reference"
    print(
      f"{processes} x {devices} devices {' '.join(changes):12} {time.monotonic() - began:4.0f} s  {text}", flush=True
    )
    return base / name

  train("one", 1, 1)
  train("eight", 1, 8)
  train("eight_fsdp", 1, 8, "run.fsdp=4")
  train("two", 2, 1)
  train("two_fsdp", 2, 2, "run.fsdp=2")
  train("four", 4, 1)
  train("four_fsdp", 4, 2, "run.fsdp=8")
  for name, processes, devices in (("on_two", 2, 1), ("on_one", 1, 1)):
    # As if it had been stopped after step 5 of stage 2.
    shutil.copytree(base / "eight_fsdp", base / name)
    shutil.rmtree(base / name / "checkpoints" / "inpaint" / str(STEPS))
    (base / name / "report.json").unlink()
    train(name, processes, devices)
  shutil.rmtree(base)


if __name__ == "__main__":
  main()
