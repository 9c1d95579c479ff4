"""run.init_from: which weights a fine-tuning run begins with, and which it refuses."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from gmsrm_jax import overrides
from gmsrm_jax.files import SHIPPED
from gmsrm_jax.parallel.sharding import make_mesh
from gmsrm_jax.training.finetune import begin_with, check_source
from gmsrm_jax.training.run_folder import read_config
from gmsrm_jax.training.state import abstract_state, release_params, with_shardings
from gmsrm_jax.training.weights import load_weights
from tests.trained import BRIEFLY, STEPS, finish, refused, restore

# One step so small that the weights after it are those before it.
TINY = ("stage2.steps=1", "stage2.warmup=0", "stage2.learning_rate=1e-9", "stage2.discriminator_rate=1e-9")
WITHOUT_TEACHER = ("loss.retrieval=0", "loss.read=0", "loss.features=vgg16", "loss.perceptual=0", "loss.style=0")


def assert_equal(a, b, tolerance=0.0):
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x, y: np.abs(x - y).max(), a, b)):
    assert leaf <= tolerance, jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def old(trained):
  return newest(trained.workdir)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp("finetune") / "exported"
  finish(["--mode=export", f"--workdir={trained.workdir}", f"--output={folder}"], trained.cache)
  return folder


def newest(workdir):
  config = read_config(workdir)
  return restore(workdir, with_shardings(config, "inpaint", make_mesh(config)))


def fine_tuned(trained, workdir, *changes):
  finish(trained.flags(workdir, *TINY, *BRIEFLY, *changes), trained.cache)
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


def test_exported_weights_get_a_new_discriminator_train_their_memory_on_and_leave_the_teacher_behind(
  trained, old, exported, tmp_path, capsys
):
  changes = ("model.discriminator_width=4", "memory.finetune=0.1", *WITHOUT_TEACHER)
  lean = tmp_path / "lean"
  new = fine_tuned(trained, lean, f"run.init_from={exported}", *changes)
  assert new.frozen == {} and "memory" in new.params
  assert_equal(new.params, load_weights(read_config(exported), exported).params, 1e-7)
  assert_equal(new.params, release_params(old), 1e-7)
  # Then there is none to be had from this run.
  again = refused(capsys, trained.flags(tmp_path, f"run.init_from={lean}", "model.discriminator_width=4"))
  assert "no teacher (its losses needed none)" in again


def test_a_run_whose_discriminator_is_of_another_kind_takes_the_rest(trained, old, capsys):
  given = [f"run.init_from={trained.workdir}", "model.discriminator=features"]
  config = overrides.override(read_config(trained.workdir), given)
  check_source(config)
  where = jax.tree.map(lambda leaf: leaf.sharding, with_shardings(config, "inpaint", make_mesh(config)))
  new = begin_with(config, jax.random.key(0), where)
  assert capsys.readouterr().out.count("starts anew") == 1
  assert "to_logits3" in new.disc_params and new.disc_stats == {}
  assert_equal(new.params, old.ema)
  assert_equal(new.frozen, old.frozen)


def test_a_teacher_is_kept_after_a_stage_1_and_in_fine_tuning_only_if_a_term_asks(trained):
  config = read_config(trained.workdir)
  without = overrides.override(config, WITHOUT_TEACHER)
  assert "teacher" in abstract_state(without, "inpaint").frozen
  from_weights = overrides.override(without, ["run.init_from=somewhere"])
  assert set(abstract_state(from_weights, "inpaint").frozen) == {"memory"}
  assert "teacher" in abstract_state(overrides.override(from_weights, ["loss.read=1"]), "inpaint").frozen


def test_what_cannot_begin_a_run_is_refused_before_anything_is_written(trained, tmp_path, capsys):
  workdir = tmp_path / "run"

  def line(source, *changes):
    return refused(capsys, trained.flags(workdir, f"run.init_from={source}", *changes))

  assert all(name in line(SHIPPED) for name in ("another model", "model.image_size", "memory.num_groups"))
  assert "another model (model.blocks" in line(trained.workdir, "model.blocks=2")
  assert "no checkpoint of stage 2" in line(tmp_path)
  shutil.copytree(trained.workdir / "checkpoints", tmp_path / "halved" / "checkpoints")
  assert "holds no config.json" in line(tmp_path / "halved")
  data = f"data.train={trained.photos}", f"data.val={trained.held_out}", f"run.init_from={SHIPPED}"
  teacher = refused(capsys, [f"--workdir={workdir}", "--experiment=street", "--set", *data])
  assert "no teacher" in teacher and "loss.retrieval=0 loss.read=0" in teacher
  assert not workdir.exists()
