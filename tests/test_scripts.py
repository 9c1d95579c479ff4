"""scripts/: the restart loop with real commands and real signals, the others with stand-ins for gcloud and srun."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from test_train import ROOT, records, saved_arrays, start, trained_run

from gmsrm_jax import writer

SCRIPTS = ROOT / "scripts"
LOOP = SCRIPTS / "keep_running.sh"


def script(path: pathlib.Path, text: str) -> pathlib.Path:
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)
  return path


def environment(**changes: str) -> dict[str, str]:
  return {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_", "SLURM_"))} | changes


def lines(path: pathlib.Path) -> list[str]:
  return path.read_text().splitlines() if path.exists() else []


def until(happened, process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
  deadline = time.monotonic() + seconds
  while not happened():
    assert process is None or process.poll() is None, process.communicate()
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_scripts_are_clean():
  shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
  if shellcheck is None:
    pytest.skip("shellcheck is not installed: pip install -r requirements-dev.txt")
  files = sorted(map(str, [*SCRIPTS.iterdir(), ROOT / ".ci" / "run"]))
  done = subprocess.run([shellcheck, *files], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


# Start N writes a line and does what word N says: ends with a code, dies of a signal, or first saves a step.
CHILD = """#!/bin/sh
echo start >>starts
shift $(wc -l <starts)
case $1 in
  *-*) mkdir -p run/checkpoints/memory/${1#*-}; exit ${1%%-*} ;;
  SIG*) kill -s ${1#SIG} $$; sleep 5 ;;
  *) exit $1 ;;
esac
"""


def loop(folder: pathlib.Path, *words: str, **settings: str) -> tuple[int, int, str]:
  """The loop's code, how often it started the command, and what it said."""
  child = script(folder / "child", CHILD)
  done = subprocess.run(
    [str(LOOP), str(child), "--workdir=run", *words],
    cwd=folder,
    env=environment(**{"PAUSE": "0"} | settings),
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  return done.returncode, len(lines(folder / "starts")), done.stderr


@pytest.mark.parametrize(
  ("words", "code", "starts"),
  [
    (["0"], 0, 1),
    (["2", "0"], 2, 1),
    (["1", "0"], 1, 1),
    (["130", "0"], 130, 1),
    (["3", "143", "SIGKILL", "SIGABRT", "SIGTERM", "0"], 0, 6),
    (["3", "2", "0"], 2, 2),
    (["SIGINT", "0"], 130, 1),
  ],
)
def test_the_loop_starts_again_after_what_passes_and_ends_with_the_code_of_what_does_not(words, code, starts, tmp_path):
  assert loop(tmp_path, *words, TRIES="9")[:2] == (code, starts)


def test_the_loop_gives_up_where_no_start_leaves_a_newer_checkpoint(tmp_path):
  code, starts, said = loop(tmp_path, "3", "3", "3", "0", TRIES="3")
  assert (code, starts) == (3, 3)
  assert "3 starts in a row left no newer checkpoint in run: giving up" in said
  # 5 is newer and counts; 4 is older, and a folder that is still being written is none.
  (tmp_path / "starts").unlink()
  words = ["137-5", "3-4", "143-6.orbax-checkpoint-tmp", "3-7", "3", "3", "3", "0"]
  assert loop(tmp_path, *words, TRIES="3")[:2] == (3, 7)


def test_the_pause_grows_only_without_progress(tmp_path):
  _, _, said = loop(tmp_path, "3", "3", "3-5", "3", "0", PAUSE="1")
  assert [line.rsplit(" ", 2)[1] for line in said.splitlines()] == ["1", "2", "1", "2"]


def test_the_loop_needs_to_know_the_folder(tmp_path):
  for arguments, settings in ((["true"], {}), (["true", "--workdir=x"], {"TRIES": "many"})):
    done = subprocess.run([str(LOOP), *arguments], env=environment(**settings), capture_output=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(b"keep_running: error: ")


@pytest.mark.parametrize(("told", "code"), [("TERM", 143), ("INT", 130), ("HUP", 143)])
def test_a_signal_to_the_loop_reaches_the_command_whose_code_it_ends_with(told, code, tmp_path):
  program = (
    "import pathlib, signal, sys, time\n"
    "def leave(number, frame):\n"
    "  with open('told', 'a') as file: print(signal.Signals(number).name, file=file)\n"
    "  time.sleep(0.5)\n"  # as long as it takes to save
    "  sys.exit(128 + number)\n"
    "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, leave)\n"
    "with open('starts', 'a') as file: print('start', file=file)\n"
    "time.sleep(60)\n"
  )
  process = subprocess.Popen(
    [str(LOOP), sys.executable, "-c", program, "--workdir=run"], cwd=tmp_path, env=environment(PAUSE="0"), text=True
  )
  until(lambda: lines(tmp_path / "starts"), process)
  process.send_signal(getattr(signal, f"SIG{told}"))
  assert process.wait(timeout=60) == code
  assert lines(tmp_path / "starts") == ["start"]
  assert lines(tmp_path / "told") == ["SIGTERM" if told == "HUP" else f"SIG{told}"]


def test_a_signal_in_a_pause_ends_the_loop(tmp_path):
  child = script(tmp_path / "child", CHILD)
  process = subprocess.Popen(
    [str(LOOP), str(child), "--workdir=run", "3", "0"],
    cwd=tmp_path,
    env=environment(PAUSE="60"),
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stderr is not None and "starting again in 60 s" in process.stderr.readline()
  time.sleep(0.3)
  process.terminate()
  assert process.wait(timeout=30) == 3 and lines(tmp_path / "starts") == ["start"]
  process.stderr.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  return trained_run(tmp_path_factory.getbasetemp())


def test_the_loop_finishes_a_run_that_was_killed(trained, tmp_path):
  workdir, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
  process = start(trained.cache, *trained.flags(workdir), before=[str(LOOP)])
  until(lambda: (workdir / "checkpoints" / "memory" / "2").is_dir() and len(writer.read_metrics(log)) >= 2, process, 150)
  children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
  assert len(children) == 1
  os.kill(int(children[0]), signal.SIGKILL)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, out + err
  assert "ended with code 137; starting again in 5 s" in err
  assert "resuming memory at step" in out
  assert records(workdir) == records(trained.workdir)
  expected, actual = (saved_arrays(folder, "inpaint", 6) for folder in (trained.workdir, workdir))
  assert not [name for name in expected if expected[name].tobytes() != actual[name].tobytes()]
