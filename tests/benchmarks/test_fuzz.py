"""A small fuzz of shell, Python and HTTP finds no fault; and its checker sees the faults that it is there for."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.reliability.fuzz import __main__ as fuzz
from benchmarks.reliability.fuzz import by_hand, reading

PIXELS = by_hand.colours(np.random.default_rng(0), 24, 40, 3)
KNOWN = np.ones((24, 40), bool)
KNOWN[4:9, 5:20] = False


def test_generated_files_names_and_flags_find_no_fault():
  faults, counts = fuzz.fuzz(count=120, seed=0)
  assert not faults, "\n".join(
    f"{fault.interface}, batch {fault.batch}: {fault.what}\n{fault.detail}" for fault in faults
  )
  assert all(filled > given / 5 for given, filled in counts.values()), counts  # what is refused shows little


def encoded(pixels, form, **options):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form, **options)
  return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
@pytest.mark.parametrize(("row", "fault"), [(5, ""), (12, "1 of 885 known pixels changed, up to 257")])
def test_one_level_of_one_known_pixel_is_seen_and_the_hole_is_free(form, row, fault):
  other = PIXELS.copy()
  other[row, 6, 1] ^= 1
  assert reading.changed(encoded(PIXELS, form), encoded(other, form), KNOWN).partition(" of 65535")[0] == fault


@pytest.mark.parametrize(
  ("after", "fault"),
  [
    (encoded(PIXELS, "JPEG"), ""),
    (encoded(PIXELS[::-1], "JPEG"), "off"),
    (encoded(PIXELS[:, :39], "PNG"), "became"),
    (b"\x89PNG", "cannot be read back"),
  ],
)
def test_a_turned_cut_or_broken_file_is_seen(after, fault):
  seen = reading.changed(encoded(PIXELS, "PNG"), after, KNOWN)
  assert fault in seen and bool(seen) == bool(fault)


def test_sixteen_bits_orientation_and_palettes_are_read_as_a_viewer_shows_them():
  deep = np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 60
  assert (reading.show(encoded(deep, "TIFF")).pixels[..., 1] == deep).all()
  assert "bits became 8" in reading.changed(encoded(deep, "PNG"), encoded((deep >> 8).astype(np.uint8), "PNG"), KNOWN)
  exif = Image.Exif()
  exif[274] = 6
  turned = reading.show(encoded(PIXELS, "PNG", exif=exif)).pixels
  assert (turned[..., :3] == np.rot90(PIXELS, -1) * np.uint16(257)).all()
  palette = Image.fromarray(PIXELS).quantize(9)
  file = io.BytesIO()
  palette.save(file, "GIF")
  assert (reading.show(file.getvalue()).pixels[..., :3] == np.asarray(palette.convert("RGB")) * np.uint16(257)).all()
