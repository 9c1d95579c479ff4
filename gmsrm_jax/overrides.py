"""Settings by their dotted keys: `--set KEY=VALUE`, and the configuration as nested dicts and JSON."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from gmsrm_jax.config import SIZES, Config, StageConfig
from gmsrm_jax.errors import ConfigError, one_of, require

ANYTHING: Any = object()
RETIRED: dict[str, Any] = {
  "variation.probability": ANYTHING,
  "memory.usage_decay": 0.99,
  "memory.revive_below": 0.05,
  "stage1.final_rate": 0.05,
  "stage1.beta2": 0.99,
  "stage2.final_rate": 0.05,
  "stage2.beta2": 0.99,
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
  types = setting_types()
  texts: dict[str, str] = {}
  for assignment in assignments:
    key, equals, text = assignment.partition("=")
    key = key.strip()
    require(bool(equals), f"--set {assignment!r} has no '=': write KEY=VALUE, for example memory.num_groups=1")
    require(key not in RETIRED, f"setting {key!r} can no longer be changed: leave it out")
    require(key in types, _unknown_setting(key))
    require(key not in texts, f"setting {key!r} is given twice, {texts.get(key)!r} and {text.strip()!r}: give it once")
    texts[key] = text.strip()
  values = {key: _parse(key, text, types[key]) for key, text in texts.items()}

  tree = to_dict(config)
  if "model.size" in values:
    one_of("model.size", values["model.size"], tuple(SIZES))
    tree["model"] = to_dict(SIZES[values["model.size"]])
  for key, value in values.items():
    section, _, name = key.rpartition(".")
    (tree[section] if section else tree)[name] = value
  return from_dict(tree)


def to_dict(config: Any) -> dict[str, Any]:
  """The configuration, or one section of it, as nested dicts and lists that JSON can hold."""
  return {
    field.name: to_dict(value) if dataclasses.is_dataclass(value) else list(value) if type(value) is tuple else value
    for field in dataclasses.fields(config)
    for value in [getattr(config, field.name)]
  }


def from_dict(tree: Mapping[str, Any]) -> Config:
  """Inverts `to_dict`; a setting that is newer than the tree takes its default, which means what was done before.

  Raises:
    ConfigError: a setting is unknown or of the wrong type, one without a default is missing, or a check fails.
  """
  classes, types = _section_classes(), setting_types()
  given: dict[str, Any] = {}
  for name, value in tree.items():
    if name in classes and isinstance(value, Mapping):
      given |= {f"{name}.{key}": item for key, item in value.items()}
    else:
      given[name] = value
  for key in RETIRED.keys() & given.keys():
    value, fixed = given.pop(key), RETIRED[key]
    require(
      fixed is ANYTHING or value == fixed,
      f"{key}={value} can no longer be changed, it is {fixed} now: leave it out, or use the version that wrote it",
    )
  for key in given:
    require(key in types, _unknown_setting(key))
  for key, default in _defaults().items():
    known = key in given or default is not dataclasses.MISSING
    require(known, f"setting {key!r} is missing: the configuration was written by another version")
    given.setdefault(key, default)
  values = {key: _convert(key, value, types[key]) for key, value in given.items()}
  one_of("model.size", values["model.size"], tuple(SIZES))

  sections = {}
  for name, section in classes.items():
    arguments = {field.name: values[f"{name}.{field.name}"] for field in dataclasses.fields(section)}
    try:
      sections[name] = section(**arguments)
    except ConfigError as error:
      # A StageConfig cannot know which stage it configures; the other sections name themselves.
      raise (ConfigError(f"{name}.{error}") if section is StageConfig else error) from None
  return Config(**{key: value for key, value in values.items() if "." not in key}, **sections)


def differences(old: Config, new: Config) -> list[str]:
  """One line `key: old -> new` for every setting that differs."""
  before, after = _flat(old), _flat(new)
  return [f"{key}: {before[key]} -> {after[key]}" for key in before if before[key] != after[key]]


def _section_classes() -> dict[str, Any]:
  """Section to its dataclass."""
  return {name: hint for name, hint in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(hint)}


def setting_types() -> dict[str, Any]:
  """Dotted key to type, for every setting."""
  classes = _section_classes()
  types: dict[str, Any] = {}
  for name, hint in typing.get_type_hints(Config).items():
    if name in classes:
      types |= {f"{name}.{key}": inner for key, inner in typing.get_type_hints(hint).items()}
    else:
      types[name] = hint
  return types


def _defaults() -> dict[str, Any]:
  """Dotted key to default, MISSING where there is none, for every setting."""
  defaults: dict[str, Any] = {}
  classes = _section_classes()
  for outer in dataclasses.fields(Config):
    if outer.name in classes:
      defaults |= {f"{outer.name}.{field.name}": field.default for field in dataclasses.fields(classes[outer.name])}
    else:
      defaults[outer.name] = outer.default
  return defaults


def _flat(config: Config) -> dict[str, Any]:
  """Dotted key to value, for every setting."""
  flat: dict[str, Any] = {}
  for name, value in to_dict(config).items():
    flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
  return flat


def _unknown_setting(key: str) -> str:
  """The one line for a key that names no setting."""
  keys = list(setting_types())
  section, _, leaf = key.rpartition(".")
  inside = [other for other in keys if other.startswith(f"{section or key}.")]
  if inside and not section:
    return f"{key!r} is a section, not a setting: set one of {', '.join(inside)}"
  # The right setting in the wrong section, or in none, is likelier than a similar spelling.
  close = [other for other in keys if other.rpartition(".")[2] == leaf] or difflib.get_close_matches(key, keys, n=1)
  hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
  names = [other.rpartition(".")[2] for other in inside] or ["name", *_section_classes()]
  return f"unknown setting {key!r}: {hint}{f'settings of {section}' if inside else 'sections'}: {', '.join(names)}"


_EXAMPLES: dict[Any, tuple[str, str]] = {
  str: ("text", "NAME"),
  bool: ("true or false", "true"),
  int: ("a whole number", "4"),
  float: ("a finite number", "0.5"),
  tuple[int, ...]: ("whole numbers with commas between", "32,64,128"),
}


def _wrong_type(key: str, value: Any, kind: Any) -> str:
  expected, example = _EXAMPLES[kind]
  return f"{key}={value} has the wrong type: give {expected}, for example {key}={example}"


def _parse(key: str, text: str, kind: Any) -> Any:
  """Reads the text of one assignment as the type of its setting."""
  if kind is bool:
    require(text.lower() in ("true", "false"), _wrong_type(key, repr(text), kind))
    return text.lower() == "true"
  try:
    if kind == tuple[int, ...]:
      return tuple(int(item) for item in text.strip("()[], ").split(","))
    value = kind(text)
  except ValueError:
    raise ConfigError(_wrong_type(key, repr(text), kind)) from None
  return _convert(key, value, kind)


def _convert(key: str, value: Any, kind: Any) -> Any:
  """Checks a value from JSON against the type of its setting: lists become tuples, whole numbers floats."""
  if kind == tuple[int, ...]:
    fits = isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
    require(fits, _wrong_type(key, value, kind))
    return tuple(value)
  if kind is float:
    require(type(value) in (int, float) and math.isfinite(value), _wrong_type(key, value, kind))
    return float(value)
  require(type(value) is kind, _wrong_type(key, value, kind))
  return value
