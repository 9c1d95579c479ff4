"""TPU slices by name, such as v5e:4x4, for the compiler alone: no TPU is needed, only the package libtpu."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.experimental import topologies

from gmsrm_jax.errors import ConfigError, require, suggest
from gmsrm_jax.hardware.machine import Chip, find_chip

_EXAMPLES = {"v4": "v4:2x2x4", "v5e": "v5e:4x4", "v5p": "v5p:2x2x4", "v6e": "v6e:4x4"}

_ENVIRONMENT = {  # for libtpu, which else asks the network and prints what it did not learn
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # Several processes may compile at once: none of them takes a chip.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
  """A slice; a device is a chip, also where it has two cores (megacore)."""

  name: str
  shape: tuple[int, ...]
  chip: Chip
  devices: Sequence[Any]  # JAX's, which cannot run anything


def parse(name: str) -> tuple[str, tuple[int, ...]]:
  """'v5e:4x8' to ('v5e', (4, 8)). Raises ConfigError for what is no such name."""
  kind, _, sizes = name.partition(":")
  require(
    kind in _EXAMPLES,
    f"--topology={name}: {kind!r} is no TPU that this mode knows: {suggest(kind, tuple(_EXAMPLES))}"
    f"choose from {', '.join(_EXAMPLES.values())} and their like",
  )
  axes = _EXAMPLES[kind].count("x") + 1
  require(
    re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{axes - 1}}}", sizes) is not None,  # libtpu would divide by a 0
    f"--topology={name} is no shape of a {kind} slice: give {axes} numbers of chips, such as {_EXAMPLES[kind]}",
  )
  return kind, tuple(int(size) for size in sizes.split("x"))


def open_topology(name: str) -> Topology:
  """The devices of a slice. Raises ConfigError where libtpu is missing, or knows no slice of this name."""
  kind, shape = parse(name)
  require(
    importlib.util.find_spec("libtpu") is not None,
    "--mode=compile needs the TPU compiler, the package libtpu, which is not installed: pip install .[tpu]",
  )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  # Without this a device of v4 is a core, and a program for cores is not what runs.
  options = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}
  try:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
  except (RuntimeError, ValueError, NotImplementedError) as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise ConfigError(f"--topology={name} is no slice that the TPU compiler knows ({reason})") from None
  chip = find_chip(devices[0].device_kind)
  assert chip is not None and len(devices) == math.prod(shape), f"{name}: {len(devices)} x {devices[0].device_kind}"
  return Topology(name, shape, chip, devices)


def compiler() -> dict[str, str]:
  """Name and version of the TPU compiler; a nightly build has another name."""
  return {name: importlib.metadata.version(name) for name in importlib.metadata.packages_distributions()["libtpu"]}
