"""The server: fills what Python's interface fills, refuses in one line, and ends cleanly."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import zlib

import grain
import numpy as np
import pytest
import skimage.data
from PIL import Image

import run
from gmsrm_jax import overrides
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference import photos
from gmsrm_jax.serving import server as server_lib
from gmsrm_jax.training.checkpoint import Checkpointer
from tests.inference.test_inpainter import noisy_model
from tests.serving.client import BOUNDARY, GOOD, HOLE, IMAGE, MULTIPART, Gated, multipart, png, running, text
from tests.training.test_steps import initial, small_config

ROOT = pathlib.Path(run.__file__).parent


@pytest.fixture(scope="module")
def server():
  with running(noisy_model()) as server:
    server.service.warm_up()
    yield server


def test_the_answer_has_the_pixels_of_the_python_interface(server):
  expected = noisy_model()(IMAGE, HOLE, num_samples=3, seed=4)
  (single,) = server.inpaint(**GOOD).pictures
  np.testing.assert_array_equal(single, expected[0])
  np.testing.assert_array_equal(server.inpaint("application/json", **GOOD).pictures[0], expected[0])
  several = server.inpaint(**GOOD, num_samples=3, seed=4)
  np.testing.assert_array_equal(several.pictures, expected)
  assert {key: several.json[key] for key in ("width", "height", "seed")} == {"width": 40, "height": 30, "seed": 4}
  files = {"image": "data:image/png;base64," + text(GOOD["image"]), "mask": text(GOOD["mask"])}
  np.testing.assert_array_equal(server.inpaint_json(files | {"num_samples": 3, "seed": 4}).pictures, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "deep", "jpeg", "turned", "cmyk"])
def test_the_picture_keeps_its_mode_and_its_pixels(server, mode, tmp_path):
  image = Image.fromarray(IMAGE)
  options = {"quality": 95}
  if mode in ("L", "RGBA", "cmyk"):
    image = image.convert(mode.upper())
  if mode == "turned":
    image = image.rotate(90, expand=True)
    options["exif"] = image.getexif()
    options["exif"][0x0112] = 6
  path = tmp_path / ("picture.png" if mode in ("RGB", "L", "RGBA") else "picture.jpg")
  image.save(path, **options)
  if mode == "deep":
    path = tmp_path / "deep.png"
    path.write_bytes(photos.encode_photo(photos.Photo(IMAGE * np.uint16(201), "RGB;16", IMAGE, "PNG", 1, {}), "PNG"))
  photo = photos.read_photo(path)
  answer = server.inpaint(image=path.read_bytes(), mask=GOOD["mask"])
  assert answer.headers["content-type"] == "image/png", answer
  (tmp_path / "answer.png").write_bytes(answer.body)
  filled = photos.read_photo(tmp_path / "answer.png")
  expected = photos.fill_hole(photo, noisy_model()(photo.rgb, HOLE), HOLE)
  assert filled.orientation == photo.orientation and filled.mode == ("RGB" if mode == "cmyk" else photo.mode)
  np.testing.assert_array_equal(filled.pixels, expected.rgb if mode == "cmyk" else expected.pixels)
  np.testing.assert_array_equal(filled.rgb[HOLE == 0], photo.rgb[HOLE == 0])


def test_without_a_mask_the_hole_is_what_is_transparent(server):
  (filled,) = server.inpaint(image=png(np.dstack([IMAGE, 255 * (1 - HOLE)]))).pictures
  assert (filled[..., 3] == 255).all()
  np.testing.assert_array_equal(filled[..., :3][HOLE == 0], IMAGE[HOLE == 0])
  (also,) = server.inpaint(image=GOOD["image"], mask=png(np.dstack([IMAGE, 255 * (1 - HOLE)]))).pictures
  np.testing.assert_array_equal(also, noisy_model()(IMAGE, HOLE))


def test_a_large_picture_is_filled_through_windows(server):
  image, mask = skimage.data.astronaut()[:, :300], np.zeros((512, 300), np.uint8)
  mask[100:140, 20:280] = mask[400, 10:100] = 1
  (filled,) = server.inpaint(image=png(image), mask=png(mask * 255), strategy="crop").pictures
  np.testing.assert_array_equal(filled, noisy_model()(image, mask))


def _bomb(width, height):
  """A PNG of a few bytes that promises many pixels."""
  chunks = [
    (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
    (b"IDAT", zlib.compress(b"")),
    (b"IEND", b""),
  ]
  parts = [
    struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
  ]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
  ("fields", "status", "message"),
  [
    ({"image": None}, 422, "image is missing: send a picture file"),
    ({"image": b""}, 422, "image is missing"),
    ({"image": "photo.jpg"}, 422, "image is text: send a picture file"),
    ({"mask": None}, 422, "mask is missing, and image has no transparency"),
    ({"image": b"nonsense"}, 400, "image is no picture, or a damaged one: send one of PNG, JPEG"),
    ({"image": GOOD["image"][:-900]}, 400, "image cannot be decoded"),
    ({"mask": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, 400, "mask is no picture"),
    ({"mask": png(HOLE[:, :39])}, 422, "mask is 39x30 but image is 40x30: send them equally large"),
    ({"mask": png(HOLE)}, 422, "the mask has no hole: it is white where"),
    ({"image": _bomb(8000, 6000)}, 413, "image has 8000x6000 pixels, more than 24 million pixels: reduce it first"),
    ({"mask": _bomb(12000, 8000)}, 413, "mask has"),
    ({"image": _bomb(60000, 60000)}, 413, "image has more than 24 million"),
    ({"num_samples": 0}, 422, "num_samples=0 is out of range: send a whole number from 1 to 8"),
    ({"num_samples": 9}, 422, "num_samples=9 is out"),
    ({"num_samples": "1.5"}, 422, "num_samples='1.5' is out"),
    ({"num_samples": "9" * 5000}, 422, "is out of range"),
    ({"seed": -1}, 422, "seed=-1 is out of range: send a whole number from 0 to 4294967295"),
    ({"seed": 2**32}, 422, "seed=4294967296 is out"),
    ({"strategy": "corp"}, 422, "strategy 'corp' is unknown: did you mean 'crop'?"),
    ({"strategy": "x" * 5000}, 422, "strategy='xxx"),
    ({"sed": 1}, 422, "field 'sed' is unknown: did you mean 'seed'?"),
  ],
)
def test_what_cannot_be_filled_is_refused_in_words(server, fields, status, message):
  answer = server.inpaint(**{name: value for name, value in (GOOD | fields).items() if value is not None})
  assert (answer.status, message in answer.error) == (status, True), answer
  assert len(answer.error) <= 300


@pytest.mark.parametrize(
  ("body", "status", "message"),
  [
    (b"{", 400, "the body is no JSON"),
    (b"\xff\xfe", 400, "the body is no JSON"),
    (b"[" * 100_000, 400, "the body is no JSON"),
    (b"", 400, "the body is no JSON"),
    ([1], 400, "the body is a JSON list: send an object"),
    ({"image": 3}, 400, "image is a JSON int: send a picture file as base64 text"),
    ({"image": "§§"}, 400, "image is no base64"),
    ({"image": "AAA"}, 400, "image is no base64"),
    ({"image": text(GOOD["image"]), "mask": text(GOOD["mask"]), "num_samples": True}, 422, "num_samples=True is out"),
    ({"image": text(GOOD["image"]), "mask": text(GOOD["mask"]), "seed": 1.0}, 422, "seed=1.0 is out"),
    ({"image": text(GOOD["image"]), "mask": text(GOOD["mask"]), "strategy": []}, 422, "strategy=[] is no name"),
    ({}, 422, "image is missing"),
  ],
)
def test_json_that_makes_no_sense_is_refused_in_words(server, body, status, message):
  answer = server.inpaint_json(body)
  assert (answer.status, message in answer.error) == (status, True), answer


def test_other_paths_methods_and_types_are_refused(server):
  assert server.ask("GET", "/nothing").status == 404
  assert server.ask("GET", "/../run.py").status == 404
  assert server.ask("GET", "/inpaint").status == 405
  assert server.ask("DELETE", "/health").status == 405
  plain = server.ask("POST", "/inpaint", b"x", content_type="text/plain")
  assert (plain.status, plain.error[:26]) == (415, "content type 'text/plain':")
  assert server.ask("POST", "/inpaint", b"x").status == 415
  assert server.ask("POST", "/inpaint", b"x", content_type="multipart/form-data").status == 400
  twice = multipart(seed=1)[: -len(BOUNDARY) - 6] + multipart(seed=2)
  assert "field 'seed' is there twice" in server.ask("POST", "/inpaint", twice, content_type=MULTIPART).error
  for path in ("/", "/page.js", "/page.css", "/health"):
    answer = server.ask("GET", path)
    assert answer.status == 200 and b"://" not in answer.body.replace(b'xmlns="http://', b""), path


def test_more_bytes_than_allowed_are_refused_whether_or_not_they_are_announced():
  with running(Gated(), upload_bytes=5000) as server:
    body = multipart(image=bytes(6000))
    announced = server.ask("POST", "/inpaint", body, content_type=MULTIPART)
    pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
    chunked = server.ask("POST", "/inpaint", pieces, content_type=MULTIPART)
    for answer in (announced, chunked):
      assert (answer.status, "the body has more than 0.0047" in answer.error) == (413, True), answer
    server.wait_until_idle()


def test_a_port_in_use_is_one_line_and_exit_code_2(capsys, tmp_path):
  with contextlib.closing(server_lib.listen("127.0.0.1", 0)) as address:
    port = address.getsockname()[1]
    assert run.main(["--mode=serve", f"--port={port}", f"--workdir={tmp_path}"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert error.startswith(f"error: --host=127.0.0.1 --port={port} cannot be listened on (address already in use)")
  with pytest.raises(ConfigError, match="--host=no.such..host"):
    server_lib.listen("no.such..host", 0)
  with pytest.raises(ConfigError, match="--port=65536 is no port"):
    run.parse(["--mode=serve", "--port=65536"])


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
  """The folder of a run that ended where it began."""
  folder, config = tmp_path_factory.mktemp("untrained"), small_config()
  saved = Checkpointer(str(folder), "inpaint", keep=1)
  saved.save(initial(config, "inpaint"), iter(grain.MapDataset.range(3).to_iter_dataset()))
  saved.close()
  (folder / "config.json").write_text(json.dumps({"config": overrides.to_dict(config), "splits": {}}))
  return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_serves_and_ends_cleanly(untrained, number):
  environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
  command = [
    sys.executable,
    str(ROOT / "run.py"),
    "--mode=serve",
    f"--workdir={untrained}",
    "--port=0",
    "--platform=cpu",
  ]
  process = subprocess.Popen(
    command,
    env=environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    ready = process.stdout.readline()
    found = re.fullmatch(
      r"ready: http://127\.0\.0\.1:(\d+) serves .*: demo, \d+x\d+, step 0 on cpu, .*; Ctrl-C ends it\n", ready
    )
    if not found:
      process.kill()  # it would go on, and its output never end
    assert found, ready + process.stderr.read()
    with socket.create_connection(("127.0.0.1", int(found[1])), timeout=60) as client:
      client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
      assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  assert (process.returncode, out, err) == (0, "stopped\n", "")
