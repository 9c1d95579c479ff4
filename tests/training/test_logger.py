"""Files of a run: records survive kills and resumes, files are whole, panels show the pixels."""

from __future__ import annotations

import codecs
import io
import itertools
import json
import math
import os
import pty
import termios

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gmsrm_jax.training import logger as writer_lib
from gmsrm_jax.training.logger import Writer


def read_until(screen, text):
  """Returns what a terminal shows, as far as some text."""
  shown, decoder = "", codecs.getincrementaldecoder("utf-8")()  # a letter may come in two parts
  while text not in shown:
    shown += decoder.decode(os.read(screen, 65536))
  return shown


def write_run(workdir, stages, since=0):
  """Logs loss = step for every step of every stage from there on; returns what the console showed."""
  stream = io.StringIO()
  with Writer(workdir, stream=stream) as writer:
    for stage, steps in stages.items():
      writer.start(stage, since, steps, batch_size=4)
      for step in range(since + 1, steps + 1):
        writer.log(step, {"loss": np.float32(step)})
      since = 0
  return stream.getvalue()


def logged(workdir):
  return [(r["stage"], r["step"], r["loss"]) for r in writer_lib.read_metrics(workdir / "metrics.jsonl")]


def read_events(folder, tag="loss"):
  """TensorBoard's own rule: events from a session start's step on are dropped when it is read."""
  points = {}
  for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      event = Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      if event.session_log.status == SessionLog.START:
        points = {step: value for step, value in points.items() if step < event.step}
      for value in event.summary.value:
        if value.tag == tag:
          points[event.step] = value.simple_value or (value.image.width, value.image.height)
  return points


def test_a_record_is_one_json_line_and_one_event(tmp_path):
  with Writer(tmp_path, stream=io.StringIO()) as writer:
    writer.start("memory", 0, 9, batch_size=4)
    writer.log(3, {"loss": np.float32(0.5), "grad": math.inf, "ratio": np.float64("nan")})
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  record = json.loads(line)
  assert record.pop("images_per_s") > 0
  assert record == {"stage": "memory", "step": 3, "loss": 0.5, "grad": None, "ratio": None}
  assert read_events(tmp_path / "events" / "memory") == {3: 0.5}


def test_what_is_seen_of_held_out_pictures_is_a_record_and_a_picture_for_tensorboard(tmp_path):
  Image.new("RGB", (7, 5)).save(tmp_path / "seen.png")
  with Writer(tmp_path, stream=io.StringIO()) as writer:
    writer.start("memory", 0, 9, batch_size=4)
    writer.look(3, {"held_out/psnr": 20.0}, tmp_path / "seen.png")
  assert writer_lib.read_metrics(tmp_path / "metrics.jsonl") == [{"stage": "memory", "step": 3, "held_out/psnr": 20.0}]
  assert read_events(tmp_path / "events" / "memory", "samples") == {3: (7, 5)}
  assert read_events(tmp_path / "events" / "memory", "held_out/psnr") == {3: 20.0}


def test_a_resumed_run_leaves_the_records_of_an_uninterrupted_one(tmp_path):
  write_run(tmp_path / "whole", {"memory": 4, "inpaint": 6})
  write_run(tmp_path / "cut", {"memory": 4, "inpaint": 5})
  with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
    file.write('{"stage": "inpaint", "step": null}\n{"stage": null, "step": 1}\n[]\n')
    file.write('{"stage": "inpaint", "st')  # killed while writing
  write_run(tmp_path / "cut", {"inpaint": 6}, since=2)
  assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
  for stage in ("memory", "inpaint"):
    assert read_events(tmp_path / "cut/events" / stage) == read_events(tmp_path / "whole/events" / stage)


def test_resuming_in_the_first_stage_drops_what_came_later(tmp_path):
  write_run(tmp_path, {"memory": 5, "inpaint": 3})
  write_run(tmp_path, {"memory": 3}, since=2)
  assert logged(tmp_path) == [("memory", 1, 1.0), ("memory", 2, 2.0), ("memory", 3, 3.0)]
  assert read_events(tmp_path / "events" / "memory") == {1: 1.0, 2: 2.0, 3: 3.0}
  assert not (tmp_path / "events" / "inpaint").exists()


def test_a_fresh_run_starts_with_no_records(tmp_path):
  write_run(tmp_path, {"memory": 3})
  write_run(tmp_path, {"memory": 2})
  assert len(logged(tmp_path)) == 2
  assert set(read_events(tmp_path / "events" / "memory")) == {1, 2}


def test_an_inactive_writer_leaves_nothing(tmp_path):
  stream = io.StringIO()
  with Writer(tmp_path / "run", active=False, stream=stream) as writer:
    writer.start("memory", 0, 10, batch_size=4)
    writer.log(1, {"loss": 1.0})
    writer.note("hello")
  assert not (tmp_path / "run").exists() and stream.getvalue() == ""


def test_speed_and_time_left_leave_out_the_compilation_and_weigh_the_steps(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(writer_lib.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  with Writer(tmp_path, stream=stream) as writer:
    # Steps from 400 on take twice as long, and as much again comes in the next stage.
    work = lambda step: max(400 - step, 0) + 2 * (700 - max(step, 400))  # noqa: E731
    writer.start("memory", 100, 700, 8, ("l1",), work, later=work(100))
    with writer.busy("compiling", long=True):
      now[0] = 60.0
    for step in range(101, 161):
      now[0] += 0.5
      writer.advance(step)
    writer.log(160, {"loss": 2.0, "l1": 0.123456})
  compiling, foretold, logged = stream.getvalue().splitlines()
  assert compiling == "memory: compiling"
  assert foretold == "about 14m54s to the end at this rate, without the evaluation"
  assert logged == "memory 160/700   7m00s left  l1 0.1235  16.0 images/s"
  assert writer_lib.read_metrics(tmp_path / "metrics.jsonl")[-1]["images_per_s"] == 16.0


@pytest.mark.parametrize("columns", [60, 200])
def test_a_terminal_gets_a_bar_of_its_width_that_is_full_once_all_is_written(tmp_path, monkeypatch, columns):
  clock = itertools.count(0.0, 3.0)
  monkeypatch.setattr(writer_lib.time, "monotonic", lambda: next(clock))
  screen, terminal = pty.openpty()
  termios.tcsetwinsize(terminal, (24, columns))
  with open(terminal, "w") as stream, Writer(tmp_path, stream=stream) as writer:
    writer.start("inpaint", 99_990, 100_000, 8, show=("loss", "hole", "style"))
    for step in range(99_991, 100_000):
      writer.advance(step, {"loss": 0.25, "hole": 1.0, "style": 2.0})
    writer.note("saved")
    writer.log(100_000, {"loss": 0.125, "hole": 1.0, "style": 2.0})
    with writer.busy("saving"):
      before = read_until(screen, "saving")
    writer.close()
    after = read_until(screen, "100000 steps")
  assert "saving" in before and "saved\r\n" in before and "100%" not in before and "inpaint 100%" in after
  bars = [line for line in before.split("\r") if line.startswith("inpaint")]
  assert max(map(len, bars)) == columns - 1  # of which the last is the cursor's
  told = next(line for line in bars if "loss 0.2500" in line)
  assert "left" in told and "images/s" in told and ("style 2.000" in told) == (columns == 200)
