"""SIGTERM waits where something is left to save, and ends the program at once where nothing is."""

from __future__ import annotations

import os
import signal

import pytest

from gmsrm_jax.parallel.preemption import Stop, Stopped


def tell():
  os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_ends_the_program_with_its_own_code_where_nothing_is_left_to_save(capsys):
  with Stop(), pytest.raises(SystemExit) as end:
    tell()
  assert end.value.code == 143
  assert "stopped by SIGTERM: the same command goes on" in capsys.readouterr().out


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
