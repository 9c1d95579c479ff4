"""The bound: what each term is proportional to, and numbers worked out by hand."""

from __future__ import annotations

import pytest

from gmsrm_jax.hardware.machine import CHIPS
from gmsrm_jax.hardware.tpu.collectives import Collective
from gmsrm_jax.hardware.tpu.roofline import roofline, sent_bytes, usable_links

V5E, V4 = CHIPS["TPU v5e"], CHIPS["TPU v4"]


def reduce(group, size=10**8, kind="all-reduce", times=1):
  return Collective(kind, size, group, times)


def bound(chip=V5E, shape=(4, 4), flops=0.0, bytes_moved=0.0, collectives=()):
  return roofline(chip, shape, flops=flops, bytes_moved=bytes_moved, collectives=collectives)


def test_a_second_of_each_resource_is_its_peak():
  found = bound(flops=V5E.flops, bytes_moved=2 * V5E.bandwidth)
  assert (found.compute, found.memory, found.links) == (1.0, 2.0, 0.0)
  assert (found.optimistic, found.pessimistic) == (2.0, 3.0)


def test_links_that_every_chip_has():
  links = {
    (1, 1): 0,
    (1, 2): 1,
    (2, 2): 2,
    (4, 8): 2,
    (8, 16): 3,
    (16, 16): 4,
    (2, 2, 4): 3,
    (4, 4, 4): 6,
    (4, 4, 8): 6,
  }
  assert {shape: usable_links(shape) for shape in links} == links


def test_a_ring_sends_what_the_books_say():
  assert sent_bytes(reduce(4, 100)) == 150.0
  assert sent_bytes(reduce(4, 100, "all-gather")) == 75.0
  assert sent_bytes(reduce(4, 100, "reduce-scatter")) == 75.0
  assert sent_bytes(reduce(2, 100, "collective-permute")) == 100.0
  # An all-reduce is a scatter and a gather.
  for group in (2, 7, 256):
    parts = sent_bytes(reduce(group, kind="reduce-scatter")) + sent_bytes(reduce(group, kind="all-gather"))
    assert sent_bytes(reduce(group)) == pytest.approx(parts)


def test_an_all_reduce_over_the_whole_pod_by_hand():
  found = bound(shape=(16, 16), collectives=[reduce(256, 2**28)])
  sent = 2 * 255 / 256 * 2**28
  assert found.links == pytest.approx(sent / (4 * 50e9))
  assert found.one_ring == pytest.approx(sent / (2 * 50e9))


def test_executions_add_up_and_a_group_of_one_is_free():
  assert bound(collectives=[reduce(16, times=3)]).links == pytest.approx(3 * bound(collectives=[reduce(16)]).links)
  assert bound(collectives=[reduce(1)]).pessimistic == 0.0


def test_overlap_never_takes_longer():
  for chip, shape in ((V5E, (2, 2)), (V5E, (16, 16)), (V4, (2, 2, 4)), (V4, (4, 4, 4))):
    found = bound(chip, shape, flops=1e12, bytes_moved=1e10, collectives=[reduce(4), reduce(4, kind="all-to-all")])
    assert found.links <= found.one_ring
    assert found.optimistic <= found.pessimistic
