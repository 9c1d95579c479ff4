"""A server in a thread on a free port, and requests to it."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import numpy as np
import skimage.data
from PIL import Image

from gmsrm_jax.commands.serve import listen
from gmsrm_jax.inference.inpainter import Inpainter, Step
from gmsrm_jax.serving.requests import Limits
from gmsrm_jax.serving.server import Service
from tests.training.test_steps import small_config

IMAGE = skimage.data.astronaut()[:30, 100:140]
HOLE = np.zeros((30, 40), np.uint8)
HOLE[8:20, 10:25] = 1


class Running(NamedTuple):
  """A server that runs in a thread."""

  port: int

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.port}"

  def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
    """Sends one request on a connection of its own."""
    return httpx.request(method, self.url + path, timeout=120, trust_env=False, **options)

  def inpaint(self, accept: str = "*/*", **fields: Any) -> httpx.Response:
    """Sends POST /inpaint as multipart: bytes as files, all else as text."""
    return self.ask("POST", "/inpaint", files=parts(fields), headers={"accept": accept})

  def wait_for(self, count: int) -> None:
    """Waits until so many requests are in work."""
    for _ in range(600):
      if self.ask("GET", "/health").json()["waiting"] == count:
        return
      time.sleep(0.1)
    raise AssertionError(f"never {count} requests in work")


class Negative(Inpainter):
  """Fills with the negative, darkened by sample and seed, but not before its gate is open; compiles nothing."""

  def __init__(self, *, opened: bool = False):
    super().__init__(small_config(), {})
    self.gate, self.started, self.ended = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
    if opened:
      self.gate.set()

  def fills(self, image, mask, *, num_samples=1, seed=0, strategy="auto", detail=1.0, before_step=lambda _: None):
    self.started.release()
    try:
      while not self.gate.is_set():
        before_step(Step("filling", 0, 1, 3))
        time.sleep(0.01)
    finally:
      self.ended.release()
    for sample in range(num_samples):
      yield np.where(mask[..., None] > 0, 255 - image - np.uint8(sample * (seed + 1)), image)


@contextlib.contextmanager
def running(model: Inpainter, **limits: Any) -> Iterator[Running]:
  """Starts a server of the model, and ends it afterwards."""
  service = Service(model, Limits(**limits))
  with contextlib.closing(listen("127.0.0.1", 0)) as address:
    thread = threading.Thread(target=service.run, args=[address])
    thread.start()
    try:
      yield Running(address.getsockname()[1])
    finally:
      service.server.should_exit = True
      thread.join(60)
      assert not thread.is_alive()


def error(answer: httpx.Response) -> str:
  """Returns the one line of a refusal."""
  (line,) = answer.json().values()
  assert list(answer.json()) == ["error"] and "\n" not in line and len(line) <= 300, answer.text
  return line


def pictures(answer: httpx.Response) -> list[np.ndarray]:
  """Returns the pixels of a PNG, or of all PNGs in a JSON object."""
  assert answer.status_code == 200, answer.text
  if answer.headers["content-type"] == "image/png":
    return [pixels(answer.content)]
  return [pixels(base64.b64decode(text)) for text in answer.json()["images"]]


def parts(fields: dict[str, Any]) -> dict[str, Any]:
  """Returns fields as the `files` of httpx: bytes as files, all else as text."""
  return {name: (name, value) if isinstance(value, bytes) else (None, str(value)) for name, value in fields.items()}


def raw(**options: Any) -> bytes:
  """Returns a whole POST /inpaint as it goes over the wire."""
  headers = {"connection": "close"} | options.pop("headers", {})
  request = httpx.Request("POST", "http://x/inpaint", headers=headers, **options)
  head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
  return f"POST /inpaint HTTP/1.1\r\n{head}\r\n".encode() + request.read()


def png(array: np.ndarray, **options) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, "PNG", **options)
  return buffer.getvalue()


def text(data: bytes) -> str:
  return base64.b64encode(data).decode()


def pixels(data: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(data)))


GOOD = {"image": png(IMAGE), "mask": png(HOLE * 255)}
