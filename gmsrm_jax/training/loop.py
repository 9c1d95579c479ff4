"""Trains both stages: stage 1 learns the memory, stage 2 learns to inpaint with it.

The order of a stage: mesh, data, shapes, shardings, sharded init, step, restore, loop. The same command again
resumes where the last checkpoint was taken, to the bit, on as many devices and processes as there are now.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gmsrm_jax.config import Config
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.errors import SharedError, require
from gmsrm_jax.parallel import backend, processes, sharding
from gmsrm_jax.parallel.preemption import Stop, Stopped
from gmsrm_jax.pretrained import vgg16
from gmsrm_jax.training import finetune, sample_grids, steps
from gmsrm_jax.training.checkpoint import Checkpointer, with_shardings
from gmsrm_jax.training.logger import Writer
from gmsrm_jax.training.profiling import Profile
from gmsrm_jax.training.run_folder import REPORT, describe_run, facts, finished, print_overview
from gmsrm_jax.training.state import TrainState, has_memory_stage, init_state, needs_vgg16
from gmsrm_jax.training.weights import Weights, weights_of

# Settings that change what is written or how fast, but not what is learned: they may differ on resume.
_FREE_ON_RESUME = (
  "run.log_every",
  "run.save_every",
  "run.keep",
  "run.if_save_fails",
  "run.panel_every",
  "run.panel_images",
  "run.fsdp",
  "run.remat",
  "run.compile_cache",
  "run.profile",
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


class NonFiniteError(SharedError):
  """A loss term or gradient stopped being a number; the last good checkpoint stays."""


@dataclasses.dataclass
class _Run:
  """What the stages of one run share."""

  config: Config
  root: pathlib.Path
  mesh: Mesh
  evaluation: pipeline.EvaluationSet
  saved: dict[str, Checkpointer]
  stop: Stop
  first: bool  # whether this process is the one that writes and shows
  writer: Writer | None = None

  def open_writer(self) -> Writer:
    """The log, which goes on where the checkpoints are: records of later steps, which run again, are dropped."""
    if self.writer is None:
      # After the restore: only then is it known which checkpoint could be read.
      resumed = {name: found for name, saved in self.saved.items() if (found := saved.latest()) is not None}
      self.writer = Writer(self.root, resumed, active=self.first)
    return self.writer


def train(config: Config, workdir: str) -> tuple[Weights, pipeline.EvaluationSet] | None:
  """Trains what is not trained yet; returns what is to be scored, and on which images.

  With several processes all of them call it and the first one writes. None where nothing is left to score: the run is
  finished, or this is not the first process.

  Raises:
    ConfigError: data, devices, checkpoint or settings do not fit.
    NonFiniteError: names the term and the step.
    Stopped: SIGTERM came, and everything is saved.
  """
  root = pathlib.Path(workdir)
  first = jax.process_index() == 0
  backend.use_compile_cache(config.run.compile_cache)
  if jax.process_count() > 1:
    require(
      jax.distributed.is_initialized(),
      f"this is one of {jax.process_count()} hosts that do not know each other: give --coordinator=HOST:PORT, "
      "--num_processes and --process_id",
    )
    print(processes.banner(), flush=True)
  with Stop() as stop:
    with processes.together():
      check_settings(config)
      mesh = sharding.make_mesh(config)
      sharding.check_batch(config, mesh)
      evaluation = pipeline.evaluation_set(config)
      # Before the checkpointers: a missing folder is refused before one is made for the run.
      training = None if config.data.synthetic else sources.open_source(config.data, "train")
    if jax.process_count() > 1:
      processes.agree(facts(config, training, evaluation))
    plan = ["memory", "inpaint"] if has_memory_stage(config) and not config.run.init_from else ["inpaint"]
    settings = {"keep": config.run.keep, "keep_best": config.run.keep_best}
    with processes.together():
      go_on = config.run.if_save_fails == "go_on"
      done = {stage: Checkpointer(workdir, stage, **settings, go_on=go_on, owner=True) for stage in plan}
      begun = [stage for stage, saved in done.items() if saved.latest() is not None]
      # A stage without a checkpoint has not begun, so its settings are still open.
      describe_run(
        config, root, training, evaluation, free=_FREE_ON_RESUME + (() if "inpaint" in begun else ("stage2.",))
      )
    with processes.together():
      seen = (root / "config.json").exists()
      require(seen, f"--workdir={workdir} is not the same folder on all hosts: name one that they share")
    if finished(config, root):
      if first:
        print(f"{workdir} is finished: read {root / REPORT}.md, or start another with --workdir=")
      return None
    if first:
      print_overview(config, mesh)
    run = _Run(config, root, mesh, evaluation, done, stop, first)
    stop.defer()
    state = _run_stages(run, plan[plan.index(begun[-1]) :] if begun else plan)
    state = sharding.local_copy(without_optimisers(state), mesh)
    stop.resume()
    return (weights_of(state), evaluation) if first else None


def _run_stages(run: _Run, plan: list[str]) -> TrainState:
  """Runs the stages that are left; where stage 2 has begun, its checkpoint holds the memory."""
  state = None
  try:
    for stage in plan:
      memory_params = state.ema if state is not None else None
      iterator = pipeline.training_iterator(run.config, stage, sharding.local_rows(run.config.run.batch_size, run.mesh))
      with contextlib.closing(iterator):
        state = run_stage(run, stage, iterator, memory_params)
    assert state is not None, "the plan ends with stage 2"
    return state
  finally:
    # Also when a run is stopped: a save still in the background would be cut off, with pages of tracebacks.
    with contextlib.ExitStack() as stack:
      for saved in run.saved.values():
        stack.callback(saved.close)
      if run.writer is not None:
        stack.callback(run.writer.close)


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
  if config.run.init_from:
    finetune.check_source(config)


def compile_step(
  config: Config, stage: str, mesh: Mesh, target: TrainState, phase: steps.Phase = steps.FULL
) -> Callable:
  """The stage's step, jitted with shardings; its state argument is donated."""
  where = jax.tree.map(lambda leaf: leaf.sharding, target)
  whole = sharding.replicated(mesh)
  step = functools.partial(steps.STEPS[stage], config=config, phase=phase)
  return jax.jit(
    step,
    in_shardings=(where, sharding.batch_sharding(mesh), whole),
    out_shardings=(where, whole),
    donate_argnums=0,
  )


def run_stage(run: _Run, stage: str, iterator: Any, memory_params: Any | None) -> TrainState:
  """Runs a stage from its newest good checkpoint, or from the start, to its end.

  Raises:
    Stopped: SIGTERM came, and everything is saved.
  """
  config, saved, total = run.config, run.saved[stage], stage_steps(run.config, stage)
  target = with_shardings(config, stage, run.mesh)
  state = begin(run, stage, target, iterator, memory_params)
  step = int(state.step)
  writer = run.open_writer()
  if step >= total:
    return state

  pictures = sample_grids.panel_inputs(config, run.evaluation)
  draw_panel = sample_grids.make_panel_writer(config, stage, *pictures)
  measure = sample_grids.make_quality(config, stage, run.mesh, *pictures)
  feature_params = {}
  if needs_vgg16(config):
    feature_params = jax.device_put(vgg16.load_vgg16(), sharding.replicated(run.mesh))
  writer.start(stage, step, total, config.run.batch_size, _SHOWN[stage])
  # A count over both stages, for the processes to agree on where to stop.
  earlier = config.stage1.steps if stage == "inpaint" else 0

  step_fn, compiled_for, fresh = None, None, False
  pending: list[tuple[int, dict[str, jax.Array]]] = []
  waited = 0.0
  with contextlib.closing(Profile(config.run.profile, run.root / "profile" / stage, active=run.first)) as profile:
    while step < total:
      stopping = run.stop.reached(earlier + step)
      if not stopping:
        phase = steps.phase_at(config, stage, step)
        if step_fn is None or compiled_for != phase:
          step_fn, compiled_for, fresh = compile_step(config, stage, run.mesh, target, phase), phase, True
        profile.before(step, state)
        before = time.monotonic()
        batch = sharding.global_batch(next(iterator), run.mesh)
        waited += time.monotonic() - before
        if fresh:
          step_fn, fresh = compiled(step_fn, state, batch, feature_params), False
        state, metrics = step_fn(state, batch, feature_params)
        step += 1
        pending.append((step, metrics))
        writer.advance(step)

      last = step == total
      saving = stopping or step % config.run.save_every == 0 or last
      if pending and (step % config.run.log_every == 0 or saving):
        # The only place where the host waits for the device.
        means = fetch_means(stage, pending)
        writer.log(step, {**means, "data_wait_ms": 1000.0 * waited / len(pending)})
        pending, waited = [], 0.0
        saved.check()
      # Before the checkpoint: a run killed between the two would resume behind the panel and never draw it.
      if not stopping and (step % config.run.panel_every == 0 or last):
        seen = sharding.local_copy(without_optimisers(state), run.mesh)
        if run.first:
          draw_panel(seen, run.root / "samples" / f"{stage}_{step:07d}.png")
      if saving and step > 0:
        saved.save(state, iterator, measure(state) if config.run.keep_best else None)
      if stopping:
        saved.wait()
        writer.note(f"stopped by SIGTERM at {stage} step {step} of {total}: the same command goes on from there")
        raise Stopped
  return state


def begin(run: _Run, stage: str, target: TrainState, iterator: Any, memory_params: Any | None) -> TrainState:
  """The state a stage goes on from; the iterator is set to where it belongs."""
  config, saved = run.config, run.saved[stage]
  if saved.latest() is not None:
    state = saved.restore(target, iterator, fall_back=True)
    if run.first:
      print(f"resuming {stage} at step {int(state.step)} of {stage_steps(config, stage)}")
    return state
  where = jax.tree.map(lambda leaf: leaf.sharding, target)
  key = jax.random.fold_in(jax.random.key(config.run.seed), 0 if stage == "memory" else 1)
  if config.run.init_from:
    return finetune.begin_with(config, key, where)
  init = jax.jit(functools.partial(init_state, config, stage), out_shardings=where)
  return compiled(init, key, memory_params)(key, memory_params)


def compiled(function: Any, *arguments: Any) -> Callable:
  """A jitted function, compiled for these arguments by all processes before the first of them runs it."""
  if jax.process_count() == 1:
    return function
  done = function.lower(*arguments).compile()
  processes.barrier("compiled")
  return done


def without_optimisers(state: TrainState) -> TrainState:
  """What looking at a state needs: averages and what is frozen."""
  return dataclasses.replace(
    state, params=None, opt_state=None, disc_params=None, disc_stats=None, disc_opt_state=None, usage=None
  )


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
