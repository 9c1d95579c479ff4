"""Statistics of times, on given times: how fast this machine is proves nothing."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import pytest

from gmsrm_jax.hardware import timing


def test_quartiles_of_given_repeats():
  found = timing.summarise([5.0, 1.0, 3.0, 2.0, 4.0])
  assert (found.q1, found.median, found.q3, found.repeats, found.calls) == (2.0, 3.0, 4.0, 5, 1)
  assert found.p95 == pytest.approx(4.8)


def test_calls_that_were_sent_off_together_share_their_time():
  found = timing.summarise([4.0, 8.0], calls=4)
  assert (found.median, found.q1, found.q3) == (1.5, 1.25, 1.75)


def clock(monkeypatch, step: float) -> None:
  """Time goes on by `step` seconds whenever somebody looks."""
  ticks = itertools.count()
  monkeypatch.setattr(timing.time, "perf_counter", lambda: step * next(ticks))


@pytest.mark.parametrize(
  ("step", "seconds", "repeats"),
  [(1.0, 3.0, timing.MIN_REPEATS), (0.1, 1.95, 20), (0.1, 1e9, timing.MAX_REPEATS)],
)
def test_repeats_go_on_until_the_seconds_are_over(monkeypatch, step, seconds, repeats):
  clock(monkeypatch, step)
  calls = []
  found = timing.measure(lambda: calls.append(1) or jnp.zeros(()), seconds=seconds, together=False)
  assert found.repeats == repeats and found.median == pytest.approx(step)
  assert len(calls) == 2 + repeats  # two of them warm up


def test_short_calls_are_sent_off_together(monkeypatch):
  clock(monkeypatch, 0.01)
  calls = []
  found = timing.measure(lambda: calls.append(1) or jnp.zeros(()), seconds=0.05)
  assert found.calls == 5 and len(calls) == 2 + 5 * found.repeats
  assert found.median == pytest.approx(0.01 / 5)
