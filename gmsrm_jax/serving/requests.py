"""What a client of `--mode=serve` may ask for: fields from the network, checked, decoded and carried out.

Nothing here trusts its input: sizes are read from headers before anything is decoded, and every refusal is one line
with the HTTP status that says whose fault it is.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PilImage

from gmsrm_jax.data import pictures
from gmsrm_jax.data.masks.hole_files import read_hole
from gmsrm_jax.errors import ConfigError, suggest
from gmsrm_jax.inference import photos
from gmsrm_jax.inference.inpainter import Inpainter

FIELDS = ("image", "mask", "num_samples", "seed", "strategy")
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""Formats that are decoded for strangers; others of Pillow's start programs or are rarely looked at."""
MAX_SEED = 2**32 - 1

Value = bytes | str | int | float | bool | list | dict | None


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one request may ask for, and all of them together."""

  upload_bytes: int = 64 * 2**20  # of a request's body; more is 413
  pixels: int = 24_000_000  # of a picture, read from its header before it is decoded; more is 413
  samples: int = 8  # fills per request; more is 422
  waiting: int = 8  # requests that are read or wait while another one is filled; more is 503
  seconds: float = 120.0  # a body may take this long to arrive (408), and its fill as long again (504)


class Refused(ConfigError):
  """A request that is not carried out, with its HTTP status."""

  def __init__(self, status: int, message: str, retry_after: int = 0):
    super().__init__(message)
    self.status = status
    self.retry_after = retry_after  # seconds; 0 says nothing


def demand(condition: bool, status: int, message: str) -> None:
  """Raises Refused unless the condition holds."""
  if not condition:
    raise Refused(status, message)


@dataclasses.dataclass(frozen=True)
class Order:
  """One picture to be filled."""

  photo: photos.Photo
  mask: UInt8[np.ndarray, "h w"]  # upright, 1 in the hole
  opaque: bool  # the hole was the picture's own transparency
  num_samples: int
  seed: int
  strategy: str


def fields_of_json(body: bytes) -> dict[str, Value]:
  """The fields of a JSON body; pictures are base64, with or without the head of a data URL.

  Raises:
    Refused: it is no JSON object, or a picture is no base64.
  """
  try:
    fields = json.loads(body)
  except (ValueError, RecursionError):
    raise Refused(400, "the body is no JSON: send an object with image, mask, num_samples, seed, strategy") from None
  demand(isinstance(fields, dict), 400, f"the body is a JSON {type(fields).__name__}: send an object")
  for name in ("image", "mask"):
    text = fields.get(name)
    if text is None:
      continue
    demand(isinstance(text, str), 400, f"{name} is a JSON {type(text).__name__}: send a picture file as base64 text")
    try:
      fields[name] = base64.b64decode(re.sub(r"\Adata:[^,]{0,100},", "", text), validate=True)
    except ValueError:
      raise Refused(400, f"{name} is no base64: send a picture file as base64 text") from None
  return fields


def read_order(fields: Mapping[str, Value], limits: Limits, inpainter: Inpainter) -> Order:
  """Checks the fields, cheap things first, and decodes the pictures.

  Raises:
    ConfigError: a field is missing, unknown, out of range or damaged.
  """
  for name in fields:
    demand(name in FIELDS, 422, f"field {name!r:.60} is unknown: {suggest(name[:60], FIELDS)}send {', '.join(FIELDS)}")
  num_samples = _whole("num_samples", fields.get("num_samples"), 1, 1, limits.samples)
  seed = _whole("seed", fields.get("seed"), 0, 0, MAX_SEED)
  strategy = "auto" if fields.get("strategy") in (None, "") else fields["strategy"]
  if not isinstance(strategy, str) or len(strategy) > 60:
    raise Refused(422, f"strategy={strategy!r:.40} is no name of one: send 'auto'")
  inpainter.check(1, 1, num_samples, seed, strategy)
  image, mask = fields.get("image"), fields.get("mask")
  demand(bool(image), 422, "image is missing: send a picture file")
  sizes = {name: _size(name, data, limits) for name, data in (("image", image), ("mask", mask)) if data}
  photo = _decode("image", image)
  height, width = photo.rgb.shape[:2]
  inpainter.check(height, width, num_samples, seed, strategy)
  if "mask" in sizes:
    hole = _hole(mask)
    demand(
      hole.shape == (height, width),
      422,
      f"mask is {hole.shape[1]}x{hole.shape[0]} but image is {width}x{height}: send them equally large",
    )
  else:
    if photo.alpha is None:
      raise Refused(422, "mask is missing, and image has no transparency to take as its hole")
    hole = read_hole(PilImage.fromarray(photo.alpha), invert=True)
  demand(bool(hole.any()), 422, "the mask has no hole: it is white where the picture is to be filled, black elsewhere")
  return Order(photo, hole, "mask" not in sizes, num_samples, seed, strategy)


def _hole(data: Value) -> UInt8[np.ndarray, "h w"]:
  assert isinstance(data, bytes)
  try:
    with pictures.open_picture(data, "mask", FORMATS) as file:
      return read_hole(file)
  except ConfigError as error:
    raise Refused(400, str(error)) from error


def _whole(name: str, value: Value, default: int, low: int, high: int) -> int:
  if value is None or value == "":
    return default
  if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,15}\s*", value):
    value = int(value)
  whole = value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None
  if whole is None:
    raise Refused(422, f"{name}={value!r:.40} is out of range: send a whole number from {low} to {high}")
  return whole


def _size(name: str, data: Value, limits: Limits) -> tuple[int, int]:
  """Width and height as the header has them."""
  too_large = f"{limits.pixels / 1e6:g} million pixels: reduce it first"
  if not isinstance(data, bytes):
    raise Refused(422, f"{name} is text: send a picture file")
  try:
    with PilImage.open(io.BytesIO(data), formats=FORMATS) as file:
      width, height = file.size
  except (PilImage.DecompressionBombError, PilImage.DecompressionBombWarning):
    raise Refused(413, f"{name} has more than {too_large}") from None
  except Exception:  # Pillow raises what it likes on a broken file.
    raise Refused(400, f"{name} is no picture, or a damaged one: send one of {', '.join(FORMATS)}") from None
  demand(width * height <= limits.pixels, 413, f"{name} has {width}x{height} pixels, more than {too_large}")
  return width, height


def _decode(name: str, data: Value) -> photos.Photo:
  assert isinstance(data, bytes)
  try:
    return photos.decode_photo(data, name, FORMATS)
  except ConfigError as error:
    raise Refused(400, str(error)) from error


def carry_out(order: Order, inpainter: Inpainter, before_batch: Callable[[], None]) -> list[bytes]:
  """The fills as PNG files in the picture's own mode: outside the hole every pixel is as it was, to the bit."""
  options: dict[str, Any] = {"num_samples": order.num_samples, "seed": order.seed, "strategy": order.strategy}
  files = []
  for fill in inpainter.fills(order.photo.rgb, order.mask, before_batch=before_batch, **options):
    before_batch()
    filled = photos.fill_hole(order.photo, fill, order.mask, opaque=order.opaque)
    files.append(photos.encode_photo(filled, "PNG"))
  return files
