"""--mode=train: stage 1 learns the memory, stage 2 learns to inpaint with it, then the held-out images are scored.

The order of a stage: mesh, data, shapes, shardings, sharded init, step, restore, loop. The same command again
resumes where the last checkpoint was taken, to the bit.
"""

from __future__ import annotations

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import clu.parameter_overview
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gmsrm_jax import features, panels, settings, sharding, steps
from gmsrm_jax.checkpoint import Checkpointer, with_shardings
from gmsrm_jax.config import Config, ConfigError, require
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.evaluate import evaluate_state, load_trained_state
from gmsrm_jax.models.inpainter import apply_inpainter
from gmsrm_jax.provenance import git_commit, versions
from gmsrm_jax.report import REPORT
from gmsrm_jax.state import TrainState, compute_dtype, has_memory_stage, init_state, make_networks, restart
from gmsrm_jax.writer import Writer, read_json, read_run, write_json

# Settings that change what is written or how fast, but not what is learned: they may differ on resume.
_FREE_ON_RESUME = (
  "run.log_every",
  "run.save_every",
  "run.keep",
  "run.panel_every",
  "run.panel_images",
  "run.fsdp",
  "data.threads",
  "data.workers",
  "data.prefetch",
  "data.stored_",
  "eval.",
)

_SHOWN = {
  "memory": ("loss", "l1", "perceptual", "adversarial", "perplexity", "used_slots"),
  "inpaint": ("loss", "hole", "perceptual", "style", "adversarial", "retrieval", "read"),
}


class NonFiniteError(ConfigError):
  """A loss term or gradient stopped being a number; the last good checkpoint stays."""


def train(config: Config, workdir: str) -> None:
  """Trains what is not trained yet, then writes `report.md`; a finished run only says so.

  Raises:
    ConfigError: data, devices, checkpoint or settings do not fit.
    NonFiniteError: names the term and the step.
  """
  root = pathlib.Path(workdir)
  check_settings(config)
  mesh = sharding.make_mesh(config)
  sharding.check_batch(config, mesh)
  evaluation = pipeline.evaluation_set(config)
  # Before the checkpointers: a missing folder is refused before one is made for the run.
  training = None if config.data.synthetic else sources.open_source(config.data, "train")
  plan = ["memory", "inpaint"] if has_memory_stage(config) and not config.run.init_from else ["inpaint"]
  done = {stage: Checkpointer(workdir, stage, keep=config.run.keep) for stage in plan}
  resumed = {stage: step for stage, saved in done.items() if (step := saved.latest()) is not None}
  # A stage without a checkpoint has not begun, so its settings are still open.
  describe_run(
    config, root, training, evaluation, free=_FREE_ON_RESUME + (() if "inpaint" in resumed else ("stage2.",))
  )
  if finished(config, root):
    print(f"{workdir} is finished: read {root / REPORT}.md, or start another with --workdir=")
    return
  print_overview(config, mesh)

  for stage, step in resumed.items():
    print(f"resuming {stage} at step {step} of {stage_steps(config, stage)}")

  try:
    with Writer(workdir, resumed, active=jax.process_index() == 0) as writer:
      state = None
      for stage in plan:
        if stage == "memory" and "inpaint" in resumed:
          continue  # Stage 2 has begun: its checkpoint holds the memory.
        memory_params = state.ema if state is not None else None
        iterator = pipeline.training_iterator(config, stage, jax.process_index(), jax.process_count())
        with contextlib.closing(iterator):
          state = run_stage(config, stage, mesh, iterator, done[stage], writer, evaluation, root, memory_params)
  finally:
    # Also when a run is stopped: a save still in the background would be cut off, with pages of tracebacks.
    for saved in done.values():
      saved.close()
  assert state is not None, "the plan ends with stage 2"
  if jax.process_index() == 0:
    evaluate_state(config, state, evaluation, root)


def stage_steps(config: Config, stage: str) -> int:
  """How many steps the stage has."""
  return (config.stage1 if stage == "memory" else config.stage2).steps


def check_settings(config: Config) -> None:
  """Raises ConfigError for combinations that cannot train."""
  require(
    config.loss.features != "recognition" or has_memory_stage(config),
    "loss.features=recognition needs the recognition encoder of stage 1, which memory.enabled=false or "
    "memory.pretrain=false leaves out: use loss.features=vgg16",
  )
  require(
    not has_memory_stage(config) or config.stage1.steps > 0,
    "stage1.steps=0 leaves the memory untrained: give it steps, or set memory.pretrain=false",
  )
  require(config.stage2.steps > 0, "stage2.steps=0 trains no inpainter: give it at least 1")
  source = pathlib.Path(config.run.init_from)
  require(
    not config.run.init_from or (source / "checkpoints" / "inpaint").is_dir(),
    f"run.init_from={config.run.init_from} holds no checkpoint of stage 2: name the folder of a trained run",
  )


def describe_run(
  config: Config,
  root: pathlib.Path,
  training: sources.Source | None,
  evaluation: pipeline.EvaluationSet,
  *,
  free: tuple[str, ...],
) -> None:
  """Writes `config.json`; on resume compares with the one that is there, settings that begin with `free` excepted.

  `training` is None where data.synthetic stands in for it.

  Raises:
    ConfigError: the folder holds a run of other settings or other images.
  """
  train_hash = "synthetic" if training is None else sources.split_hash(training)
  splits = {"train": train_hash, "val": sources.split_hash(evaluation.source)}
  counts = {"train": 0 if training is None else len(training), "val": len(evaluation)}
  path = root / "config.json"
  if path.exists():
    before = read_run(root)
    changed = [
      line for line in settings.differences(settings.from_dict(before["config"]), config) if not line.startswith(free)
    ]
    require(
      not changed,
      f"{root} holds a run with other settings ({'; '.join(changed)}): use another --workdir, or the old settings",
    )
    require(
      before["splits"] == splits,
      f"{root} was begun with other images than data.train={config.data.train} and data.val={config.data.val} hold "
      "now (their hash differs): bring them back or use another --workdir",
    )
  # A finished run keeps saying which code made it, whichever code looks at it now.
  if jax.process_index() == 0 and not finished(config, root):
    write_json(
      path,
      {
        "config": settings.to_dict(config),
        "splits": splits,
        "images": counts,
        "commit": git_commit(),
        "versions": versions(),
        "device": {"kind": jax.devices()[0].device_kind, "count": jax.device_count()},
      },
    )
  print(
    f"{config.name}: {counts['train']} training images ({splits['train'][:12]}), {counts['val']} held out "
    f"({splits['val'][:12]})"
  )


def print_overview(config: Config, mesh: Mesh) -> None:
  """Prints devices, parameters and operations of the networks."""
  networks = make_networks(config)
  size = config.model.image_size
  image, mask = jnp.zeros((1, size, size, 3)), jnp.ones((1, size, size, 1))
  key = jax.random.key(0)
  params = jax.eval_shape(networks.inpainter.init, key, image, mask)
  print(
    f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {dict(mesh.shape)}, "
    f"computing in {jnp.dtype(compute_dtype(config)).name}"
  )
  forward = jax.jit(lambda p, i, m: apply_inpainter(networks.inpainter, p["params"], i, m).prediction)
  cost = forward.lower(params, image, mask).cost_analysis() or {"flops": math.nan}
  count = clu.parameter_overview.count_parameters
  parts = {name.split("_")[0]: 0 for name in params["params"]}
  for name, subtree in params["params"].items():
    parts[name.split("_")[0]] += count(subtree)
  print(
    f"inpainter: {count(params) / 1e6:.2f} M parameters ("
    + ", ".join(f"{name} {size / 1e6:.2f}" for name, size in parts.items())
    + f"), {cost['flops'] / 1e9:.2f} GFLOP forward per {size}x{size} image"
  )


def finished(config: Config, root: pathlib.Path) -> bool:
  """Whether both stages have run to their end and were scored."""
  if not (root / f"{REPORT}.json").exists():
    return False
  return read_json(root / f"{REPORT}.json")["step"] == config.stage2.steps


def compile_step(config: Config, stage: str, mesh: Mesh, target: TrainState, *, adversarial: bool) -> Callable:
  """The stage's step, jitted with shardings; its state argument is donated."""
  where = jax.tree.map(lambda leaf: leaf.sharding, target)
  whole = sharding.replicated(mesh)
  step = functools.partial(steps.STEPS[stage], config=config, adversarial=adversarial)
  return jax.jit(
    step,
    in_shardings=(where, sharding.batch_sharding(mesh), whole),
    out_shardings=(where, whole),
    donate_argnums=0,
  )


def run_stage(
  config: Config,
  stage: str,
  mesh: Mesh,
  iterator: Any,
  saved: Checkpointer,
  writer: Writer,
  evaluation: pipeline.EvaluationSet,
  root: pathlib.Path,
  memory_params: Any | None,
) -> TrainState:
  """Runs a stage from its newest checkpoint, or from the start, to its end."""
  settings = config.stage1 if stage == "memory" else config.stage2
  target = with_shardings(config, stage, mesh)
  if saved.latest() is not None:
    state = saved.restore(target, iterator)
  elif config.run.init_from:
    where = jax.tree.map(lambda leaf: leaf.sharding, target)
    again = jax.jit(functools.partial(restart, config), out_shardings=where)
    state = again(load_trained_state(config, pathlib.Path(config.run.init_from)))
  else:
    key = jax.random.fold_in(jax.random.key(config.run.seed), 0 if stage == "memory" else 1)
    where = jax.tree.map(lambda leaf: leaf.sharding, target)
    init = jax.jit(functools.partial(init_state, config, stage), out_shardings=where)
    state = init(key, memory_params)
  step = int(state.step)
  if step >= settings.steps:
    return state

  feature_params = {}
  if config.loss.features == "vgg16" and (config.loss.perceptual > 0 or config.loss.style > 0):
    feature_params = jax.device_put(features.load_vgg16(), sharding.replicated(mesh))
  first_adversarial = round(settings.adversarial_start * settings.steps) if config.loss.adversarial > 0 else math.inf
  draw_panel = panels.make_panel_writer(config, stage, *panels.panel_inputs(config, evaluation))
  writer.start(stage, step, settings.steps, config.run.batch_size, _SHOWN[stage])

  step_fn, compiled_for = None, None
  pending: list[tuple[int, dict[str, jax.Array]]] = []
  waited = 0.0
  while step < settings.steps:
    adversarial = step >= first_adversarial
    if step_fn is None or compiled_for != adversarial:
      step_fn, compiled_for = compile_step(config, stage, mesh, target, adversarial=adversarial), adversarial
    before = time.monotonic()
    batch = sharding.global_batch(next(iterator), mesh)
    waited += time.monotonic() - before
    state, metrics = step_fn(state, batch, feature_params)
    step += 1
    pending.append((step, metrics))
    writer.advance(step)

    last = step == settings.steps
    if step % config.run.log_every == 0 or step % config.run.save_every == 0 or last:
      # The only place where the host waits for the device.
      means = fetch_means(stage, pending)
      writer.log(step, {**means, "data_wait_ms": 1000.0 * waited / len(pending)})
      pending, waited = [], 0.0
    # Before the checkpoint: a run killed between the two would resume behind the panel and never draw it.
    if (step % config.run.panel_every == 0 or last) and jax.process_index() == 0:
      draw_panel(state, root / "samples" / f"{stage}_{step:07d}.png")
    if step % config.run.save_every == 0 or last:
      saved.save(state, iterator)
  return state


def fetch_means(stage: str, pending: list[tuple[int, dict[str, jax.Array]]]) -> dict[str, float]:
  """The mean of each metric over the steps since the last call.

  Raises:
    NonFiniteError: a value is not finite; names the first such step and its term.
  """
  fetched = jax.device_get(pending)
  for step, metrics in fetched:
    # A total is named only when none of its terms is.
    for name in sorted(metrics, key=lambda name: name == "loss" or "grad_norm" in name):
      if not np.isfinite(metrics[name]):
        raise NonFiniteError(
          f"{stage} step {step}: {name} is {float(metrics[name])}: checkpoints of earlier steps are "
          f"kept; start another --workdir with a lower {'stage1' if stage == 'memory' else 'stage2'}.learning_rate "
          "or run.compute_dtype=float32"
        )
  # A term that was switched on in between has fewer values.
  present = {name: [metrics[name] for _, metrics in fetched if name in metrics] for name in fetched[-1][1]}
  return {name: float(np.mean(values)) for name, values in present.items()}
