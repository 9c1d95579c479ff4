"""Prints every setting as docs/settings.md: `python -m scripts.settings_page > docs/settings.md`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing

from tabulate import tabulate

from gmsrm_jax import config

_HEAD = """# Settings

Made from `gmsrm_jax/config.py` by `python -m scripts.settings_page`; do not edit it here. `--set KEY=VALUE` changes a
setting, `experiments/NAME.py` sets those of an experiment.
"""


def meanings() -> dict[tuple[str, str], str]:
  """(Class, field) to the comment behind the field."""
  source = inspect.getsource(config)
  lines = source.splitlines()
  return {
    (node.name, item.target.id): lines[item.lineno - 1].partition("  # ")[2].replace("|", "\\|")
    for node in ast.parse(source).body
    if isinstance(node, ast.ClassDef)
    for item in node.body
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
  }


def shown(value: object) -> str:
  """A value as --set takes it."""
  if isinstance(value, bool):
    return str(value).lower()
  return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def page() -> str:
  """The whole page."""
  sections: dict[typing.Any, list[str]] = {}
  for name, hint in typing.get_type_hints(config.Config).items():
    if dataclasses.is_dataclass(hint):
      sections.setdefault(hint, []).append(name)
  meaning = meanings()
  text = [_HEAD]
  for section, names in sections.items():
    kinds = {name: getattr(hint, "__name__", "") for name, hint in typing.get_type_hints(section).items()}
    presets = config.SIZES.values() if section is config.ModelConfig else [section()]
    table = [
      [
        f"`{field.name}`",
        "numbers" if kinds[field.name] == "tuple" else kinds[field.name],
        *(f"`{shown(getattr(preset, field.name))}`" for preset in presets),
        meaning[section.__name__, field.name],
      ]
      for field in dataclasses.fields(section)
    ]
    defaults = config.SIZES if section is config.ModelConfig else ["default"]
    text.append(f"## {' and '.join(f'`{name}`' for name in names)}\n\n{inspect.getdoc(section)}\n")
    text.append(tabulate(table, ["setting", "type", *defaults, "meaning"], "github", disable_numparse=True) + "\n")
  return "\n".join(text)


if __name__ == "__main__":
  print(page(), end="")
