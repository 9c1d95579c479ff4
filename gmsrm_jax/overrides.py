"""Settings by their dotted keys: `--set KEY=VALUE`, and the configuration as nested dicts and JSON."""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gmsrm_jax.config import SIZES, Config, StageConfig
from gmsrm_jax.errors import ConfigError, one_of, require, suggest

ANYTHING: Any = object()
RETIRED: dict[str, Any] = {
  "data.max_bad_share": 0.01,
  "variation.probability": ANYTHING,
  "memory.usage_decay": 0.99,
  "memory.revive_below": 0.05,
  "memory.top": 0,
  "stage1.final_rate": 0.05,
  "stage1.beta2": 0.99,
  "stage2.final_rate": 0.05,
  "stage2.beta2": 0.99,
  "eval.bootstrap_seed": 0,
  "eval.telea_radius": 3.0,
}
"""Settings of older versions to the value they are fixed at now; ANYTHING where a trained model works with any.

A file that says this value is read, and one that says another is refused.
"""


def override(config: Config, assignments: Sequence[str]) -> Config:
  """Applies KEY=VALUE strings with dotted keys, such as `memory.num_groups=1`.

  `model.size` takes its whole preset first, wherever it stands. The configuration is built once, after the last
  assignment, so a check sees only final values.

  Raises:
    ConfigError: the key is unknown or given twice, the value has the wrong type, or a check fails.
  """
  texts: dict[str, str] = {}
  for assignment in assignments:
    key, equals, text = assignment.partition("=")
    key = key.strip()
    require(bool(equals), f"--set {assignment!r} has no '=': write KEY=VALUE, for example memory.num_groups=1")
    require(key not in RETIRED, f"setting {key!r} can no longer be changed: leave it out")
    require(key in settings(), _unknown_setting(key))
    require(key not in texts, f"setting {key!r} is given twice, {texts.get(key)!r} and {text.strip()!r}: give it once")
    texts[key] = text.strip()
  changes = {key: _parse(text, settings()[key].type) for key, text in texts.items()}
  size = changes.get("model.size")
  preset = _flat({"model": to_dict(SIZES[size])}) if size in SIZES else {}
  return _build(_flat(to_dict(config)) | preset | changes)


def to_dict(config: Any) -> dict[str, Any]:
  """The configuration, or one section of it, as nested dicts that JSON can hold."""
  return dataclasses.asdict(config)


def from_dict(tree: Mapping[str, Any]) -> Config:
  """Inverts `to_dict`; a setting that is newer than the tree takes its default, which means what was done before.

  Raises:
    ConfigError: a setting is unknown or of the wrong type, one without a default is missing, or a check fails.
  """
  given = _flat(tree)
  for key in RETIRED.keys() & given.keys():
    value, fixed = given.pop(key), RETIRED[key]
    require(
      fixed is ANYTHING or value == fixed,
      f"{key}={value} can no longer be changed, it is {fixed} now: leave it out, or use the version that wrote it",
    )
  for key in given:
    require(key in settings(), _unknown_setting(key))
  for key, setting in settings().items():
    known = key in given or setting.default is not dataclasses.MISSING
    require(known, f"setting {key!r} is missing: the configuration was written by another version")
  return _build({key: setting.default for key, setting in settings().items()} | given)


def differences(old: Config, new: Config) -> list[str]:
  """One line `key: old -> new` for every setting that differs."""
  before, after = _flat(to_dict(old)), _flat(to_dict(new))
  return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


class Setting(NamedTuple):
  """The type of a setting, and its default: dataclasses.MISSING where there is none."""

  type: Any
  default: Any


@functools.cache
def settings() -> dict[str, Setting]:
  """Dotted key to type and default, for every setting."""
  known: dict[str, Setting] = {}
  for section, owner in (("", Config), *_sections().items()):
    types = typing.get_type_hints(owner)
    for field in dataclasses.fields(owner):
      if field.name not in _sections() or section:
        known[f"{section}.{field.name}" if section else field.name] = Setting(types[field.name], field.default)
  return known


@functools.cache
def _sections() -> dict[str, Any]:
  """Section to its dataclass."""
  return {name: hint for name, hint in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(hint)}


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Dotted key to value."""
  flat: dict[str, Any] = {}
  for name, value in tree.items():
    inside = name in _sections() and isinstance(value, Mapping)
    flat |= {f"{name}.{key}": item for key, item in value.items()} if inside else {name: value}
  return flat


def _build(flat: Mapping[str, Any]) -> Config:
  """The configuration from a value for every dotted key."""
  arguments: dict[str, dict[str, Any]] = {}
  for key, value in flat.items():
    section, _, name = key.rpartition(".")
    arguments.setdefault(section, {})[name] = _convert(key, value, settings()[key].type)
  one_of("model.size", arguments["model"]["size"], tuple(SIZES))
  sections = {}
  for name, section in _sections().items():
    try:
      sections[name] = section(**arguments[name])
    except ConfigError as error:
      # A StageConfig cannot know which stage it configures; the other sections name themselves.
      raise (ConfigError(f"{name}.{error}") if section is StageConfig else error) from None
  return Config(**arguments[""], **sections)


def _unknown_setting(key: str) -> str:
  """The message for a key that names no setting."""
  keys = list(settings())
  section = key.rpartition(".")[0]
  inside = [other for other in keys if other.startswith(f"{section or key}.")]
  if inside and not section:
    return f"{key!r} is a section, not a setting: set one of {', '.join(inside)}"
  hint = suggest(key, keys)
  names = [other.rpartition(".")[2] for other in inside] or ["name", *_sections()]
  return f"unknown setting {key!r}: {hint}{f'settings of {section}' if inside else 'sections'}: {', '.join(names)}"


_EXAMPLES: dict[Any, tuple[str, str]] = {
  str: ("text", "NAME"),
  bool: ("true or false", "true"),
  int: ("a whole number", "4"),
  float: ("a finite number", "0.5"),
  tuple[int, ...]: ("whole numbers with commas between", "32,64,128"),
}


def _parse(text: str, kind: Any) -> Any:
  """The value that a text stands for, or the text itself where it stands for none of the type."""
  if kind is bool:
    return {"true": True, "false": False}.get(text.lower(), text)
  try:
    return tuple(map(int, text.strip("()[], ").split(","))) if kind == tuple[int, ...] else kind(text)
  except ValueError:
    return text


def _convert(key: str, value: Any, kind: Any) -> Any:
  """The value as its setting has it: lists become tuples, whole numbers floats. Any other type is refused."""
  if isinstance(value, list):
    value = tuple(value)
  if kind is float and type(value) is int:
    value = float(value)
  if kind == tuple[int, ...]:
    fits = isinstance(value, tuple) and all(type(item) is int for item in value)
  else:
    fits = type(value) is kind and (kind is not float or math.isfinite(value))
  expected, example = _EXAMPLES[kind]
  require(fits, f"{key}={value!r} has the wrong type: give {expected}, for example {key}={example}")
  return value
