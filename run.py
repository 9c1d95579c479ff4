"""Trains, evaluates and applies GM-SRM: `python run.py --experiment=paris --platform=tpu`.

Without any flag it trains and evaluates the small demo on whatever is here. The same command again resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from gmsrm_jax import experiments, files, overrides
from gmsrm_jax.config import FORMATS, STRATEGIES, WEIGHT_TYPES, Config, EvalConfig
from gmsrm_jax.errors import ConfigError, SharedError, require, suggest
from gmsrm_jax.files import SHIPPED
from gmsrm_jax.parallel import backend

_COMMON = {"experiment", "platform", "mode", "workdir"}
MODES = {  # mode to the flags it reads
  "train": _COMMON | {"set", "coordinator", "num_processes", "process_id"},
  "evaluate": _COMMON | {"set", "checkpoint", "images", "inpainted", "masks", "mask_invert", "output"},
  "inpaint": _COMMON
  | {"images", "masks", "mask_invert", "mask_dilate", "output", "format", "contact_sheet"}
  | {"checkpoint", "num_samples", "seed", "strategy"},
  "masks": _COMMON | {"set", "output"},
  "export": _COMMON | {"output", "checkpoint", "weights"},
  "check": {"experiment", "platform", "mode", "set"},
  "prepare": {"experiment", "platform", "mode", "set", "output"},
  "serve": _COMMON | {"checkpoint", "host", "port"},
  "compile": {"experiment", "platform", "mode", "set", "topology", "batch_per_chip", "output"},
  "benchmark": {"experiment", "platform", "mode", "set", "output", "sizes", "batches", "compare"},
}

# What the user can change; anything else is a bug of ours and keeps its traceback.
_USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise ConfigError(message)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Reads the flags and refuses those that the mode would not read."""
  parser = _Parser(prog="run.py", description=__doc__, allow_abbrev=False)
  parser.add_argument("--experiment", metavar="NAME", help=f"{', '.join(experiments.names())} (default: demo)")
  parser.add_argument("--platform", metavar="|".join(backend.PLATFORMS), help="back end of JAX (default: auto)")
  parser.add_argument("--mode", metavar="|".join(MODES), help="what to do (default: train)")
  parser.add_argument("--workdir", metavar="DIR", help="folder of the run (default: runs/EXPERIMENT)")
  parser.add_argument(
    "--set", metavar="KEY=VALUE", nargs="+", action="extend", help="settings to change, such as memory.num_groups=1"
  )
  several = parser.add_argument_group("flags of --mode=train with several processes; a TPU slice needs none")
  several.add_argument(
    "--coordinator", metavar="HOST:PORT|auto", help="process 0; auto: as Slurm, Open MPI or Kubernetes tell"
  )
  several.add_argument("--num_processes", metavar="N", type=int, help="how many processes there are")
  several.add_argument("--process_id", metavar="I", type=int, help="which of them this is, from 0")
  inpaint = parser.add_argument_group("flags of the modes that read or write files")
  inpaint.add_argument("--images", metavar="FILE|DIR", help="photographs to fill (evaluate: the truth)")
  inpaint.add_argument("--inpainted", metavar="DIR", help="evaluate: filled pictures with the same stems as --images")
  inpaint.add_argument(
    "--masks", metavar="FILE|DIR", help="masks with the same stems, white in the hole (default: what is transparent)"
  )
  inpaint.add_argument("--mask_invert", action="store_true", default=None, help="black is hole instead")
  inpaint.add_argument("--mask_dilate", metavar="N", type=int, help="widen the hole by N pixels (default: 0)")
  inpaint.add_argument("--output", metavar="PATH", help="where the results go (default of evaluate: the workdir)")
  inpaint.add_argument("--weights", metavar="|".join(WEIGHT_TYPES), help="export: type in the file (default: float32)")
  inpaint.add_argument(
    "--checkpoint", metavar="DIR", help="folder of other weights: of a run, or exported (also: evaluate, export, serve)"
  )
  inpaint.add_argument("--num_samples", metavar="N", type=int, help="fills per photograph (default: 1)")
  inpaint.add_argument("--seed", metavar="S", type=int, help="another seed draws other samples 1, 2 ... (default: 0)")
  inpaint.add_argument("--strategy", metavar="auto|full|crop|resize", help="how a large photo is seen (default: auto)")
  inpaint.add_argument("--format", metavar="keep|png", help="keep: each file's own; png (default: keep)")
  inpaint.add_argument(
    "--contact_sheet", action="store_true", default=None, help="also write STEM_sheet.png with all samples"
  )
  server = parser.add_argument_group("flags of --mode=serve")
  server.add_argument(
    "--host", metavar="NAME", help="address to listen on; 0.0.0.0 lets other machines in (default: 127.0.0.1)"
  )
  server.add_argument("--port", metavar="N", type=int, help="port to listen on; 0 takes a free one (default: 7860)")
  bench = parser.add_argument_group("flags of --mode=benchmark")
  bench.add_argument("--sizes", metavar="NAME", nargs="+", help="of the model (default: what the back end is fit for)")
  bench.add_argument("--batches", metavar="N", type=int, nargs="+", help="images at once (default: likewise)")
  bench.add_argument("--compare", metavar="FILE", nargs="+", help="only print what these files say, side by side")

  ahead = parser.add_argument_group("flags of --mode=compile")
  ahead.add_argument(
    "--topology", metavar="NAME", nargs="+", action="extend", help="TPU slices, such as v5e:4x4 v6e:2x4"
  )
  ahead.add_argument(
    "--batch_per_chip", metavar="N", type=int, help="instead of run.batch_size, which is for all chips"
  )

  flags, unknown = parser.parse_known_args(argv)
  known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
  for argument in unknown:
    name = argument.partition("=")[0]
    require(False, f"unknown flag {name!r}: {suggest(name, known)}see python run.py --help")

  flags.mode = flags.mode or "train"
  flags.platform = flags.platform or "auto"
  for name, choices in (("mode", tuple(MODES)), ("platform", backend.PLATFORMS)):
    value = getattr(flags, name)
    require(value in choices, f"--{name}={value} is unknown: {suggest(value, choices)}choose from {', '.join(choices)}")
  for name, value in vars(flags).items():
    if value is not None and name not in MODES[flags.mode]:
      readers = [mode for mode, names in MODES.items() if name in names]
      raise ConfigError(f"--{name} is not read by --mode={flags.mode}: remove it, or use --mode={' or '.join(readers)}")
  for name in {
    "inpaint": ("images", "output"),
    "export": ("output",),
    "masks": ("output",),
    "prepare": ("output",),
  }.get(flags.mode, ()):
    require(getattr(flags, name) is not None, f"--mode={flags.mode} needs --{name}: give a file or folder")
  if flags.mode == "compile":
    _check_compile(flags)
  if flags.mode == "evaluate":
    _check_evaluate(flags)
  if flags.mode == "benchmark" and flags.compare:
    for name in ("set", "output", "sizes", "batches", "experiment"):
      require(getattr(flags, name) is None, f"--{name} is not read with --compare: leave one of the two out")
  if flags.mode == "inpaint":
    flags.num_samples = 1 if flags.num_samples is None else flags.num_samples
    flags.seed = flags.seed or 0
    require(flags.num_samples > 0, f"--num_samples={flags.num_samples} must be greater than 0")
    flags.mask_invert = bool(flags.mask_invert)
    flags.mask_dilate = flags.mask_dilate or 0
    require(flags.mask_dilate >= 0, f"--mask_dilate={flags.mask_dilate} must not be negative")
    require(flags.seed >= 0, f"--seed={flags.seed} must not be negative")
    for name, default, choices in (("strategy", "auto", STRATEGIES), ("format", "keep", FORMATS)):
      value = getattr(flags, name) or default
      setattr(flags, name, value)
      require(
        value in choices, f"--{name}={value} is unknown: {suggest(value, choices)}choose from {', '.join(choices)}"
      )
    require(
      flags.seed == 0 or flags.num_samples > 1,
      f"--seed={flags.seed} changes nothing: the first fill is the deterministic one; ask for more: --num_samples=4",
    )
  if flags.mode == "export":
    flags.weights = flags.weights or "float32"
    require(
      flags.weights in WEIGHT_TYPES,
      f"--weights={flags.weights} is unknown: {suggest(flags.weights, WEIGHT_TYPES)}choose from "
      f"{', '.join(WEIGHT_TYPES)}",
    )
  if flags.mode == "serve":
    flags.host = flags.host or "127.0.0.1"
    flags.port = 7860 if flags.port is None else flags.port
    require(0 <= flags.port <= 65535, f"--port={flags.port} is no port: give a number from 0 to 65535")
  require(
    "://" not in (flags.workdir or ""),
    f"--workdir={flags.workdir} is no local folder: mount the bucket and name the path it is mounted at",
  )
  return flags


def _check_evaluate(flags: argparse.Namespace) -> None:
  """Folders and a trained run exclude each other."""
  folders = [name for name in ("images", "inpainted", "masks", "mask_invert") if getattr(flags, name) is not None]
  if not folders:
    return
  for name in ("images", "inpainted", "output"):
    require(
      getattr(flags, name) is not None,
      f"--{folders[0]} with --mode=evaluate scores files and needs --{name}, too: --images (truth), --inpainted, "
      "--output, and --masks where there are holes",
    )
  for name in ("workdir", "checkpoint"):
    require(
      getattr(flags, name) is None,
      f"--{name} is not read where --inpainted names pictures to score: leave one of the two out",
    )
  require(
    flags.mask_invert is None or flags.masks is not None, "--mask_invert without --masks inverts nothing: give --masks"
  )
  flags.mask_invert = bool(flags.mask_invert)


def _check_compile(flags: argparse.Namespace) -> None:
  """The program is for a TPU, the process that compiles it runs on the CPU."""
  require(flags.topology is not None, "--mode=compile needs --topology: name a TPU slice, such as --topology=v5e:4x4")
  require(
    flags.platform in ("auto", "cpu"),
    f"--platform={flags.platform} is not read by --mode=compile, which compiles on the CPU: leave it out",
  )
  require(
    flags.batch_per_chip is None or flags.batch_per_chip > 0,
    f"--batch_per_chip={flags.batch_per_chip} must be greater than 0",
  )
  require(
    flags.batch_per_chip is None or not any(item.startswith("run.batch_size=") for item in flags.set or []),
    "--batch_per_chip and run.batch_size say the same twice: leave one of the two out",
  )


def load_trained(workdir: str, experiment: str | None) -> Config:
  """The configuration that a trained folder describes itself with."""

  config = overrides.from_dict(files.read_run(workdir)["config"])
  require(
    experiment in (None, config.name),
    f"--workdir={workdir} holds experiment {config.name!r}, not {experiment!r}: leave out --experiment",
  )
  return config


def dispatch(flags: argparse.Namespace) -> None:
  """Calls the function of the mode. JAX is first imported here, after the back end was chosen."""
  backend.select("cpu" if flags.mode == "compile" else flags.platform)
  name = flags.experiment or "demo"
  workdir = flags.workdir or f"runs/{name}"
  # Where trained weights are wanted and nothing is named: those that come with the code.
  trained = flags.workdir or (f"runs/{name}" if flags.experiment else None)
  experiment = experiments.load(name)  # in every mode, so that a misspelt name is refused
  if flags.mode == "train":
    config = overrides.override(experiment, flags.set or [])
    from gmsrm_jax.parallel import processes

    processes.start(flags.platform, flags.coordinator, flags.num_processes, flags.process_id)
    backend.check(flags.platform)
    from gmsrm_jax.commands import train

    train.train(config, workdir)
  elif flags.mode == "evaluate" and flags.inpainted is not None:
    # Without an experiment nothing but the settings' own defaults is meant.
    base = experiment if flags.experiment else dataclasses.replace(experiment, eval=EvalConfig())
    config = overrides.override(base, flags.set or [])
    backend.check(flags.platform)
    from gmsrm_jax.evaluation import held_out

    held_out.evaluate_folders(
      config,
      experiment=flags.experiment,
      images=flags.images,
      inpainted=flags.inpainted,
      masks=flags.masks,
      output=flags.output,
      mask_invert=flags.mask_invert,
    )
  elif flags.mode == "evaluate":
    output = flags.output or trained
    if output is None:
      raise ConfigError("--mode=evaluate without --workdir scores weights that are no run: give --output, too")
    described = trained or flags.checkpoint or str(SHIPPED)
    config = overrides.override(load_trained(described, flags.experiment), flags.set or [])
    backend.check(flags.platform)
    from gmsrm_jax.evaluation import held_out

    held_out.evaluate(config, flags.checkpoint or described, output)
  elif flags.mode == "prepare":
    from gmsrm_jax.commands import prepare

    prepare.prepare(overrides.override(experiment, flags.set or []), flags.output)
  elif flags.mode == "inpaint":
    backend.check(flags.platform)
    from gmsrm_jax.commands import inpaint

    inpaint.inpaint(
      images=flags.images,
      masks=flags.masks,
      output=flags.output,
      checkpoint=flags.checkpoint or trained or str(SHIPPED),
      num_samples=flags.num_samples,
      seed=flags.seed,
      strategy=flags.strategy,
      file_format=flags.format,
      contact_sheet=bool(flags.contact_sheet),
      mask_invert=flags.mask_invert,
      mask_dilate=flags.mask_dilate,
    )
  elif flags.mode == "masks":
    # Those of a trained folder where one is named: what it is evaluated with.
    config = load_trained(workdir, flags.experiment) if flags.workdir else experiment
    from gmsrm_jax.commands import masks

    masks.write_masks(overrides.override(config, flags.set or []), flags.output)
  elif flags.mode == "export":
    backend.check(flags.platform)
    from gmsrm_jax.commands import export

    export.export(checkpoint=flags.checkpoint or trained or str(SHIPPED), output=flags.output, dtype=flags.weights)
  elif flags.mode == "check":
    config = overrides.override(experiment, flags.set or [])
    backend.check(flags.platform)
    from gmsrm_jax.commands import check

    check.check(config)
  elif flags.mode == "compile":
    config = overrides.override(experiment, flags.set or [])
    backend.check("cpu")
    from gmsrm_jax.hardware.tpu import compile as compile_mode

    compile_mode.compile_steps(config, flags.topology, batch_per_chip=flags.batch_per_chip, output=flags.output)
  elif flags.mode == "benchmark" and flags.compare:
    from gmsrm_jax.hardware import compare

    print(compare.compare(flags.compare))
  elif flags.mode == "benchmark":
    backend.check(flags.platform)
    from gmsrm_jax.hardware import benchmark

    benchmark.benchmark(experiment, flags.set or [], flags.sizes, flags.batches, flags.output)
  elif flags.mode == "serve":
    backend.check(flags.platform)
    from gmsrm_jax.commands import serve

    serve.serve(checkpoint=flags.checkpoint or trained or str(SHIPPED), host=flags.host, port=flags.port)


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code: 0, 2 for what the user must change, 3 when another process is gone, 130 when interrupted.

  A run that saved and stopped on SIGTERM raises SystemExit(143).
  """
  try:
    dispatch(parse(sys.argv[1:] if argv is None else argv))
  except ConfigError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return backend.leave(2, together=isinstance(error, SharedError))
  except KeyboardInterrupt:
    print("interrupted: the same command again resumes from the last checkpoint", file=sys.stderr)
    return backend.leave(130)
  except Exception as error:
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS:
      print(f"error: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
      return backend.leave(2)
    if not backend.is_shared():
      raise
    if backend.lost_another(error):
      print(
        f"error: another process of this run is gone ({str(error).splitlines()[0][:200]}): start all of them again "
        "with the same command, which resumes",
        file=sys.stderr,
      )
      return backend.leave(3)
    traceback.print_exc()
    return backend.leave(1)
  return 0


if __name__ == "__main__":
  sys.exit(main())
