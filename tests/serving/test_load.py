"""The server under load and abuse: nothing is lost or mixed up, and it is well afterwards."""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest

from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.inference import modes
from gmsrm_jax.serving import connections
from tests.serving.client import GOOD, HOLE, IMAGE, Negative, error, parts, pictures, pixels, png, raw, running, text

# Starlette leaves the temporary file of a part that is cut off to the garbage collector, which closes it.
pytestmark = pytest.mark.filterwarnings("ignore:.*SpooledTemporaryFile:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def model():
  return Negative()


@pytest.fixture
def server(model):
  with running(model, waiting=2, seconds=60.0) as server:
    yield server
    model.gate.set()


@pytest.fixture
def opened(server, model):
  model.gate.set()
  return server


def test_a_full_queue_is_503_and_health_answers_meanwhile(server, model):
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    waiting = [pool.submit(server.inpaint, **GOOD) for _ in range(3)]
    server.wait_for(3)
    refused = server.inpaint(**GOOD)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    assert "3 requests are in work already: try again in 1 s" in error(refused)
    model.gate.set()
    for future in waiting:
      (picture,) = pictures(future.result())
      np.testing.assert_array_equal(picture, np.where(HOLE[..., None] > 0, 255 - IMAGE, IMAGE))
  server.wait_for(0)


def test_what_takes_too_long_is_refused_and_ends():
  model = Negative()
  with running(model, seconds=0.3) as server:
    answer = server.inpaint(**GOOD)
    assert (answer.status_code, "0.3 s" in error(answer)) == (504, True)
    assert model.ended.acquire(timeout=30)
    server.wait_for(0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
      slow.sendall(raw(files=parts(GOOD))[:-9])
      assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
    model.gate.set()
    assert server.inpaint(**GOOD).status_code == 200


@contextlib.contextmanager
def streamed(server, **fields):
  """Yields the lines in which POST /inpaint tells its progress."""
  options = {"files": parts(fields), "headers": {"accept": "application/x-ndjson"}, "timeout": 60, "trust_env": False}
  with httpx.stream("POST", server.url + "/inpaint", **options) as answer:
    assert answer.status_code == 200
    yield map(json.loads, answer.iter_lines())


def test_progress_is_told_line_by_line_until_the_result(server, model):
  with streamed(server, **GOOD) as first, streamed(server, **GOOD, num_samples=2) as second:
    assert next(second) == {"phase": "queued", "ahead": 1}
    while (step := next(first)) != {"phase": "filling", "sample": 0, "window": 1, "windows": 3}:
      assert step["phase"] == "filling"
    model.gate.set()
    *_, last = first
    *_, both = second
  assert (len(last["images"]), len(both["images"]), both["width"]) == (1, 2, 40)
  expected = np.where(HOLE[..., None] > 0, 255 - IMAGE, IMAGE)
  np.testing.assert_array_equal(pixels(base64.b64decode(last["images"][0])), expected)


def test_a_refusal_comes_as_the_last_line(caplog, monkeypatch):
  with running(Negative(), seconds=0.3) as server:
    with streamed(server, **GOOD) as lines:
      *_, last = lines
    assert last["status"] == 504 and "0.3 s" in last["error"]
    server.wait_for(0)
    monkeypatch.setattr("gmsrm_jax.serving.requests.photos.fill_hole", None)
  with running(Negative(opened=True)) as server, streamed(server, **GOOD) as lines:
    *_, last = lines
  assert last == {"error": "the server made a mistake: its own log says more", "status": 500}
  assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("accept", ["*/*", "application/x-ndjson"])
def test_a_client_that_goes_away_is_waited_for_no_longer(server, model, accept):
  with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
    client.sendall(raw(files=parts(GOOD), headers={"accept": accept}))
    assert model.started.acquire(timeout=60)
  assert model.ended.acquire(timeout=60)
  server.wait_for(0)


def test_who_waits_when_the_server_ends_is_told():
  model = Negative()
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    with running(model) as server:
      waiting = [pool.submit(server.inpaint, **GOOD) for _ in range(2)]
      server.wait_for(2)
    answers = [future.result() for future in waiting]
  assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(503, "10")] * 2
  assert "the server is being ended" in error(answers[1])
  assert model.ended.acquire(timeout=60)


def test_without_memory_the_server_goes_on(opened, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr("gmsrm_jax.inference.photos.fill_hole", lambda *_, **__: bytearray(2**62))
    answer = opened.inpaint(**GOOD)
  assert (answer.status_code, "not enough memory" in error(answer)) == (503, True)
  assert opened.inpaint(**GOOD).status_code == 200


@pytest.mark.parametrize("field", ["image", "mask"])
def test_a_mistake_of_ours_is_no_damaged_file(opened, monkeypatch, caplog, field):
  with monkeypatch.context() as patch:
    patch.delattr(*{"image": (modes.pictures, "as_rgb"), "mask": (hole_files, "_hole_of_picture")}[field])
    answer = opened.inpaint(**GOOD)
  assert (answer.status_code, "its own log" in error(answer)) == (500, True)
  assert opened.inpaint(**GOOD).status_code == 200
  while not any(record.exc_info for record in caplog.records):
    time.sleep(0.01)  # it is logged after it is answered


def test_thirty_at_once_get_each_their_own(opened):
  images = [np.roll(IMAGE, number, axis=0) for number in range(30)]

  def fill(image):
    while (answer := opened.inpaint(image=png(image), mask=GOOD["mask"])).status_code == 503:
      time.sleep(0.1)
    return pictures(answer)[0]

  with concurrent.futures.ThreadPoolExecutor(30) as pool:
    for image, filled in zip(images, pool.map(fill, images), strict=True):
      np.testing.assert_array_equal(filled, np.where(HOLE[..., None] > 0, 255 - image, image))


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_body_announced_as_too_large_is_refused_before_it_is_sent(opened, kind, expect):
  head = f"POST /inpaint HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: 67108865\r\n{expect}\r\n"
  with socket.create_connection(("127.0.0.1", opened.port), timeout=30) as client:
    client.sendall(head.encode())
    assert client.recv(4096).startswith(b"HTTP/1.1 413 ")
  opened.wait_for(0)


@pytest.mark.parametrize("kind", ["application/json", "text/plain"])
def test_a_client_that_listens_only_after_it_has_sent_all_sees_its_refusal(opened, kind):
  connection = http.client.HTTPConnection("127.0.0.1", opened.port, timeout=60)
  with contextlib.closing(connection):
    connection.request("POST", "/inpaint", bytes(2**26 + 1), {"Content-Type": kind, "Connection": "close"})
    assert connection.getresponse().status in (413, 415)


def test_connections_without_a_request_are_closed_and_surplus_bytes_do_no_harm(opened, caplog):
  address = ("127.0.0.1", opened.port)
  with socket.create_connection(address, timeout=30) as silent, socket.create_connection(address, timeout=30) as slow:
    slow.sendall(b"POST /inpaint HTTP/1.1\r\nHost: ")
    for surplus in (b"\r\n", b"x" * 99):
      with socket.create_connection(address, timeout=30) as client:
        client.sendall(raw(files=parts(GOOD)) + surplus)
        assert client.recv(4096)[9:12] in (b"200", b"400")
    assert silent.recv(1) == slow.recv(1) == b""
  opened.wait_for(0)
  assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_that_nobody_reads_is_let_go_but_not_one_that_is_read_slowly(reads, opened, monkeypatch):
  lost, lose = threading.Event(), connections.Connection.connection_lost
  monkeypatch.setattr(connections.Connection, "connection_lost", lambda *given: (lose(*given), lost.set()))
  monkeypatch.setattr(connections, "_PATIENCE", 2.0 if reads else 0.1)
  image = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)  # more than the system keeps
  mask = np.pad(HOLE * 255, ((0, 1970), (0, 1960)))
  with socket.socket() as client:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    client.settimeout(60)
    client.connect(("127.0.0.1", opened.port))
    client.sendall(raw(files=parts({"image": png(image), "mask": png(mask)})))
    received = len(client.recv(2**10))
    assert reads or lost.wait(60)
    with contextlib.suppress(ConnectionError):
      while part := client.recv(2**18):
        received += len(part)
        time.sleep(0.05)
  assert (received > 12_000_000) == reads


def _malformed(rng):
  """Returns requests that are wrong in twelve ways, the first two of them cut off."""
  good = raw(files=parts(GOOD | {"seed": 3}))

  def damaged(request):
    copy = bytearray(request)
    for place in rng.integers(request.index(b"\r\n\r\n") + 4, len(request), 9):
      copy[place] = int(rng.integers(32, 127))
    return bytes(copy)

  lines = [b"GET /%00", b"PUT /inpaint/", b"HEAD /" + b"a" * 9000, b"BREW /%ff%fe", b"GET *", b"GET http://x/a"]
  return [
    rng.bytes(999),
    good[: int(rng.integers(good.index(b"\r\n\r\n"), len(good)))],
    damaged(good),
    damaged(raw(json={name: text(data) for name, data in GOOD.items()})),
    good.replace(b"multipart/form-data;", b"multipart/mixed;"),
    good.replace(b"connection: close", b"connection: close\r\nx-huge: " + b"a" * 200_000),
    *(good.replace(b"POST /inpaint", line) for line in lines),
  ]


def test_two_hundred_malformed_requests_do_no_harm(opened):
  rng = np.random.default_rng(0)
  answers = collections.Counter()
  for number, request in enumerate(itertools.chain.from_iterable(_malformed(rng) for _ in range(17))):
    with socket.create_connection(("127.0.0.1", opened.port), timeout=60) as client:
      answer = b""
      with contextlib.suppress(ConnectionError):  # what is too large may be cut off while it is sent
        client.sendall(request)
        if number % 12 < 2:
          client.shutdown(socket.SHUT_WR)
        while received := client.recv(65536):
          answer += received
    status = answer[9:12].decode()
    answers[status] += 1
    assert status in ("", "200") or status.startswith("4"), (status, request[:300], answer[:500])
  assert answers["400"] > 30 and answers["415"] == 17, answers
  opened.wait_for(0)
  np.testing.assert_array_equal(pictures(opened.inpaint(**GOOD))[0], np.where(HOLE[..., None] > 0, 255 - IMAGE, IMAGE))
