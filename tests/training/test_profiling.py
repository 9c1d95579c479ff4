"""A trace holds the steps that were asked for, and nothing is traced unasked."""

from __future__ import annotations

import jax
import pytest

from gmsrm_jax.config import RunConfig
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.training.profiling import Profile


@pytest.mark.parametrize(
  ("steps", "first", "total", "traced"),
  [("2:4", 0, 6, [2, 3]), ("2:9", 0, 4, [2, 3]), ("2:4", 3, 6, [3]), ("2:4", 5, 6, []), ("", 0, 3, [])],
)
def test_the_steps_from_start_to_stop_are_traced(steps, first, total, traced, tmp_path, monkeypatch):
  running, seen, ends = [], [], []
  monkeypatch.setattr(jax.profiler, "start_trace", running.append)
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (running.pop(), ends.append(True)))
  profile = Profile(steps, tmp_path)
  for step in range(first, total):
    profile.before(step, {})
    if running:
      seen.append(step)
  profile.close()
  assert seen == traced and not running and len(ends) == bool(traced)


def test_a_trace_is_written_by_the_first_process_alone(tmp_path):
  for active in (True, False):
    profile = Profile("1:2", tmp_path / str(active), active=active)
    for step in range(3):
      profile.before(step, jax.numpy.ones(3) + step)
    assert any((tmp_path / str(active)).rglob("*")) == active


@pytest.mark.parametrize("steps", ["3:", "4:4", "a:b", "-1:3"])
def test_what_is_no_range_of_steps_is_refused(steps):
  with pytest.raises(ConfigError, match=r"run.profile=.* is no range of steps: give START:STOP"):
    RunConfig(profile=steps)
