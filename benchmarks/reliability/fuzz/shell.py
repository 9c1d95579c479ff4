"""`run.py --mode=inpaint` on generated folders: what it prints, what it writes, and what it leaves alone."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import re
import traceback
from collections.abc import Callable
from unittest import mock

from benchmarks.reliability.fuzz.by_hand import Made, Random, choice, maybe
from benchmarks.reliability.fuzz.pairs import (
  BATCH,
  Fault,
  Pair,
  captured,
  dropped,
  judge,
  kind_of,
  last_line,
  noise,
  pair,
)
from gmsrm_jax import commands
from gmsrm_jax.inference.inpainter import Inpainter

_NAMES = (
  "a/A/a_0/a_1/a_mask/a_sheet/a.b.c/IMG 0001/photo (1)/-dash/--images=x/quote'\"/new\nline/tab\t/percent%20s %d {x}/"
  "日本語/🌄/ﷺ/\u202egpj/\udcff\udcfe/CON/.hidden/trailing /star*?[a]/~/$HOME/back\\slash/a;b&c|d/semi:colon/"
  "é/e\u0301/n\u0303"
)
STEMS = (*_NAMES.split("/"), "x" * 251, "x" * 247, "ü" * 120)


def stems(rng: Random, count: int) -> list[str]:
  """File names without suffix, most of them plain, some that have troubled programs; a few twice."""
  names = [choice(rng, *STEMS) if maybe(rng, 0.25) else f"p{index}" for index in range(count)]
  return names if maybe(rng, 0.08) else list(dict.fromkeys(names))


def put(folder: pathlib.Path, stem: str, file: Made) -> pathlib.Path | None:
  """Writes a file unless there is one or its name is too long."""
  path = folder / (stem + file.suffix)
  folder.mkdir(parents=True, exist_ok=True)
  if len(os.fsencode(path.name)) > 255 or path.exists():
    return None
  path.write_bytes(file.data)
  return path


def digests(folder: pathlib.Path) -> dict[str, str]:
  """Every file below a folder, with its hash."""
  files = [pathlib.Path(here, name) for here, _, names in os.walk(folder) for name in names]
  return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@dataclasses.dataclass(frozen=True)
class Command:
  """A command line on files that were written for it."""

  arguments: list[str]
  pairs: dict[pathlib.Path, Pair]
  output: pathlib.Path
  samples: int
  own: bool  # the hole is the picture's own transparency
  grown: bool  # the hole is widened


def command(rng: Random, root: pathlib.Path) -> Command:
  """Writes pictures and masks in one of the ways in which people lay them out, and names them to the program."""
  images, masks, output, pairs = root / "images", root / "masks", root / "out", {}
  invert, grown, samples = maybe(rng, 0.1), maybe(rng, 0.1), choice(rng, 1, 1, 1, 1, 2)
  own = not invert and maybe(rng, 0.1)
  layout = choice(rng, "two", "two", "two", "two", "one", "single", "single", "inside")
  own = own and layout != "one"  # there the masks would be pictures
  for stem in stems(rng, 1 if layout == "single" else BATCH):
    one = pair(rng, invert)
    picture = put(images / choice(rng, "", "", "", "below"), stem, one.picture)
    if picture:
      pairs[picture] = one
      beside = f"{stem}_mask{choice(rng, '', '001')}"
      put(*((images, beside) if layout == "one" else (masks, stem)), one.mask)
  first = next(iter(pairs), images)
  if layout == "inside":
    output = choice(rng, images, masks, first, first / "x", root / "none" / "deep")
  elif layout == "single" and maybe(rng):
    output = output / choice(rng, first.name, "x.png", "x.jpg")
  mask = next(masks.iterdir(), masks) if layout == "single" and masks.exists() else masks
  arguments = [f"--images={first if layout == 'single' else images}", f"--output={output}"]
  arguments += [f"--masks={images if layout == 'one' else mask}"] * (not own)
  arguments += ["--mask_invert"] * invert + ["--mask_dilate=2"] * grown + [f"--num_samples={samples}"] * (samples > 1)
  arguments += ["--format=png"] * maybe(rng, 0.2) + ["--contact_sheet"] * maybe(rng, 0.15)
  rare = ("--seed=3", f"--seed={2**32}", f"--seed={10**20}", "--seed=x", "--strategy=resize", "--strategy=full")
  arguments += [choice(rng, *rare)] * maybe(rng, 0.1)
  return Command(["--mode=inpaint", *arguments], pairs, output, samples, own, grown)


def shell(rng: Random, number: int, inpainter: Inpainter, root: pathlib.Path) -> tuple[list[Fault], int, int]:
  """Runs one command; returns faults, and how many pictures were given and filled."""
  given, here, faults = command(rng, root), root / "here", []
  here.mkdir()
  before, trace = digests(root), ""
  with captured(root.parent) as texts, contextlib.chdir(here):
    try:
      with mock.patch.object(Inpainter, "from_checkpoint", lambda *_: inpainter):
        code = commands.main(given.arguments)
    except BaseException:  # noqa: BLE001 - what the user would see
      code, trace = 2, traceback.format_exc()
  after, err = digests(root), texts["err"]

  def add(what: str, detail: str = "") -> None:
    texts_now = f"stderr: {err[-1500:]}\nstdout: {texts['out'][-300:]}"
    faults.append(Fault(number, "shell", what, f"{detail}\n{' '.join(given.arguments)}\n{texts_now}"))

  if trace:
    add(last_line(trace), trace)
  elif code not in (0, 2):
    add(f"exit code {code}")
  elif code == 2 and [line.startswith("error: ") for line in err.splitlines()].count(True) != 1:
    add("a refusal that is not one line")
  if not trace and (heard := noise(err)):
    add(heard)
  if lost := [path for path, digest in before.items() if after.get(path) != digest]:
    add("an input was lost or overwritten", str(lost))
  new = {pathlib.Path(path) for path in after if path not in before}
  numbered = given.output.with_suffix("")  # x.png is x_0.png and x_1.png where there are several
  inside = {path for path in new if given.output in (path, *path.parents) or str(path).startswith(f"{numbered}_")}
  if new - inside:
    add("a file was written elsewhere", str(new - inside))
  left_out = sum(int(count) for count in re.findall(r"images\S*: left out (\d+) files", err))  # and said so
  seen = [path for path in given.pairs if len(given.pairs) == 1 or not path.name.startswith(".")]  # as `ls` has it
  has_sheet = given.samples > 1 or "--contact_sheet" in given.arguments
  expected = (len(seen) - left_out) * (given.samples + has_sheet)
  if code == 0 and len(inside) != expected:
    what = "few" if len(inside) < expected else "many"
    add(f"exit code 0 with too {what} outputs", f"{len(inside)} of {expected}: {sorted(inside)}")
  return faults, len(given.pairs), outputs(given, inside, err, add)


def outputs(given: Command, files: set[pathlib.Path], err: str, add: Callable[[str, str], None]) -> int:
  """Compares every file that was written with the picture that it is of; returns how many are of one."""
  count, by_stem = 0, collections.defaultdict(list)
  for path in given.pairs:
    by_stem[path.stem].append(path)
  for path in sorted(files):
    if path.stem.endswith("_sheet") and path.stem not in by_stem:
      continue
    stem = path.stem if given.samples == 1 else path.stem.rpartition("_")[0]
    origins = by_stem.get(stem) or by_stem.get(re.sub(r"_mask(001)?$", "", stem)) or []
    origins = list(given.pairs) if len(given.pairs) == 1 else origins
    if not origins:
      add("an output that is of no input", repr(path.name))
      continue
    wrongs = []
    for origin in origins:
      one, data = given.pairs[origin], path.read_bytes()
      wrong = judge(one, data, given.grown, given.own) or dropped(one.picture.data, data, origin.name in err)
      wrongs.append((wrong, f"{origin.name!r}: {one.picture.kind}, {one.mask.kind}: {wrong}"))
    if min(wrongs)[0]:
      add(kind_of(min(wrongs)[0]), min(wrongs)[1])
    count += 1
  return count
