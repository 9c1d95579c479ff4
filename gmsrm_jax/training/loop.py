"""Trains both stages: stage 1 learns the memory, stage 2 learns to inpaint with it.

The order of a stage: mesh, data, shapes, shardings, sharded init, step, restore, loop. The same command again
resumes where the last checkpoint was taken, to the bit, on as many devices and processes as there are now.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gmsrm_jax import files
from gmsrm_jax.config import Config
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.errors import SharedError, require
from gmsrm_jax.kernels import convolution
from gmsrm_jax.parallel import backend, processes, sharding
from gmsrm_jax.parallel.preemption import Stop
from gmsrm_jax.pretrained import vgg16
from gmsrm_jax.training import finetune, sample_grids, steps
from gmsrm_jax.training.checkpoint import Checkpointer
from gmsrm_jax.training.logger import Writer
from gmsrm_jax.training.optimiser import rates_at
from gmsrm_jax.training.profiling import Profile
from gmsrm_jax.training.run_folder import (
  common_facts,
  data_facts,
  describe_run,
  finished,
  lengthened,
  print_finished,
  print_overview,
)
from gmsrm_jax.training.stages import STAGES, has_memory_stage, needs_vgg16, planned_stages, stage_settings, work_left
from gmsrm_jax.training.state import TrainState, init_state, with_shardings
from gmsrm_jax.training.weights import Weights, weights_of

_FREE_ON_RESUME = (
  *("run.log_every", "run.save_every", "run.keep", "run.if_save_fails", "run.panel_every", "run.panel_images"),
  *("run.fsdp", "run.remat", "run.compile_cache", "run.profile", "run.convolution"),
  *("data.threads", "data.workers", "data.prefetch", "data.stored_", "eval."),
)
"""Beginnings of settings that change what is written, how fast and, the last of `run.`, how it is rounded; no more."""


class NonFiniteError(SharedError):
  """A loss term or gradient stopped being a number; the last good checkpoint stays."""


class _Run(NamedTuple):
  """All that the stages of one run share."""

  config: Config
  root: pathlib.Path
  mesh: Mesh
  evaluation: pipeline.EvaluationSet
  saved: dict[str, Checkpointer]  # of the stages that are left, in order
  stop: Stop
  writer: Writer
  first: bool  # this process is the one that writes and shows


def train(config: Config, workdir: str, score: Callable[[Weights, pipeline.EvaluationSet], None]) -> None:
  """Trains what is not trained yet, then has the weights scored on the held-out images; a finished run only says so.

  With several processes all of them call it, and the first one writes and scores. It keeps the folder for itself.

  Raises:
    ConfigError: data, devices, checkpoint or settings do not fit, or another process works in the folder.
    NonFiniteError: names the term and the step.
    Stopped: SIGTERM or Ctrl-C came, and everything is saved.
  """
  backend.use_compile_cache(config.run.compile_cache)
  if jax.process_count() > 1:
    require(
      jax.distributed.is_initialized(),
      f"this is one of {jax.process_count()} hosts that do not know each other: give --coordinator=HOST:PORT, "
      "--num_processes and --process_id",
    )
    print(processes.banner(), flush=True)
  with Stop() as stop, contextlib.ExitStack() as claim:
    run = _prepare(config, pathlib.Path(workdir), stop, claim)
    if finished(config, run.root):
      if run.first:
        print_finished(config, workdir)
      return
    if run.first:
      print_overview(run.config, run.mesh, run.root)
    stop.defer()
    state = sharding.local_copy(without_optimisers(_run_stages(run)), run.mesh)
    stop.resume()
    if run.first:
      score(weights_of(state), run.evaluation)
      print_finished(run.config, workdir)


def _prepare(config: Config, root: pathlib.Path, stop: Stop, claim: contextlib.ExitStack) -> _Run:
  """Checks what is there and opens the run's folder, claimed until `claim` is closed; on all processes alike."""
  first = jax.process_index() == 0
  with processes.together():
    check_settings(config)
    convolution.use(config.run.convolution)
    mesh = sharding.make_mesh(config)
    sharding.check_batch(config, mesh)
    evaluation = pipeline.evaluation_set(config)
    # Before the checkpointers: a missing folder is refused before one is made for the run.
    training = None if config.data.synthetic else sources.open_source(config.data, "train")
    data = data_facts(config, training, evaluation)
  if jax.process_count() > 1:
    processes.agree(common_facts(config, data))
  with processes.together():
    if first and not finished(config, root):
      claim.enter_context(files.claimed(root))
  with processes.together():
    saved = {}
    for stage in planned_stages(config):
      saved[stage] = Checkpointer(root, stage, config.run, owner=True)
      # Also where the run is refused below: Orbax's threads must not outlive the interpreter's.
      claim.callback(saved[stage].close)
    begun = saved["inpaint"].latest() is not None
    if begun and (root / "config.json").exists():
      config = lengthened(config, root)
    # A stage without a checkpoint has not begun, so its settings are still open.
    describe_run(config, root, data, free=_FREE_ON_RESUME if begun else (*_FREE_ON_RESUME, "stage2."))
    for doubt in sources.doubts(training, evaluation.source) if first else ():
      print(f"warning: {doubt}", file=sys.stderr)
  with processes.together():
    seen = (root / "config.json").exists()
    require(seen, f"--workdir={root} is not the same folder on all hosts: name one that they share")
  if begun and "memory" in saved:  # it is done, and in the checkpoints of stage 2
    saved.pop("memory").close()
  return _Run(config, root, mesh, evaluation, saved, stop, Writer(root, active=first), first)


def _run_stages(run: _Run) -> TrainState:
  """Runs the stages that are left."""
  state = None
  # Also when a run is stopped: a save still in the background would be cut off, with pages of tracebacks.
  with contextlib.ExitStack() as stack:
    stack.callback(run.writer.close)
    for saved in run.saved.values():
      stack.callback(saved.close)
    for stage in run.saved:
      memory_params = state.ema if state is not None else None
      examples = sharding.local_rows(run.config.run.batch_size, run.mesh)
      with contextlib.closing(pipeline.training_iterator(run.config, stage, examples)) as iterator:
        state = run_stage(run, stage, iterator, memory_params)
  assert state is not None, "the plan ends with stage 2"
  return state


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
  """Returns the stage's step, jitted with shardings; its state argument is donated."""
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
  """Runs a stage from its newest good checkpoint, or from the start, to its end. Raises Stopped once all is saved."""
  config, saved, writer = run.config, run.saved[stage], run.writer
  settings, total = config.run, stage_settings(config, stage).steps
  target = with_shardings(config, stage, run.mesh)
  state = begin(run, stage, target, iterator, memory_params)
  step = int(state.step)
  if step >= total:
    return state
  advance = _make_advance(run, stage, target)
  draw_grid, measure = sample_grids.make_grid(config, stage, run.mesh, run.evaluation)
  work, later = functools.partial(work_left, config, stage), work_left(config, "inpaint") * (stage == "memory")
  writer.start(stage, step, total, settings.batch_size, STAGES[stage].shown, work, later)
  # A count over both stages, for the processes to agree on where to stop.
  earlier = config.stage1.steps if stage == "inpaint" else 0
  pending: list[tuple[int, steps.Metrics]] = []
  waited = 0.0
  with contextlib.closing(Profile(settings.profile, run.root / "profile" / stage, active=run.first)) as profile:
    while step < total:
      stopping = run.stop.reached(earlier + step)
      if not stopping:
        profile.before(step, state)
        before = time.monotonic()
        batch = sharding.global_batch(next(iterator), run.mesh)
        waited += time.monotonic() - before
        state, metrics = advance(step, state, batch)
        step += 1
        run.stop.unsaved = True
        pending.append((step, metrics))
        # Two steps under way keep a device busy; more of them could not be stopped within seconds.
        jax.block_until_ready(pending[-3:-2])
        writer.advance(step, pending[-3][1] if len(pending) > 2 else None)
      last = step == total
      saving = stopping or step % settings.save_every == 0 or last
      if pending and (step % settings.log_every == 0 or saving):
        # The only place where the host waits for the device.
        means = fetch_means(stage, pending)
        waits = {"data_wait_ms": 1000.0 * waited / len(pending)}
        writer.log(step, means | rates_at(config, stage, step - 1) | waits)
        pending, waited = [], 0.0
        saved.check()
      # Before the checkpoint: a run killed between the two would resume behind the grid and never draw it.
      if not stopping and (step % settings.panel_every == 0 or last):
        with writer.busy("drawing samples"):
          _look(run, state, draw_grid, run.root / "samples" / f"{stage}_{step:07d}.png")
      if saving and step > 0:
        with writer.busy("saving"):
          saved.save(state, iterator, measure(state) if settings.keep_best else None)
          if stopping or last:
            saved.wait()
      if stopping:
        writer.close()
        run.stop.leave(f" at {stage} step {step} of {total}: the same command goes on from there")
  writer.close()
  run.stop.unsaved = False
  return state


def _look(run: _Run, state: TrainState, draw: Callable, path: pathlib.Path) -> None:
  """Draws samples, and records what they are worth; all processes call it."""
  seen = dataclasses.replace(without_optimisers(state), params=state.params)
  shown = sharding.local_copy(seen, run.mesh)
  if run.first:
    run.writer.look(int(shown.step), draw(shown, path), path)


def begin(run: _Run, stage: str, target: TrainState, iterator: Any, memory_params: Any | None) -> TrainState:
  """Returns the state that a stage goes on from; the iterator is set to where it belongs."""
  config, saved = run.config, run.saved[stage]
  if saved.latest() is not None:
    state = saved.restore(target, iterator, fall_back=True)
    if run.first:
      print(f"resuming {stage} at step {int(state.step)} of {stage_settings(config, stage).steps}")
    return state
  where = jax.tree.map(lambda leaf: leaf.sharding, target)
  key = jax.random.fold_in(jax.random.key(config.run.seed), list(STAGES).index(stage))
  if config.run.init_from:
    return finetune.begin_with(config, key, where)
  run.writer.note(f"{stage}: making the networks")
  init = jax.jit(functools.partial(init_state, config, stage), out_shardings=where)
  return _compiled(init, key, memory_params)(key, memory_params)


def _make_advance(run: _Run, stage: str, target: TrainState) -> Callable:
  """Returns (step, state, batch) -> (state, metrics), which compiles where a phase of the stage begins."""
  feature_params = {}
  if needs_vgg16(run.config):
    feature_params = jax.device_put(vgg16.load_vgg16(), sharding.replicated(run.mesh))
  programs: dict[steps.Phase, Callable] = {}

  def advance(step: int, state: TrainState, batch: Any) -> tuple[TrainState, steps.Metrics]:
    phase = steps.phase_at(run.config, stage, step)
    if phase in programs:
      return programs[phase](state, batch, feature_params)
    programs.clear()  # no phase comes back
    takes = "half a minute" if run.config.model.size in ("tiny", "small") else "minutes"
    with run.writer.busy(f"compiling: {takes}, kept for next time", long=True):
      program = compile_step(run.config, stage, run.mesh, target, phase)
      programs[phase] = _compiled(program, state, batch, feature_params)
      return programs[phase](state, batch, feature_params)

  return advance


def _compiled(function: Any, *arguments: Any) -> Callable:
  """Returns a jitted function, compiled for these arguments by all processes before the first of them runs it."""
  if jax.process_count() == 1:
    return function
  program = function.lower(*arguments).compile()
  processes.barrier("compiled")
  return program


def without_optimisers(state: TrainState) -> TrainState:
  """Returns what looking at a state needs: averages and what is frozen."""
  return dataclasses.replace(
    state, params=None, opt_state=None, disc_params=None, disc_stats=None, disc_opt_state=None, usage=None
  )


def fetch_means(stage: str, pending: Sequence[tuple[int, steps.Metrics]]) -> dict[str, float]:
  """Returns the mean of each metric over these steps. Raises NonFiniteError with the first step and its term."""
  fetched = jax.device_get(pending)
  for step, metrics in fetched:
    # A total is named only when none of its terms is.
    for name in sorted(metrics, key=lambda name: name == "loss" or "grad_norm" in name):
      if not np.isfinite(metrics[name]):
        raise NonFiniteError(
          f"{stage} step {step}: {name} is {float(metrics[name])}: checkpoints of earlier steps are "
          f"kept; start another --workdir with a lower {STAGES[stage].section}.learning_rate "
          "or run.compute_dtype=float32"
        )
  # A term that was switched on in between has fewer values.
  present = {name: [metrics[name] for _, metrics in fetched if name in metrics] for name in fetched[-1][1]}
  return {name: float(np.mean(values)) for name, values in present.items()}
