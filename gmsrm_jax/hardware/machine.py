"""What a measurement was made on: devices, host, code; and the rate that its utilisation is a share of."""

from __future__ import annotations

import os
import platform
from typing import Any

import jax
import jax.numpy as jnp

from gmsrm_jax.files import git_commit, versions
from gmsrm_jax.hardware import timing
from gmsrm_jax.hardware.chips import find_chip


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
    "load_average": load_average(),
    "versions": versions(),
    "commit": git_commit(),
  }


def load_average() -> list[float]:
  """Processes that want a core, over the last 1, 5 and 15 minutes: other people's, too."""
  return [round(value, 2) for value in os.getloadavg()]


def _cpu_model() -> str:
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
      names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  except OSError:
    names = []
  return names[0] if names else platform.processor() or platform.machine()


def measure_peak(dtype: Any, seconds: float) -> dict[str, Any]:
  """The chip's published peak, None where it has none, and the rate of a large matrix product here.

  Rates are of all devices together; simulated devices of a CPU share its cores and count once.
  """
  on_cpu = jax.default_backend() == "cpu"
  side = 2048 if on_cpu else 8192
  count = 1 if on_cpu else jax.device_count()
  # Alike in every row and small, so that no product overflows.
  square = jnp.full((side, side), 1.0 / side, dtype)
  product = jax.jit(jnp.dot)
  timed = timing.measure(lambda: product(square, square), seconds=seconds)
  chip = find_chip(jax.devices()[0].device_kind)
  return {
    "chip": None if chip is None else chip.name,
    "published_flops": None if chip is None else chip.flops * jax.device_count(),
    "measured_flops": 2.0 * side**3 * count / timed.median,
    "measured_with": f"{side}x{side} matrix product in {jnp.dtype(dtype).name}",
  }


def utilisation(flops_per_second: float, peak: dict[str, Any]) -> dict[str, float | None]:
  """The share of the published peak, None without one, and of the rate that was measured here."""
  published = peak["published_flops"]
  return {
    "of_published": None if published is None else flops_per_second / published,
    "of_measured": flops_per_second / peak["measured_flops"],
  }


def memory_of(compiled: Any) -> dict[str, int | None]:
  """Bytes per device that the compiler plans for a program: arguments, temporaries and results, reused ones once."""
  plan = compiled.memory_analysis()
  if plan is None:
    return {"planned_bytes": None}
  total = plan.argument_size_in_bytes + plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
  return {"planned_bytes": total}


def peak_bytes() -> int | None:
  """The highest use of any device's memory since this process began; None where the back end does not tell."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  found = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
  return max(found, default=None)


def own_peak(before: int | None) -> int | None:
  """The highest use that came after `before` was taken; None where an earlier program had used more, or nobody tells.

  The mark of a device cannot be set back.
  """
  now = peak_bytes()
  return now if now is not None and before is not None and now > before else None
