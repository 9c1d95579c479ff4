"""Published peaks of accelerators, for utilisation and roofline estimates.

Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and NVIDIA's data sheets; matrix rates are dense (no sparsity).
"""

from __future__ import annotations

from typing import NamedTuple


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

# What JAX calls a device, where that is not the name above; longer beginnings first.
_DEVICE_KINDS = {
  "TPU v5 lite": "TPU v5e",
  "TPU v6 lite": "TPU v6e",
  "TPU v5": "TPU v5p",
  "Tesla T4": "NVIDIA T4",
  "NVIDIA A100-SXM4-40GB": "NVIDIA A100 40GB",
  "NVIDIA A100-PCIE-40GB": "NVIDIA A100 40GB",
  "NVIDIA A100-SXM4-80GB": "NVIDIA A100 80GB",
  "NVIDIA A100 80GB": "NVIDIA A100 80GB",
}


def find_chip(device_kind: str) -> Chip | None:
  """The chip that `jax.Device.device_kind` names; None for a CPU and for what is not in the table."""
  names = {**_DEVICE_KINDS, **{name: name for name in CHIPS}}
  found = max((kind for kind in names if device_kind.startswith(kind)), key=len, default=None)
  return None if found is None else CHIPS[names[found]]
