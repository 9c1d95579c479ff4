"""Sums the time of a step by named scope: encoder, retrieval, generator, decoder, discriminator ...

  python -m benchmarks.speed.scopes --experiment=paris --stage=inpaint [--set model.size=small run.batch_size=4 ...]

The step is compiled, run, and traced as `run.profile` traces it. The trace tells how long each compiled operation
took, the program's text the scope that it was made for. A fusion of several scopes counts for the one
that its result belongs to. On a CPU operations run side by side, so that the sum may exceed the step's own time.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
import tempfile
from collections.abc import Sequence

import jax
import tabulate

from gmsrm_jax import experiments, overrides
from gmsrm_jax.hardware import measure
from gmsrm_jax.parallel import sharding

_OPERATION = re.compile(r'^\s*(?:ROOT )?%?(\S+) = .* (\w[\w-]*)\(.*op_name="([^"]*)"')
_AROUND = ("while", "call", "conditional")  # their bodies' operations are in the trace, too


def scope_of(op_name: str) -> tuple[str, bool]:
  """'jit(step)/transpose(jvp(Inpainter))/encoder/block0/add' to ('Inpainter/encoder', True): backwards.

  What belongs to no network is named by its own scope, or 'rest'.
  """
  first, _, inner = op_name.partition("/")[2].partition("/")
  backwards = first.startswith("transpose(")
  network = re.sub(r"^(?:(?:jvp|transpose|vmap|checkpoint)\()+|\)+$", "", first)
  names = [network, *inner.split("/")[:-1]] if inner else []
  names = [name for name in names if name and not re.search(r"jit\(|->", name)]  # no scope of ours
  return "/".join(names[:2]) or "rest", backwards


def seconds_by_scope(compiled: jax.stages.Compiled, trace: pathlib.Path) -> dict[str, list[float]]:
  """Scope to seconds forwards and backwards, over all steps of the trace."""
  text = compiled.as_text() or ""
  operations = {match[1]: (match[2], match[3]) for line in text.splitlines() if (match := _OPERATION.match(line))}
  sums: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  for file in trace.rglob("*.xplane.pb"):
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      for line in plane.lines:
        for event in line.events:
          kind, op_name = operations.get(str(dict(event.stats).get("hlo_op")), ("", ""))
          if kind and kind not in _AROUND:
            scope, backwards = scope_of(op_name)
            sums[scope][backwards] += event.duration_ns / 1e9
  return sums


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a table, the largest first."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--experiment", default="demo")
  parser.add_argument("--stage", default="inpaint", choices=("memory", "inpaint"))
  parser.add_argument("--steps", type=int, default=3, help="steps that are traced (default: 3)")
  parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
  flags = parser.parse_args(argv)

  config = overrides.override(experiments.load(flags.experiment), flags.set)
  mesh = sharding.make_mesh(config)
  compiled = measure.lower_step(config, flags.stage, mesh).compile()
  state, batch, params = measure.step_arguments(config, flags.stage, mesh)
  state, _ = jax.block_until_ready(compiled(state, batch, params))
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(flags.steps):
        state, _ = jax.block_until_ready(compiled(state, batch, params))
    sums = seconds_by_scope(compiled, pathlib.Path(folder))
  whole = sum(map(sum, sums.values()))
  cells = [
    [scope, *(1e3 * value / flags.steps for value in both), 100 * sum(both) / whole]
    for scope, both in sorted(sums.items(), key=lambda item: -sum(item[1]))
    if sum(both) > 1e-3 * whole
  ]
  print(tabulate.tabulate(cells, ["scope", "forwards, ms", "backwards, ms", "%"], floatfmt=".1f"))


if __name__ == "__main__":
  main()
