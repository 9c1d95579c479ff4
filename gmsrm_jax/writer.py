"""What a run leaves behind and shows: metrics.jsonl, TensorBoard events, console lines, sample panels."""

from __future__ import annotations

import collections
import json
import math
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import numpy as np
import tensorboardX
import tqdm
from jaxtyping import UInt8
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from gmsrm_jax.config import ConfigError, require

MIN_CELL = 128  # pixels: smaller images of a panel are enlarged by a whole factor

_GAP = 4
_HEADER = 22


class Writer:
  """Writes the records of one run and shows its progress.

  A record of `metrics.jsonl` is one line {"stage": ..., "step": ..., NAME: VALUE, ...}; a value that is not finite is
  null, because JSON has no NaN. TensorBoard events lie under `events/STAGE`, one run per stage.

  Args:
    workdir: folder of the run, made if missing.
    resume_step: stage to the step it was restored at. Records of later steps, and of stages not named, are dropped,
      as is a last line cut off half-way; the steps that wrote them will run again. None starts afresh.
    active: False on all hosts but the first: nothing is written or shown.
    stream: text file where progress goes, standard output by default; a terminal gets a bar, anything else plain lines.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    resume_step: Mapping[str, int] | None = None,
    *,
    active: bool = True,
    stream: Any = None,
  ):
    self._workdir = pathlib.Path(workdir)
    self._resume_step = dict(resume_step or {})
    self._active = active
    self._stream = stream or sys.stdout
    self._events: dict[str, tensorboardX.SummaryWriter] = {}
    self._bar: tqdm.tqdm | None = None
    self._metrics: TextIO | None = None
    if not active:
      return
    self._workdir.mkdir(parents=True, exist_ok=True)
    path = self._workdir / "metrics.jsonl"
    if path.exists():
      kept = [record for record in read_metrics(path) if record["step"] <= self._resume_step.get(record["stage"], -1)]
      write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    for old in (self._workdir / "events").glob("*"):
      if old.name not in self._resume_step:
        shutil.rmtree(old)
    self._metrics = path.open("a", encoding="utf-8")

  def __enter__(self) -> Writer:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def start(self, stage: str, step: int, total: int, batch_size: int, show: Sequence[str] = ()) -> None:
    """Begins (or resumes, at `step`) a stage of `total` steps; console lines show the metrics named in `show`."""
    self._stage, self._total, self._batch_size, self._show = stage, total, batch_size, tuple(show)
    self._marks = collections.deque([(time.monotonic(), step)], maxlen=10)
    self._logged = 0
    self._close_bar()
    if self._active and self._stream.isatty():
      self._bar = tqdm.tqdm(
        total=total, initial=step, desc=stage, unit="step", dynamic_ncols=True, file=self._stream, smoothing=0.05
      )

  def advance(self, step: int) -> None:
    """Moves the progress bar; free where there is none."""
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def log(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Records the metrics of a step of the current stage, with its images per second, and shows the main ones."""
    self._marks.append((time.monotonic(), step))
    self._logged += 1
    if self._logged == 2:
      self._marks.popleft()  # the stretch before the first log holds the compilation
    (since, first), (now, _) = self._marks[0], self._marks[-1]
    rate = (step - first) / max(now - since, 1e-9)
    self.record(self._stage, step, {**metrics, "images_per_s": rate * self._batch_size})
    if not self._active:
      return
    names = [name for name in self._show or list(metrics)[:4] if name in metrics]
    shown = "  ".join(f"{name} {float(metrics[name]):.4g}" for name in names)
    speed = f"{rate * self._batch_size:.1f} images/s"
    if self._bar is not None:
      self.advance(step)
      self._bar.set_postfix_str(f"{shown}  {speed}")
    else:
      left = _duration((self._total - step) / rate) if rate > 0 else "?"
      self.note(f"{self._stage} {step}/{self._total}  {shown}  {speed}  {left} left")

  def record(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends one line to metrics.jsonl and one point per metric to the events; shows nothing."""
    if self._metrics is None:
      return
    values = {name: float(value) for name, value in metrics.items()}
    self._metrics.write(json.dumps(_plain({"stage": stage, "step": step, **values})) + "\n")
    self._metrics.flush()
    if stage not in self._events:
      restored = self._resume_step.get(stage)
      # Without the suffix a run resumed within the second would overwrite the file that it continues.
      self._events[stage] = tensorboardX.SummaryWriter(
        str(self._workdir / "events" / stage),
        purge_step=None if restored is None else restored + 1,
        filename_suffix="" if restored is None else f".{restored}",
      )
    for name, value in values.items():
      self._events[stage].add_scalar(name, value, step)

  def note(self, text: str) -> None:
    """Shows one line, above the bar where there is one."""
    if not self._active:
      return
    if self._bar is not None:
      self._bar.write(text, file=self._stream)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Finishes the bar and closes the files; the writer is of no use afterwards."""
    self._close_bar()
    for events in self._events.values():
      events.close()
    self._events.clear()
    if self._metrics is not None:
      self._metrics.close()
      self._metrics = None

  def _close_bar(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The records of a metrics.jsonl, without a line that a killed run left half-written."""
  records = []
  for line in pathlib.Path(path).read_text(encoding="utf-8", errors="replace").split("\n"):
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(record, dict) and "stage" in record and "step" in record:
      records.append(record)
  return records


def save_panel(path: str | os.PathLike[str], columns: Mapping[str, UInt8[np.ndarray, "n h w 3"]]) -> None:
  """Writes one PNG: a row per image, a column per entry under its name; small images are enlarged.

  Raises:
    ValueError: there is no column, or two columns differ in shape.
  """
  shapes = {name: pixels.shape for name, pixels in columns.items()}
  if len(set(shapes.values())) != 1:
    raise ValueError(f"the columns of a panel must have one shape, got {shapes}")
  count, height, width, _ = next(iter(shapes.values()))
  factor = max(1, math.ceil(MIN_CELL / min(height, width)))
  high, wide = height * factor, width * factor

  panel = PilImage.new("RGB", (len(columns) * (wide + _GAP) - _GAP, _HEADER + count * (high + _GAP) - _GAP), "white")
  draw = ImageDraw.Draw(panel)
  font = ImageFont.load_default()
  for column, (name, pixels) in enumerate(columns.items()):
    left = column * (wide + _GAP)
    while name and draw.textlength(name, font=font) > wide:
      name = name[:-1]
    draw.text((left + 2, _HEADER // 2), name, fill="black", font=font, anchor="lm")
    for row, image in enumerate(pixels):
      enlarged = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
      panel.paste(PilImage.fromarray(enlarged), (left, _HEADER + row * (high + _GAP)))
  save_image(path, panel)


def save_image(path: str | os.PathLike[str], image: PilImage.Image) -> None:
  """Writes a PNG that a reader sees whole or not at all."""
  with _Replacement(path) as temporary:
    image.save(temporary, format="PNG")


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a file that a reader, or a kill at any moment, sees whole or not at all."""
  with _Replacement(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON atomically; NumPy values become plain ones, and numbers that are not finite become null."""
  write_text(path, json.dumps(_plain(value), indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads JSON.

  Raises:
    ConfigError: the file is no JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except ValueError as error:
    raise ConfigError(f"{path} is no JSON file ({error}): restore it, or use another folder") from None


def read_run(workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """What the `config.json` of a run says: at least 'config' and 'splits'.

  Raises:
    ConfigError: there is none, or it describes no run.
  """
  path = pathlib.Path(workdir) / "config.json"
  require(
    path.is_file(),
    f"{workdir} holds no config.json: train there first (python run.py trains runs/demo), or name a folder that was",
  )
  described = read_json(path)
  require(
    isinstance(described, dict) and {"config", "splits"} <= described.keys(),
    f"{path} describes no run: it has no 'config' and 'splits'; restore it, or use another folder",
  )
  return described


class _Replacement:
  """A temporary file beside `path` that takes its place on success and vanishes on failure."""

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)

  def __enter__(self) -> pathlib.Path:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
    os.close(handle)
    self._temporary = pathlib.Path(name)
    return self._temporary

  def __exit__(self, kind, *_) -> None:
    if kind is not None:
      self._temporary.unlink(missing_ok=True)
      return
    mask = os.umask(0)
    os.umask(mask)
    self._temporary.chmod(0o666 & ~mask)  # mkstemp makes a file that nobody else may read
    os.replace(self._temporary, self._path)


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  if isinstance(value, (np.generic, np.ndarray)):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _duration(seconds: float) -> str:
  hours, rest = divmod(round(seconds), 3600)
  minutes, seconds = divmod(rest, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
