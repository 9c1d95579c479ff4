"""Files of several machines side by side: ratios, what cannot be compared, and what is no such file."""

from __future__ import annotations

import copy
import json
import pathlib

import pytest

import gmsrm_jax
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.hardware import compare

STORED = pathlib.Path(gmsrm_jax.__file__).parents[1] / "benchmarks/results/cpu_2core.json"


def pair(program: str, **changes):
  """The measurement by two cores of one program at batch 4, and the same with changes."""
  one = compare.read(str(STORED))
  one["rows"] = [row for row in one["rows"] if (row["program"], row["size"], row["batch"]) == (program, "small", 4)]
  other = copy.deepcopy(one)
  other["rows"][0] |= changes
  return {"a": one, "b": other}


def line_of(text: str, heading: str) -> str:
  (line,) = [line for line in text.splitlines() if f" {heading} " in line]
  return line


def test_ratios_are_to_the_first_file():
  files = pair("inpaint", images_per_second=150 * 1.804533914107313)
  files["b"]["rows"][0]["seconds"] |= {"q1": 0.01, "median": 0.015, "q3": 0.02}
  files["b"]["machine"] |= {"platform": "gpu", "device_kind": "NVIDIA H200"}
  text = compare.table(files)
  assert "a: 1 x AMD EPYC" in text and "b: 1 x NVIDIA H200" in text
  assert line_of(text, "images/s").split()[-4:] == ["images/s", "1.805", "270.7", "(x150)"]
  # A share of one's own peak is no speed.
  assert line_of(text, "of measured matmul, %").split()[-2:] == ["75.3", "75.3"]
  # What nobody knows has no line.
  assert "of published peak" not in text


@pytest.mark.parametrize(("longer", "said"), [(1.01, "(alike)"), (1.5, "(x1.5)")])
def test_where_repetitions_overlap_there_is_no_ratio(longer, said):
  files = pair("fill")
  times = files["b"]["rows"][0]["device_seconds"]
  times |= {name: longer * times[name] for name in ("q1", "median", "q3")}
  text = compare.table(files)
  assert line_of(text, "seconds").endswith(said) and ("overlap" in text) == (said == "(alike)")
  assert "(" not in line_of(text, "compile, s"), "it is timed once"


@pytest.mark.parametrize("name", ["dtype", "accumulate", "model"])
def test_rows_of_other_settings_are_marked_and_have_no_ratio(name):
  text = compare.table(pair("memory", **{name: {"widths": [8]} if name == "model" else "another"}))
  assert line_of(text, "images/s").split()[-3:] == ["3.329", "3.329", "*"]
  assert f"* stage 1 small batch 4, b: not comparable, other {name}" in text and "(x" not in text


@pytest.mark.parametrize(("program", "said"), [("inpaint", True), ("fill", False)])
def test_losses_of_the_file_count_where_they_matter(program, said):
  files = pair(program)
  files["b"]["settings"]["loss"]["hole"] += 1.0
  assert ("not comparable, other loss" in compare.table(files)) == said


def test_a_setting_that_one_version_lacks_is_no_difference():
  files = pair("inpaint")
  del files["b"]["settings"]["loss"]["hole"]
  assert "not comparable" not in compare.table(files)


def test_another_batch_is_another_row_and_what_is_missing_is_said():
  rates = [
    [line.split("images/s")[1].split() for line in compare.table(files).splitlines() if " images/s " in line]
    for files in (pair("fill", batch=32), pair("fill", status="out of memory"))
  ]
  assert rates == [[["17.88", "-"], ["-", "17.88"]], [["17.88", "out", "of", "memory"]]]


@pytest.mark.parametrize(
  "content", ['{"rows": []}', json.dumps({"format": compare.FORMAT, "version": 0}), "none", None]
)
def test_a_foreign_file_is_refused(tmp_path, content):
  bad = tmp_path / "bad.json"
  if content is not None:
    bad.write_text(content, encoding="utf-8")
  with pytest.raises(ConfigError) as caught:
    compare.compare([str(STORED), str(bad)])
  assert str(bad) in str(caught.value) and f"version {compare.VERSION}" in str(caught.value)


def test_files_of_one_name_in_two_folders_keep_a_column_each(tmp_path):
  copied = tmp_path / STORED.name
  copied.write_bytes(STORED.read_bytes())
  assert compare.compare([str(STORED), str(copied)]).count("(alike)") > 10


def test_one_file_cannot_be_compared():
  with pytest.raises(ConfigError, match="two files"):
    compare.compare([str(STORED)])
