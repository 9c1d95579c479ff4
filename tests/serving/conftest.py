"""A real browser for the tests of the page."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
  path = shutil.which("chromium") or shutil.which("google-chrome")
  if path is None:
    (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium here: apt-get install chromium")
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=path, args=FLAGS, timeout=120_000)
    yield browser
    browser.close()


@pytest.fixture
def page(browser, request):
  """A page of a desktop or, as the test's parameter says, a phone; it is to complain of nothing and to stay here."""
  phone = getattr(request, "param", "") == "phone"
  options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True} if phone else {}
  context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}} | options)
  context.set_default_timeout(60_000)
  page = context.new_page()
  complaints, hosts = [], set()
  page.on("console", lambda message: complaints.append(message.text))
  page.on("pageerror", lambda error: complaints.append(str(error)))
  page.on("request", lambda request: hosts.add(request.url.removeprefix("blob:").split("/")[2].partition(":")[0]))
  yield page
  context.close()
  # A refusal by the server is no complaint of the page's own.
  assert [line for line in complaints if "Failed to load resource" not in line] == []
  assert hosts == {"127.0.0.1"}
