"""The folder of a run: its description, and the runs it goes on with."""

from __future__ import annotations

import json
import shutil

import jax
import pytest

import run
from gmsrm_jax import experiments, overrides
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.parallel import sharding
from gmsrm_jax.training.run_folder import data_facts, describe_run, finished, print_overview, read_config
from tests.trained import STEPS, refused, write_photos


def test_a_run_describes_itself(trained):
  described = json.loads((trained.workdir / "config.json").read_text())
  assert described["config"]["stage2"]["steps"] == STEPS
  assert described["images"] == {"train": 11, "val": 3}
  assert described["splits"]["train"] != described["splits"]["val"]
  assert described["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize("damage", ["empty", "cut off", "null", "no step", "no page"])
def test_a_report_that_is_not_whole_does_not_count_as_one(damage, trained, tmp_path):
  for name in ("report.json", "report.md"):
    shutil.copy(trained.workdir / name, tmp_path)
  assert finished(read_config(trained.workdir), tmp_path)
  text = (tmp_path / "report.json").read_text()
  if damage == "no page":
    (tmp_path / "report.md").unlink()
  else:
    cut = {"empty": "", "cut off": text[: len(text) // 2], "null": "null", "no step": "{}"}
    (tmp_path / "report.json").write_text(cut[damage])
  assert not finished(read_config(trained.workdir), tmp_path)


def test_a_folder_keeps_to_its_settings_and_images(trained, tmp_path, capsys):
  workdir = tmp_path / "run"
  workdir.mkdir()
  described = json.loads((trained.workdir / "config.json").read_text())
  (workdir / "config.json").write_text(json.dumps(described))
  line = refused(capsys, trained.flags(workdir, "loss.hole=3", "stage1.steps=7"))
  assert "loss.hole: 6.0 -> 3.0; stage1.steps: 6 -> 7" in line and "use another --workdir" in line
  described["splits"]["train"] = "0" * 64
  (workdir / "config.json").write_text(json.dumps(described))
  line = refused(capsys, trained.flags(workdir))
  assert "was begun with other images" in line and "use another --workdir" in line
  assert json.loads((workdir / "config.json").read_text()) == described
  assert [path.name for path in workdir.rglob("*") if path.is_file()] == ["config.json"]


def test_images_are_known_by_what_they_are_not_by_where(trained, tmp_path, capsys, monkeypatch):
  workdir = shutil.copytree(trained.workdir, tmp_path / "run")
  shutil.copytree(trained.photos, tmp_path / "elsewhere")
  monkeypatch.chdir(trained.held_out.parent)
  for train, val in ((tmp_path / "elsewhere", f"{trained.held_out}/"), (f"{trained.photos}/.", "held_out")):
    assert run.main(trained.flags(workdir, f"data.train={train}", f"data.val={val}")) == 0
    assert "is finished" in capsys.readouterr().out
  (tmp_path / "elsewhere" / "photo00.png").rename(tmp_path / "elsewhere" / "photo.png")
  line = refused(capsys, trained.flags(workdir, f"data.train={tmp_path / 'elsewhere'}"))
  assert f"data.train={tmp_path / 'elsewhere'}" in line and "use another --workdir" in line


def test_folders_of_hole_shapes_are_known_by_what_they_hold_where_that_was_noted(tmp_path):
  write_photos(tmp_path / "photos", 2)
  write_photos(tmp_path / "objects", 2)
  base = [f"data.train={tmp_path / 'photos'}", "data.synthetic=true", "mask.objects=1"]
  config = overrides.override(experiments.load("demo"), [*base, f"mask.objects_folder={tmp_path / 'objects'}"])
  evaluation = pipeline.evaluation_set(config)
  describe_run(config, tmp_path, data_facts(config, None, evaluation), free=())
  shutil.copytree(tmp_path / "objects", tmp_path / "copy")
  moved = overrides.override(config, [f"mask.objects_folder={tmp_path / 'copy'}"])
  describe_run(moved, tmp_path, data_facts(moved, None, evaluation), free=())
  (tmp_path / "copy" / "photo00.png").unlink()
  with pytest.raises(ConfigError, match="mask.objects_folder=.*copy"):
    describe_run(moved, tmp_path, data_facts(moved, None, evaluation), free=())
  # Older runs noted no hash: only the path can tell.
  described = json.loads((tmp_path / "config.json").read_text())
  del described["splits"]["objects"]
  (tmp_path / "config.json").write_text(json.dumps(described))
  with pytest.raises(ConfigError, match="mask.objects_folder: .*copy -> "):
    describe_run(config, tmp_path, data_facts(config, None, evaluation), free=())


def test_the_weights_that_a_run_began_with_are_known_by_their_place_however_it_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  base = overrides.override(experiments.load("demo"), ["data.synthetic=true", f"run.init_from={tmp_path / 'run'}"])
  data = data_facts(base, None, pipeline.evaluation_set(base))
  describe_run(base, tmp_path, data, free=())
  describe_run(overrides.override(base, ["run.init_from=./run/"]), tmp_path, data, free=())
  with pytest.raises(ConfigError, match="run.init_from: "):
    describe_run(overrides.override(base, ["run.init_from=./other"]), tmp_path, data, free=())


def test_a_synthetic_run_is_told_and_never_continued_with_images(tmp_path, capsys):
  write_photos(tmp_path / "photos", 2)
  photos = str(tmp_path / "photos")
  real = overrides.override(experiments.load("demo"), [f"data.train={photos}", f"data.val={photos}"])
  made = overrides.override(real, ["data.synthetic=true"])
  evaluation = pipeline.evaluation_set(made)
  for _ in range(2):
    describe_run(made, tmp_path, data_facts(made, None, evaluation), free=())
  described = json.loads((tmp_path / "config.json").read_text())
  assert described["splits"]["train"] == "synthetic" and described["images"]["train"] == 0
  assert "0 training images (synthetic)" in capsys.readouterr().out
  with pytest.raises(ConfigError, match="data.synthetic: True -> False"):
    describe_run(real, tmp_path, data_facts(real, sources.open_source(real.data, "train"), evaluation), free=())


@pytest.mark.parametrize("steps", [500, 5_000_000])
def test_a_schedule_of_days_on_a_cpu_is_warned_of_with_the_way_out(tmp_path, capsys, steps):
  config = overrides.override(experiments.load("demo"), [f"stage2.steps={steps}"])
  print_overview(config, sharding.make_mesh(config), tmp_path)
  out, err = capsys.readouterr()
  assert f"writing to {tmp_path}" in out
  assert [part in err for part in ("days", "--experiment=street", "stage2.steps")] == [steps > 500] * 3
