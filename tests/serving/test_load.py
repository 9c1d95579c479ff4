"""The server under load and abuse: nothing is lost or mixed up, and it is well afterwards."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import socket
import time

import numpy as np
import pytest

from tests.inference.test_inpainter import noisy_model
from tests.serving.client import GOOD, HOLE, IMAGE, MULTIPART, Gated, multipart, png, running, text

# Starlette leaves the temporary file of a part that is cut off to the garbage collector, which closes it.
pytestmark = pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def server():
  with running(noisy_model()) as server:
    server.service.warm_up()
    yield server


@pytest.fixture
def gated():
  model = Gated()
  with running(model, waiting=2, seconds=60.0) as server:
    yield server, model
    model.gate.set()


def test_a_full_queue_is_503_and_health_answers_meanwhile(gated):
  server, model = gated
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    waiting = [pool.submit(server.inpaint, **GOOD) for _ in range(3)]
    while server.health()["waiting"] < 3:
      time.sleep(0.01)
    refused = server.inpaint(**GOOD)
    assert refused.status == 503 and int(refused.headers["retry-after"]) >= 1
    assert "3 requests are in work already: try again in 1 s" in refused.error
    assert server.health()["status"] == "ok"
    model.gate.set()
    for future in waiting:
      (picture,) = future.result().pictures
      np.testing.assert_array_equal(picture, np.where(HOLE[..., None] > 0, 255 - IMAGE, IMAGE))
  assert server.inpaint(**GOOD).status == 200


def test_what_takes_too_long_is_504_and_ends():
  model = Gated()
  with running(model, seconds=0.3) as server:
    answer = server.inpaint(**GOOD)
    assert (answer.status, "not filled within 0.3 s" in answer.error) == (504, True)
    assert model.ended.acquire(timeout=30)
    server.wait_until_idle()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
      slow.sendall(
        f"POST /inpaint HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\nContent-Length: 9\r\n\r\n-".encode()
      )
      assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
    model.gate.set()
    assert server.inpaint(**GOOD).status == 200


def test_a_client_that_goes_away_is_waited_for_no_longer(gated):
  server, model = gated
  body = multipart(**GOOD)
  head = f"POST /inpaint HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\nContent-Length: {len(body)}\r\n\r\n"
  with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
    client.sendall(head.encode() + body)
    assert model.started.acquire(timeout=60)
  assert model.ended.acquire(timeout=60)
  server.wait_until_idle()


def test_who_waits_when_the_server_ends_is_told():
  model = Gated()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    with running(model) as server:
      waiting = pool.submit(server.inpaint, **GOOD)
      assert model.started.acquire(timeout=60)
    answer = waiting.result()
  assert (answer.status, answer.error[:26], answer.headers["retry-after"]) == (503, "the server is being ended:", "10")
  assert model.ended.acquire(timeout=60)


def test_fifty_at_once_get_each_their_own(server):
  rng = np.random.default_rng(0)
  sizes = [(int(h), int(w)) for h, w in rng.integers(20, 33, (50, 2))]
  images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
  masks = [(rng.random(size) < 0.2).astype(np.uint8) for size in sizes]
  busy = itertools.count()

  def until_filled(number):
    for _ in range(600):
      answer = server.inpaint(image=png(images[number]), mask=png(masks[number] * 255))
      if answer.status != 503:
        return answer
      next(busy)
      time.sleep(min(1, int(answer.headers["retry-after"])) / 4)

  with concurrent.futures.ThreadPoolExecutor(50) as pool:
    answers = list(pool.map(until_filled, range(50)))
  for image, mask, answer in zip(images, masks, answers, strict=True):
    (filled,) = answer.pictures
    np.testing.assert_array_equal(filled[mask == 0], image[mask == 0])
  for number in (0, 49):
    np.testing.assert_array_equal(answers[number].pictures[0], noisy_model()(images[number], masks[number]))
  assert next(busy) > 0, "nothing was ever refused: more are needed to fill the queue"


def _malformed(rng):
  """Requests that are wrong in one of many ways: the bytes, and whether the connection ends with them."""
  body = multipart(**GOOD, num_samples=1, seed=3)
  kinds = itertools.cycle(range(9))
  while True:
    kind, content_type, path, method, extra = next(kinds), MULTIPART, "/inpaint", "POST", ""
    data = bytearray(body)
    length = None
    if kind == 0:
      yield rng.bytes(int(rng.integers(1, 3000))), True
      continue
    if kind == 1:
      del data[int(rng.integers(0, len(data))) :]
    elif kind == 2:
      length = len(data) + int(rng.integers(1, 10**6))
    elif kind == 3:
      content_type = rng.choice(
        ["", "text/html", "multipart/form-data; boundary=", "multipart/form-data; boundary=--x"]
      )
      content_type = rng.choice(
        [content_type, "multipart/mixed", "application/json", 'multipart/form-data; boundary="']
      )
    elif kind == 4:
      for place in rng.integers(0, len(data), int(rng.integers(1, 60))):
        data[place] = int(rng.integers(0, 256))
    elif kind == 5:
      content_type = "application/json"
      data = bytearray(json.dumps({"image": text(GOOD["image"]), "mask": text(GOOD["mask"])}).encode())
      for place in rng.integers(0, len(data), int(rng.integers(1, 30))):
        data[place] = int(rng.integers(32, 127))
    elif kind == 6:
      extra = f"X-Huge: {'a' * int(rng.integers(60_000, 300_000))}\r\n"
    elif kind == 7:
      path = rng.choice(
        ["/%00", "/inpaint/", "/" + "a" * 9000, "/%ff%fe", "//", "*", "/page.js?x=%zz", "http://x/health"]
      )
      method = rng.choice(["GET", "PUT", "HEAD", "OPTIONS", "TRACE", "BREW"])
    else:
      damaged = bytearray(GOOD[rng.choice(["image", "mask"])])
      for place in rng.integers(8, len(damaged), int(rng.integers(1, 20))):
        damaged[place] = int(rng.integers(0, 256))
      data = bytearray(multipart(**GOOD | {rng.choice(["image", "mask"]): bytes(damaged)}))
    length = len(data) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Type: {content_type}\r\nContent-Length: {length}\r\n"
    yield head.encode() + b"Connection: close\r\n\r\n" + data, kind == 2


def test_two_hundred_malformed_requests_do_no_harm(server):
  said = {}
  for request, ends in itertools.islice(_malformed(np.random.default_rng(0)), 200):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
      answer = b""
      with contextlib.suppress(ConnectionError):  # what is too large may be cut off while it is sent
        client.sendall(request)
        if ends:
          client.shutdown(socket.SHUT_WR)
        while part := client.recv(65536):
          answer += part
    status = answer[9:12].decode()
    said[status] = said.get(status, 0) + 1
    assert status in ("", "200") or status.startswith("4"), (status, request[:300], answer[:500])
  assert said["400"] > 30 and said["422"] > 5, said
  server.wait_until_idle()
  np.testing.assert_array_equal(server.inpaint(**GOOD).pictures[0], noisy_model()(IMAGE, HOLE))
