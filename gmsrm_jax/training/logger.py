"""The log of a run: metrics.jsonl, TensorBoard events and the progress on the console."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX
import tqdm

from gmsrm_jax.files import naming, plain, write_text


class Writer:
  """Writes the records of one run and shows its progress.

  A record of `metrics.jsonl` is one line {"stage": ..., "step": ..., NAME: VALUE, ...}; a value that is not finite is
  null, because JSON has no NaN. TensorBoard events lie under `events/STAGE`, one run per stage.

  Args:
    workdir: folder of the run, made if missing.
    active: False on all processes but the first: nothing is written or shown.
    stream: text file where progress goes, standard output by default; a terminal gets a bar, anything else plain lines.
  """

  def __init__(self, workdir: str | os.PathLike[str], *, active: bool = True, stream: Any = None):
    self._workdir = pathlib.Path(workdir)
    self._active = active
    self._stream = stream or sys.stdout
    self._bar: tqdm.tqdm | None = None
    self._open = contextlib.ExitStack()

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def start(self, stage: str, step: int, total: int, batch_size: int, show: Sequence[str] = ()) -> None:
    """Begins a stage of `total` steps, or resumes it at `step`; console lines show the metrics named in `show`.

    Records of what runs again now, later steps and stages, are dropped, as is a last line cut off half-way.
    """
    self.close()
    self._stage, self._total, self._batch_size, self._show = stage, total, batch_size, tuple(show)
    self._marks = collections.deque([(time.monotonic(), step)], maxlen=10)
    self._logged = 0
    if not self._active:
      return
    self._workdir.mkdir(parents=True, exist_ok=True)
    path = self._workdir / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    kept = list(itertools.takewhile(lambda r: r["stage"] != stage or r["step"] <= step, records))
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    for events in (self._workdir / "events").glob("*"):
      if events.name not in {record["stage"] for record in kept}:
        shutil.rmtree(events)
    self._metrics = self._open.enter_context(path.open("a", encoding="utf-8"))
    # Without the suffix a run resumed within the second would overwrite the file that it continues.
    again = {"purge_step": step + 1, "filename_suffix": f".{step}"} if step else {}
    self._events = tensorboardX.SummaryWriter(str(self._workdir / "events" / stage), **again)
    self._open.callback(self._events.close)
    if self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total, initial=step, desc=stage, unit="step", dynamic_ncols=True, file=self._stream, smoothing=0.05
      )
      self._open.callback(self._bar.close)

  def advance(self, step: int) -> None:
    """Moves the progress bar; free where there is none."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records the metrics of a step, with the images per second, and shows the main ones."""
    self._marks.append((time.monotonic(), step))
    self._logged += 1
    if self._logged == 2:
      self._marks.popleft()  # the stretch before the first log holds the compilation
    (since, first), (now, _) = self._marks[0], self._marks[-1]
    rate = (step - first) / max(now - since, 1e-9)
    if not self._active:
      return
    values = {name: float(value) for name, value in metrics.items()} | {"images_per_s": rate * self._batch_size}
    with naming(self._metrics.name):
      self._metrics.write(json.dumps(plain({"stage": self._stage, "step": step, **values})) + "\n")
      self._metrics.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)
    names = [name for name in self._show or list(metrics)[:4] if name in metrics]
    shown = "  ".join(f"{name} {float(metrics[name]):.4g}" for name in names)
    speed = f"{rate * self._batch_size:.1f} images/s"
    if self._bar is not None:
      self.advance(step)
      self._bar.set_postfix_str(f"{shown}  {speed}")
    else:
      left = _duration((self._total - step) / rate) if rate > 0 else "?"
      self.note(f"{self._stage} {step}/{self._total}  {shown}  {speed}  {left} left")

  def note(self, text: str) -> None:
    """Shows one line, above the bar where there is one."""
    if not self._active:
      return
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Finishes the bar and closes the files."""
    self._open.close()
    self._bar = None


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the records of a metrics.jsonl; a line that names no stage and step, as half of one, is none."""
  records = []
  for line in pathlib.Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(record, dict) and isinstance(record.get("stage"), str) and isinstance(record.get("step"), int):
      records.append(record)
  return records


def _duration(seconds: float) -> str:
  hours, rest = divmod(round(seconds), 3600)
  minutes, seconds = divmod(rest, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
