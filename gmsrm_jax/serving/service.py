"""The HTTP side of `--mode=serve`: the page, `/health`, and `/inpaint` with its queue of one worker.

`gmsrm_jax.serve` documents the interface; `gmsrm_jax.orders` what is asked for.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import dataclasses
import math
import pathlib
import threading
import time
from typing import Any

import jax
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import gmsrm_jax
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference.inpainter import BATCH, Inpainter
from gmsrm_jax.serving import requests
from gmsrm_jax.serving.requests import Limits, Order, Refused, Value, demand

PAGE = pathlib.Path(__file__).parent / "page"
_FILES = {
  "/": ("index.html", "text/html"),
  "/page.css": ("page.css", "text/css"),
  "/page.js": ("page.js", "text/javascript"),
}
_HEADERS = {
  "Cache-Control": "no-store",
  "X-Content-Type-Options": "nosniff",
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
  "connect-src 'self'; frame-ancestors 'none'",
}


class _Stopped(Exception):
  """Nobody waits for this fill any more."""


class Service:
  """Fills one picture at a time in a thread of its own; a bounded number of requests waits."""

  def __init__(self, inpainter: Inpainter, limits: Limits):
    self.inpainter = inpainter
    self.limits = limits
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="model")
    self._lock = threading.Lock()
    self._places = 0
    self._seconds = 1.0  # of the last fill, to estimate when to come again
    self._ending = asyncio.Event()

  def warm_up(self) -> None:
    """Compiles what pictures of any size need under 'auto'."""
    size = self.inpainter.config.model.image_size
    line = np.zeros((size, (BATCH + 2) * size), np.uint8)
    line[size // 2] = 1  # enough windows for a whole batch and single ones
    self._thread.submit(lambda: self.inpainter(np.zeros((*line.shape, 3), np.uint8), line)).result()

  def end(self) -> None:
    """Refuses whoever waits."""
    self._ending.set()

  def close(self) -> None:
    """Waits for nobody; the fill in progress ends with its batch."""
    self._thread.shutdown(wait=False, cancel_futures=True)

  def app(self) -> Starlette:
    """The ASGI application."""
    routes = [Route(path, _file_endpoint(*file)) for path, file in _FILES.items()]
    routes += [Route("/health", self.health), Route("/inpaint", self.inpaint, methods=["POST"])]
    handlers: dict[Any, Any] = {HTTPException: _on_http, ConfigError: _on_config, Exception: _on_bug}
    handlers |= {ClientDisconnect: _on_gone, MemoryError: _on_memory, jax.errors.JaxRuntimeError: _on_memory}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False  # it would send clients to whatever host they named
    return app

  async def health(self, _: Request) -> Response:
    """What runs here, and how much there is to do."""
    config, device = self.inpainter.config, jax.devices()[0]
    return _json(
      {
        "status": "ok",
        "version": gmsrm_jax.__version__,
        "model": config.name,
        "image_size": config.model.image_size,
        "device": " ".join(dict.fromkeys((device.platform, device.device_kind))),
        "samples": self.limits.samples if config.variation.enabled else 1,
        "waiting": self._places,
        "limits": dataclasses.asdict(self.limits),
      }
    )

  async def inpaint(self, request: Request) -> Response:
    """Fills a picture; see the module's docstring."""
    self._enter()
    job = None
    try:
      try:
        async with asyncio.timeout(self.limits.seconds):
          fields = await _read_fields(request, self.limits.upload_bytes)
      except TimeoutError:
        raise Refused(
          408, f"the body did not arrive within {self.limits.seconds:g} s: send a smaller picture"
        ) from None
      order = await run_in_threadpool(requests.read_order, fields, self.limits, self.inpainter)
      stop = threading.Event()
      job = self._thread.submit(self._fill, order, stop)
      job.add_done_callback(lambda _: self._leave())  # not before the thread is free, though nobody may wait by then
      files = await self._wait(request, job, stop)
    except asyncio.CancelledError:  # The body has not arrived by the end.
      raise _ended() from None
    finally:
      if job is None:
        self._leave()
    if len(files) == 1 and "application/json" not in request.headers.get("accept", ""):
      return Response(files[0], media_type="image/png", headers=_HEADERS)
    height, width = order.mask.shape
    pictures = await run_in_threadpool(lambda: [base64.b64encode(file).decode() for file in files])
    return _json({"images": pictures, "width": width, "height": height, "seed": order.seed})

  def _enter(self) -> None:
    with self._lock:
      if self._places > self.limits.waiting:
        # A place is free as soon as one fill is done.
        after = max(1, min(60, math.ceil(self._seconds)))
        raise Refused(503, f"{self._places} requests are in work already: try again in {after} s", after)
      self._places += 1

  def _leave(self) -> None:
    with self._lock:
      self._places -= 1

  def _fill(self, order: Order, stop: threading.Event) -> list[bytes]:
    def go_on() -> None:
      if stop.is_set():
        raise _Stopped

    start = time.monotonic()
    files = requests.carry_out(order, self.inpainter, go_on)
    self._seconds = time.monotonic() - start
    return files

  async def _wait(self, request: Request, job: concurrent.futures.Future, stop: threading.Event) -> list[bytes]:
    """The job's result, unless it takes too long or the client goes away first; then the job is ended."""
    done = asyncio.wrap_future(job)
    gone = asyncio.ensure_future(_disconnected(request))
    ending = asyncio.ensure_future(self._ending.wait())
    try:
      await asyncio.wait({done, gone, ending}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
      if done.done():
        return done.result()
      if gone.done():
        raise ClientDisconnect
      if ending.done():
        raise _ended()
      raise Refused(
        504, f"not filled within {self.limits.seconds:g} s: send a smaller picture or fewer samples, or try later"
      )
    finally:
      stop.set()
      done.cancel()
      gone.cancel()
      ending.cancel()


def _ended() -> Refused:
  return Refused(503, "the server is being ended: try again when it is back", 10)


async def _disconnected(request: Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass


async def _read_fields(request: Request, limit: int) -> dict[str, Value]:
  """The fields of a multipart or JSON body of at most `limit` bytes."""
  length = request.headers.get("content-length", "0")
  too_large = f"the body has more than {limit / 2**20:g} MiB: send a smaller file"
  demand(not length.isdecimal() or int(length[:20]) <= limit, 413, too_large)
  received = 0

  async def receive() -> Any:
    nonlocal received
    message = await request.receive()
    received += len(message.get("body", b""))
    demand(received <= limit, 413, too_large)
    return message

  counted = Request(request.scope, receive)
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind == "application/json":
    return await run_in_threadpool(requests.fields_of_json, await counted.body())
  demand(kind == "multipart/form-data", 415, f"content type {kind!r:.60}: send multipart/form-data or application/json")
  fields: dict[str, Value] = {}
  async with counted.form(max_files=2, max_fields=len(requests.FIELDS)) as form:
    for name, value in form.multi_items():
      demand(name not in fields, 422, f"field {name!r:.60} is there twice: send one")
      fields[name] = await value.read() if isinstance(value, UploadFile) else value
  return fields


def _file_endpoint(name: str, media_type: str) -> Any:
  content = (PAGE / name).read_bytes()

  async def endpoint(_: Request) -> Response:
    return Response(content, media_type=media_type, headers=_HEADERS)

  return endpoint


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
  return JSONResponse(content, status, headers=_HEADERS | (headers or {}))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
  line = " ".join(message.split())
  return _json({"error": line if len(line) <= 300 else line[:299] + "…"}, status, headers)


async def _on_http(_: Request, error: Any) -> Response:
  return _error(error.status_code, error.detail, dict(error.headers or {}))


async def _on_config(_: Request, error: Any) -> Response:
  if not isinstance(error, Refused):
    return _error(422, str(error))
  return _error(error.status, str(error), {"Retry-After": str(error.retry_after)} if error.retry_after else None)


async def _on_memory(*_: Any) -> Response:
  return _error(503, "not enough memory for this picture: send a smaller one, or strategy=auto", {"Retry-After": "10"})


async def _on_gone(*_: Any) -> Response:
  return Response(status_code=499)  # nobody reads it


async def _on_bug(*_: Any) -> Response:
  return _error(500, "the server made a mistake: its own log says more")
