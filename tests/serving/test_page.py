"""The page of --mode=serve in a real browser: a picture is chosen, painted with the mouse, filled and downloaded."""

from __future__ import annotations

import base64
import os
import shutil
import threading
import time

import numpy as np
import pytest
import skimage.data
from playwright.sync_api import expect, sync_playwright

from tests.serving.client import Negative, pixels, png, running, text

IMAGE = skimage.data.astronaut()[:240, 60:380]
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
expect.set_options(timeout=120_000)


@pytest.fixture
def page():
  path = shutil.which("chromium") or shutil.which("google-chrome")
  if path is None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium here: apt-get install chromium")
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=120_000)
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.complaints, page.addresses = [], set()
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.addresses.add(request.url.removeprefix("blob:")))
    yield page
    browser.close()


def _drag(page, selector, *places):
  """Presses the mouse at the first place, in shares of the element's width and height, and lets go at the last."""
  page.locator(selector).scroll_into_view_if_needed()
  box = page.locator(selector).bounding_box()
  points = [(box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in places]
  page.mouse.move(*points[0])
  page.mouse.down()
  for point in points[1:]:
    page.mouse.move(*point)
  page.mouse.up()


def _mask(page):
  """Returns what the page would send."""
  code = "async () => btoa(String.fromCharCode(...new Uint8Array(await (await mask()).arrayBuffer())))"
  return pixels(base64.b64decode(page.evaluate(code)))[..., 0]


def test_a_picture_is_painted_filled_compared_and_downloaded(page):
  with running(Negative(opened=True)) as server:
    page.goto(server.url)
    expect(page.locator("#model")).to_contain_text("demo, trained at 32 × 32")
    page.set_input_files("#file", {"name": "photo.png", "mimeType": "image/png", "buffer": png(IMAGE)})

    # Nothing is painted, so nothing is sent.
    page.click("#run")
    expect(page.locator("#status.bad")).to_contain_text("Nothing is painted yet")

    # Two strokes, undone and painted again, a part erased.
    _drag(page, "#paint", (0.2, 0.3), (0.4, 0.3), (0.6, 0.3))
    _drag(page, "#paint", (0.75, 0.5), (0.75, 0.7))
    both = _mask(page)
    assert both.shape == (240, 320)
    assert [both[72, 128], both[150, 240], both[200, 60]] == [255, 255, 0]
    page.keyboard.press("Control+z")
    assert [_mask(page)[72, 128], _mask(page)[150, 240]] == [255, 0]
    _drag(page, "#paint", (0.75, 0.5), (0.75, 0.7))
    np.testing.assert_array_equal(_mask(page), both)
    page.click("#erase")
    _drag(page, "#paint", (0.4, 0.3))
    page.click("#erase")
    painted = _mask(page)
    assert [painted[72, 128], painted[72, 70]] == [0, 255]

    # Three fills; the second one is looked at and downloaded.
    page.fill("#num_samples", "3")
    page.fill("#seed", "5")
    page.click("#run")
    expect(page.locator("#fills button")).to_have_count(3)
    page.click("#fills button:nth-child(2)")
    expect(page.locator("#caption")).to_have_text("Fill 2 of 3, 320 × 240 pixels")
    _drag(page, "#compare", (0.5, 0.5), (0.4, 0.5), (0.3, 0.5))
    assert 25 < float(page.evaluate("parseFloat($('line').style.left)")) < 35
    with page.expect_download() as download:
      page.click("#download")
    assert download.value.suggested_filename == "photo_filled_2.png"
    saved = pixels(download.value.path().read_bytes())

    # Going on takes the fill as the picture, and clears the hole.
    page.click("#onward")
    expect(page.locator("#clear")).to_be_disabled()
    assert _mask(page).max() == 0

    page.goto(server.url + "/docs")
    expect(page.locator("#fields")).to_contain_text("num_samples")
    expect(page.locator("#fields")).to_contain_text("1 to 8")
    assert page.complaints == [] and all(address.startswith(server.url) for address in page.addresses)

  expected = Negative(opened=True)(IMAGE, (painted > 127).astype(np.uint8), num_samples=3, seed=5)[1]
  np.testing.assert_array_equal(saved, expected)


def _give(page, kind, data, name):
  """Drops or pastes a file."""
  code = """([kind, text, name]) => {
    const files = new DataTransfer();
    files.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, { type: "image/png" }));
    dispatchEvent(kind === "drop"
      ? new DragEvent(kind, { dataTransfer: files, cancelable: true })
      : new ClipboardEvent(kind, { clipboardData: files, cancelable: true }));
  }"""
  page.evaluate(code, [kind, text(data), name])


def test_a_picture_is_dropped_or_pasted_and_a_slow_fill_is_stopped(page):
  model, status = Negative(), page.locator("#status")
  with running(model, waiting=0) as server:
    page.set_viewport_size({"width": 420, "height": 800})
    page.goto(server.url)
    _give(page, "drop", png(IMAGE), "a.png")
    expect(status).to_contain_text("320 × 240 pixels")
    _give(page, "paste", b"nonsense", "b.png")
    expect(status).to_contain_text("b.png is no picture that this browser")
    _give(page, "paste", png(IMAGE[:100]), "c.png")
    expect(status).to_contain_text("320 × 100 pixels")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than a phone"

    _drag(page, "#paint", (0.5, 0.5))
    page.click("#run")
    assert model.started.acquire(timeout=60)
    page.click("#stop")
    expect(status).to_have_text("stopped")
    assert model.ended.acquire(timeout=60)

    # What is painted and erased again is no hole: the server says so.
    server.wait_for(0)
    page.keyboard.press("e")
    _drag(page, "#paint", (0.5, 0.5))
    page.click("#run")
    expect(page.locator("#status.bad")).to_contain_text("mask has no hole")

    # While another request holds the only place, the page waits and asks again.
    page.keyboard.press("e")
    _drag(page, "#paint", (0.3, 0.5))
    other = threading.Thread(target=server.inpaint, kwargs={"image": png(IMAGE), "mask": png(IMAGE)})
    other.start()
    assert model.started.acquire(timeout=60)
    page.click("#run")
    expect(status).to_contain_text("filling")
    time.sleep(0.5)
    model.gate.set()
    other.join()
    expect(page.locator("#fills button")).to_have_count(1)
    # A refusal is no complaint of the page's own.
    assert [line for line in page.complaints if "status of 422" not in line and "status of 503" not in line] == []
