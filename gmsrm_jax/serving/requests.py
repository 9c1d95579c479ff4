"""The fields of `POST /inpaint`: validated, decoded, filled.

Nothing here trusts its input: sizes are read from headers before anything is decoded, and every refusal is one line
with the HTTP status that says whose fault it is.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import threading
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import numpy as np
import pydantic
from jaxtyping import UInt8
from PIL import Image as PilImage
from starlette.exceptions import HTTPException

from gmsrm_jax.config import STRATEGIES
from gmsrm_jax.data import pictures
from gmsrm_jax.data.masks.hole_files import read_hole
from gmsrm_jax.inference import photos
from gmsrm_jax.inference.inpainter import Inpainter

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""Formats that are decoded for strangers (MPO counts as JPEG); others start programs or are rarely looked at."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one request may ask for, and all of them together."""

  upload_bytes: int = 64 * 2**20  # of a request's body; more is 413
  pixels: int = 24_000_000  # of a picture, read from its header before it is decoded; more is 413
  samples: int = 8  # fills per request; more is 422
  waiting: int = 8  # requests that are read or wait while another one is filled; more is 503
  seconds: float = 120.0  # a body may take this long to arrive (408), and its fill as long again (504)


class Fields(pydantic.BaseModel):
  """The fields of a request."""

  model_config = pydantic.ConfigDict(extra="forbid")

  image: bytes = pydantic.Field(description="picture file; base64 text in JSON")
  mask: bytes | None = pydantic.Field(
    None, description="picture file of equal size, white in the hole; without it, what is transparent in the image"
  )
  num_samples: int = pydantic.Field(1, ge=1, le=Limits.samples, description="how many fills")
  seed: int = pydantic.Field(0, ge=0, le=2**32 - 1, description="another one draws other fills 2, 3, …")
  strategy: str = pydantic.Field(
    "auto", description="how a large picture is seen", json_schema_extra={"enum": list(STRATEGIES)}
  )

  @pydantic.field_validator("image", "mask", mode="before")
  @classmethod
  def _decode_text(cls, value: Any, field: Any) -> Any:
    """Takes base64 text, with or without the head of a data URL, for a file."""
    if not isinstance(value, str):
      return value
    try:
      return base64.b64decode(re.sub(r"\Adata:[^,]{0,100},", "", value), validate=True)
    except ValueError:
      raise HTTPException(400, f"{field.field_name} is no base64 text: send a picture file, or its base64") from None


def first_fault(error: pydantic.ValidationError) -> HTTPException:
  """Says in one line why fields are refused."""
  fault = error.errors(include_url=False)[0]
  names = ", ".join(Fields.model_fields)
  if not fault["loc"]:
    return HTTPException(400, f"the body is no JSON object ({fault['msg']}): send one with {names}")
  name = str(fault["loc"][0])[:60]
  value = "" if fault["type"] == "missing" else f"={fault['input']!r:.40}"
  hint = "" if name in Fields.model_fields else f": send {names}"
  return HTTPException(422, f"{name}{value} is refused: {fault['msg']}{hint}")


class Order(NamedTuple):
  """A picture to be filled."""

  photo: photos.Photo
  mask: UInt8[np.ndarray, "h w"]  # upright, 1 in the hole
  opaque: bool  # the hole was the picture's own transparency
  options: dict[str, Any]  # num_samples, seed, strategy


def read_order(fields: Fields, most_pixels: int, inpainter: Inpainter) -> Order:
  """Decodes the pictures.

  Raises:
    PictureError: a picture is damaged or too large.
    HTTPException: they do not fit each other, or there is no hole.
    ConfigError: the model cannot do it.
  """
  photo = photos.read_photo(fields.image, "image", FORMATS, most_pixels)
  height, width = photo.rgb.shape[:2]
  options = fields.model_dump(include={"num_samples", "seed", "strategy"})
  inpainter.check(height, width, **options)
  if fields.mask:
    with pictures.open_picture(fields.mask, "mask", FORMATS, most_pixels) as file:
      hole = read_hole(file)
  elif photo.alpha is not None:
    hole = read_hole(PilImage.fromarray(photo.alpha), invert=True)
  else:
    raise HTTPException(422, "mask is missing, and image has no transparency to take as its hole")
  if hole.shape != (height, width):
    sizes = f"mask is {hole.shape[1]}x{hole.shape[0]} but image is {width}x{height}"
    raise HTTPException(422, f"{sizes}: send them equally large")
  if not hole.any():
    raise HTTPException(422, "the mask has no hole: it is white where the picture is to be filled, black elsewhere")
  return Order(photo, hole, not fields.mask, options)


def fill_order(order: Order, inpainter: Inpainter, stop: threading.Event) -> list[bytes]:
  """Returns the fills as PNG files in the picture's own mode: outside the hole every pixel is as it was, to the bit.

  Raises:
    CancelledError: the event is set, because nobody waits any more.
  """

  def go_on() -> None:
    if stop.is_set():
      raise CancelledError

  files = []
  for fill in inpainter.fills(order.photo.rgb, order.mask, before_batch=go_on, **order.options):
    go_on()
    filled = photos.fill_hole(order.photo, fill, order.mask, opaque=order.opaque)
    files.append(photos.encode_photo(filled, "PNG"))
  return files
