"""BMP files of uncompressed colour decoded by OpenCV: the same pixels as Pillow's, in a quarter of the time."""

from __future__ import annotations

import struct

import cv2
import numpy as np
from jaxtyping import UInt8

_HEADER = struct.Struct("<2sI4xIIiiHHI")  # BITMAPFILEHEADER, then BITMAPINFOHEADER up to its compression


def decode_bmp(data: bytes, max_pixels: int) -> UInt8[np.ndarray, "h w 3"] | None:
  """The pixels of a whole BMP file of 24 bits a pixel; None where it is anything else, so that Pillow decides.

  A file of more than `max_pixels` is anything else, too.
  """
  if len(data) < _HEADER.size:
    return None
  magic, length, start, header, width, height, _, bits, compression = _HEADER.unpack_from(data)
  if (magic, header, bits, compression) != (b"BM", 40, 24, 0) or min(width, height) < 1 or width * height > max_pixels:
    return None
  row = -(-3 * width // 4) * 4  # rows end on whole words
  if length != len(data) or start + row * height > length:
    return None
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
