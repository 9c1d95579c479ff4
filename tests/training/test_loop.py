"""Runs as the user starts them, from the first step to the report: killed, resumed, finished, refused."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import skimage.data
from PIL import Image

import run
from gmsrm_jax import experiments, files, overrides
from gmsrm_jax.config import RunConfig
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.parallel import sharding
from gmsrm_jax.training import logger, loop
from gmsrm_jax.training.checkpoint import Checkpointer
from gmsrm_jax.training.run_folder import data_facts, describe_run, finished
from gmsrm_jax.training.state import with_shardings

ROOT = pathlib.Path(run.__file__).parent
STEPS = 6
TRUNCATED = "photo03.jpg"
ODD = os.fsdecode(b"photo\xff.png")

# As tests.small, with two scales only; four images a batch, because a test process sees four devices.
SETTINGS = (
  "model.image_size=32 model.widths=8,16 model.heads=2 model.context_blocks=0 model.discriminator_width=8 "
  "model.discriminator_layers=1 memory.num_groups=4 memory.slots_per_group=4 memory.slot_dim=16 memory.heads=2 "
  "memory.revive_every=2 data.threads=1 data.prefetch=2 loss.features=recognition loss.feature_crop=0 "
  f"stage1.steps={STEPS} stage2.steps={STEPS} stage1.adversarial_start=0.5 stage2.adversarial_start=0 "
  "stage2.half_until=0.5 variation.start=0.5 "  # both stages have a phase change after their first checkpoint
  "eval.batch_size=2 run.batch_size=4 run.log_every=1 run.save_every=2 run.panel_every=4 run.panel_images=2"
).split()


class Trained(NamedTuple):
  """A finished run and what it was made from."""

  workdir: pathlib.Path
  photos: pathlib.Path
  held_out: pathlib.Path
  cache: pathlib.Path  # compiled programs, shared by all processes of these tests
  done: subprocess.CompletedProcess[str]

  def flags(self, workdir: pathlib.Path, *changes: str) -> list[str]:
    changed = {change.partition("=")[0] for change in changes}
    settings = [f"data.train={self.photos}", f"data.val={self.held_out}", *SETTINGS]
    kept = [setting for setting in settings if setting.partition("=")[0] not in changed]
    return [f"--workdir={workdir}", "--set", *kept, *changes]


def write_photos(folder: pathlib.Path, count: int, size: int = 96) -> None:
  """Crops of two photographs, JPEG and PNG in turn, no two of one size."""
  folder.mkdir(parents=True)
  photos = (skimage.data.astronaut(), skimage.data.coffee())
  for i in range(count):
    top, left = 20 * i, 30 * i
    crop = photos[i % 2][top : top + size + 4 * i, left : left + size + 20]
    Image.fromarray(crop).save(folder / f"photo{i:02d}.{'png' if i % 2 == 0 else 'jpg'}")


def environment(cache: pathlib.Path, devices: int) -> dict[str, str]:
  """That of a process which sees so many devices, and no launcher."""
  others = ("JAX_", "XLA_", "SLURM_", "OMPI_", "KUBERNETES_")
  return {key: value for key, value in os.environ.items() if not key.startswith(others)} | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg",  # compiles in a tenth of the time
    "JAX_NUM_CPU_DEVICES": str(devices),
  }


def start(cache: pathlib.Path, *flags: str, devices: int = 1, before: Sequence[str] = ()) -> subprocess.Popen[str]:
  """run.py in a process of its own that sees so many devices; the words before are those of a launcher."""
  return subprocess.Popen(
    [*before, sys.executable, str(ROOT / "run.py"), *flags],
    cwd=cache,
    env=environment(cache, devices),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(cache: pathlib.Path, *flags: str, devices: int = 1) -> subprocess.CompletedProcess[str]:
  """The same, until it ends."""
  process = start(cache, *flags, devices=devices)
  try:
    out, err = process.communicate(timeout=500)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  return subprocess.CompletedProcess(flags, process.returncode, out, err)


@functools.cache
def trained_run(base: pathlib.Path) -> Trained:
  """One run for all end-to-end tests of a session, whichever module asks first. One photo of 11 is cut off."""
  root = base / "end_to_end"
  write_photos(root / "photos", 11)
  broken = root / "photos" / TRUNCATED
  broken.write_bytes(broken.read_bytes()[:1500])
  write_photos(root / "held_out", 3, size=80)
  for folder in ("photos", "held_out"):  # a name that is no UTF-8
    (root / folder / "photo02.png").rename(root / folder / ODD)
  cache = root / "cache"
  cache.mkdir()
  nothing = subprocess.CompletedProcess([], 0, "", "")
  described = Trained(root / "run", root / "photos", root / "held_out", cache, nothing)
  done = finish(cache, *described.flags(described.workdir))
  assert done.returncode == 0, done.stdout + done.stderr
  return described._replace(done=done)


def wait_for_step(started: Sequence[subprocess.Popen[str]], workdir: pathlib.Path, stage: str, step: int) -> None:
  """Until a run, which must not end, has logged a step."""
  log, deadline = workdir / "metrics.jsonl", time.monotonic() + 240
  while not (log.exists() and any(r["stage"] == stage and r["step"] >= step for r in logger.read_metrics(log))):
    assert all(process.poll() is None for process in started), [process.communicate() for process in started]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def one_line(err: str) -> str:
  """The only line on standard error."""
  lines = err.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), err
  return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def config(trained):
  return overrides.from_dict(files.read_json(trained.workdir / "config.json")["config"])


def records(workdir):
  """The metrics of every logged step, in order, without what a clock measured."""
  return [
    {name: value for name, value in record.items() if name not in ("images_per_s", "data_wait_ms")}
    for record in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  ]


def saved_arrays(workdir, stage, step):
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(workdir / "checkpoints" / stage / str(step) / "state")
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def snapshot(folder):
  return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_run_describes_itself(trained):
  described = json.loads((trained.workdir / "config.json").read_text())
  assert described["config"]["stage2"]["steps"] == STEPS
  assert described["images"] == {"train": 11, "val": 3}
  assert described["splits"]["train"] != described["splits"]["val"]
  assert described["versions"]["jax"] == jax.__version__


def test_every_step_is_logged_and_checkpoints_are_kept(trained):
  logged = [(record["stage"], record["step"]) for record in records(trained.workdir)]
  assert logged == [(stage, step) for stage in ("memory", "inpaint") for step in range(1, STEPS + 1)]
  for stage in ("memory", "inpaint"):
    kept = sorted(path.name for path in (trained.workdir / "checkpoints" / stage).iterdir())
    assert kept == ["4", "6"]
    assert list((trained.workdir / "events" / stage).glob("events.out.tfevents*"))


def test_samples_and_report_are_written(trained):
  samples = sorted((trained.workdir / "samples").iterdir())
  names = {path.name for path in samples}
  assert {f"{stage}_{step:07d}.png" for stage in ("memory", "inpaint") for step in (4, 6)} <= names
  assert {"eval_0-10.png", "eval_50-60.png"} <= names
  report = json.loads((trained.workdir / "report.json").read_text())
  assert report["step"] == STEPS and report["protocol"]["images"] == 3
  assert (trained.workdir / "report.md").read_text() in trained.done.stdout
  assert "photo\\udcff.png" in (trained.workdir / "report.csv").read_text(encoding="utf-8")
  with Image.open(trained.workdir / "report.png") as page:
    assert page.width > 500
  assert not (trained.workdir / files.LOCK).exists()


@pytest.mark.parametrize("damage", ["empty", "cut off", "null", "no step", "no page"])
def test_a_report_that_is_not_whole_does_not_count_as_one(damage, trained, config, tmp_path):
  for name in ("report.json", "report.md"):
    shutil.copy(trained.workdir / name, tmp_path)
  assert finished(config, tmp_path)
  text = (tmp_path / "report.json").read_text()
  if damage == "no page":
    (tmp_path / "report.md").unlink()
  else:
    cut = {"empty": "", "cut off": text[: len(text) // 2], "null": "null", "no step": "{}"}
    (tmp_path / "report.json").write_text(cut[damage])
  assert not finished(config, tmp_path)


def test_a_truncated_photo_is_named_and_the_run_goes_on(trained):
  named = [line for line in trained.done.stderr.splitlines() if TRUNCATED in line]
  assert named and all("cannot be decoded" in line for line in named)
  assert "Traceback" not in trained.done.stderr


def test_the_same_command_again_says_finished_and_changes_nothing(trained):
  before = snapshot(trained.workdir)
  done = finish(trained.cache, *trained.flags(trained.workdir))
  assert done.returncode == 0, done.stderr
  assert f"{trained.workdir} is finished" in done.stdout
  assert snapshot(trained.workdir) == before


def assert_refused_beside(process, trained, workdir):
  """A second start in the folder of a running one, which sleeps meanwhile, so that it does not end."""
  lock, deadline = workdir / files.LOCK, time.monotonic() + 240
  while not (lock.exists() and f"pid={process.pid}\n" in lock.read_text()):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGSTOP)
  second = finish(trained.cache, *trained.flags(workdir))
  process.send_signal(signal.SIGCONT)
  assert second.returncode == 2, second.stdout + second.stderr
  line = one_line(second.stderr)
  assert f"{workdir} is in use by process {process.pid} on {socket.gethostname()}" in line


def test_a_run_killed_in_both_stages_ends_as_if_never_killed(trained, tmp_path):
  workdir = tmp_path / "run"
  for stage, step in (("memory", 2), ("inpaint", 3)):
    process = start(trained.cache, *trained.flags(workdir))
    if stage == "inpaint":  # what the killed start has left behind is no obstacle
      assert_refused_beside(process, trained, workdir)
    wait_for_step([process], workdir, stage, step)
    while not (workdir / "checkpoints" / stage / "2").is_dir():
      time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed: slow the run down"
    assert not (workdir / "report.json").exists()

  done = finish(trained.cache, *trained.flags(workdir))
  assert done.returncode == 0, done.stderr
  assert "resuming inpaint at step" in done.stdout

  assert records(workdir) == records(trained.workdir)
  for stage in ("memory", "inpaint"):
    expected, actual = saved_arrays(trained.workdir, stage, STEPS), saved_arrays(workdir, stage, STEPS)
    assert expected.keys() == actual.keys() and any("opt_state" in name for name in actual)
    different = [name for name in expected if expected[name].tobytes() != actual[name].tobytes()]
    assert not different
  assert json.loads((workdir / "report.json").read_text()) == json.loads((trained.workdir / "report.json").read_text())
  samples = [{path.name: path.read_bytes() for path in (w / "samples").iterdir()} for w in (workdir, trained.workdir)]
  assert samples[0] == samples[1]


def test_a_run_that_is_told_to_go_saves_and_one_with_a_damaged_checkpoint_uses_the_one_before(trained, tmp_path):
  workdir = tmp_path / "run"
  process = start(trained.cache, *trained.flags(workdir, "run.keep=9"))
  wait_for_step([process], workdir, "inpaint", 2)
  process.terminate()
  out, err = process.communicate()
  assert process.returncode == 143, out + err
  stopped = max(int(path.name) for path in (workdir / "checkpoints" / "inpaint").iterdir())
  assert 2 <= stopped < STEPS, "it ended before it was told to: slow the run down"
  assert f"stopped by SIGTERM at inpaint step {stopped} of {STEPS}: the same command goes on" in out
  assert "Traceback" not in err

  if stopped == 2:  # so that there is one before it
    shutil.copytree(workdir / "checkpoints" / "inpaint" / "2", workdir / "checkpoints" / "inpaint" / "3")
    stopped = 3
  for path in (workdir / "checkpoints" / "inpaint" / str(stopped) / "state").rglob("d/*"):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  done = finish(trained.cache, *trained.flags(workdir))
  assert done.returncode == 0, done.stderr
  (line,) = (line for line in done.stderr.splitlines() if TRUNCATED not in line)
  assert line.startswith(f"warning: checkpoint {workdir / 'checkpoints' / 'inpaint' / str(stopped)} is damaged")
  assert line.endswith("and step 2 is used") or line.endswith("and step 4 is used")
  assert records(workdir) == records(trained.workdir)
  expected, actual = (saved_arrays(folder, "inpaint", STEPS) for folder in (trained.workdir, workdir))
  assert not [name for name in expected if expected[name].tobytes() != actual[name].tobytes()]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(trained, tmp_path):
  changes = ("stage1.learning_rate=1e30", "stage1.adversarial_start=1", "loss.perceptual=0", "loss.style=0")
  done = finish(trained.cache, *trained.flags(tmp_path / "run", *changes, "run.save_every=1"))
  assert done.returncode == 2
  line = one_line("".join(line for line in done.stderr.splitlines(keepends=True) if TRUNCATED not in line))
  assert "memory step" in line and "lower stage1.learning_rate" in line and (" is nan" in line or " is inf" in line)
  stopped = int(line.split("memory step ")[1].split(":")[0])
  kept = [int(path.name) for path in (tmp_path / "run" / "checkpoints" / "memory").iterdir()]
  assert stopped > 1 and max(kept) == stopped - 1


def test_the_first_value_that_is_not_finite_is_named_before_any_total():
  fine = {"hole": jnp.float32(1), "loss": jnp.float32(2), "grad_norm": jnp.float32(1)}
  bad = {"hole": jnp.float32(np.nan), "loss": jnp.float32(np.nan), "grad_norm": jnp.float32(np.nan)}
  with pytest.raises(loop.NonFiniteError, match="inpaint step 8: hole is nan: .* stage2.learning_rate"):
    loop.fetch_means("inpaint", [(7, fine), (8, bad), (9, bad)])
  gradient = {**fine, "grad_norm": jnp.float32(np.inf)}
  with pytest.raises(loop.NonFiniteError, match="memory step 7: grad_norm is inf"):
    loop.fetch_means("memory", [(7, gradient)])


def test_a_logged_value_is_the_mean_since_the_last_one():
  first, second = {"hole": jnp.float32(1)}, {"hole": jnp.float32(3), "adversarial": jnp.float32(5)}
  assert loop.fetch_means("inpaint", [(1, first), (2, second)]) == {"hole": 2.0, "adversarial": 5.0}


def refused(capsys, *flags):
  """The one line of a command that exits with code 2, in this process."""
  assert run.main(list(flags)) == 2
  return one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
  ("change", "rule"),
  [
    ("data.train=nowhere", "does not exist"),
    ("data.val=.", "no image"),
    ("model.image_size=34", "no multiple of"),
    ("run.batch_size=6", "4 devices"),
    ("run.fsdp=3", "4 devices"),
    ("stage2.steps=0", "inpainter"),
    ("memory.pretrain=false", "loss.features=vgg16"),
  ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(change, rule, trained, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  line = refused(capsys, *trained.flags(tmp_path / "run", change))
  assert change.partition("=")[0] in line and rule in line
  assert not (tmp_path / "run").exists()


def test_a_folder_keeps_to_its_settings_and_images(trained, tmp_path, capsys):
  workdir = tmp_path / "run"
  workdir.mkdir()
  shutil.copy(trained.workdir / "config.json", workdir)
  before = snapshot(workdir)
  line = refused(capsys, *trained.flags(workdir, "loss.hole=3", "stage1.steps=7"))
  assert "loss.hole: 6.0 -> 3.0; stage1.steps: 6 -> 7" in line and "use another --workdir" in line
  added = trained.photos / "zz.png"
  try:
    Image.new("RGB", (40, 40)).save(added)
    line = refused(capsys, *trained.flags(workdir))
  finally:
    added.unlink()
  assert "was begun with other images" in line and "use another --workdir" in line
  assert snapshot(workdir) == before


def test_images_are_known_by_what_they_are_not_by_where(trained, tmp_path, capsys, monkeypatch):
  workdir = shutil.copytree(trained.workdir, tmp_path / "run")
  shutil.copytree(trained.photos, tmp_path / "elsewhere")
  monkeypatch.chdir(trained.held_out.parent)
  for train, val in ((tmp_path / "elsewhere", f"{trained.held_out}/"), (f"{trained.photos}/.", "held_out")):
    assert run.main([*trained.flags(workdir, f"data.train={train}", f"data.val={val}")]) == 0
    assert "is finished" in capsys.readouterr().out
  (tmp_path / "elsewhere" / "photo00.png").rename(tmp_path / "elsewhere" / "photo.png")
  line = refused(capsys, *trained.flags(workdir, f"data.train={tmp_path / 'elsewhere'}"))
  assert f"data.train={tmp_path / 'elsewhere'}" in line and "use another --workdir" in line


def test_the_weights_that_a_run_began_with_are_known_by_their_place_however_it_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  base = overrides.override(experiments.load("demo"), ["data.synthetic=true", f"run.init_from={tmp_path / 'run'}"])
  data = data_facts(base, None, pipeline.evaluation_set(base))
  describe_run(base, tmp_path, data, free=())
  describe_run(overrides.override(base, ["run.init_from=./run/"]), tmp_path, data, free=())
  with pytest.raises(ConfigError, match="run.init_from: "):
    describe_run(overrides.override(base, ["run.init_from=./other"]), tmp_path, data, free=())


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


def restore(folder, target):
  saved = Checkpointer(folder, "inpaint", RunConfig())
  try:
    return saved.restore(target, None)
  finally:
    saved.close()


@pytest.mark.parametrize("change", ["memory.slots_per_group=8", "memory.finetune=0.1"])
def test_the_checkpoint_of_another_configuration_is_refused(change, trained, config):
  other = overrides.override(config, [change])
  with pytest.raises(ConfigError, match=f"inpaint/{STEPS} does not fit this configuration"):
    restore(trained.workdir, with_shardings(other, "inpaint", sharding.make_mesh(other)))


def test_an_empty_folder_holds_no_checkpoint(config, tmp_path):
  with pytest.raises(ConfigError, match="no checkpoint under"):
    restore(tmp_path, with_shardings(config, "inpaint", sharding.make_mesh(config)))
