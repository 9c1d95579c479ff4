"""The program: one mode per module, chosen by --mode. `python run.py` and the command `gmsrm` both call `main`."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import select
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence

from gmsrm_jax.commands.flags import parse
from gmsrm_jax.errors import ConfigError, SharedError, is_of_a_file, one_line
from gmsrm_jax.parallel import backend

_RESUMED = ("train", "prepare")  # modes that the same command continues


def dispatch(flags: argparse.Namespace) -> None:
  """Runs the mode. JAX is first imported here, after the back end was chosen."""
  # The program of --mode=compile is for a TPU; what compiles it runs on the CPU.
  backend.select("cpu" if flags.mode == "compile" else flags.platform)
  importlib.import_module(f"gmsrm_jax.commands.{flags.mode}").run(flags)


class _OwnLines(logging.Handler):
  """Writes to what sys.stderr is by then, as `backend` puts another there while libtpu talks; a bar makes room."""

  def emit(self, record: logging.LogRecord) -> None:
    """Writes a line."""
    write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print
    write(self.format(record), file=sys.stderr)


def _prepare_process() -> None:
  """Lets any file's name be printed, and libraries be imported where no temporary folder can be written.

  Warnings look alike, whoever logs them. What Pillow thinks of a file's tags is kept from the user: whatever matters
  there ends in an error of ours.
  """
  logging.addLevelName(logging.WARNING, "warning")
  logging.basicConfig(format="%(levelname)s: %(message)s", handlers=[_OwnLines()])
  warnings.filterwarnings("ignore", module=r"PIL\.")
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")  # the name may be no text
  try:
    tempfile.gettempdir()
  except FileNotFoundError:  # such as `docker run --read-only`, where this one is left
    tempfile.tempdir = os.environ["TMPDIR"] = "/dev/shm"


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user must change, 3 when another process is gone, 130 when interrupted.

  A run that saved and stopped raises SystemExit: 143 on SIGTERM, 130 on Ctrl-C. Where nobody reads what is printed any
  more (`| head`) it ends without a word, with 141 as other programs do.
  """
  _prepare_process()
  try:
    try:
      return _main(sys.argv[1:] if arguments is None else arguments)
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    unread = [stream for stream in (1, 2) if _is_unread(stream)]
    if not unread:
      raise
    for stream in unread:  # so that the interpreter does not try once more
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    return backend.leave(141)


def _is_unread(stream: int) -> bool:
  """True for a pipe that nobody reads from any more."""
  poll = select.poll()
  poll.register(stream, 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))


def _main(arguments: Sequence[str]) -> int:
  flags = None
  try:
    flags = parse(arguments)
    dispatch(flags)
  except ConfigError as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    return backend.leave(2, together=isinstance(error, SharedError))
  except KeyboardInterrupt:
    resumed = flags is not None and flags.mode in _RESUMED
    print(f"interrupted{': the same command again resumes' if resumed else ''}", file=sys.stderr)
    return backend.leave(130)
  except Exception as error:
    if isinstance(error, BrokenPipeError):
      raise
    if is_of_a_file(error):
      print(f"error: {one_line(error)}", file=sys.stderr)
      return backend.leave(2)
    if not backend.is_shared():
      raise
    if backend.lost_another(error):
      print(
        f"error: another process of this run is gone ({str(error).splitlines()[0][:200]}): start all of them again "
        "with the same command, which resumes",
        file=sys.stderr,
      )
      return backend.leave(3)
    traceback.print_exc()
    return backend.leave(1)
  return 0
