"""Places arrays: one mesh over all devices of all processes, and rules from shapes to shardings.

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
  """Returns all devices, or those given, as (data, fsdp). Raises ConfigError where they do not divide."""
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
  """Returns this process's devices as (data, fsdp), for work that the other processes take no part in."""
  devices = np.array(jax.local_devices()).reshape(-1, 1)
  return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(config: Config, mesh: Mesh) -> None:
  """Raises ConfigError when a training batch cannot be split over all devices."""
  size, parts = config.run.batch_size, config.run.accumulate
  ways = mesh.size * parts
  split_over = f"the {mesh.size} devices" if parts == 1 else f"{mesh.size} devices x run.accumulate={parts}"
  require(
    size % ways == 0,
    f"run.batch_size={size} is not divisible by {split_over}: use {max(1, size // ways) * ways}",
  )
  require(
    not config.variation.enabled or size % (2 * parts) == 0,
    f"run.batch_size={size} in run.accumulate={parts} parts has no even number of images in each, which "
    f"variation.enabled needs: use {-(-size // (2 * parts)) * 2 * parts}",
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Keeps the whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the leading axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def on_each_device(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
  """Returns `function(params, batch)` with every device working on its own part of the batch, as if it were alone."""
  split = PartitionSpec(("data", "fsdp"))
  return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False)


def tree_sharding(tree: Any, mesh: Mesh, *, min_size: int = MIN_SHARDED_SIZE) -> Any:
  """Returns a sharding for every leaf: its largest axis that `fsdp` divides, when the leaf has `min_size` elements."""
  ways = mesh.shape["fsdp"]

  def rule(leaf: Any) -> NamedSharding:
    axes = [axis for axis, size in enumerate(leaf.shape) if size % ways == 0]
    if ways == 1 or leaf.size < min_size or not axes:
      return replicated(mesh)
    largest = max(axes, key=lambda axis: leaf.shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

  return jax.tree.map(rule, tree)


def local_rows(batch_size: int, mesh: Mesh) -> list[int]:
  """Returns which rows of a global batch the devices of this process hold, in order."""
  held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return sorted({row for (part,) in filter(None, held.values()) for row in range(batch_size)[part]})


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Returns this process's part of a batch as global arrays."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def local_copy(tree: Any, mesh: Mesh) -> Any:
  """Returns the whole tree on one device of this process; all processes must call it. One alone moves nothing."""
  if jax.process_count() == 1:
    return tree
  whole = jax.device_put(tree, replicated(mesh))
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)
