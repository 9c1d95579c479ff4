"""The fields of `POST /inpaint`: validated, decoded, filled.

Nothing here trusts its input: sizes are read from headers before anything is decoded.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Annotated, Any

import numpy as np
import pydantic
import pydantic_core
from jaxtyping import UInt8

from gmsrm_jax.config import STRATEGIES
from gmsrm_jax.data import pictures
from gmsrm_jax.errors import MAX_SEED, require
from gmsrm_jax.inference import photos
from gmsrm_jax.inference.inpainter import Inpainter, Step


@dataclasses.dataclass(frozen=True)
class Limits:
  """Bounds of one request, and of all together."""

  upload_bytes: int = 64 * 2**20  # of a request's body; more is 413
  pixels: int = 24_000_000  # of a picture, read from its header before it is decoded; more is 413
  samples: int = 8  # fills per request; more is 422
  waiting: int = 8  # requests that are read or wait while another one is filled; more is 503
  seconds: float = 120.0  # a body may take this long to arrive (408), and its fill as long again (504)


def _bytes_of(value: Any) -> Any:
  """A file from its base64 text: a data URL or not, of either alphabet, in lines or not, padded or not."""
  if not isinstance(value, str):
    return value
  data = value.strip().encode("ascii", "replace")
  if data[:5].lower() == b"data:":
    data = data.partition(b",")[2]
  data = data.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n=")
  try:
    return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
  except ValueError:
    message = "this is no base64: send the file itself (curl: image=@photo.jpg), or all of its bytes as base64"
    raise pydantic_core.PydanticCustomError("base64", message) from None


_File = Annotated[bytes, pydantic.BeforeValidator(_bytes_of)]


class Fields(pydantic.BaseModel):
  """The fields of a request; files are base64 text in JSON."""

  model_config = pydantic.ConfigDict(extra="forbid")

  image: _File = pydantic.Field(description="picture file; base64 text in JSON")
  mask: _File | None = pydantic.Field(
    None, description="picture file of equal size, white in the hole; without it, what is transparent in the image"
  )
  num_samples: int = pydantic.Field(1, ge=1, le=Limits.samples, description="how many fills")
  seed: int = pydantic.Field(0, ge=0, le=MAX_SEED, description="another one draws other fills 2, 3, …")
  strategy: str = pydantic.Field(
    "auto", description="how a large picture is seen", json_schema_extra={"enum": list(STRATEGIES)}
  )
  detail: float = pydantic.Field(1.0, ge=0, le=1, description="how much detail of the known part is added")


@contextlib.contextmanager
def _damage_alone() -> Iterator[None]:
  """Raises what our own lines raised by mistake as it is, for it says nothing of the file."""
  try:
    yield
  except pictures.PictureError as error:
    cause = error.__cause__
    *_, (frame, _) = traceback.walk_tb(cause.__traceback__ if cause else error.__traceback__)
    ours = frame.f_globals["__name__"].startswith("gmsrm_jax.")
    if ours and isinstance(cause, (AttributeError, LookupError, NameError, TypeError)):
      raise cause from None
    raise


def read_picture(fields: Fields, most_pixels: int) -> tuple[photos.Photo, UInt8[np.ndarray, "h w"]]:
  """Decodes the picture, and its hole: upright, 1 in the hole.

  Raises:
    ConfigError: they are damaged (PictureError), do not fit each other, there is no hole, or there are more pictures.
  """
  with _damage_alone():
    photo, names = photos.read_photo(fields.image, "image", most_pixels), ("image", "mask")
  # A phone's JPEG may hold more, such as a preview: MPO.
  several = f"image holds {photo.frames} pictures or pages, but the answer is one: send them one by one"
  require(photo.frames == 1 or photo.format == "MPO", several)
  if fields.mask:
    with _damage_alone(), pictures.open_picture(fields.mask, "mask", most_pixels) as file:
      hole = photos.hole_of(photo, file, names)
  else:
    hole = photos.hole_of(photo, None, names)
  require(bool(hole.any()), "mask has no hole: it is white where the picture is to be filled, black elsewhere")
  return photo, hole


class Work:
  """Shared by the thread that fills and the one that answers: how far a fill is, and whether it is to go on."""

  def __init__(self) -> None:
    self.stop, self.step = threading.Event(), Step("filling", 0, 0, 0)

  def take(self, step: Step) -> None:
    """Notes a step before it is done; raises CancelledError where nobody waits for it any more."""
    if self.stop.is_set():
      raise CancelledError
    self.step = step


def fill_picture(
  inpainter: Inpainter, fields: Fields, photo: photos.Photo, hole: UInt8[np.ndarray, "h w"], work: Work
) -> list[bytes]:
  """Returns the fills as PNG files: outside the hole every pixel is as it was, to the bit.

  They have the picture's own mode or, where PNG has none such, what a viewer shows.

  Raises:
    CancelledError: nobody waits for them any more.
  """
  options = fields.model_dump(include={"num_samples", "seed", "strategy", "detail"})
  fills = inpainter.fills(photo.rgb, hole, before_step=work.take, **options)
  filled = (photos.fill_hole(photo, fill, hole, opaque=not fields.mask) for fill in fills)
  return [photos.encode_photo(picture, "PNG") for picture in filled]
