"""run.init_from: which weights a fine-tuning run begins with, and which it refuses."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

import run
from gmsrm_jax import overrides
from gmsrm_jax.files import SHIPPED
from gmsrm_jax.parallel.sharding import make_mesh
from gmsrm_jax.training.run_folder import read_config
from gmsrm_jax.training.state import abstract_state, release_params, with_shardings
from gmsrm_jax.training.weights import load_weights
from tests.training.test_loop import STEPS, finish, one_line, restore, trained_run

# One step so small that the weights after it are those before it.
TINY = ("stage2.steps=1", "stage2.warmup=0", "stage2.learning_rate=1e-9", "stage2.discriminator_rate=1e-9")
WITHOUT_TEACHER = ("loss.retrieval=0", "loss.read=0", "loss.features=vgg16", "loss.perceptual=0", "loss.style=0")


def assert_equal(a, b, tolerance=0.0):
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)):
    assert leaf <= tolerance, jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def old(trained):
  return newest(trained.workdir)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("finetune") / "exported"
  done = finish(trained.cache, "--mode=export", f"--workdir={trained.workdir}", f"--output={folder}")
  assert done.returncode == 0, done.stderr
  return folder


def newest(workdir):
  config = read_config(workdir)
  return restore(workdir, with_shardings(config, "inpaint", make_mesh(config)))


def fine_tuned(trained, workdir, *changes):
  done = finish(trained.cache, *trained.flags(workdir, *TINY, *changes))
  assert done.returncode == 0, done.stderr
  assert not (workdir / "checkpoints" / "memory").exists()
  state = newest(workdir)
  assert int(state.step) == 1
  return state


def test_it_starts_from_the_weights_of_a_trained_run_and_skips_stage_1(trained, old, tmp_path):
  new = fine_tuned(trained, tmp_path / "run", f"run.init_from={trained.workdir}")
  assert int(old.step) == STEPS
  assert_equal(new.frozen, old.frozen)
  # One tiny step away from the averages, not from the raw parameters or from a fresh start.
  assert_equal(new.params, old.ema, 1e-7)
  apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), old.ema, old.params)
  assert max(jax.tree.leaves(apart)) > 1e-5
  assert_equal(new.disc_params, old.disc_params, 1e-7)


def test_it_starts_from_exported_weights_with_a_discriminator_of_its_own(trained, old, exported, tmp_path):
  new = fine_tuned(
    trained, tmp_path / "run", f"run.init_from={exported}", "model.discriminator_width=4", *WITHOUT_TEACHER
  )
  given_out = load_weights(read_config(exported), exported).params
  assert_equal(release_params(new), given_out, 1e-7)
  assert_equal(release_params(new), release_params(old), 1e-7)
  assert set(new.frozen) == {"memory"}


def test_a_memory_that_was_frozen_may_be_trained_on_and_a_teacher_left_behind(trained, old, tmp_path, capsys):
  lean = tmp_path / "lean"
  new = fine_tuned(trained, lean, f"run.init_from={trained.workdir}", "memory.finetune=0.1", *WITHOUT_TEACHER)
  assert new.frozen == {} and "memory" in new.params
  assert_equal(new.params, release_params(old), 1e-7)
  # Then there is none to be had from this run.
  assert run.main(trained.flags(tmp_path / "run", f"run.init_from={lean}")) == 2
  assert "no teacher (its losses needed none)" in one_line(capsys.readouterr().err)
  assert not (tmp_path / "run").exists()


def test_a_teacher_is_kept_after_a_stage_1_and_in_fine_tuning_only_if_a_term_asks(trained):
  config = read_config(trained.workdir)
  without = overrides.override(config, WITHOUT_TEACHER)
  assert "teacher" in abstract_state(without, "inpaint").frozen
  from_weights = overrides.override(without, ["run.init_from=somewhere"])
  assert "teacher" not in abstract_state(from_weights, "inpaint").frozen
  assert "teacher" in abstract_state(overrides.override(from_weights, ["loss.read=1"]), "inpaint").frozen


def test_the_shipped_weights_are_fine_tuned_only_without_a_teacher_and_as_the_model_they_are(trained, tmp_path, capsys):
  shipped = f"run.init_from={SHIPPED}"
  assert run.main(trained.flags(tmp_path / "run", shipped)) == 2
  line = one_line(capsys.readouterr().err)
  assert "is another model (" in line and "model.image_size" in line and "memory.num_groups" in line
  street = ["--experiment=street", "--set", f"data.train={trained.photos}", f"data.val={trained.held_out}", shipped]
  assert run.main([f"--workdir={tmp_path / 'run'}", *street]) == 2
  line = one_line(capsys.readouterr().err)
  assert "no teacher" in line and "loss.retrieval=0 loss.read=0" in line
  assert not (tmp_path / "run").exists()


def test_another_discriminator_than_the_run_has_is_refused(trained, tmp_path, capsys):
  changes = f"run.init_from={trained.workdir}", "model.discriminator_width=4"
  assert run.main(trained.flags(tmp_path / "run", *changes)) == 2
  assert "is another model (model.discriminator_width" in one_line(capsys.readouterr().err)
  assert not (tmp_path / "run").exists()


def test_a_folder_without_a_model_is_refused(trained, tmp_path, capsys):
  assert run.main(trained.flags(tmp_path / "run", f"run.init_from={tmp_path}")) == 2
  assert "run.init_from=" in (line := one_line(capsys.readouterr().err)) and "no checkpoint of stage 2" in line
  shutil.copytree(trained.workdir / "checkpoints", tmp_path / "halved" / "checkpoints")
  assert run.main(trained.flags(tmp_path / "run", f"run.init_from={tmp_path / 'halved'}")) == 2
  assert "holds no config.json" in one_line(capsys.readouterr().err)
  assert not (tmp_path / "run").exists()
