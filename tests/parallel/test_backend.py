"""Where compiled programs are kept, and how a process of several ends."""

from __future__ import annotations

import os
import pathlib
import platform
import resource
import subprocess
import sys

import jax
import pytest

import run
from gmsrm_jax.parallel import backend

ROOT = pathlib.Path(run.__file__).parent


@pytest.mark.parametrize(
  ("setting", "back_end", "environment", "folder"),
  [
    ("auto", "tpu", None, "programs/tpu"),
    ("auto", "cpu", None, f"programs/{backend.cpu_kind()}"),
    ("mine", "cpu", None, "mine"),
    ("mine", "gpu", "theirs", None),
    ("off", "gpu", None, None),
  ],
)
def test_compiled_programs_are_kept_where_that_is_safe(setting, back_end, environment, folder, monkeypatch, tmp_path):
  seen = {}
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  if environment is not None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", environment)
  monkeypatch.setattr(jax.config, "update", seen.__setitem__)
  monkeypatch.setattr(jax, "default_backend", lambda: back_end)
  backend.use_compile_cache(setting)
  expected = str(tmp_path / "gmsrm_jax" / folder) if folder and setting == "auto" else folder
  assert seen.get("jax_compilation_cache_dir") == expected
  assert seen.get("jax_enable_compilation_cache", True) == (setting != "off")
  if folder:
    assert 0 < seen["jax_compilation_cache_max_size"] < 2**32


def test_no_cache_is_made_where_the_users_folder_cannot_be_written(monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("a folder that cannot be made"))
  backend.use_compile_cache("auto")
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setattr("os.path.expanduser", lambda path: path)  # nobody's home is known
  backend.use_compile_cache("auto")


_CPUINFO = (
  "processor : 0\nvendor_id : AuthenticAMD\nmodel : {model}\ncpu MHz : {mhz}\nflags : fpu {flag}\n\nprocessor : 1\n"
)


def test_cpus_share_programs_only_with_the_same_model_and_instructions(tmp_path):
  def kind(model: int = 17, mhz: int = 2000, flag: str = "avx512f") -> str:
    (tmp_path / "cpuinfo").write_text(_CPUINFO.format(model=model, mhz=mhz, flag=flag))
    return backend.cpu_kind(tmp_path / "cpuinfo")

  assert kind() == kind(mhz=3000) and len({kind(), kind(model=1), kind(flag="avx2")}) == 3
  assert backend.cpu_kind(tmp_path / "missing") == ""


_FAULTS = """
import resource
from gmsrm_jax.parallel import backend
kept = backend.keep_freed_memory()
for turn in range(5):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  bytearray(2**26)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(kept, after - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
@pytest.mark.parametrize(
  ("chosen", "kept"),
  [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}, False)],
)
def test_freed_memory_stays_unless_the_user_chose_otherwise(chosen, kept, monkeypatch):
  for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))]:
    monkeypatch.delenv(name)
  said, faults = python(_FAULTS, **chosen).stdout.split()
  pages = 2**26 // resource.getpagesize()
  assert said == str(kept) and (int(faults) < pages / 100) == kept, faults


def python(program, **environment):
  """A program in a process of its own."""
  return subprocess.run(
    [sys.executable, "-c", program],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


@pytest.mark.parametrize(
  ("flags", "said"), [("--bogus", "Unknown flag in XLA_FLAGS: --bogus"), ("/no/file", "/no/file")]
)
def test_wrong_flags_of_xla_are_one_line_with_what_xla_says(flags, said):
  done = python("import sys, run; sys.exit(run.main(['--mode=check']))", XLA_FLAGS=flags)
  (line,) = done.stderr.splitlines()
  assert (done.returncode, done.stdout) == (2, "") and line.startswith(f"error: XLA_FLAGS={flags!r}") and said in line


CHECK = """
import os
from gmsrm_jax.parallel import backend
backend.importlib.util.find_spec = lambda name: name
backend.has_tpu = lambda: False
with backend._libtpu_held():
  os.write(2, b"words of libtpu\\n")
  {}
"""


@pytest.mark.parametrize(("then", "code", "shown"), [("os._exit(7)", 7, True), ("pass", 0, False), ("1 / 0", 1, False)])
def test_what_libtpu_prints_is_dropped_without_a_tpu_but_shown_where_the_program_dies(then, code, shown):
  done = python(CHECK.format(then), JAX_PLATFORMS="cpu")
  assert done.returncode == code and ("words of libtpu" in done.stderr.splitlines()) == shown


def test_nothing_needs_a_temporary_file_to_start():
  # This mode starts JAX and imports all that evaluates.
  words = ["--mode=evaluate", "--images=no/a", "--inpainted=no/b", "--output=no/c", "--platform=cpu"]
  no_files = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
  done = python(f"{no_files}; import sys, run; sys.exit(run.main({words}))")
  assert done.returncode == 2 and done.stderr.startswith("error: --images=no/a"), done.stderr


def test_a_process_alone_returns_its_code_and_one_of_several_that_fails_does_not_wait(monkeypatch):
  parted = []
  monkeypatch.setattr("os._exit", sys.exit)  # which a test survives
  monkeypatch.setattr("jax.distributed.shutdown", lambda: parted.append(True))
  assert backend.leave(2) == 2
  monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
  assert backend.leave(2, together=True) == 2 and parted == [True]
  with pytest.raises(SystemExit, match="3"):
    backend.leave(3)
  assert parted == [True]


def test_only_what_says_that_another_process_is_gone_counts_as_that(monkeypatch):
  assert not backend.lost_another(ValueError("UNKNOWN: Gloo AllGather failed")), "there is no other process"
  monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
  assert backend.lost_another(jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"))
  assert not backend.lost_another(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
  assert not backend.lost_another(ValueError("Connection"))
  # As Orbax passes them on.
  assert backend.lost_another(ValueError("UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer"))
  gone = jax.errors.JaxRuntimeError("INTERNAL: Barrier failed: UNAVAILABLE: Task 1 heartbeat timeout")
  late = TimeoutError("Timed out while waiting for a barrier")
  assert not backend.lost_another(late)
  late.__cause__ = gone
  assert backend.lost_another(late)
  closing = ValueError("while closing")
  closing.__context__ = late
  assert backend.lost_another(closing)
