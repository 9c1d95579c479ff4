"""Processes judge pictures of a folder: the same beside each other as one after the other, and without JAX."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest
import skimage.data
from jax._src import xla_bridge
from PIL import Image

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.evaluation import judge


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
  base, photo = tmp_path_factory.mktemp("judge"), skimage.data.astronaut()
  made = []
  for index, (height, width) in enumerate([(90, 70), (60, 100), (50, 50)]):
    truth = photo[:height, 150 : 150 + width]
    mask = np.zeros((height, width), np.uint8)
    mask[5:30, 5 : 20 + 9 * index] = 255
    files = {"truth": truth, "result": np.where(mask[..., None] > 0, np.uint8(99), truth), "mask": mask}
    for name, pixels in files.items():
      Image.fromarray(pixels).save(base / f"{name}{index}.png")
    paths = [base / f"{name}{index}.png" for name in files]
    made.append(
      judge.Task(
        f"{index}", paths[0], paths[1], paths[2], "grey", baselines="telea,initial", size=(40, 40), canvas=(48, 64)
      )
    )
  return made


def judged(task):
  done = judge.judge(task)._replace(seconds={})
  return done, xla_bridge.backends_are_initialized()


def test_processes_judge_as_one_does_in_the_order_of_the_tasks_and_start_no_jax(tasks):
  assert jax.device_count() and xla_bridge.backends_are_initialized()
  beside = list(judge.in_processes(judged, tasks, 2))
  assert [one.name for one, _ in beside] == ["0", "1", "2"] and not any(started for _, started in beside)
  for (one, _), task in zip(beside, tasks, strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, judge.judge(task)._replace(seconds={}))
  assert beside[0][0].methods == ("grey", "Telea", "initial fill") and beside[0][0].fills.shape == (3, 48, 64, 3)


def test_a_process_that_was_killed_is_one_line():
  with pytest.raises(ConfigError, match="was killed"):
    list(judge.in_processes(os._exit, [1, 1, 1], 2))


@pytest.mark.parametrize(
  ("size", "most", "smaller", "canvas"),
  [
    ((972, 1500), 512 * 512, (412, 636), (512, 768)),
    ((144, 256), 512 * 512, (144, 256), (192, 256)),
    ((33, 385), 512 * 512, (33, 385), (48, 512)),
  ],
)
def test_networks_see_few_sizes(size, most, smaller, canvas):
  assert judge.reduced(size, most) == smaller and judge.canvas_of(smaller) == canvas
