"""The command line as the user meets it: one line on standard error, exit code 2, no traceback."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

import run
from gmsrm_jax import commands, experiments, overrides
from gmsrm_jax.commands.flags import FLAGS, MODES, parse
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.training.run_folder import read_config

ROOT = pathlib.Path(run.__file__).parent


def command(*flags: str, cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
  environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
  words = [sys.executable, str(ROOT / "run.py"), *flags]
  return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--experiment=pars"], ["--experiment='pars'", "'paris'?", "demo, faces, paris, places2, street"]),
    (["memory.num_group=1"], ["memory.num_group", "'memory.num_groups'?"]),
    (["--mode=prepare", "--output=x", "--set", "data.train=no"], ["data.train='no'", "give data.train"]),
    (["--mode=evaluate", "--workdir=runs/demo"], ["runs/demo", "config.json", "train there first"]),
    (["--platform=tpu"], ["--platform=tpu", "jax[tpu]", "--platform=cpu"]),
    (["--platform=gpu"], ["--platform=gpu", "jax[cuda13]", "--platform=cpu"]),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, flags, parts):
  device = {"--platform=tpu": "accel*", "--platform=gpu": "nvidia[0-9]*"}.get(flags[0])
  if device and list(pathlib.Path("/dev").glob(device)):
    pytest.skip("this machine has one")
  done = command(*flags, cwd=tmp_path)
  assert (done.returncode, done.stdout) == (2, "")
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ")
  for part in parts:
    assert part in line
  assert not list(tmp_path.iterdir())


def test_help_names_every_mode_and_that_of_a_mode_its_flags_alone_without_importing_jax(capsys):
  done = command("--help")
  assert done.returncode == 0 and done.stderr == ""
  for word in [*experiments.names(), *(f"  {mode}" for mode in MODES), "examples:", "MODE --help"]:
    assert word in done.stdout
  for mode in MODES:
    for flags in ([mode, "--help"], ["-h", f"--mode={mode}"]):
      with pytest.raises(SystemExit) as end:
        run.main(flags)
      named = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")}
      expected = {f"--{flag.name}" for flag in FLAGS if mode in flag.modes.split() and flag.name != "mode"}
      assert end.value.code == 0 and named == expected
  program = "import sys, run; from gmsrm_jax import experiments; experiments.load('paris'); print(sys.modules.keys())"
  loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
  assert not {"'jax'", "'numpy'", "'PIL'"} & set(loaded.stdout.replace(",", " ").split())


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--mode=trian"], ["--mode='trian'", "'train'?"]),
    (["--mode=trian", "--help"], ["--mode='trian'", "'train'?"]),
    (["--exprment=paris"], ["'--exprment'", "'--experiment'?"]),
    (["--exp=paris"], ["'--exp'"]),
    (["trian"], ["the mode='trian'", "'train'?"]),
    (["--platform=cpu", "demo"], ["'demo'", "quote"]),
    (["train", "masks"], ["'masks'", "quote"]),
    (
      ["inpaint", "data.train=x", "--images=x", "--output=y"],
      ["the setting data.train=x is not read by --mode=inpaint"],
    ),
    *(
      (words.split(), ["data.train is a setting", "write data.train=VALUE, without dashes and without spaces"])
      for words in (
        "--data.train=x",
        "--data.train x",
        "--workdir=X data.train",
        "data.train = x",
        "check data.train x",
      )
    ),
    (["stage1.steps=", "20"], ["'20' belongs to no flag", "SETTING=VALUE without spaces"]),
    (["--steps=20"], ["'--steps'", "'stage1.steps' or 'stage2.steps'?", "no dashes", "train --help"]),
    (["--stage1.step=20"], ["'stage1.steps'?", "no dashes"]),
    (["--batch-size=2"], ["'run.batch_size'?"]),
    (["--topolgy=x"], ["'--topolgy': see train --help"]),  # not --topology, which is of another mode
    (["inpaint", "--steps=20"], ["'--steps'", "inpaint --help"]),
    (["--set"], ["--set needs a value: --set KEY=VALUE"]),
    (["--platform"], ["--platform needs a value: --platform=auto|cpu"]),
    (["inpaint", "--mask_invert=yes"], ["--mask_invert takes no value"]),
    (
      ["inpaint", "--images=x"],
      ["needs --output (folder for the fills", "inpaint --images=photo.jpg --masks=hole.png"],
    ),
    *(
      (["inpaint", "--images=x", "--output=z", f"--{flag}"], [f"--{flag} is {what}", rule])
      for flag, what, rule in (
        ("num_samples=abc", "not a whole number", "1 or more"),
        ("detail=3", "out of range", "a number from 0 to 1"),
        ("detail=nan", "out of range", "from 0 to 1"),
        ("mask_dilate=1.5", "not a whole number", "0 or more"),
      )
    ),
    (["benchmark", "--batches", "2", "0"], ["--batches=0 is out of range", "1 or more"]),
    (["inpaint", "--num-samples=3"], ["'--num-samples'", "'--num_samples'?"]),
    (["--mode=inpaint", "--images", "a", "b", "--output", "x", "c.png"], ["'c.png'", "one value", "quote"]),
    (["--mode=inpaint", "--images=x", "--output="], ["--output=''", "names nothing"]),
    (["--mode=inpaint", "--images=x", f"--output={__file__}/z"], ["--output=", "test_cli.py, which is a file"]),
    (["--mode=masks", f"--output={__file__}"], ["--output=", "is a file", "folder"]),
    ([f"--workdir={__file__}"], ["--workdir=", "is a file", "folder"]),
    (["--images=x"], ["--images", "--mode=train", "--mode=evaluate or inpaint"]),
    (["--seed=0"], ["--seed", "--mode=train"]),
    (["--mode=inpaint", "--set", "run.seed=1"], ["the setting run.seed=1", "--mode=inpaint"]),
    (["--mode=inpaint", "--images=x", "--masks=y"], ["--mode=inpaint", "--output"]),
    (["--mode=prepare"], ["--mode=prepare", "--output"]),
    (["--mode=inpaint", "--images=x", "--output=z", "--num_samples=0"], ["--num_samples=0", "1 or more"]),
    (["--mode=serve", "--port=65536"], ["--port=65536", "0 to 65535"]),
    (["--mode=inpaint", "--images=x", "--output=z", "--seed=x"], ["--seed=x", "not a whole number"]),
    *(
      (["--mode=inpaint", "--images=x", "--output=z", f"--seed={seed}"], [f"--seed={seed}", "0 to 4294967295"])
      for seed in (-1, 2**32, 10**20)
    ),
    (["--workdir=gs://bucket/run"], ["--workdir=", "gs://bucket/run", "mount"]),
  ],
)
def test_flags_are_refused_with_the_way_out(flags, parts):
  with pytest.raises(ConfigError) as caught:
    parse(flags)
  for part in parts:
    assert part in str(caught.value)


@pytest.mark.parametrize(
  ("mode", "said", "unsaid"),
  [
    ("train", ["default: runs/EXPERIMENT"], ["those that come along"]),
    *((mode, ["those that come along"], ["runs/EXPERIMENT"]) for mode in ("inpaint", "memory", "serve", "export")),
    ("inpaint", ["photographs to fill", "filled.png", "--seed S", "(default: 0)"], ["truth", "evaluate"]),
    ("evaluate", ["true pictures", "default: that of the run", "whole pictures"], ["to fill", "transparent"]),
    ("benchmark", ["runs/benchmark_PLATFORM.json"], ["of the run)"]),
  ],
)
def test_the_help_of_a_mode_says_what_is_true_of_it(mode, said, unsaid, capsys):
  with pytest.raises(SystemExit):
    parse([mode, "--help"])
  text = " ".join(capsys.readouterr().out.split())
  assert [part for part in said if part not in text] == [] and [part for part in unsaid if part in text] == []


def test_an_evaluation_of_nothing_says_what_it_needs(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert run.main(["evaluate"]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "needs the run" in line and "--workdir=runs/mine" in line and "--inpainted" in line


def test_a_flag_gets_the_default_of_its_mode_and_none_in_the_others():
  flags = parse(["--set", "run.seed=1", "data.flip=false", "--set", "run.batch_size=2"])
  assert flags.set == ["run.seed=1", "data.flip=false", "run.batch_size=2"]
  assert (flags.mode, flags.platform, flags.num_samples, flags.workdir) == ("train", "auto", None, None)
  flags = parse(["check", "data.train=a=b", "--set", "run.seed=1"])
  assert (flags.mode, flags.set) == ("check", ["run.seed=1", "data.train=a=b"])
  flags = parse(["inpaint", "--images", "x", "y", "--output=~/z/", "--mask_invert"])
  assert (flags.images, flags.output) == (["x", "y"], os.path.expanduser("~/z"))
  assert (flags.num_samples, flags.mask_invert, flags.strategy, flags.set) == (1, True, "auto", None)


def test_a_trained_folder_says_which_experiment_it_is(tmp_path):
  config = overrides.override(experiments.load("demo"), ["run.seed=3"])
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"config": overrides.to_dict(config), "splits": {}}))
  assert read_config(tmp_path) == read_config(tmp_path, "demo") == config
  for text, experiment, message in (
    (path.read_text(), "paris", "'demo', not 'paris'"),
    (json.dumps(overrides.to_dict(config)), None, "describes no run"),
    (path.read_text()[:-5], None, "is no JSON"),
  ):
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
      read_config(tmp_path, experiment)


@pytest.mark.parametrize(
  ("error", "code", "part"),
  [
    (ConfigError("two\nlines"), 2, "error: two lines"),
    (
      OSError(28, "No space left on device", "x/metrics.jsonl"),
      2,
      "x/metrics.jsonl: No space left on device: make room",
    ),
    (KeyboardInterrupt(), 130, "resumes"),
  ],
)
def test_what_stops_a_run_is_one_line(monkeypatch, capsys, error, code, part):
  def stop(flags):
    raise error

  monkeypatch.setattr(commands, "dispatch", stop)
  assert run.main([]) == code
  (line,) = capsys.readouterr().err.splitlines()
  assert part in line


def test_a_file_whose_name_is_no_text_goes_through_check_masks_and_preparation(tmp_path, capsys):
  for index in range(9):
    path = tmp_path / "photos" / os.fsdecode(b"%d\xff.png" % index)
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (40, 40), (index, 0, 0)).save(path)
  (tmp_path / "photos" / os.fsdecode(b"9\xff.png")).write_bytes(b"no picture")
  data = ["--set", f"data.train={tmp_path / 'photos'}", f"data.val={tmp_path / 'photos'}", "eval.max_images=1"]
  assert run.main(["--mode=check", *data]) == 2
  out, err = capsys.readouterr()
  assert "9\\udcff.png: no known picture format" in out and "9 held-out pictures are training pictures" in err
  assert run.main(["--mode=masks", f"--output={tmp_path / 'masks'}", *data]) == 0
  masks = json.loads((tmp_path / "masks" / "manifest.json").read_bytes())["masks"]
  assert {os.fsencode(mask["name"]) for mask in masks} == {b"0\xff.png"}
  assert os.listdir(os.fsencode(tmp_path / "masks" / "10-20")) == [b"0\xff.png.png"]
  assert run.main(["--mode=prepare", f"--output={tmp_path / 'records'}", *data]) == 0
  assert "left out 2 that cannot be decoded: train/9\\udcff.png" in capsys.readouterr().out
  listed = json.loads((tmp_path / "records" / "train.names.json").read_bytes())["names"]
  assert [os.fsencode(name) for name in listed] == [b"%d\xff.png" % index for index in range(9)]


def test_an_interrupt_promises_to_resume_only_where_it_is_so(monkeypatch, capsys):
  monkeypatch.setattr(commands, "dispatch", lambda flags: (_ for _ in ()).throw(KeyboardInterrupt))
  assert run.main(["--mode=inpaint", "--images=x", "--output=z"]) == 130
  assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_the_program_without_a_word(stream):
  read, write = os.pipe()
  os.close(read)
  flags = ["--mode=nothing"] if stream == "stderr" else ["--mode=serve"]
  program = (
    "import sys, run; from gmsrm_jax import commands; commands.dispatch = lambda flags: print('ready')\n"
    "sys.exit(run.main(sys.argv[1:]))"
  )
  streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
  held = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
  words = [sys.executable, "-c", program, *flags]
  done = subprocess.run(words, cwd=ROOT, env=held, text=True, timeout=120, check=False, **streams)
  os.close(write)
  assert done.returncode == 141 and not done.stderr


LOG = """
import contextlib, io, logging, run
from gmsrm_jax import commands
def log(flags):
  logging.getLogger("gmsrm_jax.data").warning("photo.jpg is skipped")
  logging.getLogger("gmsrm_jax.serving").error("a fill failed")
  with contextlib.redirect_stderr(io.StringIO()) as other:  # as while JAX starts
    logging.getLogger("jax").warning("an NVIDIA GPU may be present")
  print(other.getvalue(), end="")
commands.dispatch = log
run.main([])
"""


def test_warnings_look_alike_whoever_logs_them_and_go_where_errors_go_by_then():
  done = subprocess.run([sys.executable, "-c", LOG], cwd=ROOT, text=True, capture_output=True, check=True)
  assert done.stderr == "warning: photo.jpg is skipped\nERROR: a fill failed\n"
  assert done.stdout == "warning: an NVIDIA GPU may be present\n"


BAR = """
import logging, sys, run
from gmsrm_jax import commands
from tqdm import tqdm
def log(flags):
  with tqdm(total=2, file=sys.stderr) as bar:
    bar.update()
    logging.getLogger("gmsrm_jax").warning("photo.jpg is skipped")
    bar.update()
commands.dispatch = log
run.main([])
"""


def test_a_warning_has_a_line_of_its_own_below_which_the_bar_goes_on():
  done = subprocess.run([sys.executable, "-c", BAR], cwd=ROOT, capture_output=True, check=True)
  (line,) = [line for line in done.stderr.split(b"\n") if b"skipped" in line]
  assert line.split(b"\r")[-1] == b"warning: photo.jpg is skipped" and not line.split(b"\r")[-2].strip()


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
  def stop(flags):
    raise FileNotFoundError(2, "No such file or directory")

  monkeypatch.setattr(commands, "dispatch", stop)
  with pytest.raises(FileNotFoundError):
    run.main([])


def test_each_mode_can_be_run_and_each_flag_names_modes_that_exist():
  for mode in MODES:
    assert callable(importlib.import_module(f"gmsrm_jax.commands.{mode}").run)
  for flag in FLAGS:
    assert set(flag.needed_by.split()) <= set(flag.modes.split()) <= set(MODES), flag.name
    assert all(flag.help_of(mode) for mode in flag.modes.split()), flag.name
