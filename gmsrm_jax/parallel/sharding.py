"""Where arrays live: one mesh over all devices of all processes, and rules from shapes to shardings.

Model code carries no sharding. Batches are split over both axes; parameters only over `fsdp`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gmsrm_jax.config import Config
from gmsrm_jax.errors import require

MIN_SHARDED_SIZE = 2**16
"""Elements below which an array is replicated: gathering it would cost more than it saves."""


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> Mesh:
  """All devices, or those given, as (data, fsdp). Raises ConfigError where they do not divide."""
  count = jax.device_count() if devices is None else len(devices)
  require(
    count % config.run.fsdp == 0,
    f"run.fsdp={config.run.fsdp} does not divide the {count} devices: choose a divisor of {count}",
  )
  # Linen predates explicit sharding in types; make_mesh would default to it.
  return jax.make_mesh(
    (count // config.run.fsdp, config.run.fsdp),
    ("data", "fsdp"),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def local_mesh() -> Mesh:
  """This process's devices as (data, fsdp), for work that the other processes take no part in."""
  devices = np.array(jax.local_devices()).reshape(-1, 1)
  return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(config: Config, mesh: Mesh) -> None:
  """Raises ConfigError when a training batch cannot be split over all devices."""
  size, devices, parts = config.run.batch_size, mesh.size, config.run.accumulate
  require(
    size % devices == 0,
    f"run.batch_size={size} is not divisible by the {devices} devices: use {max(1, size // devices) * devices}",
  )
  require(
    size % (devices * parts) == 0,
    f"run.batch_size={size} is not divisible by {devices} devices x run.accumulate={parts}: "
    f"use {max(1, size // (devices * parts)) * devices * parts}",
  )
  require(
    not config.variation.enabled or size % (2 * parts) == 0,
    f"run.batch_size={size} in run.accumulate={parts} parts has no even number of images in each, which "
    f"variation.enabled needs: use {-(-size // (2 * parts)) * 2 * parts}",
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def on_each_device(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """`function(params, batch)` where every device works on its own part of the batch, as if it were alone."""
  split = PartitionSpec(("data", "fsdp"))
  return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False)


def tree_sharding(tree: Any, mesh: Mesh, *, min_size: int = MIN_SHARDED_SIZE) -> Any:
  """A sharding for every leaf: its largest axis that `fsdp` divides, when the leaf has `min_size` elements."""
  ways = mesh.shape["fsdp"]

  def rule(leaf: Any) -> NamedSharding:
    axes = [axis for axis, size in enumerate(leaf.shape) if size % ways == 0]
    if ways == 1 or leaf.size < min_size or not axes:
      return replicated(mesh)
    largest = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

  return jax.tree.map(rule, tree)


def local_rows(batch_size: int, mesh: Mesh) -> list[int]:
  """The rows of a global batch that the devices of this process hold, in order."""
  held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return sorted({row for (part,) in filter(None, held.values()) for row in range(batch_size)[part]})


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's part of a batch as global arrays."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def local_copy(tree: Any, mesh: Mesh) -> Any:
  """The whole tree on one device of this process; every process must call it, because each gives its parts.

  Where there is one process nothing is moved.
  """
  if jax.process_count() == 1:
    return tree
  whole = jax.device_put(tree, replicated(mesh))
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
