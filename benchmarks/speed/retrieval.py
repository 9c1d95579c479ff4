"""Retrieval attention alone, beside the least that its operations and its bytes could take on this device.

  python -m benchmarks.speed.retrieval [--sizes small base] [--batches 1 8] [--output=FILE.json]

On the device that JAX chooses (JAX_PLATFORMS=cpu for another). Two programs: the read (what a fill needs), and the
gradient of read and weights (what a step of stage 1 needs). The floor is the larger of two times: the operations at
the rate of a large float32 product here, and the bytes at the rate of a large copy here. The bytes are those that no
order of work avoids: queries, codebook and reads once, and in a step the weights written and read back once, because
the loss looks at them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gmsrm_jax.config import SIZES, MemoryConfig
from gmsrm_jax.hardware import machine, measure
from gmsrm_jax.models import codebook
from gmsrm_jax.models.retrieval import Retrieval, RetrievalAttention


class Memory(nn.Module):
  """Codebook and retrieval attention, without the generator."""

  config: MemoryConfig

  @nn.compact
  def __call__(self, query: jax.Array) -> Retrieval:
    return RetrievalAttention(self.config)(query, codebook.Codebook(self.config)())


def copy_rate(seconds: float) -> float:
  """Bytes per second that a large copy reads and writes."""
  array = jnp.ones(2**26, jnp.float32)
  size = array.nbytes
  # In place: new memory of this size would be measured with the time that the system takes to hand it out.
  step = jax.jit(lambda x: x + 1.0, donate_argnums=0)

  def again() -> jax.Array:
    nonlocal array
    array = step(array)
    return array

  return 2.0 * size / measure.time_calls(again, seconds=seconds)["median"]


def least_bytes(config: MemoryConfig, batch: int, positions: int, *, step: bool) -> int:
  """Bytes that must move, float32: see the module."""
  vectors = batch * positions * config.slot_dim  # queries, and as many reads
  slots = (2 * config.num_slots + config.num_groups) * config.slot_dim
  weights = batch * positions * config.heads * config.num_slots
  once = 2 * vectors + slots
  # Backwards: the gradient of the reads comes in, those of queries and codebook go out.
  return 4 * (once + (once + 2 * weights if step else 0))


def measure_size(config: MemoryConfig, size: str, batch: int, rates: dict[str, float], seconds: float) -> list[dict]:
  """The rows of one size and batch."""
  model = SIZES[size]
  positions = (model.image_size // model.stride) ** 2
  memory = Memory(config)
  query = jnp.asarray(np.random.default_rng(0).standard_normal((batch, positions, config.slot_dim)), jnp.float32)
  params = memory.init(jax.random.key(0), query)

  def read(params: Any, query: jax.Array) -> jax.Array:
    return memory.apply(params, query).read  # pyright: ignore[reportAttributeAccessIssue]

  def loss(params: Any, query: jax.Array) -> jax.Array:
    found: Any = memory.apply(params, query)
    usage = codebook.mean_weights(found.log_weights)
    return jnp.mean(jnp.square(found.read)) + jnp.sum(usage * jnp.log(usage))

  rows = []
  for name, function, step in (("read", read, False), ("gradient", jax.grad(loss, argnums=(0, 1)), True)):
    lowered = jax.jit(function).lower(params, query)
    compiled = lowered.compile()
    took = measure.time_calls(lambda c=compiled: c(params, query), seconds=seconds)
    operations, moved = (lowered.cost_analysis() or {})["flops"], least_bytes(config, batch, positions, step=step)
    floor = max(operations / rates["flops"], moved / rates["bytes"])
    rows.append(
      {
        "program": name,
        "size": size,
        "batch": batch,
        "seconds": took["median"],
        "quartiles": [took["q1"], took["q3"]],
        "flops": operations,
        "bytes": moved,
        "floor_seconds": floor,
        "times_the_floor": took["median"] / floor,
      }
    )
  return rows


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints a table, and writes the numbers as JSON if asked to."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--sizes", nargs="+", default=["small", "base"], choices=sorted(SIZES), help="of the model")
  parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="images at once")
  parser.add_argument("--seconds", type=float, default=2.0, help="how long each program is measured")
  parser.add_argument("--output", metavar="FILE", help="where the JSON goes")
  flags = parser.parse_args(argv)

  rates = {
    "flops": machine.measure_peak(jnp.float32, flags.seconds)["measured_flops"],
    "bytes": copy_rate(flags.seconds),
  }
  print(
    f"{machine.describe_machine()['device_kind']}: {rates['flops'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.1f} GB/s"
  )
  print(f"{'program':10}{'size':8}{'batch':>6}{'ms':>9}{'floor, ms':>11}{'times':>7}")
  rows = []
  for size in flags.sizes:
    for batch in flags.batches:
      for row in measure_size(MemoryConfig(), size, batch, rates, flags.seconds):
        rows.append(row)
        print(
          f"{row['program']:10}{size:8}{batch:6}{1e3 * row['seconds']:9.2f}{1e3 * row['floor_seconds']:11.2f}"
          f"{row['times_the_floor']:7.1f}"
        )
  if flags.output:
    with open(flags.output, "w", encoding="utf-8") as file:
      file.write(json.dumps({"machine": machine.describe_machine(), "rates": rates, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
  main()
