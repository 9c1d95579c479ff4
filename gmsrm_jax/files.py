"""Files that a reader sees whole or not at all, folders that one start works in, and what made a result."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import filelock

from gmsrm_jax.errors import ConfigError, require

SHIPPED = pathlib.Path(__file__).resolve().parent / "pretrained" / "street"
"""The weights that come with this code, which serve until others are named; the README there describes them."""

LOCK = ".lock"  # names host and process of the start that works in a folder
_LEASE, _BEAT = 60.0, 5.0  # seconds without a sign of life after which a claim is void, and between two signs
TEMPORARY = ".writing-"  # not the file's own name, which may be as long as a name can be

_PACKAGES = "jax jaxlib flax optax orbax-checkpoint grain numpy scikit-image opencv-python-headless pillow"


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


def local_path(text: str, name: str, way_out: str = "give a path") -> pathlib.Path:
  """The path that a flag or setting `name` says, with the home folder for '~'.

  Raises:
    ConfigError: it is empty, an address such as gs://bucket, or the home of nobody.
  """
  require(text.strip() != "", f"{name}={text!r} names nothing: {way_out}")
  require("://" not in text, f"{name}={text!r} is no local path: mount the bucket and name the path it is mounted at")
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError:
    raise ConfigError(f"{name}={text!r}: no such user, or none with a home folder: write the whole path") from None


def cache_folder() -> pathlib.Path:
  """The folder for what can be made or fetched again."""
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gmsrm_jax"


def check_output(path: pathlib.Path, name: str) -> None:
  """Raises ConfigError where no file can be made at or below the path: it leads through a file, or is read-only."""
  there = nearest(path)
  require(there == path or there.is_dir(), f"{name}={path} leads through {there}, which is a file: choose another path")
  folder = there if there.is_dir() else there.parent
  require(os.access(folder, os.W_OK | os.X_OK), f"{name}={path}: {folder} is read-only: choose another path")


def nearest(path: pathlib.Path) -> pathlib.Path:
  """The path itself, or the nearest of the folders above it that is there."""
  return next(above for above in (path, *path.parents, pathlib.Path()) if os.path.lexists(above))


def check_inputs_stay(outputs: Iterable[pathlib.Path], inputs: Iterable[pathlib.Path]) -> None:
  """Raises ConfigError where an output is an input, however either is spelled."""
  identities = {identity(path) for path in inputs}
  for path in outputs:
    require(identity(path) not in identities, f"{path} is an input and would be overwritten: choose another --output")


def identity(path: pathlib.Path) -> tuple:
  """Tells one file from another, through links, and whatever the file system makes of case and accents."""
  try:
    status = os.stat(path)
  except OSError:  # it is not there
    return (os.path.abspath(path),)
  return status.st_dev, status.st_ino


@contextlib.contextmanager
def _whole_before_sigterm() -> Iterator[None]:
  """Holds SIGTERM back where it would end the program at once, and leave half a file."""
  told: list[int] = []
  ends = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread()
  if ends:
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
  try:
    yield
  finally:
    if ends:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if told:
      os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a temporary file beside `path` that takes its place on success and vanishes on failure.

  Raises:
    OSError: the file system refuses; it names `path`.
  """
  path = pathlib.Path(path)
  with _whole_before_sigterm():
    yield from _replacing(path)


def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  temporary = None
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = pathlib.Path(name)
    yield temporary
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)  # mkstemp makes a file that nobody else may read
    temporary.replace(path)
  except BaseException as error:
    if temporary is not None:
      temporary.unlink(missing_ok=True)
    if isinstance(error, OSError) and (error.filename is None or TEMPORARY in str(error.filename)):
      error.filename, error.filename2 = str(path), None
    raise


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[None]:
  """Keeps a folder, made if missing, for this process. The claim of a process that died is void.

  That is seen at once on the same host; from another one that shares the folder, by a minute without a sign of life.

  Raises:
    ConfigError: another process works there; names it and its host.
  """
  folder.mkdir(parents=True, exist_ok=True)
  lease = filelock.SoftFileLease(
    folder / LOCK, lease_duration=_LEASE, heartbeat_interval=_BEAT, on_compromise=_leave_to_others
  )
  try:
    lease.acquire(blocking=False)
  except filelock.Timeout:
    _outlive(lease, folder)
  try:
    yield
  finally:
    lease.release()


def _outlive(lease: filelock.SoftFileLease, folder: pathlib.Path) -> None:
  """Takes the claim of a process that cannot be asked from here, once it has given no sign of life for a lease."""
  owner = lease.owner
  who = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
  in_use = f"{folder} is in use by {who}"
  # In a container the name has more to it, for its processes have numbers of their own.
  require(owner is None or owner.hostname != socket.gethostname(), f"{in_use}: stop that, or name another folder")
  print(f"{in_use}, or was: waiting up to {_LEASE:.0f} s for a sign of life", file=sys.stderr)

  def modified() -> int:
    return (folder / LOCK).stat().st_mtime_ns if (folder / LOCK).exists() else 0

  dead = {modified(), 0}
  try:
    lease.acquire(_LEASE + _BEAT, poll_interval=1, cancel_check=lambda: modified() not in dead)
  except filelock.Timeout:
    raise ConfigError(f"{in_use}: stop that, or name another folder") from None


def _leave_to_others(loss: filelock.LeaseCompromise) -> None:
  """Ends this program where another one has taken its folder over, as after a sleep of minutes."""
  print(f"warning: {loss.lock_file} is lost ({loss.reason}): another start may work in this folder", file=sys.stderr)
  if loss.reason == "owner-changed":
    os._exit(130)  # without saving: Ctrl-C would write into the folder


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Names the file in what the file system says about an open one."""
  try:
    yield
  except OSError as error:
    if error.filename is None:
      error.filename = str(path)
    raise


def printable(name: str) -> str:
  """A file's name on one line: a line break, or what else is not shown, as an escape such as \\n."""
  return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a file that a reader, or a kill at any moment, sees whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a file that a reader, or a kill at any moment, sees whole or not at all.

  A file's name that is no text stands in it as on standard error: \\udcff for the byte 255.
  """
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
