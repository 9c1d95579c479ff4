"""Files of a run: records survive kills and resumes, files are whole, panels show the pixels."""

from __future__ import annotations

import io
import json
import math

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gmsrm_jax.training import logger as writer_lib
from gmsrm_jax.training.logger import Writer


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


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


def read_events(folder):
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
        if value.tag == "loss":
          points[event.step] = value.simple_value
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


def test_speed_and_time_left_leave_out_the_compilation(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(writer_lib.time, "monotonic", lambda: now[0])
  stream = io.StringIO()
  with Writer(tmp_path, stream=stream) as writer:
    writer.start("memory", 100, 700, batch_size=8, show=("l1",))
    for seconds, step in ((60.0, 120), (70.0, 140), (80.0, 160)):
      now[0] = seconds
      writer.log(step, {"loss": 2.0, "l1": 0.123456})
  assert stream.getvalue().splitlines()[-1] == "memory 160/700  l1 0.1235  16.0 images/s  4m30s left"
  assert writer_lib.read_metrics(tmp_path / "metrics.jsonl")[-1]["images_per_s"] == 16.0


def test_a_terminal_gets_a_bar_that_ends_at_the_last_step(tmp_path):
  stream = Terminal()
  with Writer(tmp_path, stream=stream) as writer:
    writer.start("inpaint", 2, 4, batch_size=8)
    writer.advance(3)
    writer.note("saved")
    writer.log(4, {"loss": 0.25})
  shown = stream.getvalue()
  assert "inpaint:  50%" in shown and "inpaint: 100%" in shown and "4/4" in shown
  assert "loss 0.25" in shown and "saved\n" in shown
