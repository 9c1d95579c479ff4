"""Anybody's results as files: truth, filled pictures and holes, paired by stem, scored without any model.

Pictures are read upright, as 8-bit RGB: of 16 bits per channel the nearest of 256 levels is taken, and what is
transparent is laid on white, in truth and result alike. The report counts such files.
"""

from __future__ import annotations

import collections
import hashlib
import logging
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from gmsrm_jax.config import EvalConfig, names_in
from gmsrm_jax.data import pictures
from gmsrm_jax.data.masks import hole_files
from gmsrm_jax.errors import require
from gmsrm_jax.evaluation import judge
from gmsrm_jax.evaluation.protocols import PROTOCOLS
from gmsrm_jax.evaluation.scorer import Judged, Picture
from gmsrm_jax.files import printable
from gmsrm_jax.inference import file_pairs

LARGE = 512 * 512
"""Pixels beyond which a network or an equation takes seconds for a picture: see `eval.costly`."""

_BARELY = 4_000_000  # pixels of all pictures that are judged sooner than other processes have started
_OWN_CANVASES = 4  # sizes of pictures that may have programs of their own

_log = logging.getLogger(__name__)


class FolderPictures:
  """Filled pictures in a folder beside the truth in another; to be scored.

  Without masks all pictures are in the one bucket 'all'. Headers are read at once, so that sizes that differ are
  refused before anything is scored; the files themselves once, in the order of their stems.

  Raises:
    ConfigError: a folder is missing or empty, sizes differ, or nothing can be paired.
  """

  def __init__(
    self,
    images: Sequence[str],
    inpainted: Sequence[str],
    masks: Sequence[str] | None,
    *,
    invert: bool = False,
    settings: EvalConfig | None = None,
  ):
    settings = settings or EvalConfig()
    self._images, self._inpainted = file_pairs.shown(images), file_pairs.shown(inpainted)
    self._masks, self._invert = file_pairs.shown(masks) if masks else None, invert
    self.method = (len(inpainted) == 1 and pathlib.Path(inpainted[0]).name) or "inpainted"
    self._notes: list[str] = []
    self._kinds: dict[str, set[pathlib.Path]] = collections.defaultdict(set)
    self._digests: dict[str, tuple[bytes, bytes]] = {}
    truths, holes = file_pairs.find_files(images, masks, inpainted)
    truths = {stem: truths[stem] for stem in sorted(truths)[: settings.max_images or None]}
    found = file_pairs.list_files("--inpainted", inpainted, filter(os.path.isdir, [*images, *(masks or ())]))
    results = file_pairs.by_stem("--inpainted", found)
    pairs = [file_pairs.Pair(truth, None, truth.stem) for truth in truths.values()]
    without_mask: list[str] = []
    if holes is not None:
      pairs, without_mask = file_pairs.pair(truths, holes)
    self._files: dict[str, tuple[pathlib.Path, pathlib.Path, pathlib.Path | None]] = {}
    without_result = []
    for pair in pairs:
      result = file_pairs.result_of(pair, results)
      if result is None:
        without_result.append(pair.stem)
      else:
        self._files[pair.stem] = (pair.image, result, pair.mask)
    self._leave_out(without_result, f"no picture of that name in --inpainted={self._inpainted}")
    self._leave_out(without_mask, f"no mask of that name in --masks={self._masks}")
    require(
      bool(self._files),
      f"no picture of --inpainted={self._inpainted} has the name of one in --images={self._images}"
      f"{f' and in --masks={self._masks}' if masks else ''}, so nothing can be scored: name results like their truth",
    )
    self._sizes = {stem: _common_size(*files) for stem, files in self._files.items()}
    self.least_size = min(self._sizes.values(), key=min)  # height, width
    self._choose_work(settings)

  def _choose_work(self, settings: EvalConfig) -> None:
    """Decides what is too costly for such pictures, and how they are laid out for networks."""
    areas = {stem: math.prod(size) for stem, size in self._sizes.items()}
    large = sum(area > LARGE for area in areas.values())
    self.is_whole = settings.costly == "always" or (settings.costly == "auto" and not large)
    self.protocol, names = PROTOCOLS[settings.protocol], settings.baselines if self._masks else ""
    if not self.is_whole:
      self.protocol, side = self.protocol.without_vgg16(), math.isqrt(LARGE)
      names = ",".join(name for name in names_in(names) if name != "biharmonic")
      why = f"{large} of {len(areas)} pictures have more than {side}x{side} pixels" if large else "eval.costly=never"
      self._note(
        f"{why}: LPIPS is that of copies of {side}x{side} pixels at most; LPIPS on VGG16, its distances and the "
        "biharmonic fill are left out; eval.costly=always has all of it, and takes many times as long"
      )
    self.baselines = names
    seen = {stem: judge.reduced(size, math.inf if self.is_whole else LARGE) for stem, size in self._sizes.items()}
    own = len({*seen.values()}) <= _OWN_CANVASES
    canvases = {stem: size if own else judge.canvas_of(size) for stem, size in seen.items()}
    tasks = {
      stem: judge.Task(stem, *files, self.method, self._invert, names, settings.protocol, seen[stem], canvases[stem])
      for stem, files in self._files.items()
    }
    # The largest first, so that no process is left with one at the end; those of one canvas together.
    self._tasks = dict(sorted(tasks.items(), key=lambda item: (canvases[item[0]], areas[item[0]]), reverse=True))
    self.processes = min(len(tasks), os.cpu_count() or 1) if sum(areas.values()) > _BARELY else 1

  def _leave_out(self, stems: Sequence[str], why: str) -> None:
    if stems:
      shown = ", ".join(map(printable, stems[:5])) + (", …" if len(stems) > 5 else "")
      self._note(f"{len(stems)} not scored, {why}: {shown}")

  def _note(self, note: str) -> None:
    self._notes.append(note)
    _log.warning("%s", note)

  def files(self) -> list[pathlib.Path]:
    """All that is read."""
    return [path for files in self._files.values() for path in files if path is not None]

  def __len__(self) -> int:
    return len(self._files)

  def __iter__(self) -> Iterator[Judged]:
    without_hole, large = [], 0
    for judged in judge.in_processes(judge.judge, self._tasks.values(), self.processes):
      self._digests[judged.name] = judged.digests
      for kind, files in judged.kinds.items():
        self._kinds[kind].update(files)
      large += judged.share > hole_files.LARGE
      if judged.methods:
        yield judged
      else:
        without_hole.append(judged.name)
    white = f"white is hole, above {hole_files.THRESHOLD} of 255"
    self._leave_out(sorted(without_hole), f"a mask without a hole ({white})")
    scored = len(self._files) - len(without_hole)
    require(scored > 0, f"no mask of --masks={self._masks} has a hole ({white}): see --mask_invert")
    if self._masks and large > scored / 2:
      share = f"more than {hole_files.LARGE:.0%} of the picture"
      self._note(f"{large} of {scored} masks make {share} hole: are they inverted? {white}; see --mask_invert")

  def read_again(self, bucket: str, name: str) -> Picture:
    """Reads one picture and its hole again, for the pictures of the report."""
    return judge.read(self._tasks[name])[0]

  def describe(self) -> dict[str, Any]:
    """The head of a report, with the hashes of pictures and masks; whole after the iteration."""
    notes = [*self._notes, *(f"{len(files)} files {kind}" for kind, files in self._kinds.items())]
    digest, masks_digest = hashlib.sha256(), hashlib.sha256()
    for stem in self._files:
      of_result, of_mask = self._digests[stem]
      digest.update(stem.encode("utf-8", "surrogateescape") + b"\0" + of_result)
      masks_digest.update(of_mask)
    return {
      "title": f"{self._inpainted} against {self._images}",
      "notes": notes,
      "protocol": {
        "truth": self._images,
        "inpainted": self._inpainted,
        "inpainted_sha256": digest.hexdigest(),
        "masks": self._masks,
        "masks_sha256": masks_digest.hexdigest() if self._masks else None,
        "composite": self._masks is not None,
      },
    }


def _common_size(truth: pathlib.Path, *others: pathlib.Path | None) -> tuple[int, int]:
  size = _size(truth)
  for path in filter(None, others):
    other = _size(path)
    require(
      other == size,
      f"{path} is {other[1]}x{other[0]} but {truth} is {size[1]}x{size[0]}: a result and its mask must be as large as "
      "the truth; make all of one size",
    )
  return size


def _size(path: pathlib.Path) -> tuple[int, int]:
  """Height and width, upright, from the file's header."""
  with pictures.open_picture(path) as file:
    return pictures.upright_size(file)
