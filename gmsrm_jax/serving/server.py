"""--mode=serve: a page to paint holes into pictures and have them filled, and the same for programs over HTTP.

`POST /inpaint` takes the fields image and mask (picture files; white in the mask is hole; without a mask, what is
transparent in the image), num_samples (1), seed (0) and strategy (auto), as multipart/form-data or as a JSON object
with the files in base64. The answer is a PNG in the picture's own size, mode and orientation, equal to it outside the
hole to the bit; for several samples, or for `Accept: application/json`, a JSON object {"images": [base64 PNG, ...],
"width", "height", "seed"}.

  curl -F image=@photo.jpg -F mask=@mask.png http://127.0.0.1:7860/inpaint -o filled.png

`GET /health` answers at any time: status, version, model, image_size, device, samples, waiting, limits.

A refusal is {"error": one line}. 400: what was sent is damaged; 408: it did not arrive in time; 413: too large; 415:
neither multipart nor JSON; 422: a value out of range, or picture and mask do not fit; 503: too many wait, try again
after Retry-After seconds; 504: not filled in time. See `orders.Limits`. There is no log-in and no TLS: to serve other
machines, put a proxy that has both in front.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from typing import Any

import jax
import uvicorn

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference.inpainter import Inpainter
from gmsrm_jax.serving.requests import Limits
from gmsrm_jax.serving.service import Service

_GRACE = 5  # seconds that a request is given to arrive after a signal


def listen(host: str, port: int) -> socket.socket:
  """A socket that has the address to itself.

  Raises:
    ConfigError: the address is taken, not of this machine, or not allowed.
  """
  try:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=128)
  except (OSError, UnicodeError) as error:
    reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0].lower()
    raise ConfigError(f"--host={host} --port={port} cannot be listened on ({reason}): choose another") from None


def serve(*, checkpoint: str, host: str, port: int) -> None:
  """Serves the weights of a folder until it is interrupted.

  Raises:
    ConfigError: the address cannot be had, or the folder holds no trained model.
  """
  with contextlib.suppress(KeyboardInterrupt), contextlib.closing(listen(host, port)) as address:
    # SIGTERM ends it as Ctrl-C does. uvicorn takes both over while it runs, and then raises them once more.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    service = Service(Inpainter.from_checkpoint(checkpoint), Limits())
    start = time.monotonic()
    service.warm_up()
    name = f"[{host}]" if ":" in host else host
    print(
      f"ready: http://{name}:{address.getsockname()[1]} serves {service.inpainter.source} on {jax.default_backend()}, "
      f"compiled in {time.monotonic() - start:.0f} s; Ctrl-C ends it",
      flush=True,
    )
    try:
      Server(service).run(sockets=[address])
    finally:
      service.close()
  print("stopped")


class Server(uvicorn.Server):
  """The HTTP server of a service."""

  def __init__(self, service: Service):
    options: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "timeout_graceful_shutdown": _GRACE}
    super().__init__(
      uvicorn.Config(service.app(), log_level="warning", access_log=False, server_header=False, **options)
    )
    self._service = service

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    """Refuses what waits, so that it is not waited for."""
    self._service.end()
    await super().shutdown(sockets)
