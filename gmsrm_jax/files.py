"""Files that a reader sees whole or not at all, and what made a result: code, packages, weights."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from gmsrm_jax.errors import ConfigError

SHIPPED = pathlib.Path(__file__).resolve().parent / "pretrained" / "street"
"""The weights that come with this code, which serve until others are named; the README there describes them."""

_PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain numpy scikit-image opencv-python-headless dm-pix pillow"


def git_commit() -> str | None:
  """The commit of this code, with '+' when files differ from it; None outside a checkout."""
  git = ["git", "-C", str(pathlib.Path(__file__).parent)]
  try:
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit + ("+" if dirty else "")


def versions() -> dict[str, str]:
  """Python's version and that of every package that numbers depend on."""
  packages = {name: importlib.metadata.version(name) for name in _PACKAGES.split()}
  return {"python": platform.python_version(), **packages}


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a temporary file beside `path` that takes its place on success and vanishes on failure."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
  os.close(handle)
  temporary = pathlib.Path(name)
  try:
    yield temporary
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  mask = os.umask(0)
  os.umask(mask)
  temporary.chmod(0o666 & ~mask)  # mkstemp makes a file that nobody else may read
  temporary.replace(path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a file that a reader, or a kill at any moment, sees whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes `plain(value)` as JSON, atomically."""
  write_text(path, json.dumps(plain(value), indent=2) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads JSON.

  Raises:
    ConfigError: the file is no JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except ValueError as error:
    raise ConfigError(f"{path} is no JSON file ({error}): restore it, or use another folder") from None


def plain(value: Any) -> Any:
  """Returns what JSON can hold: arrays and their scalars become plain values, and numbers that are not finite None."""
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if hasattr(value, "tolist"):
    return plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
