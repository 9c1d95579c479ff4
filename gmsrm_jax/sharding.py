"""Where arrays live: one mesh over all devices of all processes, and rules from shapes to shardings.

Model code carries no sharding. Batches are split over both axes; parameters only over `fsdp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gmsrm_jax.config import Config, require

MIN_SHARDED_SIZE = 2**16
"""Elements below which an array is replicated: gathering it would cost more than it saves."""


def make_mesh(config: Config) -> Mesh:
  """All devices as (data, fsdp). Raises ConfigError where they do not divide."""
  devices = jax.device_count()
  require(
    devices % config.run.fsdp == 0,
    f"run.fsdp={config.run.fsdp} does not divide the {devices} devices: choose a divisor of {devices}",
  )
  # Linen predates explicit sharding in types; make_mesh would default to it.
  return jax.make_mesh(
    (devices // config.run.fsdp, config.run.fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto)
  )


def local_mesh() -> Mesh:
  """This process's devices as (data, fsdp), for work that the other processes take no part in."""
  devices = np.array(jax.local_devices()).reshape(-1, 1)
  return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def check_batch(config: Config, mesh: Mesh) -> None:
  """Raises ConfigError when a training batch cannot be split over all devices."""
  devices = mesh.size
  require(
    config.run.batch_size % devices == 0,
    f"run.batch_size={config.run.batch_size} is not divisible by the {devices} devices: "
    f"use {max(1, config.run.batch_size // devices) * devices}",
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


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's part of a batch as global arrays."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
