"""--mode=compile: refusals before anything compiles, memory messages, and real programs of the TPU compiler."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

import run
from gmsrm_jax import experiments, overrides
from gmsrm_jax.commands import compile as compile_mode
from gmsrm_jax.commands import flags as flags_lib
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.hardware.tpu import topologies
from gmsrm_jax.hardware.tpu.compile import describe, out_of_memory, table
from gmsrm_jax.training.state import abstract_state

ROOT = pathlib.Path(run.__file__).parent
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install .[tpu]")

# Little enough for the TPU compiler to take seconds; the discriminator's widest array is large enough to be sharded.
SETTINGS = [
  *("model.image_size=16", "model.widths=8,16", "model.blocks=1", "model.heads=2", "model.context_blocks=0"),
  *("model.discriminator_width=64", "model.discriminator_layers=1", "memory.pretrain=false", "memory.num_groups=4"),
  *("memory.slots_per_group=4", "memory.slot_dim=16", "memory.heads=2", "loss.perceptual=0", "loss.style=0"),
]


def command(*flags: str) -> subprocess.CompletedProcess[str]:
  environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_", "TPU_"))}
  return subprocess.run(
    [sys.executable, str(ROOT / "run.py"), "--mode=compile", "--experiment=paris", *flags],
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    timeout=550,
    check=False,
  )


@pytest.mark.parametrize("flag", ["--platform=tpu", "--set=run.batch_size=8"])
def test_what_a_program_for_named_devices_cannot_mean_is_refused(flag):
  with pytest.raises(ConfigError, match=flag.removeprefix("--set=").partition("=")[0]):
    compile_mode.run(flags_lib.parse(["--mode=compile", "--topology=v5e:4x4", "--batch_per_chip=2", flag]))


@pytest.mark.parametrize(
  ("name", "fragments"),
  [
    ("v5:4x4", ["'v5'", "'v5p'"]),
    ("v5e", ["2 numbers", "v5e:4x4"]),
    ("v5e:0x2", ["2 numbers"]),  # libtpu would divide by it and end the process
    ("v5e:4x", ["2 numbers"]),
    ("v5e:2x2x2", ["2 numbers"]),
    ("v4:2x2", ["3 numbers", "v4:2x2x4"]),
  ],
)
def test_a_slice_that_cannot_be_is_refused(name, fragments):
  with pytest.raises(ConfigError) as caught:
    topologies.parse(name)
  assert [text for text in (f"--topology={name}", *fragments) if text not in str(caught.value)] == []


def test_without_the_tpu_compiler_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ConfigError, match=r"libtpu.*pip install \.\[tpu\]"):
    topologies.open_topology("v5e:2x2")


def test_the_compiler_says_how_much_memory_is_missing():
  message = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 25.50G of 15.75G "
    "hbm. Exceeded hbm capacity by 9.75G."
  )
  assert out_of_memory(message) == (25.5 * 2**30, 15.75 * 2**30)
  assert out_of_memory("INTERNAL: Used 25.50G of 15.75G hbm") is None
  assert out_of_memory("RESOURCE_EXHAUSTED: vmem") is None


def test_programs_for_devices_that_are_not_here_are_not_kept(monkeypatch):
  settings = []
  monkeypatch.setattr(compile_mode, "compile_steps", lambda *_, **__: None)
  monkeypatch.setattr(compile_mode.backend, "use_compile_cache", settings.append)
  compile_mode.run(flags_lib.parse(["--mode=compile", "--topology=v5e:4x4"]))
  assert settings[-1] == "off"


def row():
  return {
    "topology": "v5e:4",
    "chips": 4,
    "stage": "inpaint",
    "batch_per_chip": 4,
    "compile_seconds": 1.0,
    "odd_pairs": False,
    "fits": False,
    "memory": {"needed": 20 * 2.0**30, "available": 16 * 2.0**30},
  }


def test_what_does_not_fit_says_by_how_much_and_keeps_its_row():
  text = describe(row())
  assert [words for words in ("4.00 GiB too much", "run.remat=", "run.fsdp") if words not in text] == []
  assert "does not fit" in table([row()])


@needs_libtpu
@pytest.mark.parametrize(
  ("flags", "fragments"),
  [
    (["--topology=v5e:3x3"], ["--topology=v5e:3x3"]),
    (["--topology", "v5e:2x2", "v5e:4x4", "--set", "run.batch_size=8"], ["run.batch_size=8", "16 devices", "use 16"]),
  ],
)
def test_the_tpu_compiler_is_not_asked_for_what_cannot_be(flags, fragments):
  done = command(*flags)
  assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
  assert [text for text in ("error: ", *fragments) if text not in done.stderr] == []


@needs_libtpu
def test_the_tpu_compiler_tells_replicas_from_shards(tmp_path):
  def compiled(name, *changes):
    flags = ["--batch_per_chip=2", f"--output={tmp_path / name}.json", "--set", *SETTINGS, *changes]
    done = command("--topology=v5e:2x2", *flags)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "img/s/chip" in done.stdout and "all-reduce" in done.stdout
    (program,) = json.loads((tmp_path / f"{name}.json").read_text())["programs"]
    return program

  def sent(program, kind):
    return sum(each["bytes"] for each in program["collectives"] if each["kind"] == kind)

  with concurrent.futures.ThreadPoolExecutor() as both:  # each waits for a process of its own
    whole, shards = both.map(lambda words: compiled(*words), (("whole",), ("shards", "run.fsdp=4")))
  assert whole["fits"] and shards["fits"]
  # Adam's two moments beside the parameters, and outputs that take the arguments' place.
  assert whole["memory"]["aliased"] > 0.9 * whole["memory"]["outputs"]
  assert {each["kind"] for each in whole["collectives"]} == {"all-reduce"}
  assert all(each["group"] == 4 for each in whole["collectives"])
  # The gradients of both players are summed, in bfloat16 at least.
  state = abstract_state(overrides.override(experiments.load("paris"), SETTINGS), "inpaint")
  parameters = sum(leaf.size for leaf in jax.tree.leaves((state.params, state.disc_params)))
  assert sent(whole, "all-reduce") >= 2 * parameters
  assert shards["memory"]["arguments"] < whole["memory"]["arguments"]
  assert sent(shards, "all-gather") > 0 == sent(whole, "all-gather")
  # The compiler's own count of operations is near the one made before it.
  assert 0.5 < whole["flops"] / whole["flops_counted"] < 2.0
