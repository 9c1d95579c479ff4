"""--mode=serve: a page to paint holes into pictures and have them filled, and the same for programs over HTTP.

curl -F image=@photo.jpg -F mask=@mask.png http://127.0.0.1:7860/inpaint -o filled.png
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import socket

import jax

from gmsrm_jax.commands.flags import trained
from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.inference.inpainter import Inpainter
from gmsrm_jax.parallel import backend

_EXTRA = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}  # module to package


def run(flags: argparse.Namespace) -> None:
  """Serves the weights of a folder until it is interrupted.

  Raises:
    ConfigError: the address cannot be had, the folder holds no trained model, or the server is not installed.
  """
  missing = [package for module, package in _EXTRA.items() if importlib.util.find_spec(module) is None]
  require(not missing, f"--mode=serve needs {' '.join(missing)}: pip install {' '.join(_EXTRA.values())}")
  from gmsrm_jax.serving.server import Limits, Service

  backend.check(flags.platform)
  with contextlib.suppress(KeyboardInterrupt), listen(flags.host, flags.port) as address:
    # SIGTERM ends it as Ctrl-C does. uvicorn takes both over while it runs, and then raises them once more.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    service = Service(Inpainter.from_checkpoint(trained(flags)), Limits())
    service.warm_up()
    host = f"[{flags.host}]" if ":" in flags.host else flags.host
    where = f"http://{host}:{address.getsockname()[1]}"
    print(f"ready: {where} serves {service.inpainter.source} on {jax.default_backend()}; Ctrl-C ends it", flush=True)
    service.run(address)
  print("stopped")


def listen(host: str, port: int) -> socket.socket:
  """Returns a socket that has the address to itself.

  Raises:
    ConfigError: the address is taken, not of this machine, or not allowed.
  """
  try:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
  except (OSError, UnicodeError) as error:
    raise ConfigError(f"--host={host} --port={port} cannot be listened on ({error}): choose another") from None
