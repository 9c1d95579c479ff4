"""Collectives in HLO text: each spelling is understood, nothing counts twice, and a real program's are found."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from gmsrm_jax.hardware.tpu import collectives
from gmsrm_jax.parallel import sharding


def program(*lines, more=""):
  """A module whose program has these instructions."""
  body = "\n".join(f"  {line}" for line in lines)
  return (
    f"HloModule m, entry_computation_layout={{()->f32[]}}\n{more}\nENTRY %main.1 (a: f32[8]) -> f32[8] {{\n{body}\n}}\n"
  )


def one(*lines, devices=8, more=""):
  (found,) = collectives.collectives(program(*lines, more=more), devices)
  return found


@pytest.mark.parametrize(
  ("shape", "size"),
  [
    ("bf16[5]{0:T(256)(128)(2,1)S(1)}", 10),
    ("(f32[2]{0}, bf16[4]{0:T(128)}, /*index=5*/pred[3]{0}, s4[3])", 8 + 8 + 3 + 2),
    ("((f32[2], f8e4m3fn[7]), u32[]{:S(2)})", 8 + 7 + 4),
    ("(c64[2], token[], f32[0,7])", 16),
  ],
)
def test_bytes_of_a_shape(shape, size):
  assert collectives.array_bytes(shape) == size


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
    ("replica_groups={}", 8),
    ("replica_groups=[2,4]<=[8]", 4),
    ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
    ("replica_groups=mesh['data'=4,'fsdp'=2] {'data'}", 4),
    ("replica_groups=mesh['data'=4,'fsdp'=2] {'data','fsdp'}", 8),
    ("replica_groups=mesh['data'=8] {'data':(1)2}", 2),
  ],
)
def test_every_spelling_of_groups(groups, size):
  line = f"%r = f32[6]{{0}} all-reduce(%a), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add"
  assert one(line) == collectives.Collective("all-reduce", 24, size, 1)


@pytest.mark.parametrize(
  ("line", "kind", "size"),
  [
    ("%g = f32[16]{0} all-gather(%a), replica_groups={}, dimensions={0}", "all-gather", 64),
    (
      "%g = ((f32[2]{0}, bf16[1]{0}), (f32[16]{0}, bf16[8]{0})) all-gather-start(%a, %b), replica_groups={}",
      "all-gather",
      64 + 16,
    ),
    ("%s = f32[2]{0} reduce-scatter(%a), replica_groups={}, dimensions={0}", "reduce-scatter", 64),
    ("%r = (f32[2]{0}, f32[4]{0}) all-reduce-start(%a, %b), replica_groups={}", "all-reduce", 24),
    ("ROOT %t = (f32[2]{0}, f32[2]{0}) all-to-all(%a, %b), replica_groups={}", "all-to-all", 16),
    (
      "%p = (f32[6,4]{0,1}, f32[6,4]{0,1}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), "
      "source_target_pairs={{1,3}}",
      "collective-permute",
      96,
    ),
  ],
)
def test_every_kind_has_its_largest_array(line, kind, size):
  assert one(line)[:2] == (kind, size)


def test_an_asynchronous_pair_counts_once():
  found = one(
    "%s = (f32[2]{0}, f32[16]{0}) all-gather-start(%a), replica_groups={}",
    "%d = f32[16]{0} all-gather-done(%s)",
    '%f = f32[16]{0} fusion(%d), kind=kLoop, metadata={op_name="an all-reduce(x)"}',
  )
  assert (found.kind, found.bytes) == ("all-gather", 64)


def test_one_collective_spread_over_fusions_counts_once():
  parts = "".join(
    f"%async_collective_fusion.{i} (p: f32[2]) -> f32[16] {{\n"
    f"  %g = f32[16]{{0}} all-gather(%p), channel_id={channel}, replica_groups={{}}\n}}\n"
    for i, channel in enumerate((7, 7, 8))
  )
  lines = [f"%f{i} = f32[16]{{0}} fusion(%a), kind=kCustom, calls=%async_collective_fusion.{i}" for i in range(3)]
  assert len(collectives.collectives(program(*lines, more=parts), 8)) == 2


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter():
  fused = "%all-reduce-scatter.1 (p: f32[16]) -> f32[2] {\n  %r = f32[16]{0} all-reduce(%p), replica_groups={}\n}\n"
  found = one("%f = f32[2]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1", more=fused)
  assert (found.kind, found.bytes) == ("reduce-scatter", 64)


def test_a_loop_counts_as_often_as_it_runs_and_what_nothing_calls_never():
  loops = (
    "%inner (p: f32[2]) -> f32[2] {\n  %r = f32[2]{0} all-reduce(%p), replica_groups={}, to_apply=%add\n}\n"
    "%outer (p: f32[2]) -> f32[2] {\n"
    '  %w = f32[2]{0} while(%p), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"5"}}\n}\n'
    "%dead (p: f32[2]) -> f32[2] {\n  %r = f32[2]{0} all-reduce(%p), replica_groups={}\n}\n"
  )
  line = '%w = f32[2]{0} while(%a), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"3"}}'
  assert one(line, more=loops).times == 15


def test_collectives_are_summed_by_kind_and_group():
  found = [
    collectives.Collective("all-reduce", size, group, times)
    for size, group, times in ((10, 4, 1), (20, 4, 3), (10, 2, 1))
  ]
  assert collectives.grouped(found) == [
    {"kind": "all-reduce", "group": 4, "count": 4, "bytes": 70},
    {"kind": "all-reduce", "group": 2, "count": 1, "bytes": 10},
  ]


def test_a_real_program_has_the_collectives_that_were_written():
  mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

  def exchange(x):
    gathered = jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
    summed = jax.lax.psum(x, ("data", "fsdp"))
    scattered = jax.lax.psum_scatter(gathered * 2.0, "fsdp", scatter_dimension=0, tiled=True)
    swapped = jax.lax.all_to_all(x, "data", 0, 0, tiled=True)
    moved = jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 0)])

    def again(_, y):
      return jnp.sin(jax.lax.psum(y, "data"))

    looped = jax.lax.fori_loop(0, 7, again, x)
    return summed + scattered + swapped + moved + looped

  split = sharding.batch_sharding(mesh).spec
  run = jax.jit(jax.shard_map(exchange, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))
  text = run.lower(jax.ShapeDtypeStruct((16, 8), jnp.float32)).compile().as_text()
  size = 4 * 8 * 4
  found = sorted(each[:4] for each in collectives.collectives(text, 4))
  assert found == [
    ("all-gather", 2 * size, 2, 1),
    ("all-reduce", size, 2, 7),
    ("all-reduce", size, 4, 1),
    ("all-to-all", size, 2, 1),
    ("collective-permute", size, 2, 1),
    ("reduce-scatter", 2 * size, 2, 1),
  ]
