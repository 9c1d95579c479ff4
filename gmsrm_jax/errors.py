"""Errors that the user can mend, and the checks that raise them."""

from __future__ import annotations

import difflib
import errno
import numbers
from collections.abc import Sequence
from typing import Any

MAX_SEED = 2**32 - 1
"""The largest seed; of a larger one JAX takes the last 32 bits, which are another seed."""


class ConfigError(ValueError):
  """A setting, flag, file or folder that the user must change; `run.py` prints it as one line."""


class SharedError(ConfigError):
  """An error that all processes of a run raise at the same place, so that they end together."""


def require(condition: bool, message: str) -> None:
  """Raises ConfigError with the message unless the condition holds."""
  if not condition:
    raise ConfigError(message)


_WAYS_OUT = {
  errno.ENOSPC: "make room there, or choose another folder",
  errno.EDQUOT: "make room there, or choose another folder",
  errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
  errno.ENAMETOOLONG: "choose a shorter name",
  errno.EACCES: "change its permissions, or choose another place",
  errno.EPERM: "change its permissions, or choose another place",
  errno.EROFS: "choose a place that can be written to",
}


def is_of_a_file(error: BaseException) -> bool:
  """True for what the file system refuses, which the user can mend; anything else may be a bug of ours."""
  return isinstance(error, OSError) and (error.filename is not None or error.errno in _WAYS_OUT)


def one_line(error: Exception) -> str:
  """The message of an error; of what the file system refuses: path, reason and way out."""
  if isinstance(error, OSError) and is_of_a_file(error):
    way_out = _WAYS_OUT.get(error.errno or 0, "choose another path")
    return f"{error.filename or 'a file'}: {error.strerror or ' '.join(map(str, error.args))}: {way_out}"
  return " ".join(str(error).split())


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
  """Raises ConfigError, with the closest choice, unless the value is one of them."""
  hint = suggest(value, choices) if isinstance(value, str) else ""
  require(value in choices, f"{name}={value!r} is unknown: {hint}choose from {', '.join(choices)}")


def check_number(given: str, value: Any, kind: type, least: int, most: int | None = None) -> None:
  """Raises ConfigError, which opens with NAME=VALUE as it was given, unless the value is an int or float in range."""
  is_number = isinstance(value, numbers.Integral if kind is int else numbers.Real)
  what = "a whole number" if kind is int else "a number"
  rule = f"of {least} or more" if most is None else f"from {least} to {most}"
  fits = is_number and bool(least <= value and (most is None or value <= most))  # pyright: ignore
  require(fits, f"{given} is {'out of range' if is_number else f'not {what}'}: give {what} {rule}")


def check_seed(name: str, seed: Any) -> None:
  """Raises ConfigError for a seed that would give the numbers of another one."""
  check_number(f"{name}={seed!r}", seed, int, 0, MAX_SEED)


def suggest(name: str, choices: Sequence[str]) -> str:
  """`did you mean 'x'? ` for the closest choices, or nothing when none is close.

  The right setting in the wrong section, or in none, is likelier than a similar spelling.
  """
  leaf = name.rpartition(".")[2]
  close = [choice for choice in choices if choice.rpartition(".")[2] == leaf] or difflib.get_close_matches(
    name, choices, n=1
  )
  return f"did you mean {' or '.join(map(repr, close))}? " if close else ""


def check_ranges(settings: Any, prefix: str, *, positive: str = "", not_negative: str = "", share: str = "") -> None:
  """Refuses a setting out of its range; each argument names those of one range."""
  for name in positive.split():
    value = getattr(settings, name)
    require(value > 0, f"{prefix}{name}={value} must be greater than 0")
  for name in not_negative.split():
    value = getattr(settings, name)
    require(value >= 0, f"{prefix}{name}={value} must not be negative")
  for name in share.split():
    value = getattr(settings, name)
    require(0.0 <= value <= 1.0, f"{prefix}{name}={value} is no share: give a number from 0 to 1")
