"""Headless Chromium, driven over its own debugging pipe: no driver and no library in between."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--disable-dev-shm-usage",
  "--hide-scrollbars",
]
_FLAGS += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
# Chromium reads commands from descriptor 3 and answers on 4.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)): os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
  """A tab. Coordinates are CSS pixels of the window."""

  def __init__(self, commands: int, answers: int):
    self._commands, self._answers = commands, answers
    self._numbers = itertools.count(1)
    self._rest = b""
    self._session: str | None = None
    self.complaints: list[str] = []  # what the console or an uncaught error says

  def call(self, method: str, **params: Any) -> Any:
    """One command of the DevTools protocol."""
    number = next(self._numbers)
    message = {"id": number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._commands, json.dumps(message).encode() + b"\0")
    deadline = time.monotonic() + 120
    while True:
      answer = self._receive(deadline)
      if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
        self.complaints.append(json.dumps(answer["params"]))
      if answer.get("id") == number:
        assert "error" not in answer, (method, answer)
        return answer["result"]

  def _receive(self, deadline: float) -> Any:
    while b"\0" not in self._rest:
      ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
      assert ready, "Chromium does not answer"
      part = os.read(self._answers, 1 << 20)
      assert part, "Chromium ended"
      self._rest += part
    line, _, self._rest = self._rest.partition(b"\0")
    return json.loads(line)

  def open(self, url: str, downloads: pathlib.Path, width: int, height: int) -> None:
    """A new tab; files that are downloaded come into the folder."""
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "DOM"):
      self.call(f"{domain}.enable")
    self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
    self.call("Page.navigate", url=url)
    self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

  def run(self, code: str) -> Any:
    """The value of a JavaScript expression; a promise is awaited."""
    done = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
    assert "exceptionDetails" not in done, done
    return done["result"].get("value")

  def wait(self, code: str, seconds: float = 120) -> None:
    """Until an expression is true."""
    deadline = time.monotonic() + seconds
    while not self.run(f"!!({code})"):
      assert time.monotonic() < deadline, f"never true: {code}"
      time.sleep(0.1)

  def place(self, selector: str, across: float = 0.5, down: float = 0.5) -> tuple[float, float]:
    """A point of an element, scrolled into view."""
    code = f"const box = document.querySelector({json.dumps(selector)}); box.scrollIntoViewIfNeeded(); "
    box = self.run(
      f"(() => {{ {code} const b = box.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] }})()"
    )
    return box[0] + across * box[2], box[1] + down * box[3]

  def drag(self, *points: tuple[float, float]) -> None:
    """Presses the mouse at the first point, moves through all of them and lets go at the last."""
    for kind, place, buttons in (
      ("mouseMoved", points[0], 0),
      ("mousePressed", points[0], 1),
      *(("mouseMoved", point, 1) for point in points[1:]),
      ("mouseReleased", points[-1], 0),
    ):
      pressed = {"button": "none"} if kind == "mouseMoved" and not buttons else {"button": "left", "clickCount": 1}
      self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], buttons=buttons, **pressed)

  def click(self, selector: str) -> None:
    self.drag(self.place(selector))

  def key(self, letter: str, *, control: bool = False) -> None:
    for kind in ("keyDown", "keyUp"):
      options = {"key": letter, "code": f"Key{letter.upper()}", "modifiers": 2 if control else 0}
      self.call("Input.dispatchKeyEvent", type=kind, **options)

  def choose_file(self, selector: str, path: pathlib.Path) -> None:
    root = self.call("DOM.getDocument")["root"]["nodeId"]
    node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
    self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

  def screenshot(self, path: pathlib.Path) -> None:
    data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
    path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def chromium(profile: pathlib.Path) -> Iterator[Page]:
  """A browser with an empty profile, ended afterwards."""
  assert CHROMIUM
  theirs_in, ours_out = os.pipe()
  ours_in, theirs_out = os.pipe()
  start = [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), CHROMIUM]
  command = [*start, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
  with (profile.parent / "chromium.log").open("wb") as log:
    process = subprocess.Popen(
      command, pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
  os.close(theirs_in)
  os.close(theirs_out)
  try:
    page = Page(ours_out, ours_in)
    yield page
    page._session = None
    page.call("Browser.close")
    process.wait(60)
  finally:
    process.kill()
    process.wait()
    os.close(ours_in)
    os.close(ours_out)
