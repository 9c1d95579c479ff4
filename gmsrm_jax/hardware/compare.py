"""--mode=benchmark --compare: what several machines measured, side by side. Needs no device."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from gmsrm_jax import files
from gmsrm_jax.errors import ConfigError, require

FORMAT, VERSION = "gmsrm_jax benchmark", 1

PROGRAMS = {"memory": "stage 1", "inpaint": "stage 2", "fill": "fill"}

# Equal, or two numbers say nothing about two machines.
_OF_ROW = ("dtype", "accumulate", "remat", "model")
_OF_FILE = ("memory", "variation", "loss")


def read(path: str) -> dict[str, Any]:
  """A file of this version.

  Raises:
    ConfigError: it is missing, or something else.
  """
  try:
    document = files.read_json(path)
  except OSError as error:
    raise ConfigError(
      f"--compare {path} cannot be read ({error.strerror}): give files that --mode=benchmark wrote"
    ) from None
  except ValueError:  # no JSON, no text
    document = {}
  if not isinstance(document, dict) or document.get("format") != FORMAT:
    raise ConfigError(f"--compare {path} is no file of --mode=benchmark: give files that it wrote")
  require(
    document.get("version") == VERSION,
    f"--compare {path} has version {document.get('version')} of the format, this code writes {VERSION}: measure again",
  )
  return document


def compare(paths: Sequence[str]) -> str:
  """The table of several files; ratios are to the first."""
  require(len(paths) > 1, "--compare needs at least two files: give those that --mode=benchmark wrote")
  return table([read(path) for path in paths], [pathlib.Path(path).stem for path in paths])


def key(row: dict[str, Any]) -> tuple[str, str, int]:
  """What makes two rows the same measurement."""
  return row["program"], row["size"], row["batch"]


def differences(one: dict[str, Any], other: dict[str, Any], row: dict[str, Any], same: dict[str, Any]) -> list[str]:
  """Names of the settings in which two rows of one key differ, so that they cannot be compared."""
  names = [name for name in _OF_ROW if row[name] != same[name]]
  sections = _OF_FILE if row["program"] != "fill" else ("memory", "variation")
  return names + [name for name in sections if one["settings"][name] != other["settings"][name]]


def _seconds(row: dict[str, Any]) -> dict[str, Any]:
  return row["device_seconds" if row["program"] == "fill" else "seconds"]


# What is shown: heading, value of a row, how it is written, whether a ratio says something.
_SHOWN: tuple[tuple[str, Callable[[dict[str, Any]], float | None], str, bool], ...] = (
  ("images/s", lambda row: row["images_per_second"], "{:.4g}", True),
  ("seconds", lambda row: _seconds(row)["median"], "{:.4g}", True),
  ("with copies, images/s", lambda row: row.get("images_per_second_with_copies"), "{:.4g}", True),
  (
    "one call, ms",
    lambda row: 1e3 * row["call_seconds"]["median"] if row.get("call_seconds") else None,
    "{:.4g}",
    True,
  ),
  ("compile, s", lambda row: row["compile_seconds"], "{:.1f}", True),
  ("planned, GiB", lambda row: _gib(row["memory"]["planned_bytes"]), "{:.2f}", True),
  ("peak, GiB", lambda row: _gib(row["memory"]["peak_bytes"]), "{:.2f}", True),
  ("of published peak, %", lambda row: _percent(row["utilisation"]["of_published"]), "{:.1f}", False),
  ("of measured matmul, %", lambda row: _percent(row["utilisation"]["of_measured"]), "{:.1f}", False),
)


def _gib(size: int | None) -> float | None:
  return None if size is None else size / 2**30


def _percent(share: float | None) -> float | None:
  return None if share is None else 100.0 * share


def table(documents: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
  """Rows of all files; a ratio only where the settings are the same."""
  lines = [f"{name}: {headline(document)}" for name, document in zip(names, documents, strict=True)]
  cells = [["", "", *names]]
  found = [{key(row): row for row in document["rows"]} for document in documents]
  order = list(dict.fromkeys(each for rows in found for each in rows))
  notes = []
  for each in order:
    program, size, batch = each
    title = f"{PROGRAMS[program]} {size} batch {batch}"
    rows = [mine.get(each) for mine in found]
    marks = _marks(documents, rows)
    notes += [
      f"* {title}, {name}: not comparable, other {mark}" for name, mark in zip(names, marks, strict=True) if mark
    ]
    shown = False
    for heading, value, form, rated in _SHOWN:
      values = [value(row) if row is not None and row["status"] == "ok" else None for row in rows]
      if all(item is None for item in values):
        continue
      reference = values[0]
      texts = []
      for index, (item, row, mark) in enumerate(zip(values, rows, marks, strict=True)):
        text = _missing(row) if item is None else form.format(item)
        if item is not None and mark:
          text += " *"
        elif item is not None and index and rated and reference:
          text += f" (x{item / reference:.3g})"
        texts.append(text)
      cells.append([title if not shown else "", heading, *texts])
      shown = True
    if not shown:
      cells.append([title, "", *[_missing(row) for row in rows]])
  return "\n".join([*lines, "", *aligned(cells), *([""] if notes else []), *notes])


def _marks(documents: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any] | None]) -> list[str]:
  """For every file, in what its row differs from that of the first file that has one; '' where in nothing."""
  first = next(index for index, row in enumerate(rows) if row is not None)
  reference = rows[first]
  assert reference is not None, "a key comes from a row"
  return [
    "" if row is None else ", ".join(differences(documents[first], document, reference, row))
    for document, row in zip(documents, rows, strict=True)
  ]


def _missing(row: dict[str, Any] | None) -> str:
  return "-" if row is None or row["status"] == "ok" else row["status"]


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
  """Lines of columns, the first two to the left, the others to the right."""
  widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
  return [
    "  ".join(
      text.ljust(width) if column < 2 else text.rjust(width)
      for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ).rstrip()
    for row in cells
  ]


def headline(document: dict[str, Any]) -> str:
  """Devices, versions and commit in one line."""
  here = document["machine"]
  kind = here["cpu"] if here["platform"] == "cpu" else here["device_kind"]
  peak = document.get("peak", {})
  published = f"{peak['published_flops'] / 1e12:.0f} TFLOP/s published, " if peak.get("published_flops") else ""
  return (
    f"{here['device_count']} x {kind}, {here['cores']} cores, load {here['load_average'][0]}, "
    f"{published}{peak.get('measured_flops', 0.0) / 1e12:.3g} TFLOP/s measured ({peak.get('measured_with')}), "
    f"jax {here['versions']['jax']}, commit {(here['commit'] or 'unknown')[:7]}, {document['made'][:10]}"
    f"{'' if document['finished'] else ', UNFINISHED'}"
  )


def line(row: dict[str, Any]) -> str:
  """A row in one line, for the console."""
  title = f"{PROGRAMS[row['program']]} {row['size']} batch {row['batch']}"
  if row["status"] != "ok":
    return f"{title}: {row['status']}"
  return (
    f"{title}: {row['images_per_second']:.4g} images/s, {_seconds(row)['median']:.4g} s, "
    f"compiled in {row['compile_seconds']:.1f} s"
  )


def describe(document: dict[str, Any]) -> str:
  """All of one file for the console: the table, the parts, and what was left out."""
  lines = [table([document], ["here"])]
  for row in document["rows"]:
    if "parts" not in row:
      continue
    whole = _seconds(row)["median"]
    lines.append(f"\n{PROGRAMS[row['program']]} {row['size']} batch {row['batch']}, each part timed by itself")
    cells = [["  part", "", "ms", "% of the whole", "GFLOP", "% of measured matmul"]]
    for part in row["parts"]:
      flops, used = part["flops"], part["utilisation"]
      cells.append(
        [
          f"  {part['part']}",
          "",
          f"{1e3 * part['seconds']:.1f}",
          f"{100 * part['share']:.1f}",
          "-" if flops is None else f"{flops / 1e9:.3g}",
          "-" if used is None else f"{100 * used['of_measured']:.1f}",
        ]
      )
    cells.append(["  whole", "", f"{1e3 * whole:.1f}", "100.0", f"{row['flops'] / 1e9:.3g}", ""])
    lines += aligned(cells)
    if "input_seconds" in row:
      waits = f"the step would wait for {row['input_wait_share']:.0%} of the time"
      lines.append(f"  input: {1e3 * row['input_seconds']:.1f} ms a batch; {waits}")
  lines += [f"left out: {text}" for text in document["left_out"]]
  return "\n".join(lines)
