"""One rule for shell, Python and HTTP: the same mask is the same hole, the one that its bytes say."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

import run
from gmsrm_jax.commands import inpaint
from tests.serving.client import IMAGE, Negative, pictures, png, running

MODEL = Negative(opened=True)
SHAPE = IMAGE.shape[:2]
NOISE = np.random.default_rng(0).random(SHAPE, np.float32)
SOFT = cv2.normalize(cv2.GaussianBlur(NOISE, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
DEEP = SOFT.astype(np.uint16) * 256 + 255 - SOFT


@pytest.fixture(scope="module")
def server():
  with running(MODEL) as server:
    yield server


def _encoded(array, suffix, **options):
  """A file written by OpenCV, which shares no code with Pillow's writers."""
  _, data = cv2.imencode(suffix, array, **options)
  return data.tobytes()


def _turned():
  """A JPEG that is stored a quarter turn anticlockwise, and says so: EXIF orientation 6."""
  tag = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
  exif = b"\xff\xe1" + (len(tag) + 8).to_bytes(2, "big") + b"Exif\0\0" + tag
  data = _encoded(np.rot90(SOFT), ".jpg")
  return data[:2] + exif + data[2:]


def _palette():
  picture = Image.fromarray(1 - (SOFT > 127).astype(np.uint8), "P")
  picture.putpalette([250, 250, 250, 10, 10, 10])  # entry 0 is white
  data = io.BytesIO()
  picture.save(data, "PNG")
  return data.getvalue()


def _grey(data):
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)


JPEG, TURNED = _encoded(SOFT, ".jpg", params=[cv2.IMWRITE_JPEG_QUALITY, 50]), _turned()
CANVAS = np.dstack([np.full((*SHAPE, 3), 255, np.uint8), SOFT])  # white paint, erased where the picture is to be filled
# A file, the hole in it, and whether its pixels tell as much as the file does.
MASKS = {
  "grey.png": (_encoded(SOFT, ".png"), SOFT > 127, True),
  "soft.jpg": (JPEG, _grey(JPEG) > 127, True),
  "sixteen.png": (_encoded(DEEP, ".png"), DEEP > 32767, True),
  "sixteen.tif": (_encoded(DEEP, ".tif"), DEEP > 32767, True),
  "canvas.png": (_encoded(CANVAS, ".png"), SOFT < 128, True),
  "turned.jpg": (TURNED, np.rot90(_grey(TURNED), -1) > 127, False),
  "palette.png": (_palette(), SOFT > 127, False),
  "zeros and ones.png": (_encoded((SOFT > 127).astype(np.uint8), ".png"), SOFT > 127, True),
  "one bit.tif": (_encoded((SOFT > 127).astype(np.uint8) * 255, ".tif"), SOFT > 127, True),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_the_same_hole_in_the_shell_in_python_and_over_http(server, tmp_path, monkeypatch, name):
  data, hole, whole = MASKS[name]
  assert hole.any() and not hole.all()
  mask, image, filled = tmp_path / name, tmp_path / "image.png", tmp_path / "filled.png"
  mask.write_bytes(data)
  image.write_bytes(png(IMAGE))
  monkeypatch.setattr(inpaint.Inpainter, "from_checkpoint", lambda path: MODEL)
  assert run.main(["--mode=inpaint", f"--images={image}", f"--masks={mask}", f"--output={filled}"]) == 0
  answers = [np.asarray(Image.open(filled)), *pictures(server.inpaint(image=png(IMAGE), mask=data))]
  picture = Image.open(mask)
  answers += [MODEL(IMAGE, source) for source in (mask, str(mask), picture, *[np.asarray(picture)] * whole)]
  expected = np.where(hole[..., None], 255 - IMAGE, IMAGE)
  for answer in answers:
    np.testing.assert_array_equal(answer, expected)
