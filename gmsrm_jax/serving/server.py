"""The HTTP server of `--mode=serve`: the page, `/health`, and `/inpaint` with its queue of one worker.

`/openapi.json` describes the interface, `/docs` shows it. A refusal is {"error": one line} with a status of REFUSALS.
There is no log-in and no TLS: to serve other machines, put a proxy that has both in front.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import dataclasses
import http
import pathlib
import socket
import threading
from typing import Any

import fastapi
import jax
import numpy as np
import pydantic
import uvicorn
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL.Image import DecompressionBombError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import gmsrm_jax
from gmsrm_jax.data.pictures import PictureError
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference.inpainter import BATCH, Inpainter
from gmsrm_jax.serving.requests import Fields, Limits, Order, fill_order, first_fault, read_order

REFUSALS = (400, 408, 413, 415, 422, 500, 503, 504)
PAGE = pathlib.Path(__file__).parent / "page"
_PAGES = {"/": "index.html", "/docs": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_HEADERS = {
  "Cache-Control": "no-store",
  "X-Content-Type-Options": "nosniff",
  "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
  "connect-src 'self'; frame-ancestors 'none'",
}
_GRACE = 5  # seconds that a request is given to arrive after a signal


class Service:
  """Fills one picture at a time in a thread of its own; a bounded number of requests waits."""

  def __init__(self, inpainter: Inpainter, limits: Limits):
    self.inpainter, self.limits = inpainter, limits
    options: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "timeout_graceful_shutdown": _GRACE}
    options |= {"log_level": "warning", "access_log": False, "server_header": False, "headers": list(_HEADERS.items())}
    self.server = uvicorn.Server(uvicorn.Config(self._app(), **options))
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="model")
    self._in_work: set[Request] = set()

  def warm_up(self) -> None:
    """Compiles what pictures of any size need under 'auto'."""
    size = self.inpainter.config.model.image_size
    line = np.zeros((size, (BATCH + 2) * size), np.uint8)
    line[size // 2] = 1  # enough windows for a whole batch and single ones
    self._thread.submit(self.inpainter, np.zeros((*line.shape, 3), np.uint8), line).result()

  def run(self, address: socket.socket) -> None:
    """Serves until it is interrupted; the fill in progress then ends with its batch."""
    try:
      self.server.run(sockets=[address])
    finally:
      self._thread.shutdown(wait=False, cancel_futures=True)

  def _app(self) -> fastapi.FastAPI:
    errors = (HTTPException, pydantic.ValidationError, ConfigError, MemoryError, jax.errors.JaxRuntimeError)
    app = fastapi.FastAPI(
      title="GM-SRM inpainting",
      version=gmsrm_jax.__version__,
      docs_url=None,  # FastAPI's own pages load scripts from elsewhere
      redoc_url=None,
      redirect_slashes=False,  # it would send clients to whatever host they named
      exception_handlers=dict.fromkeys((*errors, ClientDisconnect, Exception), _refuse),
    )
    for path, name in _PAGES.items():
      app.add_route(path, FileResponse(PAGE / name), ["GET"], include_in_schema=False)  # pyright: ignore
    app.get("/health")(self.health)
    schema = {"schema": Fields.model_json_schema()}
    app.post(
      "/inpaint",
      response_class=Response,
      responses={status: {"description": http.HTTPStatus(status).phrase} for status in REFUSALS},
      openapi_extra={"requestBody": {"content": {"multipart/form-data": schema, "application/json": schema}}},
    )(self.inpaint)
    return app

  async def health(self) -> dict[str, Any]:
    """Says what runs here, and how much there is to do."""
    config, device = self.inpainter.config, jax.devices()[0]
    return {
      "status": "ok",
      "version": gmsrm_jax.__version__,
      "model": config.name,
      "image_size": config.model.image_size,
      "device": " ".join(dict.fromkeys((device.platform, device.device_kind))),
      "samples": self.limits.samples if config.variation.enabled else 1,
      "waiting": len(self._in_work),
      "limits": dataclasses.asdict(self.limits),
    }

  async def inpaint(self, request: Request) -> Response:
    """Fills the hole of a picture, and answers a PNG of its size, mode and orientation.

    Pixels outside the hole come back unchanged. For several fills, or for `Accept: application/json`, the answer is
    {"images": [base64 PNG, …], "width", "height", "seed"}. A refusal is {"error": "one line"}: what was sent is damaged
    (400), too slow (408), too large (413), neither multipart nor JSON (415) or makes no sense (422), the server is busy
    (503, see Retry-After), or the fill takes too long (504).
    """
    if len(self._in_work) > self.limits.waiting:
      message = f"{len(self._in_work)} requests are in work already: try again in 1 s"
      raise HTTPException(503, message, {"Retry-After": "1"})
    self._in_work.add(request)
    job = None
    try:
      order = await self._read(request)
      stop = threading.Event()
      job = self._thread.submit(fill_order, order, self.inpainter, stop)
      # Not before the thread is free, though nobody may wait by then.
      job.add_done_callback(lambda _: self._in_work.discard(request))
      files = await self._wait(request, job, stop)
    except asyncio.CancelledError:
      message = "the server is being ended: try again when it is back"
      raise HTTPException(503, message, {"Retry-After": "10"}) from None
    finally:
      if job is None:
        self._in_work.discard(request)
    if len(files) == 1 and "application/json" not in request.headers.get("accept", ""):
      return Response(files[0], media_type="image/png")
    height, width = order.mask.shape
    pictures = await run_in_threadpool(lambda: [base64.b64encode(file).decode() for file in files])
    return JSONResponse({"images": pictures, "width": width, "height": height, "seed": order.options["seed"]})

  async def _read(self, request: Request) -> Order:
    seconds = self.limits.seconds
    try:
      async with asyncio.timeout(seconds):
        fields = await _read_fields(request, self.limits.upload_bytes)
    except TimeoutError:
      raise HTTPException(408, f"the body did not arrive within {seconds:g} s: send a smaller picture") from None
    return await run_in_threadpool(read_order, fields, self.limits.pixels, self.inpainter)

  async def _wait(self, request: Request, job: concurrent.futures.Future, stop: threading.Event) -> list[bytes]:
    """Returns the job's files; ends the job when it takes too long, the client goes away or the server ends."""
    seconds = self.limits.seconds
    done = asyncio.wrap_future(job)
    try:
      async with asyncio.timeout(seconds):
        while not (await asyncio.wait({done}, timeout=0.1))[0]:
          if await request.is_disconnected():
            raise ClientDisconnect
          if self.server.should_exit:
            raise asyncio.CancelledError  # as uvicorn raises it where a body has not arrived by the end
      return done.result()
    except TimeoutError:
      message = f"not filled within {seconds:g} s: send a smaller picture or fewer samples, or try later"
      raise HTTPException(504, message) from None
    finally:
      stop.set()
      done.cancel()


async def _read_fields(request: Request, limit: int) -> Fields:
  """Reads a multipart or JSON body of at most `limit` bytes."""
  received = 0

  def check(size: int) -> None:
    if size > limit:
      raise HTTPException(413, f"the body has more than {limit / 2**20:g} MiB: send a smaller file")

  async def receive() -> Any:
    nonlocal received
    message = await request.receive()
    received += len(message.get("body", b""))
    check(received)
    return message

  check(int(request.headers.get("content-length", 0)))
  counted = Request(request.scope, receive)
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind == "application/json":
    return await run_in_threadpool(Fields.model_validate_json, await counted.body(), strict=True)
  if kind != "multipart/form-data":
    raise HTTPException(415, f"content type {kind!r:.60}: send multipart/form-data or application/json")
  fields: dict[str, Any] = {}
  async with counted.form(max_files=2, max_fields=len(Fields.model_fields)) as form:
    for name, value in form.multi_items():
      if name in fields:
        raise HTTPException(422, f"field {name!r:.60} is there twice: send one")
      fields[name] = value if isinstance(value, str) else await value.read()
  return Fields.model_validate(fields)


async def _refuse(_: Request, error: Any) -> Response:
  """Answers an error in one line, with the status that says whose fault it is."""
  match error:
    case HTTPException():
      pass
    case pydantic.ValidationError():
      error = first_fault(error)
    case PictureError():
      error = HTTPException(413 if isinstance(error.__cause__, DecompressionBombError) else 400, str(error))
    case ConfigError():
      error = HTTPException(422, str(error))
    case MemoryError() | jax.errors.JaxRuntimeError():
      error = HTTPException(503, "not enough memory for this picture: send a smaller one, or strategy=auto")
    case _:  # A mistake of ours, or the client is gone and reads nothing.
      error = HTTPException(500, "the server made a mistake: its own log says more")
  line = " ".join(error.detail.split())
  return JSONResponse({"error": line if len(line) <= 300 else line[:299] + "…"}, error.status_code, error.headers)
