"""The page of --mode=serve in a real browser, from the first screen to the file that is kept."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from playwright.sync_api import expect

from gmsrm_jax.serving.server import PAGE
from tests.serving.browser import IMAGE, choose, drag, give, hold_masks, mask, saved, show
from tests.serving.client import Negative, png, running

SIZES = pytest.mark.parametrize("page", ["desktop", "phone"], indirect=True)


@pytest.fixture(scope="module")
def server():
  with running(Negative(opened=True)) as server:
    yield server


@SIZES
def test_a_sample_is_a_click_and_fits_the_window(page, server):
  page.goto(server.url)
  expect(page.locator("#samples img")).to_have_count(6)
  root, (width, height) = page.locator(":root"), page.viewport_size.values()
  assert root.evaluate("root => root.scrollWidth") == width  # innerWidth grows with what is too wide for a phone
  assert page.evaluate("[...document.images].every(image => !image.src || image.naturalWidth)")
  expect(page.locator("label[for=camera]")).to_be_visible(visible=width == 390)
  page.click("#samples li:nth-child(2) button")
  expect(page.locator("#status")).to_contain_text("853 × 480 pixels")
  assert root.evaluate("root => [root.scrollWidth, root.scrollHeight]") == [width, height]
  assert 0.02 < (mask(page) > 127).mean() < 0.2
  page.evaluate("document.querySelector('#num_samples').value = 8")
  page.click("#run")
  expect(page.locator("#fills button")).to_have_count(8)
  # The result takes the editor's place, as large as it was.
  before, after = (page.locator(name).bounding_box() for name in ("#picture", "#after"))
  assert before == after and after["width"] > 0.6 * page.locator("#stage").bounding_box()["width"]
  assert root.evaluate("root => [root.scrollWidth, root.scrollHeight]") == [width, height]
  bottom = page.locator("#panel" if width == 390 else "#below").bounding_box()
  assert bottom["y"] + bottom["height"] <= height, "a part of the page is out of reach"


def test_samples_are_small_and_say_their_licence():
  files = [*(PAGE / "samples").iterdir()]
  assert len(files) == 13 and sum(file.stat().st_size for file in files) < 300_000
  assert "CC0" in (PAGE / "samples/README.md").read_text(encoding="utf-8")


def test_a_picture_is_painted_filled_compared_and_downloaded(page, server):
  show(page, server.url)
  expect(page.locator("#model")).to_contain_text("demo, trained at 32 × 32")
  page.click("#run")  # nothing is painted, so nothing is sent
  expect(page.locator("#status.bad")).to_contain_text("Nothing is painted yet")

  drag(page, (0.6, 0.3), (0.8, 0.3))
  painted = mask(page)
  page.fill("#num_samples", "3")
  page.fill("#seed", "50e-1")
  page.click("#run")
  expect(page.locator("#fills button")).to_have_count(3)
  page.click("#fills button:nth-child(2)")
  expect(page.locator("#caption")).to_have_text("Version 2 of 3 · seed 5")
  # Each version is a large thumbnail of the hole.
  assert page.evaluate("document.querySelector('#fills canvas').width") >= 240

  # The slider starts amid the hole, and is dragged, or moved with the keyboard.
  page.click("#slider")
  start = float(page.locator("#split").get_attribute("aria-valuenow"))
  assert 66 <= start <= 74
  drag(page, (0.7, 0.5), (0.5, 0.5), (0.3, 0.5))
  assert 28 <= float(page.locator("#split").get_attribute("aria-valuenow")) <= 32
  page.locator("#split").press("ArrowRight")
  assert page.evaluate("document.querySelector('#after').style.clipPath").startswith("inset(0px 0px 0px 3")
  drawn = "document.querySelector('#overlay').toDataURL()"
  plain = page.evaluate(drawn)
  page.click("#outline")
  assert page.evaluate(drawn) != plain
  page.click("#outline")
  assert page.evaluate(drawn) == plain

  # While a key or the button is held, the picture is seen as it was.
  page.keyboard.down("c")
  expect(page.locator("#after")).to_be_hidden()
  page.keyboard.up("c")
  expect(page.locator("#after")).to_be_visible()
  page.hover("#hold")
  page.mouse.down()
  expect(page.locator("#after")).to_be_hidden()
  page.mouse.up()
  expect(page.locator("#after")).to_be_visible()

  name, kept = saved(page, "#download")
  expected = Negative(opened=True)(IMAGE, (painted > 127).astype(np.uint8), num_samples=3, seed=5)[1]
  np.testing.assert_array_equal(kept, expected)
  assert name == "photo_filled_2.png"


def test_going_on_keeps_all_pictures_and_everything_can_be_undone(page, server):
  show(page, server.url)
  drag(page, (0.5, 0.5))
  first = mask(page)
  page.click("#run")
  page.click("#onward")
  expect(page.locator("#strip button")).to_have_count(2)
  assert mask(page).max() == 0
  drag(page, (0.2, 0.2))
  page.click("#run")
  expect(page.locator("body")).to_have_attribute("data-view", "result")
  page.click("#undo")
  expect(page.locator("body")).to_have_attribute("data-view", "edit")
  page.click("#redo")
  expect(page.locator("body")).to_have_attribute("data-view", "result")
  for _ in range(3):  # the fill, the stroke, going on
    page.click("#undo")
  expect(page.locator("body")).to_have_attribute("data-view", "result")
  page.click("#undo")
  np.testing.assert_array_equal(mask(page), first)

  # The strip leads to each picture and its hole.
  page.click("#strip button:nth-child(2)")
  assert mask(page).max() == 255 and (mask(page) != first).any()
  page.click("#strip button:nth-child(1)")
  np.testing.assert_array_equal(mask(page), first)

  # What can neither be undone nor redone any more is let go, what the strip shows is not.
  loads = "src => Object.assign(new Image(), { src }).decode().then(() => true, () => false)"
  shown = page.locator("#strip img").evaluate_all("images => images.map((image) => image.src)")
  page.click("#run")
  expect(page.locator("#after")).to_be_visible()
  filled = page.locator("#after").get_attribute("src")
  page.click("#undo")
  assert [page.evaluate(loads, one) for one in [*shown, filled]] == [True] * 3
  page.click("#invert")
  assert [page.evaluate(loads, one) for one in [*shown, filled]] == [True, True, False]

  # A new picture has no result and no strip of the old one.
  page.click("#run")
  expect(page.locator("#after")).to_be_visible()
  give(page, "paste", png(IMAGE[:100]), "c.png")
  expect(page.locator("#status")).to_contain_text("320 × 100 pixels")
  expect(page.locator("#result")).to_be_hidden()
  expect(page.locator("#strip")).to_be_hidden()
  assert page.locator("#after").get_attribute("src") is None


def test_progress_names_the_phase_and_cancel_ends_the_work(page):
  model, phase = Negative(), page.locator("#phase")
  with running(model, waiting=1) as server:
    page.goto(server.url)
    give(page, "paste", b"nonsense", "b.png")
    expect(page.locator("#refused")).to_contain_text("b.png is no picture that this browser")
    hold_masks(page)
    page.click("#samples li:nth-child(1) button")
    give(page, "drop", png(IMAGE), "a.png")
    expect(page.locator("#status")).to_contain_text("320 × 240 pixels")
    page.evaluate("release()")  # a slower picture that was asked for before comes too late
    drag(page, (0.5, 0.5))
    hold_masks(page)
    choose(page, "#mask", IMAGE, "late.png")
    page.click("#run")
    expect(phase).to_have_text("Filling part 2 of 3")
    painted = mask(page)
    page.evaluate("release()")
    expect(page.locator("#status.bad")).to_contain_text("This hole came too late")
    assert painted.shape == (240, 320)
    drag(page, (0.2, 0.2), (0.4, 0.4))  # moves the picture, for its hole is in work
    page.keyboard.press("Control+z")
    page.click("#cancel")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    np.testing.assert_array_equal(mask(page), painted)
    assert model.ended.acquire(timeout=60)
    server.wait_for(0)
    assert model.started.acquire(timeout=60)

    others = [threading.Thread(target=server.inpaint, kwargs={"image": png(IMAGE), "mask": png(IMAGE)}) for _ in "ab"]
    others[0].start()
    assert model.started.acquire(timeout=60)
    page.click("#run")
    expect(phase).to_have_text("Waiting: one picture is before yours")
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    server.wait_for(1)  # what has not begun is given up at once

    # Where there is no place, the page asks for one, without its picture; another picture ends that.
    others[1].start()
    server.wait_for(2)
    sent = []
    page.on("request", lambda request: sent.append(request.url.rpartition("/")[2]))
    page.click("#run")
    expect(phase).to_have_text("The server is full: waiting for a place")
    for _ in range(2):
      page.wait_for_event("requestfinished", lambda request: request.url.endswith("/health"))
    assert sent.count("inpaint") == 1
    give(page, "paste", png(IMAGE[:100]), "c.png")
    expect(page.locator("#status")).to_contain_text("320 × 100 pixels")
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#status")).to_contain_text("320 × 100 pixels")
    model.gate.set()
    for other in others:
      other.join()


def test_refusals_are_told_in_plain_words(page):
  with running(Negative(), seconds=0.5) as server:
    show(page, server.url)
    drag(page, (0.5, 0.5))
    page.click("#run")
    expect(page.locator("#status.bad")).to_contain_text("This took more than 0.5 seconds. Choose “Automatic”")
    expect(page.locator("#words")).to_be_hidden()
    page.click("#said summary")
    expect(page.locator("#words")).to_contain_text("not filled within 0.5 s")

    # A way that takes small pictures only says up to which size, and is not offered for larger ones.
    full = page.locator("#strategy option[value=full]")
    expect(full).to_have_text("Full size, up to 256 × 256")
    expect(full).to_be_disabled()
    # A square of 4 x 4 pixels that the picture fills in part counts whole: 65 x 64 of them are too many.
    choose(page, "#file", np.zeros((257, 254, 3), np.uint8), "odd.png")
    expect(full).to_be_disabled()
    choose(page, "#file", IMAGE[:200], "small.png")
    expect(full).to_be_enabled()
    page.select_option("#strategy", "full")
    choose(page, "#file", IMAGE, "large.png")
    expect(page.locator("#cost")).to_contain_text(
      "Full size takes pictures up to 256 × 256, and this one has 320 × 240"
    )
    expect(full).to_be_disabled()
    page.click("#invert")
    page.click("#run")
    expect(page.locator("#strategy:invalid")).to_be_focused()
    page.select_option("#strategy", "auto")
    page.route("**/inpaint", lambda route: route.abort())
    page.click("#run")
    expect(page.locator("#status.bad")).to_contain_text("cannot be reached")


def test_the_page_for_programs_names_all_fields(page, server):
  page.goto(server.url + "/docs")
  for words in ("num_samples", "1 to 8", "auto, full, crop, resize"):
    expect(page.locator("#fields")).to_contain_text(words)
