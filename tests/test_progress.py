from __future__ import annotations

import io
import threading

import tqdm

from gmsrm_jax import progress


def test_work_that_lasts_is_shown_with_its_seconds_and_the_next_begins_anew(monkeypatch):
  now, looked = [100.0], threading.Semaphore(0)
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(progress, "_PAUSE", 0.001)
  shown = io.StringIO()
  with tqdm.tqdm(total=2, file=shown, bar_format="{desc}") as bar:
    written = bar.set_description_str

    def write(text: str) -> None:
      written(text)
      if "so far" in text:
        looked.release()

    monkeypatch.setattr(bar, "set_description_str", write)
    with progress.ticking(bar) as say:
      say("compiling")
      now[0] += 14.0
      assert looked.acquire(timeout=60)
      say("filling")
      assert bar.desc == "filling"
      now[0] += 3.0
      while "filling (3 s" not in bar.desc:
        assert looked.acquire(timeout=60)
  assert "compiling (14 s so far)" in shown.getvalue() and "filling (17 s" not in shown.getvalue()


def test_a_bar_that_is_not_shown_says_nothing():
  shown = io.StringIO()
  with tqdm.tqdm(total=1, file=shown, disable=True) as bar, progress.ticking(bar) as say:
    say("compiling")
  assert shown.getvalue() == ""
