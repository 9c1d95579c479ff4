"""The restart loop with real commands and real signals, the other scripts with stand-ins for gcloud and srun."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

import run

ROOT = pathlib.Path(run.__file__).parent
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
  files = sorted(map(str, [*SCRIPTS.glob("*.s[bh]*"), ROOT / ".ci" / "run"]))
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


# Runs until it is told to end, which takes as long as it takes to save.
PATIENT = """#!/bin/sh
trap 'echo TERM >>"$0.told"; sleep 0.5; exit 143' TERM
trap 'echo INT >>"$0.told"; sleep 0.5; exit 130' INT
echo "$@" >>"$0.starts"
[ "$(wc -l <"$0.starts")" != "${FAILS:-0}" ] || exit 3
while sleep 0.1; do :; done
"""


def loop(folder: pathlib.Path, *words: str, **settings: str) -> tuple[int, int, str]:
  """The loop's code, how often it started the command, and what it said."""
  child = script(folder / "child", CHILD)
  done = subprocess.run(
    # Where the tests run in the background SIGINT is ignored, and a shell leaves such a signal so.
    ["env", "--default-signal=INT", str(LOOP), str(child), "--workdir=run", *words],
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
  assert "3 starts in a row" in said
  # 5 is newer and counts; 4 is older, and a folder that is still being written is none.
  (tmp_path / "starts").unlink()
  words = ["137-5", "3-4", "143-6.orbax-checkpoint-tmp", "3-7", "3", "3", "3", "0"]
  assert loop(tmp_path, *words, TRIES="3")[:2] == (3, 7)


@pytest.mark.parametrize(("told", "code"), [("TERM", 143), ("INT", 130), ("HUP", 143)])
def test_a_signal_to_the_loop_reaches_the_command_whose_code_it_ends_with(told, code, tmp_path):
  process = subprocess.Popen(
    ["env", f"--default-signal={told}", str(LOOP), str(script(tmp_path / "child", PATIENT)), "--workdir=run"],
    cwd=tmp_path,
    env=environment(PAUSE="0"),
  )
  until(lambda: lines(tmp_path / "child.starts"), process)
  process.send_signal(getattr(signal, f"SIG{told}"))
  assert process.wait(timeout=60) == code
  assert lines(tmp_path / "child.starts") == ["--workdir=run"]
  assert lines(tmp_path / "child.told") == ["INT" if told == "INT" else "TERM"]


# The machine's answers are in `states`, one a call; every call is written down.
GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$(printf '%q ' "$@")" >>calls
case "$*" in
  *describe*) head -n 1 states; sed -i 1d states ;;
  *run.code*) head -n 1 codes; sed -i 1d codes ;;
esac
"""


def tpu(folder: pathlib.Path, *words: str, **settings: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
  """The script in a checkout of its own, and the calls of gcloud."""
  script(folder / "bin" / "gcloud", GCLOUD)
  checkout = folder / "checkout"
  if not checkout.exists():
    shutil.copytree(SCRIPTS, checkout / "scripts")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a"]
    for step in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "a"]):
      subprocess.run([*git, *step], check=True)
  for name in ("states", "codes"):
    (checkout / name).write_text(settings.pop(name, ""))
  (checkout / "calls").unlink(missing_ok=True)
  values = {"NAME": "mine", "ZONE": "us-west4-a", "TYPE": "v5litepod-16", "BUCKET": "b", "POLL": "0"} | settings
  done = subprocess.run(
    [str(checkout / "scripts" / "tpu_vm.sh"), *words],
    env=environment(PATH=f"{folder / 'bin'}:{os.environ['PATH']}", **values),
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  return done, [shlex.split(line) for line in lines(checkout / "calls")]


def test_the_tpu_machine_is_asked_for_with_the_software_of_its_type(tmp_path):
  for kind, software in {"v6e-16": "v2-alpha-tpuv6e", "v5p-8": "v2-alpha-tpuv5", "v4-8": "tpu-ubuntu2204-base"}.items():
    done, calls = tpu(tmp_path, "create", TYPE=kind, states="WAITING_FOR_RESOURCES\nACTIVE\n")
    assert done.returncode == 0, done.stderr
    assert calls[0][:5] == ["compute", "tpus", "queued-resources", "create", "mine"]
    assert {f"--accelerator-type={kind}", f"--runtime-version={software}", "--node-id=mine", "--spot"} <= set(calls[0])
    assert len(calls) == 3
  _, calls = tpu(tmp_path, "create", SPOT="no", states="ACTIVE\n")
  assert "--spot" not in calls[0]
  done, _ = tpu(tmp_path, "create", states="FAILED\n")
  assert done.returncode == 2 and "mine is FAILED" in done.stderr


def test_flags_arrive_on_every_host_as_they_were_given_and_a_dry_run_prints_them_alone(tmp_path):
  flags = ["--set", "data.train=/mnt/bucket/it's here", "--workdir=/mnt/bucket/other"]
  printed, calls = tpu(tmp_path, "--dry-run", "run", *flags)
  _, ((*_, everywhere, command),) = tpu(tmp_path, "run", *flags)
  assert everywhere == "--worker=all"
  words = shlex.split(command.removeprefix("--command="))
  assert words == ["gmsrm/scripts/tpu_host.sh", "run", "--platform=tpu", "--workdir=/mnt/bucket/runs/mine", *flags]
  assert not calls and shlex.split(printed.stdout)[-1] == command


@pytest.mark.parametrize(
  ("words", "settings", "message"),
  [
    (["create"], {"ZONE": ""}, "ZONE is not set"),
    (["create"], {"TYPE": "v9-8"}, "TYPE=v9-8"),
    (["create"], {"SPOT": "maybe"}, "SPOT=maybe"),
    (["crate"], {}, "'crate' is unknown"),
  ],
)
def test_mistakes_are_one_line_and_code_2(words, settings, message, tmp_path):
  done, calls = tpu(tmp_path, *words, **settings)
  assert done.returncode == 2 and not calls
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ") and message in line


def test_watching_brings_a_machine_that_was_taken_away_back_and_ends_with_the_run(tmp_path):
  done, calls = tpu(
    tmp_path,
    *("watch", "--experiment=paris"),
    states="\nPROVISIONING\nACTIVE\nACTIVE\nSUSPENDED\n\nACTIVE\nACTIVE\nACTIVE\n",
    codes="new\nrunning\nnew\n143\n0\n",
  )
  assert done.returncode == 0, done.stderr
  done_there = []
  for call in calls:
    for word in ("create", "delete", "scp", "setup", "run --platform=tpu"):
      if any(word in part for part in call):
        done_there.append(word)
  brought = ["scp", "setup", "run --platform=tpu"]
  assert done_there == ["create", *brought, "delete", "create", *brought, *brought]


def test_a_run_on_a_tpu_host_outlives_the_command_and_leaves_its_code(tmp_path):
  host = tmp_path / "gmsrm" / "scripts" / "tpu_host.sh"
  shutil.copytree(SCRIPTS, host.parent)
  (tmp_path / "venv").mkdir()
  python = script(tmp_path / "venv" / "bin" / "python", PATIENT)

  def do(*words: str) -> subprocess.CompletedProcess[str]:
    there = environment(HOME=str(tmp_path))
    return subprocess.run([str(host), *words], env=there, capture_output=True, text=True, timeout=30, check=False)

  assert do("run", "--workdir=x", "--set", "a=b c").returncode == 0
  until(lambda: lines(pathlib.Path(f"{python}.starts")))
  assert lines(pathlib.Path(f"{python}.starts")) == ["run.py --workdir=x --set a=b c"]
  assert do("run", "--workdir=x").returncode == 2
  assert not (tmp_path / "run.code").exists()
  assert do("stop").returncode == 0
  until(lambda: lines(tmp_path / "run.code"))
  assert lines(tmp_path / "run.code") == ["143"]


def test_a_slurm_job_starts_again_and_is_submitted_again_before_its_time_is_over(tmp_path):
  calls = pathlib.Path(f"{script(tmp_path / 'bin' / 'srun', PATIENT)}.starts")
  script(tmp_path / "bin" / "scontrol", f'#!/bin/sh\necho "$@" >>{calls}\n')
  slurm = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "12", "FAILS": "1"}
  process = subprocess.Popen(
    ["bash", str(SCRIPTS / "slurm.sbatch"), "--workdir=run", "--set", "a=b"],
    env=environment(PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", PAUSE="0", **slurm),
    text=True,
  )
  until(lambda: len(lines(calls)) == 2, process)
  time.sleep(0.3)
  process.terminate()
  assert process.wait(timeout=30) == 143
  task = (
    "--kill-on-bad-exit=1 --cpus-per-task=12 python run.py --platform=gpu --coordinator=auto --workdir=run --set a=b"
  )
  assert lines(calls) == [task, task, "requeue 4711"]
