"""SIGTERM and Ctrl-C wait where something is left to save, and end the program at once where nothing is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from gmsrm_jax.parallel import preemption
from gmsrm_jax.parallel.preemption import Stop, Stopped

BUSY = """
import hashlib, sys
from gmsrm_jax.parallel.preemption import Stop
with Stop() as stop:
  stop.defer()
  stop.unsaved = sys.argv[1] == "unsaved"
  print("ready", flush=True)
  hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as a compilation, nothing of Python runs meanwhile
"""


def tell(number=signal.SIGTERM):
  os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def interruptible():
  """Lets Ctrl-C end processes of tests that run in the background, where it is ignored."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)])
def test_a_signal_ends_the_program_with_its_own_code_where_nothing_is_left_to_save(number, name, code, capsys):
  with Stop(), pytest.raises(SystemExit) as end:
    tell(number)
  assert end.value.code == code
  assert f"stopped by {name}: the same command goes on" in capsys.readouterr().out


@pytest.mark.parametrize("signals", [["unsaved", signal.SIGINT, signal.SIGINT], ["saved", signal.SIGINT]])
def test_a_second_ctrl_c_or_one_with_nothing_to_save_ends_even_a_compilation(signals):
  words = ["env", "--default-signal=INT", sys.executable, "-c", BUSY, signals[0]]
  with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
    try:
      assert process.stdout.readline() == "ready\n"
      for number in signals[1:]:
        process.send_signal(number)
        assert process.stdout.readline() == "\n" or number is signals[-1]
      assert process.wait(timeout=30) == 130
    finally:
      process.kill()
    assert "at once" in process.stdout.read()


def test_a_signal_of_the_callers_own_does_not_end_the_program(monkeypatch):
  ended = threading.Event()
  monkeypatch.setattr("os._exit", lambda code: ended.set())
  monkeypatch.setattr(preemption, "_PATIENCE", 0.01)
  before = signal.signal(signal.SIGUSR1, lambda *_: None)
  try:
    with Stop():
      tell(signal.SIGUSR1)
      assert not ended.wait(0.5)
  finally:
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_waits_until_the_loop_asks():
  with Stop() as stop:
    stop.defer()
    assert not stop.reached(1)
    tell()
    assert stop.reached(2) and stop.reached(3)


def test_a_signal_that_nobody_asked_about_in_time_counts_afterwards():
  with Stop() as stop:
    stop.defer()
    tell()
    with pytest.raises(Stopped):
      stop.resume()


def test_the_signal_belongs_to_the_caller_again_afterwards():
  before = signal.getsignal(signal.SIGTERM)
  with Stop():
    assert signal.getsignal(signal.SIGTERM) != before
  assert signal.getsignal(signal.SIGTERM) == before
