"""The log of a run: metrics.jsonl, TensorBoard events and the progress on the console."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
import tqdm
from PIL import Image

from gmsrm_jax.files import naming, plain, write_text
from gmsrm_jax.progress import ticking

_WINDOW = 200  # steps that a rate is measured over
_SETTLED = (4, 5.0)  # steps and seconds after which the time of the whole run is told


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

  def start(
    self,
    stage: str,
    step: int,
    total: int,
    batch_size: int,
    show: Sequence[str] = (),
    work: Callable[[int], float] | None = None,
    later: float = 0.0,
  ) -> None:
    """Begins a stage of `total` steps, or resumes it at `step`; the console shows the metrics named in `show`.

    `work` says how much a stage has left at a step, and `later` how much the stages after it have, in one unit. Without
    it all steps are alike.

    Records of what runs again now, later steps and stages, are dropped, as is a last line cut off half-way.
    """
    self.close()
    self._stage, self._total, self._batch_size, self._show = stage, total, batch_size, tuple(show)
    self._work, self._later = work or (lambda step: float(total - step)), later
    self._marks = collections.deque([(time.monotonic(), step)], maxlen=_WINDOW)
    self._values: dict[str, float] = {}
    self._foretold, self._looked = False, 0.0
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
      layout = f"{stage:7} {{percentage:3.0f}}%|{{bar}}| {{desc}}"
      self._bar = tqdm.tqdm(total=total, bar_format=layout, dynamic_ncols=True, file=self._stream)
      self._open.callback(self._bar.close)

  def advance(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Counts a step, and shows it where there is a bar, now and then with metrics of one that is done."""
    if not self._active:
      return
    if not self._marks or self._marks[-1][1] != step:
      self._marks.append((time.monotonic(), step))
    now = time.monotonic()
    looks = self._bar is not None and now - self._looked > 0.5
    if looks and metrics is not None:
      self._looked = now
      self._values = {name: float(metrics[name]) for name in self._show if name in metrics}
    count, seconds = len(self._marks), now - self._marks[0][0]
    if not self._foretold and count >= _SETTLED[0] and seconds >= _SETTLED[1]:
      self._foretold = True
      self.note(f"about {_duration(self._left(self._later))} to the end at this rate, without the evaluation")
    if self._bar is not None:
      width = (self._bar.format_dict["ncols"] or 80) - 20
      self._bar.set_description_str(_fitting(self._pieces(step), width), refresh=looks)
      # Never 100 %, not rounded either, before all is written; until then it stands still, and shows nothing itself.
      self._bar.update(min(step, int(0.994 * self._total)) - self._bar.n)

  def _rate(self) -> float:
    """Steps per second; 0 where none was measured yet."""
    (since, first), (now, last) = self._marks[0], self._marks[-1]
    return (last - first) / max(now - since, 1e-9)

  def _left(self, later: float = 0.0) -> float:
    """Seconds to the end of the stage, and of as much work after it."""
    (since, first), (now, last) = self._marks[0], self._marks[-1]
    done = self._work(first) - self._work(last)
    return (self._work(last) + later) * (now - since) / done if done else float("inf")

  def _pieces(self, step: int) -> list[str]:
    """Returns what the console tells of a step, the most important first."""
    metrics = [f"{name} {value:#.4g}" for name, value in self._values.items()]
    rate = self._rate()
    speed = [f"{_duration(self._left()):>6} left", f"{rate * self._batch_size:.1f} images/s"] if rate else []
    return [*speed[:1], *metrics[:1], *speed[1:], f"{step}/{self._total}", *metrics[1:]]

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records the metrics of a step, with the images per second, and shows the main ones."""
    if not self._active:
      return
    names = [name for name in self._show or list(metrics)[:4] if name in metrics]
    self._values = {name: float(metrics[name]) for name in names}
    self.advance(step)
    values = {name: float(value) for name, value in metrics.items()}
    if self._rate():
      values["images_per_s"] = self._rate() * self._batch_size
    self._record(step, values)
    if self._bar is None:
      count, pieces = f"{step}/{self._total}", self._pieces(step)
      pieces.remove(count)
      self.note("  ".join([f"{self._stage} {count}", *pieces]))

  def look(self, step: int, metrics: Mapping[str, float], picture: os.PathLike[str]) -> None:
    """Records what was measured on held-out pictures, in a record of its own, and shows TensorBoard a picture file."""
    if self._active:
      self._record(step, metrics)
      with Image.open(picture) as image:
        self._events.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

  def _record(self, step: int, values: Mapping[str, float]) -> None:
    with naming(self._metrics.name):
      self._metrics.write(json.dumps(plain({"stage": self._stage, "step": step, **values})) + "\n")
      self._metrics.flush()
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  @contextlib.contextmanager
  def busy(self, text: str, *, long: bool = False) -> Iterator[None]:
    """Says what is done instead of steps; what takes `long` is told in plain lines, too, and no part of the rate."""
    with contextlib.ExitStack() as shown:
      if self._bar is not None:
        shown.enter_context(ticking(self._bar))(text)
      elif long:
        self.note(f"{self._stage}: {text}")
      yield
    if long:
      self._marks.clear()

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
    if self._bar is not None and self._marks and self._marks[-1][1] == self._total:
      self._bar.set_description_str(f"{self._total} steps", refresh=False)
      self._bar.update(self._total - self._bar.n)
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


def _fitting(pieces: Sequence[str], width: int) -> str:
  """The pieces that fit into a width, in order."""
  text = ""
  for piece in pieces:
    longer = f"{text}  {piece}".strip()
    text = longer if len(longer) <= width else text
  return text


def _duration(seconds: float) -> str:
  if not math.isfinite(seconds):
    return "?"
  if seconds >= 48 * 3600:
    return f"{seconds / 86400:.0f} days"
  hours, rest = divmod(round(seconds), 3600)
  minutes, seconds = divmod(rest, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
