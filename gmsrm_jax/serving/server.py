"""The HTTP server of `--mode=serve`: the page, `/health`, and `/inpaint` with its queue of one worker.

`/openapi.json` describes the interface, `/docs` shows it. There is no log-in and no TLS: to serve other machines, put
a proxy that has both in front.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import dataclasses
import functools
import http
import json
import logging
import pathlib
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import fastapi
import jax
import numpy as np
import pydantic
import uvicorn
from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from PIL.Image import DecompressionBombError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import gmsrm_jax
from gmsrm_jax.data.pictures import PictureError
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference.inpainter import BATCH, Inpainter
from gmsrm_jax.models.inpainter import varies
from gmsrm_jax.serving.connections import Connection, hear_out
from gmsrm_jax.serving.requests import Fields, Limits, Work, fill_picture, read_picture

PAGE = pathlib.Path(__file__).parent / "page"
# The files are listed at the start: no path that a client sends ever touches the disk.
_FILES = {f"/{path.relative_to(PAGE).as_posix()}": path for path in sorted(PAGE.rglob("*")) if path.is_file()}
_PAGES = _FILES | dict.fromkeys(("/", "/docs"), PAGE / "index.html")
# Which not every machine knows, or not every browser shows.
_TYPES = {".js": "text/javascript", ".webp": "image/webp", ".md": "text/plain"}
_CONTENT = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'"
_HEADERS = [
  ("Cache-Control", "no-store"),
  ("X-Content-Type-Options", "nosniff"),
  ("Content-Security-Policy", f"{_CONTENT}; frame-ancestors 'none'"),
]
_REFUSALS = (400, 408, 413, 415, 422, 500, 503, 504)
_GRACE = 5  # seconds that a request is given to arrive after a signal


class Service:
  """Fills one picture at a time in a thread of its own; a bounded number of requests waits."""

  def __init__(self, inpainter: Inpainter, limits: Limits):
    self.inpainter, self.limits = inpainter, limits
    options: dict[str, Any] = {"http": Connection, "ws": "none", "lifespan": "off", "timeout_graceful_shutdown": _GRACE}
    options |= {"log_level": "warning", "access_log": False, "server_header": False, "headers": _HEADERS}
    self.server = uvicorn.Server(uvicorn.Config(hear_out(self._app()), **options))
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="model")
    self._in_work: set[Request] = set()
    self._jobs: list[concurrent.futures.Future] = []  # in the order in which they are filled

  def warm_up(self) -> None:
    """Compiles what pictures of any size need under 'auto'."""
    size = self.inpainter.config.model.image_size
    noise = np.random.default_rng(0).integers(0, 256, (size, (BATCH + 2) * size, 3), np.uint8)
    line = np.zeros(noise.shape[:2], np.uint8)
    spot = line.copy()
    line[size // 2] = 1  # enough windows for a batch
    spot[size // 4 : size // 2, size // 4 : size // 2] = 1  # one window, and thick enough for detail
    for hole in (line, spot):
      self._thread.submit(self.inpainter, noise, hole).result()

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
    for path, file in _PAGES.items():
      app.add_route(path, functools.partial(_send, file), ["GET"], include_in_schema=False)
    app.get("/health")(self.health)
    schema = {"schema": Fields.model_json_schema()}
    app.post(
      "/inpaint",
      response_class=Response,
      responses={status: {"description": http.HTTPStatus(status).phrase} for status in _REFUSALS},
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
      "samples": self.limits.samples if varies(config) else 1,
      "waiting": len(self._in_work),
      "limits": dataclasses.asdict(self.limits)
      | {"full_side": self.inpainter.full_side, "stride": config.model.stride},
    }

  async def inpaint(self, request: Request) -> Response:
    """Fills the hole of a picture, and answers a PNG of its size, mode and orientation.

    Pixels outside the hole come back unchanged. For several fills, or for `Accept: application/json`, the answer is
    {"images": [base64 PNG, …], "width", "height", "seed"}. For `Accept: application/x-ndjson` lines of JSON tell how
    far it is, {"phase": "queued", "ahead"} or {"phase": "compiling" | "filling" | "detail", "sample", "window",
    "windows"}; the last one is that answer, or a refusal and its "status". The work ends when the client hangs up.

    A refusal is {"error": "one line"}: what was sent is damaged (400), too slow (408), too large (413), neither
    multipart nor JSON (415) or makes no sense (422), the server is busy (503, see Retry-After), or the fill takes too
    long (504).
    """
    if len(self._in_work) > self.limits.waiting:
      message = f"{len(self._in_work)} requests are in work already: try again in 1 s"
      raise HTTPException(503, message, {"Retry-After": "1"})
    self._in_work.add(request)
    submitted, seconds, accept = False, self.limits.seconds, request.headers.get("accept", "")
    try:
      async with asyncio.timeout(seconds):
        fields = await _read_fields(request, self.limits.upload_bytes)
      photo, hole = await run_in_threadpool(read_picture, fields, self.limits.pixels)
      height, width = hole.shape
      self.inpainter.check(height, width, fields.num_samples, fields.seed, fields.strategy, fields.detail)
      work = Work()
      job = self._thread.submit(fill_picture, self.inpainter, fields, photo, hole, work)
      submitted = True
      self._jobs.append(job)
      job.add_done_callback(lambda job: self._end(request, job))
    except TimeoutError:
      raise _too_slow(408, "received", seconds) from None
    except asyncio.CancelledError:
      raise _ending() from None
    finally:
      if not submitted:
        self._in_work.discard(request)

    def in_json(files: list[bytes]) -> dict[str, Any]:
      images = [base64.b64encode(file).decode() for file in files]
      return {"images": images, "width": width, "height": height, "seed": fields.seed}

    phases = self._phases(request, job, work)
    if "application/x-ndjson" in accept:
      return _Lines(_lines(request, phases, job, in_json), media_type="application/x-ndjson")
    async for _ in phases:
      pass
    if len(job.result()) == 1 and "application/json" not in accept:
      return Response(job.result()[0], media_type="image/png")
    return JSONResponse(await run_in_threadpool(in_json, job.result()))

  async def _phases(self, request: Request, job: concurrent.futures.Future, work: Work) -> AsyncIterator[dict]:
    """Yields what is done, whenever it is something else; ends the job when nobody waits for it any more."""
    done, told, end = asyncio.wrap_future(job), None, time.monotonic() + self.limits.seconds
    try:
      while not done.done():
        ahead = next((place for place, other in enumerate([*self._jobs]) if other is job), 0)
        phase = {"phase": "queued", "ahead": ahead} if ahead else work.step._asdict()
        if phase != told:
          yield (told := phase)
        if (await asyncio.wait({done}, timeout=0.1))[0]:
          break
        if self.server.should_exit or await request.is_disconnected():
          raise _ending()
        if time.monotonic() > end:
          raise _too_slow(504, "filled", self.limits.seconds)
      done.result()
    except asyncio.CancelledError:  # uvicorn ends what is still in work
      raise _ending() from None
    finally:
      work.stop.set()
      done.cancel()

  def _end(self, request: Request, job: concurrent.futures.Future) -> None:
    """Makes room for the next; not before the thread is free, though nobody may wait by then."""
    self._in_work.discard(request)
    self._jobs.remove(job)


async def _send(file: pathlib.Path, _: Request) -> Response:
  return FileResponse(file, media_type=_TYPES.get(file.suffix))


class _Lines(StreamingResponse):
  """Lines as they come, until the last; whoever makes them looks after a client that goes away."""

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    await self.stream_response(send)


async def _lines(
  request: Request, phases: AsyncIterator[dict], job: concurrent.futures.Future, result: Any
) -> AsyncIterator[str]:
  """Yields the phases, and at the end the result or why there is none, as JSON each on a line of its own."""
  try:
    async for phase in phases:
      yield json.dumps(phase) + "\n"
    line = await run_in_threadpool(lambda: json.dumps(result(job.result())))
  except Exception as error:
    refusal = await _refuse(request, error)
    line = json.dumps(json.loads(bytes(refusal.body)) | {"status": refusal.status_code})
    if refusal.status_code == 500:
      logging.getLogger(__name__).error("a fill failed", exc_info=error)
  yield line + "\n"


def _too_slow(status: int, done: str, seconds: float) -> HTTPException:
  return HTTPException(status, f"not {done} within {seconds:g} s: send a smaller picture, or try later")


def _ending() -> HTTPException:
  return HTTPException(503, "the server is being ended: try again when it is back", {"Retry-After": "10"})


async def _read_fields(request: Request, limit: int) -> Fields:
  """Reads a multipart or JSON body of at most `limit` bytes."""

  def check(size: int) -> None:
    if size > limit:
      raise HTTPException(413, f"the body has more than {limit / 2**20:g} MiB: send a smaller file")

  async def receive() -> Any:
    nonlocal received
    message = await request.receive()
    received += len(message.get("body", b""))
    check(received)
    return message

  received = 0
  check(int(request.headers.get("content-length", 0)))  # before a client that waits for "100 Continue" sends anything
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
  status, message, headers = 500, "the server made a mistake: its own log says more", None
  match error:
    case HTTPException():
      status, message, headers = error.status_code, error.detail, error.headers
    case pydantic.ValidationError():
      status, message = _first_fault(error)
    case PictureError():
      status, message = 413 if isinstance(error.__cause__, DecompressionBombError) else 400, str(error)
    case ConfigError():
      status, message = 422, str(error)
    case MemoryError() | jax.errors.JaxRuntimeError():
      status, message = 503, "not enough memory for this picture: send a smaller one, or strategy=auto"
  line = " ".join(message.split())
  return JSONResponse({"error": line if len(line) <= 300 else line[:299] + "…"}, status, headers)


def _first_fault(error: pydantic.ValidationError) -> tuple[int, str]:
  """Returns the status and the line for fields that are refused."""
  fault = error.errors(include_url=False)[0]
  fields = ", ".join(Fields.model_fields)
  if not fault["loc"]:
    return 400, f"the body is no JSON object ({fault['msg']}): send one with {fields}"
  name = str(fault["loc"][0])[:60]
  given = name if fault["type"] == "missing" else f"{name}={str(fault['input'])[:40]!r}"
  return 422, f"{given}: {fault['msg'].rstrip('.')}; the fields are {fields}"
