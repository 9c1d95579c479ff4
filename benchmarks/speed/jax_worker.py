"""The worker of `benchmarks.speed.beside_torch` that runs this project."""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

from benchmarks.speed.worker import Call, configure, random_batch, serve
from gmsrm_jax.parallel import backend


def filled(shapes: Any) -> Any:
  """Arrays for shapes: random weights, zeros for what an optimiser has gathered."""
  import jax

  rng = np.random.default_rng(0)

  def draw(path: tuple, leaf: Any) -> Any:
    if leaf.dtype == np.int32 or "opt_state" in jax.tree_util.keystr(path):
      return jax.numpy.zeros(leaf.shape, leaf.dtype)
    fan_in = max(1, int(np.prod(leaf.shape[:-1])))
    return jax.numpy.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan_in), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def build(kind: str, size: str, batch: int, changes: list[str]) -> Call:
  """A call of the fill, or of a train step that goes on from its last state."""
  import jax

  from gmsrm_jax.models.inpainter import fill_pixels
  from gmsrm_jax.pretrained import vgg16
  from gmsrm_jax.training import stages, state, steps

  config = configure(size, batch, changes)
  data = jax.device_put(random_batch(config.model.image_size, batch))
  if kind == "inference":
    params = filled(jax.eval_shape(state.release_params, state.abstract_state(config, "inpaint")))
    fill = jax.jit(functools.partial(fill_pixels, state.make_networks(config).inpaint))
    return lambda: fill(params, data["image"], data["mask"])

  step = jax.jit(functools.partial(steps.STEPS[kind], config=config), donate_argnums=0)
  weights = jax.device_put(vgg16.load_vgg16()) if stages.needs_vgg16(config) else {}
  current = filled(state.abstract_state(config, kind))

  def train() -> Any:
    nonlocal current
    current, metrics = step(current, data, weights)
    return metrics

  return train


def main() -> None:
  """Serves requests: python -m benchmarks.speed.jax_worker PLATFORM jax [KEY=VALUE …]."""
  backend.keep_freed_memory()
  backend.select(sys.argv[1])
  import jax

  def describe() -> dict[str, str]:
    return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}

  serve(functools.partial(build, changes=sys.argv[3:]), jax.block_until_ready, describe)


if __name__ == "__main__":
  main()
