"""The machine that a measurement is made on, and the published peaks of the chips it may have.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and NVIDIA's data sheets; matrix rates are dense (no sparsity).
"""

from __future__ import annotations

import os
import platform
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gmsrm_jax.files import git_commit, versions
from gmsrm_jax.hardware import measure


class Chip(NamedTuple):
  """One chip; rates per second."""

  name: str
  flops: float  # bfloat16 matrix units (T4: float16), a multiply-add is two
  memory: float  # bytes
  bandwidth: float  # bytes from and to the chip's memory
  links: int  # neighbours in a full torus; 0: no torus
  link_bandwidth: float  # bytes in one direction of one link


_GB, _GIB, _TERA = 1e9, 2.0**30, 1e12

# Links: the rate per chip that Google publishes (both ways: v5e 400 GB/s, v5p 1200, v6e 800; one way: v4 2400 Gbit/s),
# shared out over the neighbours and the two directions.
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("TPU v4", 275 * _TERA, 32 * _GIB, 1228 * _GB, 6, 50 * _GB),
    Chip("TPU v5e", 197 * _TERA, 16 * _GIB, 819 * _GB, 4, 50 * _GB),
    Chip("TPU v5p", 459 * _TERA, 95 * _GIB, 2765 * _GB, 6, 100 * _GB),
    Chip("TPU v6e", 918 * _TERA, 32 * _GIB, 1640 * _GB, 4, 100 * _GB),
    Chip("NVIDIA T4", 65 * _TERA, 16 * _GB, 300 * _GB, 0, 0.0),
    Chip("NVIDIA L4", 121 * _TERA, 24 * _GB, 300 * _GB, 0, 0.0),
    Chip("NVIDIA A100 40GB", 312 * _TERA, 40 * _GB, 1555 * _GB, 0, 0.0),
    Chip("NVIDIA A100 80GB", 312 * _TERA, 80 * _GB, 2039 * _GB, 0, 0.0),
    Chip("NVIDIA H100 PCIe", 756 * _TERA, 80 * _GB, 2000 * _GB, 0, 0.0),
    Chip("NVIDIA H100", 989 * _TERA, 80 * _GB, 3350 * _GB, 0, 0.0),
    Chip("NVIDIA H200", 989 * _TERA, 141 * _GB, 4800 * _GB, 0, 0.0),
    Chip("NVIDIA B200", 2250 * _TERA, 180 * _GB, 7700 * _GB, 0, 0.0),
  )
}

# JAX's name of a device, where that does not begin with the name above.
_DEVICE_KINDS = {
  "TPU v5 lite": "TPU v5e",
  "TPU v6 lite": "TPU v6e",
  "TPU v5": "TPU v5p",
  "Tesla T4": "NVIDIA T4",
  "NVIDIA A100-SXM4-40GB": "NVIDIA A100 40GB",
  "NVIDIA A100-PCIE-40GB": "NVIDIA A100 40GB",
  "NVIDIA A100-SXM4-80GB": "NVIDIA A100 80GB",
}


def find_chip(device_kind: str) -> Chip | None:
  """The chip that `jax.Device.device_kind` names; None for a CPU and for what is not in the table."""
  names = {**_DEVICE_KINDS, **{name: name for name in CHIPS}}
  longest = max((kind for kind in names if device_kind.startswith(kind)), key=len, default=None)
  return None if longest is None else CHIPS[names[longest]]


def describe_machine() -> dict[str, Any]:
  """Devices and their driver, the host and how busy it is now, packages and commit."""
  device = jax.devices()[0]
  return {
    "platform": jax.default_backend(),
    "device_kind": device.device_kind,
    "device_count": jax.device_count(),
    # The back end's own words: CUDA and driver on a GPU, libtpu's build on a TPU.
    "runtime": " ".join(device.client.platform_version.split()),
    "cpu": _cpu_model(),
    "cores": os.cpu_count(),
    "load_average": os.getloadavg(),
    "versions": versions(),
    "commit": git_commit(),
  }


def _cpu_model() -> str:
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
      return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
  except (OSError, StopIteration):
    return platform.processor() or platform.machine()


def measure_peak(dtype: Any, seconds: float) -> dict[str, Any]:
  """The chip's published peak, None where it has none, and the rate of a large matrix product here.

  Rates are of all devices together; simulated devices of a CPU share its cores and count once.
  """
  on_cpu = jax.default_backend() == "cpu"
  side = 2048 if on_cpu else 8192
  # Alike in every row and small, so that no product overflows.
  square = jnp.full((side, side), 1.0 / side, dtype)
  product = jax.jit(jnp.dot)
  once = measure.time_calls(lambda: product(square, square), seconds=seconds)["median"]
  chip = find_chip(jax.devices()[0].device_kind)
  return {
    "chip": None if chip is None else chip.name,
    "published_flops": None if chip is None else chip.flops * jax.device_count(),
    "measured_flops": 2.0 * side**3 * (1 if on_cpu else jax.device_count()) / once,
    "measured_with": f"{side}x{side} matrix product in {jnp.dtype(dtype).name}",
  }
