"""Errors that the user can mend, and the checks that raise them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class ConfigError(ValueError):
  """A setting, flag, file or folder that the user must change; `run.py` prints it as one line."""


class SharedError(ConfigError):
  """An error that all processes of a run raise at the same place, so that they end together."""


def require(condition: bool, message: str) -> None:
  """Raises ConfigError with the message unless the condition holds."""
  if not condition:
    raise ConfigError(message)


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
  """Raises ConfigError, with the closest choice, unless the value is one of them."""
  require(value in choices, f"{name}={value!r} is unknown: {suggest(value, choices)}choose from {', '.join(choices)}")


def suggest(name: str, choices: Sequence[str]) -> str:
  """`did you mean 'x'? ` for the closest choice, or nothing when none is close."""
  close = difflib.get_close_matches(name, choices, n=1)
  return f"did you mean {close[0]!r}? " if close else ""
