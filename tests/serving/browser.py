"""Tools of the page, used by mouse, fingers and keys, and the pixels that follow."""

from __future__ import annotations

import base64

import skimage.data
from playwright.sync_api import expect

from tests.serving.client import pixels, png, text

IMAGE = skimage.data.astronaut()[:240, 60:380]
expect.set_options(timeout=60_000)


def place(page, across, down):
  """A place of the picture, in shares of its width and height, as a place of the window."""
  box = page.locator("#board").bounding_box()
  return box["x"] + across * box["width"], box["y"] + down * box["height"]


def drag(page, *places):
  """Presses the mouse at the first place of the picture and lets go at the last."""
  points = [place(page, *one) for one in places]
  page.mouse.move(*points[0])
  page.mouse.down()
  for point in points[1:]:
    page.mouse.move(*point)
  page.mouse.up()


def mask(page):
  """Returns the hole that the page would send."""
  code = """async () => {
    const { maskFile } = await import("/hole.js");
    return btoa(String.fromCharCode(...new Uint8Array(await maskFile().arrayBuffer())));
  }"""
  return pixels(base64.b64decode(page.evaluate(code)))[..., 0]


def show(page, address, image=IMAGE, name="photo.png"):
  """Goes to the page and chooses a picture."""
  page.goto(address)
  choose(page, "#file", image, name)
  expect(page.locator("#status")).to_contain_text(f"{image.shape[1]} × {image.shape[0]} pixels")


def choose(page, selector, image, name):
  page.set_input_files(selector, {"name": name, "mimeType": "image/png", "buffer": png(image)})


def hold_masks(page):
  """Lets the next read of a mask wait until the page's `release()` is called."""
  page.evaluate("""() => {
    const [read, released] = [createImageBitmap, new Promise((resolve) => (window.release = resolve))];
    window.createImageBitmap = async (...given) => {
      window.createImageBitmap = read;
      await released;
      return read(...given);
    };
  }""")


def give(page, kind, data, name):
  """Drops or pastes a file."""
  code = """([kind, text, name]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, { type: "image/png" }));
    dispatchEvent(kind === "drop"
      ? new DragEvent(kind, { dataTransfer: files, cancelable: true })
      : new ClipboardEvent(kind, { clipboardData: files, cancelable: true }));
  }"""
  page.evaluate(code, [kind, text(data), name])


def saved(page, selector):
  """Clicks what downloads; returns the file's name and pixels."""
  with page.expect_download() as download:
    page.click(selector)
  return download.value.suggested_filename, pixels(download.value.path().read_bytes())
