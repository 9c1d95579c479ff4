"""Files of several machines side by side: ratios, what cannot be compared, and what is no such file."""

from __future__ import annotations

import json
import pathlib

import pytest

import run
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.hardware import compare
from gmsrm_jax.parallel import backend

MODEL = {"size": "small", "image_size": 128, "widths": [32, 128, 256]}


def row(program: str, images_per_second: float, **changes) -> dict:
  batch = changes.get("batch", 8)
  seconds = {"median": batch / images_per_second, "q1": 0.1, "q3": 0.2, "p95": 0.3, "repeats": 5, "calls": 1}
  return {
    "program": program,
    "size": "small",
    "batch": batch,
    "dtype": "float32",
    "accumulate": 1,
    "remat": "",
    "model": MODEL,
    "status": "ok",
    "seconds": seconds,
    "device_seconds": seconds,
    "call_seconds": None,
    "images_per_second": images_per_second,
    "compile_seconds": 30.0,
    "flops": 8e11,
    "memory": {"planned_bytes": 3 * 2**30},
    "utilisation": {"of_published": None, "of_measured": 0.25},
    **changes,
  }


def document(*rows: dict, platform: str = "cpu", kind: str = "cpu") -> dict:
  return {
    "format": compare.FORMAT,
    "version": compare.VERSION,
    "made": "2026-01-02T03:04:05+00:00",
    "finished": True,
    "machine": {
      "platform": platform,
      "device_kind": kind,
      "device_count": 1,
      "cpu": "A Processor",
      "cores": 2,
      "load_average": [0.5, 0.5, 0.5],
      "versions": {"jax": "0.10.2"},
      "commit": "0123456789",
    },
    "peak": {"published_flops": None, "measured_flops": 1e11, "measured_with": "a product"},
    "settings": {"memory": {"num_groups": 16}, "variation": {"enabled": True}, "loss": {"hole": 6.0}},
    "left_out": [],
    "rows": list(rows),
  }


def line_of(text: str, heading: str) -> str:
  (line,) = [line for line in text.splitlines() if f" {heading} " in line]
  return line


def test_ratios_are_to_the_first_file():
  here, there = document(row("inpaint", 2.0)), document(row("inpaint", 300.0), platform="gpu", kind="NVIDIA H200")
  text = compare.table({"a": here, "b": there})
  assert "a: 1 x A Processor" in text and "b: 1 x NVIDIA H200" in text
  assert line_of(text, "images/s").split() == ["stage", "2", "small", "batch", "8", "images/s", "2", "300", "(x150)"]
  assert line_of(text, "seconds").split()[-3:] == ["4", "0.02667", "(x0.00667)"]
  # A share of one's own peak is no speed.
  assert line_of(text, "of measured matmul, %").split()[-2:] == ["25.0", "25.0"]
  # What nobody knows has no line.
  assert "of published peak" not in text


@pytest.mark.parametrize(
  ("change", "name"),
  [({"dtype": "bfloat16"}, "dtype"), ({"accumulate": 2}, "accumulate"), ({"model": {**MODEL, "widths": [8]}}, "model")],
)
def test_rows_of_other_settings_are_marked_and_have_no_ratio(change, name):
  text = compare.table({"a": document(row("memory", 2.0)), "b": document(row("memory", 4.0, **change))})
  assert line_of(text, "images/s").split()[-3:] == ["2", "4", "*"]
  assert f"* stage 1 small batch 8, b: not comparable, other {name}" in text
  assert "(x" not in text


def test_settings_of_the_whole_file_count_where_they_matter():
  one, other = document(row("inpaint", 2.0), row("fill", 2.0)), document(row("inpaint", 4.0), row("fill", 4.0))
  other["settings"] = {**one["settings"], "loss": {"hole": 5.0}}
  text = compare.table({"a": one, "b": other})
  assert "* stage 2 small batch 8, b: not comparable, other loss" in text
  assert "fill small batch 8, b: not comparable" not in text  # a fill has no loss


def test_another_batch_is_another_row_and_what_is_missing_is_said():
  one = document(row("inpaint", 2.0), row("memory", 1.0))
  other = document(row("inpaint", 4.0, batch=32), {**row("memory", 1.0), "status": "out of memory"})
  rates = [
    line.split("images/s")[1].split()
    for line in compare.table({"a": one, "b": other}).splitlines()
    if "images/s" in line
  ]
  assert rates == [["2", "-"], ["1", "out", "of", "memory"], ["-", "4"]]


def test_the_command_compares_files_written_today_and_before(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(backend, "select", lambda name: None)  # JAX is here already
  today = tmp_path / "today.json"
  today.write_text(json.dumps({**document(row("fill", 8.0)), "flops_from": "XLA"}), encoding="utf-8")
  stored = pathlib.Path(run.__file__).parent / "benchmarks/results/cpu_2core.json"
  assert run.main(["--mode=benchmark", "--compare", str(stored), str(today)]) == 0
  text = capsys.readouterr().out
  assert "cpu_2core: 1 x AMD EPYC" in text and " 19.57 " in text


@pytest.mark.parametrize(
  "content", [{**document(), "version": compare.VERSION + 1}, {"rows": []}, [1], "no JSON", None]
)
def test_a_foreign_file_is_refused(tmp_path, content):
  bad = tmp_path / "bad.json"
  if content is not None:
    bad.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
  with pytest.raises(ConfigError) as caught:
    compare.compare([str(bad), str(bad)])
  assert str(bad) in str(caught.value) and f"version {compare.VERSION}" in str(caught.value)


def test_one_file_cannot_be_compared():
  with pytest.raises(ConfigError, match="two files"):
    compare.compare(["a.json"])
