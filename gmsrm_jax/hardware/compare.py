"""Reads what --mode=benchmark wrote, and lays several machines side by side. Needs no device."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import tabulate

from gmsrm_jax import files
from gmsrm_jax.errors import ConfigError, require

FORMAT, VERSION = "gmsrm_jax benchmark", 1

PROGRAMS = {"memory": "stage 1", "inpaint": "stage 2", "fill": "fill"}

# Heading, format, whether a ratio says something, value of a row. Compiling is timed once, so that noise may decide.
_MEASURES: tuple[tuple[str, str, bool, Callable[[dict[str, Any]], float | None]], ...] = (
  ("images/s", ".4g", True, lambda row: row["images_per_second"]),
  ("seconds", ".4g", True, lambda row: row["device_seconds" if row["program"] == "fill" else "seconds"]["median"]),
  ("one call, s", ".4g", True, lambda row: (row.get("call_seconds") or {}).get("median")),
  ("compile, s", ".1f", False, lambda row: row["compile_seconds"]),
  ("planned, GiB", ".2f", True, lambda row: _scaled(row["memory"]["planned_bytes"], 2.0**-30)),
  ("of published peak, %", ".1f", False, lambda row: _scaled(row["utilisation"]["of_published"], 100)),
  ("of measured matmul, %", ".1f", False, lambda row: _scaled(row["utilisation"]["of_measured"], 100)),
)


_TIMES: dict[str, Callable[[dict[str, Any]], dict[str, float] | None]] = {
  **dict.fromkeys(
    ("images/s", "seconds"), lambda row: row["device_seconds" if row["program"] == "fill" else "seconds"]
  ),
  "one call, s": lambda row: row.get("call_seconds"),
}
"""Quartiles of the times that a measure was taken from."""

_ALIKE = "(alike)"


def _scaled(value: float | None, factor: float) -> float | None:
  return None if value is None else value * factor


def compare(paths: Sequence[str]) -> str:
  """The table of several files; ratios are to the first. Raises ConfigError for fewer than two, and what is none."""
  require(len(paths) > 1, "--compare needs at least two files: give those that --mode=benchmark wrote")
  stems = [pathlib.Path(path).stem for path in paths]
  names = stems if len(set(stems)) == len(paths) else paths
  return table({name: read(path) for name, path in zip(names, paths, strict=True)})


def read(path: str) -> dict[str, Any]:
  """A file of this version. Raises ConfigError where it is missing, or something else."""
  try:
    document = files.read_json(path)
  except (OSError, ValueError):  # missing, no JSON, no text
    document = None
  if not isinstance(document, dict) or (document.get("format"), document.get("version")) != (FORMAT, VERSION):
    raise ConfigError(f"--compare {path} is no file of --mode=benchmark, version {VERSION}: give files that it wrote")
  return document


def title(row: dict[str, Any]) -> str:
  """Names what was measured; rows with the same title are the same measurement."""
  return f"{PROGRAMS[row['program']]} {row['size']} batch {row['batch']}"


def table(documents: dict[str, dict[str, Any]]) -> str:
  """Every row of files by name; a ratio only where the settings are those of the first file that has the row."""
  by_title = {name: {title(row): row for row in document["rows"]} for name, document in documents.items()}
  cells, notes = [], []
  for heading in dict.fromkeys(heading for rows in by_title.values() for heading in rows):
    rows = {name: by_title[name].get(heading) for name in documents}
    reference = next(_settings(documents[name], row) for name, row in rows.items() if row)
    marked = []
    for name, row in rows.items():
      others = _differences(reference, _settings(documents[name], row)) if row else []
      marked.append(bool(others))
      if others:
        notes.append(f"* {heading}, {name}: not comparable, other {', '.join(others)}")
    for index, line in enumerate(_lines(list(rows.values()), marked)):
      cells.append(["" if index else heading, *line])
  heads = [f"{name}: {headline(document)}" for name, document in documents.items()]
  if any(_ALIKE in cell for line in cells for cell in line):
    notes.append(f"{_ALIKE}: the middle halves of the repetitions overlap, so noise may decide which is faster")
  alignment = ["left", "left", *["right"] * len(documents)] if cells else None
  body = tabulate.tabulate(cells, ["", "", *documents], "plain", disable_numparse=True, colalign=alignment)
  return "\n".join([*heads, "", body, *([""] if notes else []), *notes])


def _settings(document: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
  """The settings that must be equal, or two rows say nothing about two machines; a fill has no loss."""
  sections = ("memory", "variation") if row["program"] == "fill" else ("memory", "variation", "loss")
  settings = {name: row[name] for name in ("dtype", "accumulate", "remat", "model")}
  return settings | {name: document["settings"][name] for name in sections}


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
  """Names of values that differ; in a section only those count that both files know, which may be of two versions."""

  def differ(a: Any, b: Any) -> bool:
    return any(a[key] != b[key] for key in a.keys() & b.keys()) if isinstance(a, dict) else a != b

  return [name for name in one if differ(one[name], other[name])]


def _lines(rows: Sequence[dict[str, Any] | None], marked: Sequence[bool]) -> list[list[str]]:
  """A line for every measure that any of these rows of one title has."""
  missing = ["-" if row is None or row["status"] == "ok" else row["status"] for row in rows]
  lines = []
  for heading, form, rated, value in _MEASURES:
    values = [value(row) if row is not None and row["status"] == "ok" else None for row in rows]
    texts = [text if item is None else format(item, form) for item, text in zip(values, missing, strict=True)]
    for index, item in enumerate(values):
      if item is not None and marked[index]:
        texts[index] += " *"
      elif item is not None and index and rated and values[0]:
        texts[index] += f" {_ALIKE}" if _overlap(heading, rows[0], rows[index]) else f" (x{item / values[0]:.3g})"
    if any(item is not None for item in values):
      lines.append([heading, *texts])
  return lines or [["", *missing]]


def _overlap(heading: str, one: dict[str, Any] | None, other: dict[str, Any] | None) -> bool:
  """True where the middle halves of the repetitions have times in common."""
  times = [_TIMES[heading](row) if heading in _TIMES and row is not None else None for row in (one, other)]
  known = [time for time in times if time]
  return len(known) == 2 and max(time["q1"] for time in known) <= min(time["q3"] for time in known)


def headline(document: dict[str, Any]) -> str:
  """Devices, versions and commit in one line."""
  here, peak = document["machine"], document.get("peak", {})
  kind = here["cpu"] if here["platform"] == "cpu" else here["device_kind"]
  published = f"{peak['published_flops'] / 1e12:.0f} TFLOP/s published, " if peak.get("published_flops") else ""
  return (
    f"{here['device_count']} x {kind}, {here['cores']} cores, load {here['load_average'][0]:.2f}, "
    f"{published}{peak.get('measured_flops', 0.0) / 1e12:.3g} TFLOP/s measured ({peak.get('measured_with')}), "
    f"jax {here['versions']['jax']}, commit {(here['commit'] or 'unknown')[:7]}, {document['made'][:10]}"
    f"{'' if document['finished'] else ', UNFINISHED'}; operations: "
    f"{document.get('flops_from', 'matrix products and convolutions of the traced program')}"
  )
