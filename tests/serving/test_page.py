"""The page of --mode=serve in a real browser: a picture is chosen, painted with the mouse, filled and downloaded."""

from __future__ import annotations

import base64
import threading
import time

import numpy as np
import pytest
import skimage.data

from tests.inference.test_inpainter import noisy_model
from tests.serving.browser import CHROMIUM, chromium
from tests.serving.client import Gated, pixels, png, running, text

pytestmark = [
  pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
  pytest.mark.timeout(600),
]
IMAGE = skimage.data.astronaut()[:240, 60:380]


@pytest.fixture(scope="module")
def server():
  with running(noisy_model()) as server:
    yield server


def _mask(page):
  """What the page would send."""
  code = "new Promise(async done => { const r = new FileReader(); r.onload = () => done(r.result);"
  url = page.run(code + " r.readAsDataURL(await mask()) })")
  return pixels(base64.b64decode(url.partition(",")[2]))[..., 0]


def test_a_picture_is_painted_filled_compared_and_downloaded(server, tmp_path):
  (tmp_path / "photo.png").write_bytes(png(IMAGE))
  downloads = tmp_path / "downloads"
  downloads.mkdir()
  with chromium(tmp_path / "profile") as page:
    page.open(server.url, downloads, 1400, 1000)
    page.wait("document.querySelector('#model').textContent.includes('demo, trained at 32 × 32')")
    page.screenshot(tmp_path / "0_start.png")
    page.choose_file("#file", tmp_path / "photo.png")
    page.wait("!document.querySelector('#stage').hidden")

    # Nothing is painted, so nothing is sent.
    page.click("#run")
    page.wait("document.querySelector('#status.bad')?.textContent.startsWith('Nothing is painted yet')")

    # Two strokes, undone and painted again, a part erased.
    page.drag(*(page.place("#paint", across, 0.3) for across in (0.2, 0.4, 0.6)))
    page.drag(*(page.place("#paint", 0.75, down) for down in (0.5, 0.7)))
    both = _mask(page)
    assert both.shape == (240, 320) and set(np.unique(both[:, ::7])) >= {0, 255}
    assert both[72, 128] == 255 and both[150, 240] == 255 and both[200, 60] == 0
    page.key("z", control=True)
    one = _mask(page)
    assert one[72, 128] == 255 and one[150, 240] == 0
    page.drag(*(page.place("#paint", 0.75, down) for down in (0.5, 0.7)))
    np.testing.assert_array_equal(_mask(page), both)
    page.click("#erase")
    page.drag(page.place("#paint", 0.4, 0.3))
    page.click("#erase")
    painted = _mask(page)
    assert painted[72, 128] == 0 and painted[72, 70] == 255
    page.screenshot(tmp_path / "1_painted.png")

    # Three fills; the second one is looked at and downloaded.
    page.run("document.querySelector('#num_samples').value = 3; document.querySelector('#seed').value = 5")
    page.click("#run")
    page.wait("document.querySelectorAll('#fills button').length === 3")
    page.wait("[...document.images].every(image => image.complete)")
    page.click("#fills button:nth-child(2)")
    page.wait("document.querySelector('#fills button:nth-child(2)').getAttribute('aria-pressed') === 'true'")
    page.drag(page.place("#compare", 0.5), page.place("#compare", 0.4), page.place("#compare", 0.3))
    share = page.run("parseFloat(document.querySelector('#line').style.left)")
    assert 25 < share < 35
    page.click("#download")
    saved = downloads / "photo_filled_2.png"
    deadline = time.monotonic() + 60
    while not saved.exists():
      assert time.monotonic() < deadline, list(downloads.iterdir())
      time.sleep(0.1)
    page.screenshot(tmp_path / "2_filled.png")

    # Going on takes the fill as the picture, and clears the hole.
    page.click("#onward")
    page.wait("document.querySelector('#clear').disabled")
    assert _mask(page).max() == 0
    assert page.complaints == []

  hole = (painted > 127).astype(np.uint8)
  expected = noisy_model()(IMAGE, hole, num_samples=3, seed=5)[1]
  np.testing.assert_array_equal(pixels(saved.read_bytes()), expected)
  np.testing.assert_array_equal(expected[hole == 0], IMAGE[hole == 0])


def _event(kind, data, name):
  """Code that drops or pastes a file."""
  carrier, constructor = ("dataTransfer", "DragEvent") if kind == "drop" else ("clipboardData", "ClipboardEvent")
  code = f"const bytes = Uint8Array.from(atob('{text(data)}'), c => c.charCodeAt(0)); const t = new DataTransfer();"
  code += f"t.items.add(new File([bytes], '{name}', {{ type: 'image/png' }}));"
  return f"(() => {{ {code} dispatchEvent(new {constructor}('{kind}', {{ {carrier}: t, cancelable: true }})) }})()"


def test_a_picture_is_dropped_or_pasted_and_a_slow_fill_is_stopped(tmp_path):
  model = Gated()
  with running(model, waiting=0) as server, chromium(tmp_path / "profile") as page:
    page.open(server.url, tmp_path, 420, 800)
    page.run(_event("drop", png(IMAGE), "a.png"))
    page.wait("document.querySelector('#status').textContent.startsWith('320 × 240 pixels')")
    page.run(_event("paste", b"nonsense", "b.png"))
    page.wait("document.querySelector('#status').textContent.startsWith('b.png is no picture that this browser')")
    page.run(_event("paste", png(IMAGE[:100]), "c.png"))
    page.wait("document.querySelector('#status').textContent.startsWith('320 × 100 pixels')")
    assert page.run("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than a phone"

    page.drag(page.place("#paint"))
    page.click("#run")
    assert model.started.acquire(timeout=60)
    page.screenshot(tmp_path / "3_phone.png")
    page.click("#stop")
    page.wait("document.querySelector('#status').textContent === 'stopped'")
    assert model.ended.acquire(timeout=60)

    # What is painted and erased again is no hole: the server says so.
    server.wait_until_idle()
    page.key("e")
    page.drag(page.place("#paint"))
    page.click("#run")
    page.wait("document.querySelector('#status.bad')?.textContent.startsWith('the mask has no hole')")

    # While another request holds the only place, the page waits and asks again.
    page.key("e")
    page.drag(page.place("#paint", 0.3))
    other = threading.Thread(target=server.inpaint, kwargs={"image": png(IMAGE), "mask": png(IMAGE)})
    other.start()
    assert model.started.acquire(timeout=60)
    page.click("#run")
    page.wait("document.querySelector('#status').textContent.startsWith('filling')")
    time.sleep(0.5)
    model.gate.set()
    other.join()
    page.wait("document.querySelectorAll('#fills button').length === 1")
    # A refusal is no complaint of the page's own.
    assert [line for line in page.complaints if "status of 422" not in line and "status of 503" not in line] == []
