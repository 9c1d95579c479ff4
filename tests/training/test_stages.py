"""Work left in a stage, and phases begun in it, also where it is made longer."""

from __future__ import annotations

import pytest

from gmsrm_jax import experiments, overrides
from gmsrm_jax.training.stages import work_left
from gmsrm_jax.training.steps import phase_at

CONFIG = overrides.override(
  experiments.load("street"), ["stage1.steps=10", "stage2.steps=100", "stage2.half_until=0.6"]
)


def test_a_step_of_stage_2_counts_twice_and_one_at_half_the_size_a_third():
  assert work_left(CONFIG, "memory", 4) == 6
  assert [work_left(CONFIG, "inpaint", step) for step in (0, 30, 60, 90, 100)] == pytest.approx([120, 100, 80, 20, 0])


def test_what_has_begun_does_not_end_where_a_stage_is_made_longer():
  longer = overrides.override(CONFIG, ["stage2.steps=1000", "stage2.phase_steps=100"])
  for step in (0, 59, 60, 81, 82, 99):
    assert phase_at(longer, "inpaint", step) == phase_at(CONFIG, "inpaint", step)
  assert phase_at(longer, "inpaint", 999) == phase_at(CONFIG, "inpaint", 99)
  assert work_left(longer, "inpaint", 60) == 2 * 940
  always = overrides.override(longer, ["stage2.half_until=1"])
  assert phase_at(always, "inpaint", 999).half and work_left(always, "inpaint", 400) == pytest.approx(2 * 600 / 3)
