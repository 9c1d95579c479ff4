"""Chips: names of devices lead to published peaks, and the peaks are of one order with each other."""

from __future__ import annotations

import pytest

from gmsrm_jax.hardware import chips


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v4", "TPU v4"),
    ("TPU v5 lite", "TPU v5e"),
    ("TPU v5e", "TPU v5e"),
    ("TPU v5", "TPU v5p"),
    ("TPU v5p", "TPU v5p"),
    ("TPU v6 lite", "TPU v6e"),
    ("NVIDIA H200", "NVIDIA H200"),
    ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
    ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
    ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 40GB"),
    ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB"),
  ],
)
def test_what_jax_calls_a_device_finds_its_chip(kind, name):
  assert chips.find_chip(kind) is chips.CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "TPU v9", "AMD Instinct MI300X", ""])
def test_an_unknown_device_has_no_peaks(kind):
  assert chips.find_chip(kind) is None


@pytest.mark.parametrize("chip", chips.CHIPS.values(), ids=chips.CHIPS)
def test_no_unit_has_slipped(chip):
  # All these chips need between 100 and 1000 operations a byte to be busy, and read their memory in 10 to 100 ms.
  assert 100 < chip.flops / chip.bandwidth < 1000
  assert 0.01 < chip.memory / chip.bandwidth < 0.1
  assert chip.links * chip.link_bandwidth < chip.bandwidth
