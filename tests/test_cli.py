"""The command line as the user meets it: one line on standard error, exit code 2, no traceback."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

import run
from gmsrm_jax import commands, experiments, overrides
from gmsrm_jax.commands import flags as flags_lib
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.training.run_folder import read_config

ROOT = pathlib.Path(run.__file__).parent


def command(*flags: str, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
  environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
  return subprocess.run(
    [sys.executable, str(ROOT / "run.py"), *flags],
    cwd=cwd,
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (
      ["--experiment=pars"],
      ["--experiment=pars", "did you mean 'paris'?", "demo, faces, paris, places2, street"],
    ),
    (["--set", "memory.num_group=1"], ["memory.num_group", "did you mean 'memory.num_groups'?"]),
    (["--exprment=paris"], ["--exprment", "did you mean '--experiment'?"]),
    (["--mode=prepare", "--output=x", "--set", "data.train=no"], ["data.train='no' does not exist", "give data.train"]),
    (["--mode=evaluate", "--workdir=runs/demo"], ["runs/demo", "config.json", "train there first"]),
    (["--mode=evaluate"], ["without --workdir", "give --output"]),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, flags, parts):
  done = command(*flags, cwd=tmp_path)
  assert done.returncode == 2
  assert done.stdout == ""
  lines = done.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: ")
  for part in parts:
    assert part in lines[0]
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("platform", "package"), [("tpu", "jax[tpu]"), ("gpu", "jax[cuda13]")])
def test_a_back_end_that_is_not_here_is_one_line_and_exit_code_2(tmp_path, platform, package):
  if list(pathlib.Path("/dev").glob("accel*" if platform == "tpu" else "nvidia[0-9]*")):
    pytest.skip("this machine has one")
  done = command("--experiment=paris", f"--platform={platform}", cwd=tmp_path)
  assert done.returncode == 2
  lines = done.stderr.splitlines()
  assert len(lines) == 1, done.stderr
  assert f"--platform={platform}" in lines[0] and package in lines[0] and "--platform=cpu" in lines[0]


def test_help_names_every_experiment_and_mode_without_importing_jax():
  start = time.monotonic()
  done = command("--help")
  assert time.monotonic() - start < 5
  assert done.returncode == 0 and done.stderr == ""
  for word in [*experiments.names(), "train", "evaluate", "inpaint", "check", "prepare", "--num_samples"]:
    assert word in done.stdout
  program = "import sys, run, experiments; experiments.load('paris'); print('jax' in sys.modules)"
  loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
  assert loaded.stdout.strip() == "False"


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--mode=trian"], "--mode='trian' is unknown: did you mean 'train'?"),
    (["--platform=tpuu"], "--platform='tpuu' is unknown: did you mean 'tpu'?"),
    (["--images=x"], "--images is not read by --mode=train: remove it, or use --mode=evaluate or inpaint"),
    (["--seed=0"], "--seed is not read by --mode=train"),
    (["--checkpoint=x"], "use --mode=evaluate or inpaint"),
    (["--mode=inpaint", "--set", "run.seed=1"], "--set is not read by --mode=inpaint"),
    (["--mode=inpaint", "--images=x", "--masks=y"], "--mode=inpaint needs --output"),
    (["--mode=prepare"], "--mode=prepare needs --output"),
    (["--mode=prepare", "--output=x", "--workdir=y"], "--workdir is not read by --mode=prepare"),
    (
      ["--output=x"],
      "--output is not read by --mode=train: remove it, or use --mode=evaluate or inpaint or masks or export or "
      "prepare or compile or benchmark",
    ),
    (
      ["--mode=inpaint", "--images=x", "--masks=y", "--output=z", "--num_samples=0"],
      "--num_samples=0 is out of range: give 1 or more",
    ),
    (
      ["--mode=inpaint", "--images=x", "--masks=y", "--output=z", "--mask_dilate=-1"],
      "--mask_dilate=-1 is out of range: give 0 or more",
    ),
    (["--mask_invert"], "--mask_invert is not read by --mode=train: remove it, or use --mode=evaluate or inpaint"),
    (["--mode=masks"], "--mode=masks needs --output"),
    (["--mode=check", "--workdir=x"], "--workdir is not read by --mode=check"),
    (["--seed=x"], "argument --seed: invalid int value: 'x'"),
    (["--exp=paris"], "unknown flag '--exp'"),
    (["demo"], "unknown flag 'demo'"),
    (["--workdir=gs://bucket/run"], "--workdir=gs://bucket/run is no local folder"),
  ],
)
def test_flags_are_refused_with_the_way_out(flags, message):
  with pytest.raises(ConfigError) as caught:
    flags_lib.parse(flags)
  assert message in str(caught.value)


def test_set_takes_several_and_repeats():
  flags = flags_lib.parse(["--set", "run.seed=1", "data.flip=false", "--set", "run.batch_size=2"])
  assert flags.set == ["run.seed=1", "data.flip=false", "run.batch_size=2"]


def test_a_trained_folder_says_which_experiment_it_is(tmp_path):
  config = overrides.override(experiments.load("demo"), ["run.seed=3"])
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"config": overrides.to_dict(config), "splits": {}}))
  assert read_config(str(tmp_path), None) == config
  with pytest.raises(ConfigError, match="holds experiment 'demo', not 'paris'"):
    read_config(str(tmp_path), "paris")
  path.write_text(json.dumps(overrides.to_dict(config)))
  with pytest.raises(ConfigError, match="config.json describes no run"):
    read_config(str(tmp_path), None)
  path.write_text(json.dumps(overrides.to_dict(config))[:-5])
  with pytest.raises(ConfigError, match="config.json is no JSON file"):
    read_config(str(tmp_path), None)


@pytest.mark.parametrize(
  ("error", "code", "line"),
  [
    (ConfigError("two\nlines"), 2, "error: two lines\n"),
    (OSError(28, "No space left on device", "x/metrics.jsonl"), 2, "error: No space left on device: x/metrics.jsonl\n"),
    (KeyboardInterrupt(), 130, "interrupted: the same command again resumes from the last checkpoint\n"),
  ],
)
def test_what_stops_a_run_is_one_line(monkeypatch, capsys, error, code, line):
  def stop(flags):
    raise error

  monkeypatch.setattr(commands, "dispatch", stop)
  assert run.main([]) == code
  assert capsys.readouterr().err == line


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
  def stop(flags):
    raise FileNotFoundError(2, "No such file or directory")

  monkeypatch.setattr(commands, "dispatch", stop)
  with pytest.raises(FileNotFoundError):
    run.main([])


@pytest.mark.parametrize("mode", flags_lib.MODES)
def test_each_mode_can_be_run(mode):
  assert callable(importlib.import_module(f"gmsrm_jax.commands.{mode}").run)
  assert any(
    mode in flag.modes.split() for flag in flags_lib.FLAGS if flag.name not in ("experiment", "platform", "mode")
  )


def test_a_flag_names_modes_that_exist():
  for flag in flags_lib.FLAGS:
    assert set(flag.needed_by.split()) <= set(flag.modes.split()) <= set(flags_lib.MODES), flag.name
