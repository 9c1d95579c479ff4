"""The server: fills what Python's interface fills, refuses in one line, and ends cleanly."""

from __future__ import annotations

import base64
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import httpx
import numpy as np
import pytest
from PIL import Image

import run
from gmsrm_jax import overrides
from gmsrm_jax.commands import main
from gmsrm_jax.commands.serve import listen
from gmsrm_jax.data.pictures import FORMATS
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference import photos
from gmsrm_jax.inference.inpainter import Inpainter, predict
from gmsrm_jax.serving.requests import Limits
from gmsrm_jax.serving.server import PAGE, Service
from gmsrm_jax.training.weights import Weights, save_weights
from tests.inference.test_inpainter import hole_of, noisy_model
from tests.serving.client import GOOD, HOLE, IMAGE, Negative, error, parts, pictures, png, running, text

ROOT = pathlib.Path(run.__file__).parent
GOOD_TEXT = {name: text(data) for name, data in GOOD.items()}
MODEL = Negative(opened=True)


@pytest.fixture(scope="module")
def server():
  with running(MODEL) as server:
    yield server


def test_the_answer_has_the_pixels_of_the_python_interface(server):
  expected = MODEL(IMAGE, HOLE, num_samples=3, seed=4)
  for accept in ("*/*", "application/json"):
    np.testing.assert_array_equal(pictures(server.inpaint(accept, **GOOD)), expected[:1])
  several = server.inpaint(**GOOD, num_samples=3, seed=4)
  np.testing.assert_array_equal(pictures(several), expected)
  assert {key: several.json()[key] for key in ("width", "height", "seed")} == {"width": 40, "height": 30, "seed": 4}
  fields = GOOD_TEXT | {"num_samples": 3, "seed": 4}
  np.testing.assert_array_equal(pictures(server.ask("POST", "/inpaint", json=fields)), expected)


@pytest.mark.parametrize("kind", ["WEBP", "JPEG", "deep"])
def test_the_picture_keeps_its_mode_orientation_and_pixels(server, kind):
  image, buffer = Image.fromarray(IMAGE), io.BytesIO()
  if kind == "deep":
    buffer.write(photos.encode_photo(photos.Photo(IMAGE * np.uint16(201), "RGB;16", IMAGE, "PNG", 1), "PNG"))
  else:
    turned = image.getexif()
    turned[0x0112] = 6
    image.rotate(90, expand=True).save(buffer, kind, quality=95, exif=turned)
  photo = photos.read_photo(buffer.getvalue())
  expected = photos.fill_hole(photo, MODEL(photo.rgb, HOLE), HOLE)
  answer = server.inpaint(image=buffer.getvalue(), mask=GOOD["mask"])
  assert answer.content == photos.encode_photo(expected, "PNG")


# The opening bytes by which each specification knows its format.
MAGIC = {
  "PNG": b"\x89PNG",
  "JPEG": b"\xff\xd8\xff",
  "MPO": b"MPF\0",
  "WEBP": b"WEBPVP8",
  "TIFF": b"II*\0",
  "BMP": b"BM",
  "GIF": b"GIF8",
  "PPM": b"P6\n",
  "JPEG2000": b"jP  \r\n\x87\n",
  "AVIF": b"ftypavif",
  "TGA": b"\0\0\2\0",
}


@pytest.mark.parametrize("kind", MAGIC)
def test_a_file_of_every_format_is_taken_as_picture_and_as_mask(server, kind):
  assert {*FORMATS, "MPO"} == {*MAGIC}
  options = {"MPO": {"save_all": True, "append_images": [Image.fromarray(IMAGE)]}, "WEBP": {"lossless": True}}
  files = [io.BytesIO(), io.BytesIO()]
  for file, array in zip(files, (IMAGE, np.repeat(HOLE[..., None] * 255, 3, axis=2)), strict=True):
    Image.fromarray(array).save(file, kind, **options.get(kind, {"quality": 95}))
    assert MAGIC[kind] in file.getvalue()[:80]
  image, mask = (file.getvalue() for file in files)
  (filled,) = pictures(server.inpaint(image=image, mask=mask))
  lossy = kind in ("JPEG", "MPO", "AVIF", "GIF")
  assert np.abs(filled.astype(int) - IMAGE)[HOLE == 0].max() <= (60 if lossy else 0)
  negative = filled[HOLE > 0].astype(int) + IMAGE[HOLE > 0]
  assert np.abs(negative - 255).mean() <= (10 if lossy else 0)


@pytest.mark.parametrize(
  "write",
  [
    lambda data: base64.encodebytes(data).decode(),
    lambda data: "  " + base64.encodebytes(data).decode().replace("\n", "\r\n"),
    lambda data: base64.urlsafe_b64encode(data).decode(),
    lambda data: text(data).rstrip("="),
    lambda data: "data:image/png;base64," + text(data),
    lambda data: "DATA:image/png;name=a b.png;charset=utf-8;BASE64," + base64.encodebytes(data).decode(),
  ],
)
def test_base64_is_read_in_all_its_forms(server, write):
  image = GOOD["image"] + b"x" * ((1 - len(GOOD["image"])) % 3)  # bytes after the end do not count
  assert text(image).endswith("==") and "/" in text(image) and "+" in text(image)
  fields = {"image": write(image), "mask": write(GOOD["mask"])}
  expected = pictures(server.inpaint(**GOOD))
  np.testing.assert_array_equal(pictures(server.ask("POST", "/inpaint", json=fields)), expected)
  np.testing.assert_array_equal(pictures(server.inpaint(**fields)), expected)


def test_without_a_mask_the_hole_is_what_is_transparent(server):
  transparent = png(np.dstack([IMAGE, 255 * (1 - HOLE)]))
  (filled,) = pictures(server.inpaint(image=transparent))
  assert (filled[..., 3] == 255).all()
  np.testing.assert_array_equal(filled[..., :3][HOLE == 0], IMAGE[HOLE == 0])
  (also,) = pictures(server.inpaint(image=GOOD["image"], mask=transparent))
  np.testing.assert_array_equal(also, MODEL(IMAGE, HOLE))


@pytest.mark.parametrize(
  ("fields", "status", "named"),
  [
    ({"image": None}, 422, "image"),
    ({"image": "photo.jpg"}, 422, "image='photo.jpg': this is no base64"),
    ({"mask": None}, 422, "image has no transparency to take as its hole: give a mask"),
    ({"image": b"nonsense"}, 400, "image"),
    ({"image": GOOD["image"][:-900]}, 400, "image"),
    ({"image": png(IMAGE, save_all=True, append_images=[Image.new("RGB", (40, 30))])}, 422, "image holds 2 pictures"),
    ({"mask": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, 400, "mask"),
    ({"mask": png(HOLE[:, :39] * 255)}, 422, "mask is 39x30 but image is 40x30"),
    ({"mask": png(HOLE * 0)}, 422, "mask has no hole"),
    ({"num_samples": 0}, 422, "num_samples='0': Input should be greater than or equal to 1"),
    ({"num_samples": 9}, 422, "num_samples='9': Input should be less than or equal to 8"),
    ({"seed": 2**32}, 422, "seed='4294967296': Input should be less than or equal to 4294967295"),
    ({"strategy": "corp"}, 422, "'crop'"),
    ({"strategy": "x" * 5000}, 422, "strategy='xxx"),
    ({"sed": 1}, 422, "sed='1': Extra inputs are not permitted; the fields are image, mask, num_samples, seed"),
  ],
)
def test_what_cannot_be_filled_is_refused_in_one_line(server, fields, status, named):
  answer = server.inpaint(**{name: value for name, value in (GOOD | fields).items() if value is not None})
  assert (answer.status_code, named in error(answer)) == (status, True), answer.text


@pytest.mark.parametrize(
  ("body", "status", "named"),
  [
    *((body, 400, "the body is no JSON object") for body in (b"{", b"\xff\xfe", b"[" * 100_000, b"", b"[1]")),
    ({"image": 3}, 422, "image='3'"),
    ({"image": "A§"}, 422, "image='A§': this is no base64"),
    (GOOD_TEXT | {"num_samples": True}, 422, "num_samples='True'"),
    (GOOD_TEXT | {"seed": 1.0}, 422, "seed='1.0'"),
  ],
)
def test_json_that_makes_no_sense_is_refused_in_one_line(server, body, status, named):
  body = body if isinstance(body, bytes) else json.dumps(body)
  answer = server.ask("POST", "/inpaint", content=body, headers={"content-type": "application/json"})
  assert (answer.status_code, named in error(answer)) == (status, True), answer.text


@pytest.mark.parametrize(
  ("method", "path", "kind", "status"),
  [
    ("GET", "/nothing", "", 404),
    ("GET", "/samples", "", 404),
    ("GET", "/samples/../../server.py", "", 404),
    ("GET", "/%2e%2e/server.py", "", 404),
    ("GET", "/inpaint", "", 405),
    ("POST", "/", "", 405),
    ("POST", "/inpaint", "text/plain", 415),
    ("POST", "/inpaint", "", 415),
    ("POST", "/inpaint", "multipart/form-data", 400),
  ],
)
def test_other_paths_methods_and_types_are_refused(server, method, path, kind, status):
  answer = server.ask(method, path, content=b"x", headers={"content-type": kind} if kind else {})
  assert (answer.status_code, error(answer) != "") == (status, True)


def test_a_field_that_is_there_twice_is_refused(server):
  twice = [*parts(GOOD | {"seed": 1}).items(), *parts({"seed": 2}).items()]
  assert "'seed' is there twice" in error(server.ask("POST", "/inpaint", files=twice))


def test_the_documents_name_the_bounds_and_lead_nowhere_else(server):
  content = server.ask("GET", "/openapi.json").json()["paths"]["/inpaint"]["post"]["requestBody"]["content"]
  for body in content.values():
    properties = body["schema"]["properties"]
    assert (properties["num_samples"]["maximum"], properties["seed"]["maximum"]) == (8, 2**32 - 1)
  files = [f"/{path.relative_to(PAGE).as_posix()}" for path in PAGE.rglob("*.*")]
  kinds = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".webp": "image/webp",
    ".png": "image/png",
    ".md": "text/plain",
  }
  assert len(files) > 20
  for path in ("/", "/docs", "/health", "/openapi.json", *files):
    answer = server.ask("GET", path)
    assert answer.status_code == 200 and b"://" not in answer.content, path
    assert answer.headers["content-type"].startswith(kinds.get(pathlib.Path(path).suffix, "")), path
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_once_it_is_ready_no_picture_compiles():
  model, steps = Inpainter(noisy_model().config, noisy_model().params), []
  Service(model, Limits()).warm_up()
  programs = predict._cache_size()
  for height, width, share in ((20, 30, 0.3), (32, 32, 0.9), (100, 140, 0.1), (140, 100, 0.7), (40, 600, 0.9)):
    image = np.resize(IMAGE, (height, width, 3))
    list(model.fills(image, hole_of(height, width, share), num_samples=2, before_step=steps.append))
  assert {step.phase for step in steps} == {"filling", "detail"} and predict._cache_size() == programs


def test_more_bytes_or_pixels_than_allowed_are_refused_whether_or_not_they_are_announced():
  with running(MODEL, upload_bytes=5000, pixels=1199) as server:
    answer = server.inpaint(**GOOD)
    assert (answer.status_code, "image cannot be decoded (it has more than" in error(answer)) == (413, True)
    request = httpx.Request("POST", "http://x", files=parts({"image": bytes(6000)}))
    body, kind = request.read(), {"content-type": request.headers["content-type"]}
    for content in (body, (body[i : i + 1000] for i in range(0, len(body), 1000))):
      answer = server.ask("POST", "/inpaint", content=content, headers=kind)
      assert (answer.status_code, "the body has more than 0.0047" in error(answer)) == (413, True)
    server.wait_for(0)


def test_what_is_not_installed_or_in_use_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path):
  with listen("127.0.0.1", 0) as address:
    port = address.getsockname()[1]
    assert main(["--mode=serve", f"--port={port}", f"--workdir={tmp_path}"]) == 2
  line = capsys.readouterr().err
  assert line.count("\n") == 1 and f"--host=127.0.0.1 --port={port}" in line and "already in use" in line
  with pytest.raises(ConfigError, match="--host=no.such..host"):
    listen("no.such..host", 0)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "python_multipart" else name)
  assert main(["--mode=serve", f"--workdir={tmp_path}"]) == 2
  assert "needs python-multipart: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_where_it_serves_and_ends_cleanly(tmp_path, number):
  model = noisy_model()
  save_weights(tmp_path, Weights(model.params, 7), {"config": overrides.to_dict(model.config), "splits": {}}, "float32")
  environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_DIS", "XLA_"))}
  process = subprocess.Popen(
    [sys.executable, ROOT / "run.py", "--mode=serve", f"--checkpoint={tmp_path}", "--port=0", "--platform=cpu"],
    env=environment | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    ready = process.stdout.readline()
    match = re.fullmatch(r"ready: (http://127\.0\.0\.1:\d+) serves .*: demo, .*, step 7 on cpu; .*\n", ready)
    if not match:
      process.kill()  # it would go on, and its output never end
    assert match, ready + process.stderr.read()
    assert httpx.get(match[1] + "/health", timeout=60, trust_env=False).json()["status"] == "ok"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
  finally:
    process.kill()
  assert (process.returncode, out, err) == (0, "stopped\n", "")
