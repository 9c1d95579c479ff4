"""The tools of the page in a real browser: what mouse, fingers and keys do to the hole and to the view."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.serving.browser import IMAGE, choose, drag, give, mask, place, saved, show
from tests.serving.client import Negative, png, running


@pytest.fixture(scope="module")
def server():
  with running(Negative(opened=True)) as server:
    yield server


def test_each_tool_draws_and_every_step_can_be_undone_and_redone(page, server):
  show(page, server.url)
  inner = (slice(80, 160), slice(100, 220))
  seen = [mask(page)]

  def after(action):
    action()
    seen.append(mask(page))
    return seen[-1]

  line = after(lambda: drag(page, (0.2, 0.2), (0.5, 0.2), (0.8, 0.2)))
  assert line[48, 160] == 255 and line[120, 160] == 0
  page.click("#rectangle")
  area = after(lambda: drag(page, (0.3, 0.3), (0.5, 0.5), (0.7, 0.7)))
  assert (area[inner] == 255).all() and area[72:168, 96:224].mean() > 250 and (area[180:] == 0).all()
  page.keyboard.press("l")
  assert after(lambda: drag(page, (0.1, 0.8), (0.3, 0.8), (0.3, 0.98), (0.1, 0.98)))[214, 60] == 255
  page.keyboard.press("r")
  page.keyboard.press("e")
  assert (after(lambda: drag(page, (0.3, 0.3), (0.7, 0.7)))[inner] == 0).all()
  page.keyboard.press("e")
  inverted = after(lambda: page.keyboard.press("i"))
  assert (np.abs(inverted.astype(int) + seen[-2] - 255) <= 1).mean() > 0.99 and (inverted[inner] == 255).all()
  assert after(lambda: page.click("#clear")).max() == 0
  assert len(np.unique(seen, axis=0)) == 6

  for step in reversed(seen[:-1]):
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(mask(page), step)
  expect(page.locator("#undo")).to_be_disabled()
  for number, step in enumerate(seen[1:]):
    page.keyboard.press("Control+y" if number % 2 else "Control+Shift+Z")
    np.testing.assert_array_equal(mask(page), step)


def test_the_wheel_and_brackets_set_the_brush_which_is_remembered_with_the_theme(page, server):
  show(page, server.url)

  def pixels():
    return int(page.locator("#pixels").inner_text().removesuffix(" px"))

  start = pixels()
  page.mouse.move(*place(page, 0.5, 0.5))
  for _ in range(3):
    page.mouse.wheel(0, -100)
  larger = pixels()
  page.keyboard.press("]")
  assert start < larger < pixels()
  page.keyboard.press("[")
  assert pixels() == larger
  ring, board = (page.locator(name).bounding_box() for name in ("#ring", "#board"))
  assert abs(ring["width"] * 320 / board["width"] - larger) < 2
  drag(page, (0.5, 0.5))
  assert abs((mask(page)[120] > 127).sum() - larger) <= 2

  page.click("#theme")
  dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
  page.click("#lasso")
  show(page, server.url)
  assert (
    pixels() == larger and page.evaluate("getComputedStyle(document.body).backgroundColor") == dark == "rgb(23, 24, 26)"
  )
  expect(page.locator("#lasso")).to_have_attribute("aria-pressed", "true")

  # Each click gives the other theme than is seen, whatever the system has; every second one follows the system.
  for system in ("dark", "light"):
    page.emulate_media(color_scheme=system)
    seen = [page.evaluate("getComputedStyle(document.body).backgroundColor")]
    for _ in range(3):
      page.click("#theme")
      seen.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert seen[0] == seen[2] != seen[1] == seen[3]
    if "like the system" not in page.locator("#theme").get_attribute("title"):
      page.click("#theme")
    expect(page.locator("#theme")).to_have_attribute("title", "Theme: like the system")


def test_the_view_is_zoomed_and_moved_and_the_brush_follows(page, server):
  show(page, server.url)
  whole = page.locator("#board").bounding_box()
  point = place(page, 0.25, 0.75)
  page.mouse.move(*point)
  page.keyboard.down("Control")
  for _ in range(4):
    page.mouse.wheel(0, -100)
  page.keyboard.up("Control")
  closer = page.locator("#board").bounding_box()
  assert closer["width"] > 1.8 * whole["width"]
  np.testing.assert_allclose(place(page, 0.25, 0.75), point, atol=2)  # what the pointer is at stays there
  page.mouse.click(*point)
  assert mask(page)[180, 80] == 255 and mask(page)[180, 200] == 0

  page.keyboard.down(" ")
  drag(page, (0.25, 0.75), (0.3, 0.75))
  page.keyboard.up(" ")
  moved = page.locator("#board").bounding_box()
  assert moved["x"] > closer["x"] + 20 and mask(page)[180, 96] == 0
  page.keyboard.press("1")
  assert page.locator("#board").bounding_box()["width"] == 320
  expect(page.locator("#full")).to_have_text("100 %")
  page.click("#fit")
  assert page.locator("#board").bounding_box() == whole


EMPTY = "async () => (await import('/hole.js')).extent() === null"


def test_whatever_ends_a_stroke_keeps_it(page, server):
  show(page, server.url)
  hole = np.zeros((240, 320), np.uint8)
  ends = {  # what ends a stroke whose brush is down, and the keys that then lead back to it
    "tool": (lambda: page.keyboard.press("r"), "b"),
    "erase": (lambda: page.keyboard.press("e"), "e ArrowRight"),
    "invert": (lambda: page.keyboard.press("i"), "Control+z"),
    "clear": (lambda: page.keyboard.press("x"), "Control+z"),
    "undo": (lambda: page.keyboard.press("Control+z"), "Control+y"),
    "redo": (lambda: page.keyboard.press("Control+y"), ""),
    "Escape": (lambda: page.keyboard.press("Escape"), "Control+y"),
    "focus": (lambda: page.keyboard.press("Tab"), "Shift+Tab ArrowRight"),
    "zoom": (lambda: page.click("#in"), "0"),
    "save": (lambda: saved(page, "#keep"), ""),
    "load": (lambda: (choose(page, "#mask", hole, "no.png"), page.wait_for_function(EMPTY)), "Control+z"),
    "mouse": (lambda: drag(page, (0.1, 0.1), (0.2, 0.1)), "Control+z"),
    "picture": (lambda: (give(page, "drop", png(IMAGE[:100]), "b.png"), page.wait_for_function(EMPTY)), "Control+z"),
  }
  for name, (end, keys) in ends.items():
    page.focus("#stage")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#clear")).to_be_enabled()
    expect(page.locator("#undo")).to_be_enabled()
    stroke = mask(page) > 127
    end()
    for key in [*keys.split(), "", "Control+z", "Control+y", "", "Control+z"]:
      if key:
        page.keyboard.press(key)
      else:  # a line that is drawn at once has another rim
        assert ((mask(page) > 127) != stroke).sum() < 20 < stroke.sum(), name
    assert mask(page).max() == 0, name


@pytest.mark.parametrize("page", ["phone"], indirect=True)
def test_one_finger_paints_and_two_zoom_but_never_paint(page, server):
  show(page, server.url)
  session = page.context.new_cdp_session(page)

  def touch(kind, *places):
    points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
    session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

  (x, y), width = place(page, 0.5, 0.5), page.locator("#board").bounding_box()["width"]
  touch("touchStart", (x - 20, y))
  touch("touchMove", (x - 22, y))
  touch("touchStart", (x - 22, y), (x + 20, y))
  for reach in (30, 40, 60):
    touch("touchMove", (x - reach, y), (x + reach, y))
  touch("touchEnd", (x - 60, y))
  touch("touchMove", (x - 20, y + 30))
  touch("touchEnd")
  assert page.locator("#board").bounding_box()["width"] > 2 * width
  assert mask(page).max() == 0
  page.click("#fit")
  touch("touchStart", (x, y))
  touch("touchMove", (x + 30, y))
  touch("touchEnd")
  assert mask(page)[120, 160] == 255
  below, beside = place(page, 0.5, 0.8), place(page, 0.6, 0.8)
  touch("touchStart", below)
  touch("touchMove", beside)
  touch("touchCancel")  # by the system
  page.click("#invert")
  assert mask(page).max() == 255 and mask(page)[192, 176] == 0


def test_a_hole_is_saved_and_loaded(page, server):
  show(page, server.url)
  drag(page, (0.2, 0.2), (0.8, 0.8))
  drawn = mask(page)
  name, kept = saved(page, "#keep")
  assert name == "photo_mask.png"
  np.testing.assert_array_equal(kept[..., 0], drawn)
  page.click("#clear")
  choose(page, "#mask", kept, name)
  expect(page.locator("#clear")).to_be_enabled()
  np.testing.assert_array_equal(mask(page), np.where(drawn > 127, 255, 0))
  choose(page, "#mask", kept[:100], name)
  expect(page.locator("#status.bad")).to_contain_text("320 × 100 pixels, the picture 320 × 240")


def test_all_is_done_with_the_keyboard_alone(page, server):
  page.goto(server.url)
  for _ in range(20):
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.closest('#samples li:nth-child(3)') !== null"):
      break
  page.keyboard.press("Enter")
  expect(page.locator("#stage")).to_be_focused()
  expect(page.locator("#status")).to_contain_text("painted already")
  page.keyboard.press("x")
  page.keyboard.press("Enter")  # the brush goes down in the middle
  for _ in range(6):
    page.keyboard.press("ArrowRight")
  page.keyboard.press("Enter")
  page.keyboard.press("ArrowDown")
  line = mask(page) > 127
  assert line[240, 276:330].all() and 0 < line.mean() < 0.1
  # In a field letters are the field's, but what is pressed with Ctrl works as everywhere.
  for field in ("#strategy", "#num_samples"):
    page.focus(field)
    page.keyboard.press("x")
    page.keyboard.press("Control+z")
    assert mask(page).max() == 0
    page.keyboard.press("Control+y")
    np.testing.assert_array_equal(mask(page) > 127, line)
  page.keyboard.press("Control+Enter")
  expect(page.locator("#after")).to_be_visible()
  page.keyboard.press("g")
  expect(page.locator("#strip button")).to_have_count(2)
  page.keyboard.press("?")
  expect(page.locator("#shortcuts")).to_contain_text("Undo")
  page.keyboard.press("Escape")
  expect(page.locator("#shortcuts")).to_be_hidden()


NAMELESS = """() => [...document.querySelectorAll("button, input, select, a, [tabindex]")].filter((one) => {
  const text = one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.[0]?.textContent.trim();
  return one.checkVisibility() && !text;
}).map((one) => one.outerHTML)"""

# Contrast of WCAG 2, for every element with words of its own against what lies behind it.
FAINT = """() => {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => [...rgba(colour)].slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (one) => {
    const colour = getComputedStyle(one).backgroundColor;
    return rgba(colour)[3] === 255 ? colour : behind(one.parentElement);
  };
  return [...document.querySelectorAll("body *")].filter((one) => {
    const words = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!words || !one.checkVisibility() || one.matches(":disabled, .tag, option")) return false;
    const [dark, bright] = [light(getComputedStyle(one).color), light(behind(one))].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05) < 4.5;
  }).map((one) => one.outerHTML);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_enough_contrast(page, server, scheme):
  page.emulate_media(color_scheme=scheme)
  page.goto(server.url + "/docs")
  expect(page.locator("#fields")).to_contain_text("seed")

  def look():
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(FAINT) == []

  look()
  show(page, server.url)
  look()
  page.click("#run")
  expect(page.locator("#status.bad")).to_be_visible()
  look()
  drag(page, (0.5, 0.5))
  page.click("#run")
  expect(page.locator("#after")).to_be_visible()
  page.click("#slider")
  page.keyboard.press("?")
  look()
