"""A server in a thread on a free port, and requests to it, made of nothing but the standard library."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import skimage.data
from PIL import Image

from gmsrm_jax.inference.inpainter import Inpainter
from gmsrm_jax.serving import server
from gmsrm_jax.serving.requests import Limits
from gmsrm_jax.serving.service import Service
from tests.training.test_steps import small_config

BOUNDARY = "----boundary-of-the-tests"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


IMAGE = skimage.data.astronaut()[:30, 100:140]
HOLE = np.zeros((30, 40), np.uint8)
HOLE[8:20, 10:25] = 1


class Answer(NamedTuple):
  """What the server says."""

  status: int
  headers: dict[str, str]
  body: bytes

  @property
  def json(self) -> Any:
    assert self.headers["content-type"] == "application/json", self
    return json.loads(self.body)

  @property
  def error(self) -> str:
    """The one line of a refusal."""
    assert list(self.json) == ["error"] and "\n" not in self.json["error"], self
    return self.json["error"]

  @property
  def pictures(self) -> list[np.ndarray]:
    """The pixels of a PNG, or of all PNGs in a JSON object."""
    assert self.status == 200, self
    if self.headers["content-type"] == "image/png":
      return [pixels(self.body)]
    return [pixels(base64.b64decode(text)) for text in self.json["images"]]


class Running(NamedTuple):
  """A server that runs in a thread."""

  port: int
  service: Service

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.port}"

  def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One request on a connection of its own; `content_type` is spelt as a name in Python."""
    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
    with contextlib.closing(connection):
      connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
      answer = connection.getresponse()
      return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

  def inpaint(self, accept: str = "*/*", **fields: Any) -> Answer:
    """POST /inpaint as multipart."""
    return self.ask("POST", "/inpaint", multipart(**fields), content_type=MULTIPART, accept=accept)

  def inpaint_json(self, body: Any) -> Answer:
    """POST /inpaint with a JSON body."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return self.ask("POST", "/inpaint", data, content_type="application/json")

  def health(self) -> dict[str, Any]:
    return self.ask("GET", "/health").json

  def wait_until_idle(self) -> None:
    """Fails if a place is never given back."""
    for _ in range(600):
      if self.health()["waiting"] == 0:
        return
      time.sleep(0.1)
    raise AssertionError("a place was never given back")


class Gated(Inpainter):
  """Fills with the negative, but not before its gate is open."""

  def __init__(self):
    super().__init__(small_config(), {})
    self.gate = threading.Event()
    self.started = threading.Semaphore(0)
    self.ended = threading.Semaphore(0)

  def fills(self, image, mask, *, num_samples=1, seed=0, strategy="auto", before_batch=lambda: None):
    self.started.release()
    try:
      while not self.gate.is_set():
        before_batch()
        time.sleep(0.01)
    finally:
      self.ended.release()
    for _ in range(num_samples):
      yield 255 - image


@contextlib.contextmanager
def running(model: Inpainter, **limits: Any) -> Iterator[Running]:
  """A server of the model, ended afterwards."""
  service = Service(model, Limits(**limits))
  http = server.Server(service)
  with contextlib.closing(server.listen("127.0.0.1", 0)) as address:
    thread = threading.Thread(target=http.run, kwargs={"sockets": [address]})
    thread.start()
    try:
      yield Running(address.getsockname()[1], service)
    finally:
      http.should_exit = True
      thread.join(60)
      service.close()
      assert not thread.is_alive()


def multipart(**fields: Any) -> bytes:
  """A body with a file for every value of bytes and text for all others."""
  parts = b""
  for name, value in fields.items():
    file = f'; filename="{name}"\r\nContent-Type: application/octet-stream' if isinstance(value, bytes) else ""
    data = value if isinstance(value, bytes) else str(value).encode()
    parts += f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
  return parts + f"--{BOUNDARY}--\r\n".encode()


def png(array: np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, image_format, **options)
  return buffer.getvalue()


def text(data: bytes) -> str:
  return base64.b64encode(data).decode()


def pixels(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)))


GOOD = {"image": png(IMAGE), "mask": png(HOLE * 255)}
