"""Several processes as one program: they find each other, agree before they compute, and wait for each other."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gmsrm_jax.errors import ConfigError, SharedError, require
from gmsrm_jax.parallel import backend

HEARTBEAT_TIMEOUT = 60
"""Seconds of silence after which a process counts as dead, and the others end."""

_LAST_TIMEOUT = 24 * 3600
"""Seconds that the processes that are done wait for the first one, which evaluates."""

_meetings = itertools.count()


def start(platform: str, coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins this process to the others: by the arguments, by JAX's environment variables, or as a TPU slice tells.

  Without any of these it stays alone. Call it before anything asks for a device.

  `coordinator` is 'HOST:PORT' of process 0, or 'auto' for what JAX finds out itself (Slurm, Open MPI, Kubernetes).

  Raises:
    ConfigError: the arguments are incomplete, or the others do not come.
  """
  coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
  count = _number("JAX_NUM_PROCESSES") if num_processes is None else num_processes
  index = _number("JAX_PROCESS_ID") if process_id is None else process_id
  flag = f"--coordinator={coordinator}"
  if coordinator is None or coordinator == "auto":
    require(
      count is None and index is None,
      "--coordinator=auto finds out the processes itself: leave out --num_processes and --process_id"
      if coordinator
      else "--num_processes and --process_id need --coordinator=HOST:PORT, the address of process 0",
    )
    if coordinator:
      _join(flag)
    elif platform in ("auto", "tpu") and backend.has_tpu():
      _join("the TPU slice", required=False)
    return
  require(
    coordinator.rpartition(":")[2].isdecimal() and ":" in coordinator,
    f"{flag} is no address: give HOST:PORT of process 0, such as 10.0.0.1:1234",
  )
  if count is None or index is None:
    raise ConfigError(f"{flag} needs --num_processes and --process_id, too")
  require(
    0 <= index < count,
    f"--process_id={index} is out of range: give 0 to {count - 1} with --num_processes={count}",
  )
  _join(
    flag,
    coordinator_address=coordinator,
    num_processes=count,
    process_id=index,
    cluster_detection_method="deactivate",
  )


def _number(variable: str) -> int | None:
  text = os.environ.get(variable)
  require(text is None or text.isdecimal(), f"{variable}={text} is no whole number: give one, or unset it")
  return None if text is None else int(text)


def _join(how: str, *, required: bool = True, **arguments: Any) -> None:
  try:
    jax.distributed.initialize(
      **arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT, shutdown_timeout_seconds=_LAST_TIMEOUT
    )
  except ValueError as error:  # JAX finds no cluster: a single machine.
    require(not required, f"{how}: {error}: give --coordinator=HOST:PORT, --num_processes and --process_id")
  except RuntimeError as error:
    reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
    raise ConfigError(
      f"{how}: the processes of this run do not come together ({reason}): start all of them within five minutes"
    ) from None


def banner() -> str:
  """Returns one line that says which process this is, where, and with which devices."""
  return (
    f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
    f"{jax.local_device_count()} of {jax.device_count()} devices ({jax.local_devices()[0].device_kind}), "
    f"JAX {jax.__version__}"
  )


def gather(text: str) -> list[str]:
  """Returns the texts of all processes, by process; all of them must call it."""
  if jax.process_count() == 1:
    return [text]
  barrier("gather")
  data = np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8)  # the name of a file may be no text
  sizes = np.asarray(multihost_utils.process_allgather(np.int32(data.size))).reshape(-1)
  padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
  padded[: data.size] = data
  texts = np.asarray(multihost_utils.process_allgather(padded))
  return [bytes(text[:size]).decode("utf-8", "surrogateescape") for text, size in zip(texts, sizes, strict=True)]


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Raises on all processes what the user must change on one; otherwise the others would wait for it.

  Raises:
    SharedError: the first process's error that raised one.
  """
  problem = ""
  try:
    yield
  except (ConfigError, OSError) as error:
    if jax.process_count() == 1:
      raise
    problem = str(error) or type(error).__name__
  for index, message in enumerate(gather(problem)):
    if message:
      raise SharedError(f"process {index}: {message}")


def agree(facts: Mapping[str, Any]) -> None:
  """Compares what all processes must have in common: nested mappings of plain values.

  Raises:
    SharedError: names the first process and the facts in which it differs from process 0.
  """
  first, *others = [flax.traverse_util.flatten_dict(json.loads(text), sep=".") for text in gather(json.dumps(facts))]
  for index, other in enumerate(others, 1):
    different = [key for key in sorted(first.keys() | other.keys()) if first.get(key) != other.get(key)]
    if different:
      shown = "; ".join(f"{key}: {other.get(key)} instead of {first.get(key)}" for key in different[:3])
      more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
      raise SharedError(
        f"process {index} differs from process 0 ({shown}{more}): give all processes the same code, packages, "
        "settings and images"
      )


def barrier(name: str) -> None:
  """Waits until all processes of the run are here; they must all come, in the same order.

  Through the coordinator, which waits for hours, not through the devices: their first exchange gives up on a process
  that compiles or reads half a minute longer than another one.
  """
  if jax.process_count() > 1:
    everybody = set(range(jax.process_count()))
    ocp.multihost.sync_global_processes(f"{name} {next(_meetings)}", timeout=6 * 3600, processes=everybody)
