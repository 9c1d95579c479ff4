"""Chooses JAX's back end before JAX is imported, says in one line when it is not there, and prepares its process."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator

from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import cache_folder, local_path

PLATFORMS = ("auto", "cpu", "gpu", "tpu")

_JAX_NAMES = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
_INSTALL = {"gpu": "jax[cuda13] (NVIDIA)", "tpu": "jax[tpu]"}


def select(platform: str) -> None:
  """Sets the back end of this process; `auto` leaves the choice to JAX and to JAX_PLATFORMS.

  Raises:
    ConfigError: the platform is unknown, JAX has been imported and may have chosen already, or XLA_FLAGS is wrong.
  """
  require(platform in PLATFORMS, f"--platform={platform} is unknown: choose from {', '.join(PLATFORMS)}")
  _check_xla_flags()
  if platform == "auto":
    return
  require("jax" not in sys.modules, f"--platform={platform} comes too late: select it before JAX is imported")
  os.environ["JAX_PLATFORMS"] = _JAX_NAMES[platform]


def _check_xla_flags() -> None:
  """Raises ConfigError where XLA would end the program over XLA_FLAGS: a process of its own tries them first."""
  flags = os.environ.get("XLA_FLAGS", "")
  if not flags:
    return
  parse = [sys.executable, "-c", "from jaxlib import xla_client; xla_client.CompileOptions()"]
  tried = subprocess.run(parse, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
  said = re.findall(r"^[EF]\d{4} .*?\] (.*)$", tried.stderr, re.MULTILINE) or tried.stderr.splitlines()[-1:]
  require(tried.returncode == 0, f"XLA_FLAGS={flags!r}: XLA does not start ({'; '.join(said)}): mend or unset it")


def has_tpu() -> bool:
  """Looks for TPU chips and the library for them without asking either, which would take the chips."""
  chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def check(platform: str) -> None:
  """Starts JAX on the selected back end, with a compile cache where there is a safe place for one.

  Raises:
    ConfigError: it does not start on this machine.
  """
  import jax

  try:
    with _libtpu_held():
      jax.devices()
    use_compile_cache("auto")
  except (RuntimeError, AssertionError) as error:
    # JAX asserts, without a message, when the plugin that it was told to use is not installed.
    lines = str(error).splitlines() or ["its plugin is not installed"]
    reason = lines[0].split(" (set JAX_PLATFORMS")[0].split(" (you may need")[0]
    if platform in _INSTALL:
      way_out = f"use --platform=cpu or install {_INSTALL[platform]} on a machine that has one"
      raise ConfigError(
        f"--platform={platform}: no {platform.upper()} back end on this machine ({reason}); {way_out}"
      ) from None
    chosen = os.environ.get("JAX_PLATFORMS", "")
    raise ConfigError(f"JAX_PLATFORMS={chosen}: no such back end on this machine ({reason}); unset it") from None


@contextlib.contextmanager
def _libtpu_held() -> Iterator[None]:
  """Holds back the lines that libtpu prints on a machine without a TPU, and drops them unless it found one.

  They lie with a process of its own, which shows them should this one end in between. Python's own warnings, such as
  JAX's "an NVIDIA GPU may be present", go where they went.
  """
  if importlib.util.find_spec("libtpu") is None or has_tpu():
    yield
    return
  sys.stderr.flush()
  real = os.dup(2)
  python = os.fdopen(os.dup(2), "w", buffering=1) if sys.stderr is sys.__stderr__ else sys.stderr
  show = "import sys; held = sys.stdin.buffer.read(); sys.stderr.buffer.write(held)"
  with subprocess.Popen([sys.executable, "-IS", "-c", show], stdin=subprocess.PIPE) as holder:
    assert holder.stdin is not None
    os.dup2(holder.stdin.fileno(), 2)
    try:
      with contextlib.redirect_stderr(python):
        yield
        import jax

        if jax.default_backend() == "cpu":
          holder.kill()
    except Exception:  # whose message says why
      holder.kill()
      raise
    finally:
      os.dup2(real, 2)
      os.close(real)


def use_compile_cache(setting: str) -> None:
  """Keeps compiled programs in a folder, so that the next start finds them; call it before anything compiles.

  'auto' takes a part of the user's cache folder. Programs for the CPU lie in one for each kind of CPU: a home directory
  may be carried, or shared, to a machine that lacks their instructions. Where the kind cannot be told or the folder not
  be written, 'auto' keeps none; 'off' never does. JAX_COMPILATION_CACHE_DIR comes first.
  """
  import jax

  if setting == "off":
    jax.config.update("jax_enable_compilation_cache", False)
  elif "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = _own_cache(jax.default_backend()) if setting == "auto" else local_path(setting, "run.compile_cache")
    if folder is not None:
      jax.config.update("jax_compilation_cache_dir", str(folder))
      jax.config.update("jax_compilation_cache_max_size", _MAX_CACHE)
      # Small programs, too: filling a photograph makes dozens of them.
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


_MAX_CACHE = 2**30  # bytes; the programs that were not used for longest go first


def _own_cache(back_end: str) -> pathlib.Path | None:
  kind = cpu_kind() if back_end == "cpu" else back_end
  try:
    folder = cache_folder() / "programs" / kind
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # the second where the user has no home
    return None
  return folder if kind and os.access(folder, os.W_OK | os.X_OK) else None


def cpu_kind(cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")) -> str:
  """Returns a name that only CPUs with the same model and instructions share; "" where the system tells neither."""
  facts = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")
  try:
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
  except OSError:
    return ""
  told = [line for line in lines if line.partition(":")[0].strip() in facts]
  return f"cpu-{hashlib.sha256(chr(10).join(told).encode()).hexdigest()[:12]}" if told else ""


# glibc's numbers of its settings; see mallopt(3).
_KEEP = {
  "M_ARENA_MAX": (-8, 1),  # one heap: all others map a block larger than 64 MiB
  "M_MMAP_MAX": (-4, 0),  # never map a block of its own, which would go back to the system when freed
  "M_TRIM_THRESHOLD": (-1, -1),  # never shrink the heap
  "M_TOP_PAD": (-2, 2**26),  # grow it by 64 MiB at least
}


def keep_freed_memory() -> bool:
  """Lets freed memory stay with this process, where C's allocator is glibc's; returns whether it will.

  XLA's CPU client takes the temporaries of a step from `malloc` and frees them after it: large blocks, which glibc
  hands back to the system, so that every step pays for a page fault per 4 KiB. The process then keeps the most it ever
  held. Leaves all as it is where the user has chosen: an allocator by LD_PRELOAD, MALLOC_*_ or GLIBC_TUNABLES. Call it
  early: threads that have allocated keep the heap that they have.
  """
  chosen = [name for name in os.environ if name.startswith("MALLOC_") or name == "LD_PRELOAD"]
  if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
    return False
  libc = ctypes.CDLL(None)
  return all([libc.mallopt(number, value) == 1 for number, value in _KEEP.values()])


def is_shared() -> bool:
  """Returns True in one of several processes that run together."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


_SIGNS = ("Gloo", "NCCL", "CoordinationService")
_SIGNS_OF_JAX = (*_SIGNS, "UNAVAILABLE", "Connection", "heartbeat", "DEADLINE_EXCEEDED", "ABORTED")


def lost_another(error: BaseException | None) -> bool:
  """Returns True where an error, or one behind it, says that another process of this run does not answer any more.

  Orbax and TensorStore pass JAX's errors on as errors of their own, such as a TimeoutError or a ValueError.
  """
  while error is not None and is_shared():
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    if any(sign in str(error) for sign in (_SIGNS_OF_JAX if of_jax else _SIGNS)):
      return True
    error = error.__cause__ or error.__context__
  return False


def leave(code: int, *, together: bool = False) -> int:
  """Returns the exit code, having let go of the other processes of the run, if there are any.

  A process that fails alone ends here, at once: on the usual way out it would wait for the others, and they for it.
  """
  if not is_shared():
    return code
  if together:
    import jax

    jax.distributed.shutdown()
    return code
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
