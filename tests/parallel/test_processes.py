"""Real processes on 127.0.0.1: they compute what one computes, stop together, and are continued by another number."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from gmsrm_jax import files
from gmsrm_jax.errors import ConfigError, SharedError
from gmsrm_jax.parallel import processes
from gmsrm_jax.training import logger
from tests.trained import ROOT, STEPS, TRUNCATED, ends, saved_arrays, start, wait_for_step


def start_several(
  cache: pathlib.Path, devices: int, commands: list[list[str]], launcher: list[dict[str, str]] | None = None
) -> list[subprocess.Popen[str]]:
  """Processes that find each other through JAX's variables, or those of a launcher."""
  job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(len(commands))}
  several = launcher or [job | {"JAX_PROCESS_ID": str(index)} for index in range(len(commands))]
  return [
    start(flags, cache, JAX_NUM_CPU_DEVICES=str(devices), **variables)
    for flags, variables in zip(commands, several, strict=True)
  ]


def test_two_processes_stop_together_and_one_goes_on_with_the_right_data(trained, tmp_path):
  workdir = tmp_path / "run"
  flags = trained.flags(workdir, "run.fsdp=2", "run.save_every=100")
  processes = start_several(trained.cache, 2, [flags, flags])
  wait_for_step(processes, workdir, "memory", 2)
  # One process alone is told, by Ctrl-C, which there is passed on as SIGTERM.
  processes[1].send_signal(signal.SIGINT)
  (code, out, err), (other_code, other_out, _) = ends(processes)
  assert (code, other_code) == (143, 143), out + err
  for index, text in enumerate((out, other_out)):
    assert f"process {index} of 2 on {socket.gethostname()}: 2 of 4 devices" in text
  assert "mesh {'data': 2, 'fsdp': 2}" in out and "stopped by SIGTERM at memory step" in out
  assert "mesh" not in other_out and "stopped" not in other_out, "only the first process writes"
  (stopped,) = (int(path.name) for path in (workdir / "checkpoints" / "memory").iterdir())
  assert 2 <= stopped < STEPS, "it ended before it was stopped"

  # Stage 2 is then that of any run.
  process = start(trained.flags(workdir), trained.cache, PYTHONUNBUFFERED="1")
  wait_for_step([process], workdir, "memory", STEPS)
  while not (workdir / "checkpoints" / "memory" / str(STEPS)).is_dir():
    time.sleep(0.01)
  process.kill()
  ((_, out, err),) = ends([process])
  assert f"resuming memory at step {stopped} of {STEPS}" in out, err

  here, there = (
    [r for r in logger.read_metrics(folder / "metrics.jsonl") if r["stage"] == "memory" and "l1" in r]
    for folder in (workdir, trained.workdir)
  )
  assert [r["step"] for r in here] == [r["step"] for r in there]
  # Other rows, or rows in another order, would show in the losses at once.
  for name in ("l1", "perceptual"):
    values = [[r[name] for r in records] for records in (here, there)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-3, err_msg=name)
  expected, actual = (saved_arrays(folder, "memory") for folder in (trained.workdir, workdir))
  assert expected.keys() == actual.keys()
  for name in (name for name in expected if name.startswith((".params", ".ema", "['params']", "['ema']"))):
    np.testing.assert_allclose(actual[name], expected[name], atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
  ("change", "expected"),
  [
    ("stage1.beta1=0.8", "process 1 differs from process 0 (config.stage1.beta1: 0.8 instead of 0.9)"),
    ("data.val=nowhere", "process 1: data.val='nowhere' does not exist"),
  ],
)
def test_processes_that_do_not_agree_end_with_one_line_each_before_anything_is_written(
  change, expected, trained, tmp_path
):
  commands = [trained.flags(tmp_path / "run"), trained.flags(tmp_path / "run", change)]
  for code, out, err in ends(start_several(trained.cache, 1, commands)):
    assert code == 2, out + err
    (line,) = (line for line in err.splitlines() if TRUNCATED not in line)
    assert line.startswith(f"error: {expected}")
  assert not (tmp_path / "run" / "config.json").exists()


def free_port() -> int:
  """One of those that JAX takes under Slurm and Open MPI."""
  for port in range(61440, 65536):
    with socket.socket() as free, contextlib.suppress(OSError):
      free.bind(("127.0.0.1", port))
      return port
  raise OSError("no port is free")


def slurm(index: int, port: int) -> dict[str, str]:
  job = port - 61440  # JAX takes 61440 + job % 4096
  where = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_NODES": "1"}
  return where | {"SLURM_NTASKS": "2", "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}


def open_mpi(index: int, port: int) -> dict[str, str]:
  where = {"OMPI_MCA_orte_hnp_uri": f"{(port - 61440) * 4096}.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}
  return where | {"OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": str(index)}


def test_a_folder_in_use_is_refused_by_all_processes_with_the_host_and_process_that_use_it(trained, tmp_path):
  flags = trained.flags(tmp_path / "run")
  with files.claimed(tmp_path / "run"):
    ended = ends(start_several(trained.cache, 1, [flags, flags]))
  for code, out, err in ended:
    assert code == 2, out + err
    (line,) = (line for line in err.splitlines() if TRUNCATED not in line)
    assert line.startswith("error: process 0: ") and f"process {os.getpid()} on {socket.gethostname()}" in line
  assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("launcher", [slurm, open_mpi])
def test_processes_of_a_launcher_find_each_other(launcher, trained, tmp_path):
  # A finished run: they meet, agree that it is theirs, and have nothing to compile.
  shutil.copytree(trained.workdir, tmp_path / "run")
  port = free_port()
  flags = ["--coordinator=auto", *trained.flags(tmp_path / "run")]
  ended = ends(start_several(trained.cache, 2, [flags, flags], [launcher(i, port) for i in range(2)]))
  for index, (code, out, err) in enumerate(ended):
    assert code == 0, out + err
    assert f"process {index} of 2 on {socket.gethostname()}: 2 of 4 devices" in out
  assert "is finished" in ended[0][1]


def test_one_of_several_processes_scores_on_its_own_devices():
  program = (
    "import numpy as np\n"
    "from gmsrm_jax.parallel import fixed_batches, processes\n"
    "processes.start('cpu', 'auto', None, None)\n"
    "double = fixed_batches.in_fixed_batches(lambda factor, x: factor * x, np.float32(2))\n"
    "print(double(np.arange(5.0, dtype=np.float32)))\n"
  )
  port = free_port()
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", program],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"} | slurm(index, port),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  for code, out, err in ends(processes):
    assert code == 0 and out.splitlines()[-1] == "[0. 2. 4. 6. 8.]", out + err


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((None, 2, None), "--num_processes and --process_id need --coordinator"),
    (("auto", 2, 0), "--coordinator=auto finds out the processes itself"),
    (("here", 2, 0), "--coordinator=here is no address: give HOST:PORT"),
    (("here:1234", 2, None), "--coordinator=here:1234 needs --num_processes and --process_id"),
    (("here:1234", 2, 2), "--process_id=2 is out of range: give 0 to 1 with --num_processes=2"),
  ],
)
def test_incomplete_flags_are_refused_with_the_way_out(arguments, message):
  with pytest.raises(ConfigError, match=message):
    processes.start("cpu", *arguments)


def test_where_nothing_tells_of_other_processes_auto_is_refused():
  # In a process of its own: here JAX may have started its back end already.
  done = subprocess.run(
    [sys.executable, str(ROOT / "run.py"), "--platform=cpu", "--coordinator=auto"],
    env={key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "OMPI_", "KUBERNETES_"))},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 2
  assert re.fullmatch(
    r"error: --coordinator=auto: .* give --coordinator=HOST:PORT, --num_processes and --process_id\n", done.stderr
  )


def test_what_differs_is_named_and_the_rest_is_counted(monkeypatch):
  facts = {"versions": {"jax": "1", "grain": "2"}, "images": {"train": "a", "val": "b"}, "code": "c"}
  other = {"versions": {"jax": "3", "grain": "4"}, "images": {"train": "d", "val": "e"}, "code": "c"}
  processes.agree(facts)
  monkeypatch.setattr(processes, "gather", lambda text: [text, text, json.dumps(other)])
  with pytest.raises(SharedError) as error:
    processes.agree(facts)
  assert str(error.value).startswith(
    "process 2 differs from process 0 (images.train: d instead of a; images.val: e instead of b; "
    "versions.grain: 4 instead of 2; and 1 more): give all processes the same"
  )
