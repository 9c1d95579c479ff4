"""The flags of the program, in one table that parser, help and checks are derived from."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import STRATEGIES, Config
from gmsrm_jax.errors import MAX_SEED, ConfigError, one_of, require, suggest
from gmsrm_jax.files import SHIPPED, check_output, local_path
from gmsrm_jax.parallel import backend

MODES = ("train", "evaluate", "inpaint", "masks", "export", "check", "prepare", "serve", "compile", "benchmark")
"""Each is a module of this room with a function `run(flags)`."""

_ALL = " ".join(MODES)
_FILLED_FOLDER = ("train", "evaluate", "masks", "export", "prepare")  # modes whose output cannot be a file
_OF_A_RUN = "train evaluate inpaint masks export serve"


@dataclasses.dataclass(frozen=True)
class Flag:
  """One flag; `parse` gives it the default in the modes that read it, and None in the others."""

  name: str
  modes: str  # that read it
  help: str
  metavar: str = ""  # that of the choices where there are any
  needed_by: str = ""  # modes that do not start without it
  type: Callable[..., Any] = str  # bool: it takes no value; local_path: a path, kept as text
  default: Any = None
  choices: Sequence[str] = ()
  least: int | None = None  # smallest number
  most: int | None = None  # largest number
  several: bool = False  # takes several values, and may be repeated


FLAGS = (
  Flag("experiment", _ALL, f"{', '.join(experiments.names())} (default: demo)", "NAME", choices=experiments.names()),
  Flag("platform", _ALL, "back end of JAX", default="auto", choices=backend.PLATFORMS),
  Flag("mode", _ALL, "what to do", default="train", choices=MODES),
  Flag("workdir", _OF_A_RUN, "folder of the run (default: runs/EXPERIMENT)", "DIR", type=local_path),
  Flag(
    "set",
    "train evaluate masks check prepare compile benchmark",
    "settings to change, such as memory.num_groups=1",
    "KEY=VALUE",
    several=True,
  ),
  Flag("coordinator", "train", "process 0 of several; auto: as Slurm, Open MPI or Kubernetes tell", "HOST:PORT|auto"),
  Flag("num_processes", "train", "how many processes there are; a TPU slice needs no such flag", "N", type=int),
  Flag("process_id", "train", "which of them this is, from 0", "I", type=int),
  Flag(
    "checkpoint",
    "evaluate inpaint export serve",
    "folder of other weights: of a run, or exported",
    "DIR",
    type=local_path,
  ),
  Flag(
    "images",
    "evaluate inpaint",
    "photographs to fill (evaluate: the truth)",
    "FILE|DIR",
    needed_by="inpaint",
    type=local_path,
    several=True,
  ),
  Flag(
    "inpainted",
    "evaluate",
    "filled pictures with the same stems as --images",
    "FILE|DIR",
    type=local_path,
    several=True,
  ),
  Flag(
    "masks",
    "evaluate inpaint",
    "masks with the same stems, or STEM_mask*, white in the hole (default: what is transparent)",
    "FILE|DIR",
    type=local_path,
    several=True,
  ),
  Flag("mask_invert", "evaluate inpaint", "black is hole instead", type=bool, default=False),
  Flag("mask_dilate", "inpaint", "widen the hole by N pixels", "N", type=int, default=0, least=0),
  Flag(
    "output",
    "evaluate inpaint masks export prepare compile benchmark",
    "where the results go (default of evaluate: the workdir)",
    "PATH",
    needed_by="inpaint masks export prepare",
    type=local_path,
  ),
  Flag("format", "inpaint", "keep: each file's own", default="keep", choices=("keep", "png")),
  Flag("strategy", "inpaint", "how a large photo is seen", default="auto", choices=STRATEGIES),
  Flag("detail", "inpaint", "detail of the known part that is added: 0, none, to 1", "X", type=float, default=1.0),
  Flag("num_samples", "inpaint", "fills per photograph", "N", type=int, default=1, least=1),
  Flag("seed", "inpaint", "another one draws other samples 1, 2 ...", "S", type=int, default=0, least=0, most=MAX_SEED),
  Flag("contact_sheet", "inpaint", "also write STEM_sheet.png with all samples", type=bool, default=False),
  Flag("weights", "export", "type in the file", default="float32", choices=("float32", "float16")),
  Flag("host", "serve", "address to listen on; 0.0.0.0 lets other machines in", "NAME", default="127.0.0.1"),
  Flag("port", "serve", "port to listen on; 0 takes a free one", "N", type=int, default=7860, least=0, most=65535),
  Flag("topology", "compile", "TPU slices, such as v5e:4x4 v6e:2x4", "NAME", needed_by="compile", several=True),
  Flag("batch_per_chip", "compile", "instead of run.batch_size, which is for all chips", "N", type=int, least=1),
  Flag("sizes", "benchmark", "of the model (default: what the back end is fit for)", "NAME", several=True),
  Flag("batches", "benchmark", "images at once (default: likewise)", "N", type=int, several=True),
  Flag("compare", "benchmark", "only print what these files say, side by side", "FILE", type=local_path, several=True),
)


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise ConfigError(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Reads the flags and fills in the defaults of the mode.

  Raises:
    ConfigError: a flag is unknown, missing, of a wrong value, or not read by the mode.
  """
  flags, unknown = _parser().parse_known_args(arguments)
  known = [f"--{flag.name}" for flag in FLAGS]
  for argument in unknown:
    name = argument.partition("=")[0]
    require(
      name.startswith("-"),
      f"{argument!r} belongs to no flag: most take one value, so quote what has spaces or a * in it; see --help",
    )
    raise ConfigError(f"unknown flag {name!r}: {suggest(name, known)}see --help")
  mode = flags.mode or "train"
  one_of("--mode", mode, MODES)
  for flag in FLAGS:
    value = getattr(flags, flag.name)
    if mode not in flag.modes.split():
      readers = " or ".join(flag.modes.split())
      require(value is None, f"--{flag.name} is not read by --mode={mode}: remove it, or use --mode={readers}")
    elif value is None:
      require(mode not in flag.needed_by.split(), f"--mode={mode} needs --{flag.name}: {flag.help}")
      setattr(flags, flag.name, flag.default)
    elif flag.type is local_path:
      paths = [str(local_path(text, f"--{flag.name}")) for text in (value if flag.several else [value])]
      setattr(flags, flag.name, paths if flag.several else paths[0])
    else:
      _check(flag, value)
  name, output = ("workdir", workdir(flags)) if mode == "train" else ("output", flags.output)
  if output is not None:
    _check_output(mode, f"--{name}", Path(output))
  return flags


def _check_output(mode: str, name: str, output: Path) -> None:
  require(
    mode not in _FILLED_FOLDER or output.is_dir() or not os.path.lexists(output),
    f"{name}={output} is a file: name a folder",
  )
  if not (mode in ("train", "prepare") and output.is_dir()):  # a finished one may be read-only
    check_output(output, name)


def _check(flag: Flag, value: Any) -> None:
  if flag.choices:
    one_of(f"--{flag.name}", value, flag.choices)
  if flag.least is not None:
    rule = f"{flag.least} or more" if flag.most is None else f"{flag.least} to {flag.most}"
    fits = flag.least <= value and (flag.most is None or value <= flag.most)
    require(fits, f"--{flag.name}={value} is out of range: give {rule}")


def _parser() -> _Parser:
  """The parser of the table, whose groups are the modes. Every default is None, which means: not given."""
  parser = _Parser(
    description="Trains, evaluates and applies GM-SRM. Without any flag it trains and evaluates the small demo on "
    "whatever is here; the same command again resumes.",
    allow_abbrev=False,
  )
  groups = {_ALL: parser.add_argument_group("flags of every mode")}
  for flag in FLAGS:
    if flag.modes not in groups:
      groups[flag.modes] = parser.add_argument_group(f"flags of {', '.join(flag.modes.split())}")
    if flag.type is bool:
      groups[flag.modes].add_argument(f"--{flag.name}", action="store_true", default=None, help=flag.help)
      continue
    default = "" if flag.default is None else f" (default: {flag.default})"
    several: dict[str, Any] = {"nargs": "+", "action": "extend"} if flag.several else {}
    groups[flag.modes].add_argument(
      f"--{flag.name}",
      metavar=flag.metavar or "|".join(flag.choices),
      type=str if flag.type is local_path else flag.type,
      help=flag.help + default,
      **several,
    )
  return parser


def configuration(flags: argparse.Namespace) -> Config:
  """The settings of the experiment, those of --set applied."""
  return overrides.override(experiments.load(flags.experiment or "demo"), flags.set or [])


def workdir(flags: argparse.Namespace) -> str:
  """The folder of the run."""
  return flags.workdir or f"runs/{flags.experiment or 'demo'}"


def trained(flags: argparse.Namespace) -> str:
  """The folder of the weights; where no flag names any, that of those that come with the code."""
  return flags.checkpoint or (workdir(flags) if flags.workdir or flags.experiment else str(SHIPPED))
