"""The program: one mode per module, chosen by --mode. `python run.py` and the command `gmsrm` both call `main`."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import sys
import traceback
from collections.abc import Sequence

from gmsrm_jax.commands.flags import parse
from gmsrm_jax.errors import ConfigError, SharedError
from gmsrm_jax.parallel import backend

# What the user can change; anything else is a bug of ours and keeps its traceback.
_USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def dispatch(flags: argparse.Namespace) -> None:
  """Runs the mode. JAX is first imported here, after the back end was chosen."""
  # The program of --mode=compile is for a TPU; what compiles it runs on the CPU.
  backend.select("cpu" if flags.mode == "compile" else flags.platform)
  importlib.import_module(f"gmsrm_jax.commands.{flags.mode}").run(flags)


def main(arguments: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user must change, 3 when another process is gone, 130 when interrupted.

  A run that saved and stopped on SIGTERM raises SystemExit(143).
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")  # a file's name may be no text
  try:
    dispatch(parse(sys.argv[1:] if arguments is None else arguments))
  except ConfigError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return backend.leave(2, together=isinstance(error, SharedError))
  except KeyboardInterrupt:
    print("interrupted: the same command again resumes from the last checkpoint", file=sys.stderr)
    return backend.leave(130)
  except Exception as error:
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS:
      print(f"error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
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
