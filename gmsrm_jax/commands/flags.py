"""The flags of the program, in one table that parser, help and checks are derived from."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import STRATEGIES, Config
from gmsrm_jax.errors import MAX_SEED, ConfigError, check_number, one_of, require, suggest
from gmsrm_jax.files import SHIPPED, check_output, local_path
from gmsrm_jax.parallel import backend

MODES = {
  "train": "learn the memory, then to fill holes with it, then score the result; again: resume",
  "inpaint": "fill the holes of photographs",
  "memory": "draw the patterns that a memory holds, and what is read of them for a hole",
  "serve": "open a page to paint holes on, and an HTTP endpoint",
  "evaluate": "score trained weights, or anybody's filled pictures",
  "export": "write weights and a program that needs none of this code",
  "check": "look through a data set and name what is wrong with it",
  "prepare": "decode a data set once, into files that a training reads faster",
  "masks": "draw the masks that an evaluation uses",
  "compile": "ask the TPU compiler whether a training fits a slice",
  "benchmark": "measure this device",
}
"""Each, with what it does, is a module of this room with a function `run(flags)`."""

_EXAMPLES = {
  "train": ("train", "train --experiment=street --workdir=runs/mine data.train=my/photos data.val=my/held_out"),
  "inpaint": (
    "inpaint --images=photo.jpg --masks=hole.png --output=filled.png",
    "inpaint --images=photos --masks=masks --output=filled --num_samples=4 --workdir=runs/mine",
  ),
  "memory": ("memory --images=photo.jpg --masks=hole.png --output=memory",),
  "serve": ("serve", "serve --workdir=runs/mine --host=0.0.0.0 --port=8080"),
  "evaluate": (
    "evaluate --workdir=runs/mine",
    "evaluate --images=truth --inpainted=theirs --masks=masks --output=scores",
  ),
  "export": ("export --workdir=runs/mine --output=exported --weights=float16",),
  "check": ("check --experiment=street data.train=my/photos data.val=my/held_out",),
  "prepare": ("prepare --experiment=paris --output=data/paris_records",),
  "masks": ("masks --experiment=paris --output=masks",),
  "compile": ("compile --experiment=paris --topology v5e:4x4 v6e:2x4",),
  "benchmark": ("benchmark --output=numbers --sizes small base",),
}

_GROUPS = {
  "the run": "mode experiment workdir set platform",
  "several processes": "coordinator num_processes process_id",
  "weights and files": "checkpoint images masks inpainted mask_invert mask_dilate output format weights",
  "the fill": "strategy detail num_samples seed contact_sheet",
  "the server": "host port",
  "the slice": "topology batch_per_chip",
  "the measurement": "sizes batches compare",
}
"""Flags by what they are about, as help shows them."""

_ALL = " ".join(MODES)
_FILLED_FOLDER = ("train", "evaluate", "memory", "masks", "export", "prepare")  # modes whose output cannot be a file
_MASKS = "masks with the same stems, or STEM_mask*, white in the hole"
_WEIGHTED = "evaluate inpaint memory export serve"  # modes that read trained weights
_OF_A_RUN = f"train masks {_WEIGHTED}"


@dataclasses.dataclass(frozen=True)
class Flag:
  """One flag; `parse` gives it the default in the modes that read it, and None in the others."""

  name: str
  modes: str  # that read it
  help: str | Mapping[str, str]  # where it differs, by modes
  metavar: str = ""  # that of the choices where there are any
  needed_by: str = ""  # modes that do not start without it
  type: Callable[..., Any] = str  # bool: it takes no value; local_path: a path, kept as text
  default: Any = None
  choices: Sequence[str] = ()
  least: int = 0  # smallest number
  most: int | None = None  # largest number
  several: bool = False  # takes several values, and may be repeated

  def help_of(self, mode: str | None) -> str:
    """Returns what it does in a mode; None: in general."""
    texts = {self.modes: self.help} if isinstance(self.help, str) else self.help
    return next(text for modes, text in texts.items() if mode is None or mode in modes.split())


FLAGS = (
  Flag(
    "experiment",
    _ALL,
    {
      "train check prepare masks compile benchmark": f"{', '.join(experiments.names())} (default: demo)",
      "evaluate": "instead of --workdir: the run runs/NAME; with --inpainted: its settings for scores",
      "inpaint memory export serve": "instead of --workdir: the weights of runs/NAME",
    },
    "NAME",
    choices=experiments.names(),
  ),
  Flag("platform", _ALL, "back end of JAX", default="auto", choices=backend.PLATFORMS),
  Flag("mode", _ALL, "what to do; the word alone will do, too", default="train", choices=tuple(MODES)),
  Flag(
    "workdir",
    _OF_A_RUN,
    {
      "train": "folder of the run (default: runs/EXPERIMENT)",
      "evaluate": "folder of the run that is scored, needed where no other flag says what is",
      "masks": "folder of the run whose masks are drawn (default: those of the experiment)",
      "inpaint memory export serve": "folder of the run with the weights (default: those that come along)",
    },
    "DIR",
    type=local_path,
  ),
  Flag(
    "set",
    "train evaluate masks check prepare compile benchmark",
    "settings to change, such as memory.num_groups=1; without --set as well",
    "KEY=VALUE",
    several=True,
  ),
  Flag("coordinator", "train", "process 0 of several; auto: as Slurm, Open MPI or Kubernetes tell", "HOST:PORT|auto"),
  Flag("num_processes", "train", "how many processes; a TPU slice needs no such flag", "N", type=int, least=1),
  Flag("process_id", "train", "which of them this is, from 0", "I", type=int),
  Flag("checkpoint", _WEIGHTED, "other weights than the run's: of a run, or exported", "DIR", type=local_path),
  Flag(
    "images",
    "evaluate inpaint memory",
    {
      "inpaint": "photographs to fill",
      "memory": "photographs, to draw what is read for their holes",
      "evaluate": "true pictures, where --inpainted are scored",
    },
    "FILE|DIR",
    needed_by="inpaint",
    type=local_path,
    several=True,
  ),
  Flag("inpainted", "evaluate", "filled pictures with the same stems", "FILE|DIR", type=local_path, several=True),
  Flag(
    "masks",
    "evaluate inpaint memory",
    {
      "inpaint memory": f"{_MASKS} (default: what is transparent)",
      "evaluate": f"{_MASKS} (default: whole pictures are compared)",
    },
    "FILE|DIR",
    type=local_path,
    several=True,
  ),
  Flag("mask_invert", "evaluate inpaint memory", "black is hole instead", type=bool, default=False),
  Flag("mask_dilate", "inpaint", "widen the hole by N pixels", "N", type=int, default=0),
  Flag(
    "output",
    "evaluate inpaint memory masks export prepare compile benchmark",
    {
      "inpaint": "folder for the fills; of one photograph also their file, such as filled.png",
      "evaluate": "folder for the report (default: that of the run)",
      "memory masks export prepare": "folder for the files",
      "compile": "JSON file for the numbers, or its folder (default: they are only printed)",
      "benchmark": "JSON file for the numbers (default: runs/benchmark_PLATFORM.json)",
    },
    "PATH",
    needed_by="inpaint memory masks export prepare",
    type=local_path,
  ),
  Flag("format", "inpaint", "keep: each file's own", default="keep", choices=("keep", "png")),
  Flag("strategy", "inpaint", "how a large photo is seen", default="auto", choices=STRATEGIES),
  Flag("detail", "inpaint", "added detail of the known part: 0, none, to 1", "X", type=float, default=1.0, most=1),
  Flag("num_samples", "inpaint", "fills per photograph", "N", type=int, default=1, least=1),
  Flag("seed", "inpaint", "another one draws other samples 1, 2 ...", "S", type=int, default=0, most=MAX_SEED),
  Flag("contact_sheet", "inpaint", "write STEM_sheet.png also where there is one fill", type=bool, default=False),
  Flag("weights", "export", "type in the file", default="float32", choices=("float32", "float16")),
  Flag("host", "serve", "address to listen on; 0.0.0.0 lets other machines in", "NAME", default="127.0.0.1"),
  Flag("port", "serve", "port to listen on; 0 takes a free one", "N", type=int, default=7860, most=65535),
  Flag("topology", "compile", "TPU slices, such as v5e:4x4 v6e:2x4", "NAME", needed_by="compile", several=True),
  Flag("batch_per_chip", "compile", "instead of run.batch_size, which is for all chips", "N", type=int, least=1),
  Flag("sizes", "benchmark", "of the model (default: what the back end is fit for)", "NAME", several=True),
  Flag("batches", "benchmark", "images at once (default: likewise)", "N", type=int, several=True, least=1),
  Flag("compare", "benchmark", "only print what these files say, side by side", "FILE", type=local_path, several=True),
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  """Reads the mode, the flags and the settings, and fills in the defaults of the mode.

  Raises:
    ConfigError: a flag is unknown, missing, of a wrong value, or not read by the mode.
    SystemExit: help was asked for, and printed.
  """
  try:
    flags, unknown = _parser(FLAGS).parse_known_args(arguments)
  except argparse.ArgumentError as error:  # a value is missing, or is one too many
    (flag,) = (flag for flag in FLAGS if f"--{flag.name}" == error.argument_name)
    rule = "takes no value: write it alone" if flag.type is bool else f"needs a value: {_written(flag)}"
    raise ConfigError(f"--{flag.name} {rule}") from None
  wants_help = {"-h", "--help"} & {*unknown}
  strange = []
  for word in unknown:
    if word in MODES and flags.mode is None:
      flags.mode = word
    elif "=" in word and not word.startswith("-"):
      flags.set = [*(flags.set or []), word]
    else:
      strange.append(word)
  if flags.mode is not None:
    one_of("--mode", flags.mode, tuple(MODES))
  if wants_help:
    print(_help(flags.mode), end="")
    raise SystemExit(0)
  mode = flags.mode = flags.mode or "train"
  if strange:
    _refuse(strange[0], mode, first=strange[0] == arguments[0])
  for flag in FLAGS:
    value = getattr(flags, flag.name)
    if mode not in flag.modes.split():
      readers = " or ".join(flag.modes.split())
      named = f"the setting {value[0]}" if value and flag.name == "set" else f"--{flag.name}"
      require(value is None, f"{named} is not read by --mode={mode}: remove it, or use --mode={readers}")
    elif value is None:
      needed = f"--mode={mode} needs --{flag.name} ({flag.help_of(mode)}), as in: {_program()} {_EXAMPLES[mode][0]}"
      require(mode not in flag.needed_by.split(), needed)
      setattr(flags, flag.name, flag.default)
    elif flag.type is local_path:
      paths = [str(local_path(text, f"--{flag.name}")) for text in (value if flag.several else [value])]
      setattr(flags, flag.name, paths if flag.several else paths[0])
    else:
      read = [_read(flag, text) for text in (value if flag.several else [value])]
      setattr(flags, flag.name, read if flag.several else read[0])
  name, output = ("workdir", workdir(flags)) if mode == "train" else ("output", flags.output)
  if output is not None:
    _check_output(mode, f"--{name}", Path(output))
  return flags


def _refuse(word: str, mode: str, *, first: bool) -> NoReturn:
  """Raises ConfigError for a word that is neither a flag, nor its value, nor a mode, nor a setting."""
  name, settings = word.partition("=")[0], tuple(overrides.settings())
  bare = name.lstrip("-")
  if bare in settings:
    raise ConfigError(f"{bare} is a setting, no flag: write {bare}=VALUE, without dashes and without spaces")
  if word.startswith("-"):
    readable = [flag for flag in FLAGS if mode in flag.modes.split()]
    alike = [key for key in settings if "." in bare or key.rpartition(".")[2] == bare.replace("-", "_")]
    hint = suggest(bare.replace("-", "_"), alike) if any(flag.name == "set" for flag in readable) else ""
    hint = f"{hint}settings have no dashes; " if hint else suggest(name, [f"--{flag.name}" for flag in readable])
    raise ConfigError(f"unknown flag {name!r}: {hint}see {mode} --help")
  if first:
    one_of("the mode", word, tuple(MODES))
  raise ConfigError(
    f"{word!r} belongs to no flag: most take one value, so quote what has spaces or a * in it, and write "
    "SETTING=VALUE without spaces; see --help"
  )


def _check_output(mode: str, name: str, output: Path) -> None:
  require(
    mode not in _FILLED_FOLDER or output.is_dir() or not os.path.lexists(output),
    f"{name}={output} is a file: name a folder",
  )
  if not (mode in ("train", "prepare") and output.is_dir()):  # a finished one may be read-only
    check_output(output, name)


def _read(flag: Flag, text: Any) -> Any:
  """The value that a text stands for. Raises ConfigError where the flag does not take it."""
  if flag.choices:
    one_of(f"--{flag.name}", text, flag.choices)
  if flag.type not in (int, float):
    return text
  try:
    value = flag.type(text)
  except ValueError:
    value = None
  check_number(f"--{flag.name}={text}", value, flag.type, flag.least, flag.most)
  return value


def _written(flag: Flag) -> str:
  """Returns the flag as it is written, with what stands for its value."""
  return f"--{flag.name}{' ' if flag.several else '='}{flag.metavar or '|'.join(flag.choices)}"


def _parser(flags: Sequence[Flag], mode: str | None = None, **texts: Any) -> argparse.ArgumentParser:
  """The parser of these flags, in their groups. Every value is a text, and None where the flag was not given."""
  layout = argparse.RawDescriptionHelpFormatter
  parser = argparse.ArgumentParser(
    allow_abbrev=False, add_help=False, exit_on_error=False, formatter_class=layout, **texts
  )
  for title, names in _GROUPS.items():
    members = [flag for flag in flags if flag.name in names.split()]
    if not members:
      continue
    group = parser.add_argument_group(title)
    for flag in members:
      default = "" if flag.default is None or flag.type is bool else f" (default: {flag.default})"
      options: dict[str, Any] = {"action": "store_true", "default": None}
      if flag.type is not bool:
        options = {"metavar": flag.metavar or "|".join(flag.choices)}
        options |= {"nargs": "+", "action": "extend"} if flag.several else {}
      group.add_argument(f"--{flag.name}", help=flag.help_of(mode) + default, **options)
  return parser


def _program() -> str:
  return "gmsrm" if Path(sys.argv[0]).stem == "gmsrm" else "python run.py"


def _help(mode: str | None) -> str:
  """Returns what the program can do; or what a mode does, with its flags."""
  program = _program()
  shown = _EXAMPLES[mode] if mode else [_EXAMPLES[name][-1] for name in ("train", "inpaint", "serve")]
  examples = "\n".join(["examples:", *(f"  {program} {example}" for example in shown)])
  if mode:
    flags = [flag for flag in FLAGS if mode in flag.modes.split() and flag.name != "mode"]
    settings = " [SETTING=VALUE ...]" if any(flag.name == "set" for flag in flags) else ""
    texts = {"description": f"{mode}: {MODES[mode]}.", "usage": f"{program} {mode} [--FLAG=VALUE ...]{settings}"}
    return _parser(flags, mode, epilog=examples, **texts).format_help()
  modes = "\n".join(f"  {name:10} {does}" for name, does in MODES.items())
  description = f"GM-SRM fills holes in photographs with a generative memory. Modes:\n\n{modes}\n\n{examples}"
  epilog = f"{program} MODE --help lists the flags of a mode, docs/settings.md all settings."
  flags = [flag for flag in FLAGS if flag.modes == _ALL and flag.name != "mode"]
  usage = f"{program} [MODE, or train] [--FLAG=VALUE ...] [SETTING=VALUE ...]"
  return _parser(flags, usage=usage, description=description, epilog=epilog).format_help()


def configuration(flags: argparse.Namespace) -> Config:
  """The settings of the experiment, those of --set applied."""
  return overrides.override(experiments.load(flags.experiment or "demo"), flags.set or [])


def workdir(flags: argparse.Namespace) -> str:
  """The folder of the run."""
  return flags.workdir or f"runs/{flags.experiment or 'demo'}"


def trained(flags: argparse.Namespace) -> str:
  """The folder of the weights; where no flag names any, that of those that come with the code."""
  return flags.checkpoint or (workdir(flags) if flags.workdir or flags.experiment else str(SHIPPED))
