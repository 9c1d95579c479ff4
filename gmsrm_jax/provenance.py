"""Which code, packages and weights made a result."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
import subprocess

SHIPPED = pathlib.Path(__file__).resolve().parent.parent / "checkpoints" / "street"
"""The weights that come with this code, which serve until others are named; the README there describes them."""

_PACKAGES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
  *("scikit-image", "opencv-python-headless", "dm-pix", "pillow"),
)


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
  """What the numbers depend on."""
  return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}
