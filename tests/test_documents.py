"""Documents: the program takes their commands, the quick ones run as written, and every link leads somewhere."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import nbformat
import pytest

from gmsrm_jax import experiments, overrides
from gmsrm_jax.commands import flags as flag_table

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("gmsrm_jax/pretrained/*/README.md")])


def blocks(page: pathlib.Path, language: str) -> list[str]:
  """The fenced blocks of a page in one language."""
  return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: pathlib.Path) -> list[list[str]]:
  """Every command of a page as words, without comments, placeholders and what is piped, chained or substituted."""
  found = []
  for block in blocks(page, "sh"):
    for line in block.replace("\\\n", " ").splitlines():
      words: list[str] = []
      for word in [*shlex.split(line.replace("|", " | "), comments=True), "&&"]:
        if word in ("&&", "|", "&", "||") or word.endswith(";"):
          found.append(words)
          words = []
        elif word != "...":
          words.append(word)
  return [words for words in found if words]


PROGRAM = [
  pytest.param(words[words.index("run.py") + 1 :], id=f"{page.stem}-{index}")
  for page in PAGES
  for index, words in enumerate(commands(page))
  if "run.py" in words
]
SHELL = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("arguments", PROGRAM)
def test_the_program_takes_the_flags_and_settings_of_every_command(arguments):
  if "--help" in arguments:
    return
  # "[--flag VALUE]" is optional, and "a|b" a choice.
  arguments = [word.strip("[]").partition("|")[0] for word in arguments]
  flags = flag_table.parse(arguments)
  overrides.override(experiments.load(flags.experiment or "demo"), flags.set or [])


def test_there_are_commands_to_check():
  assert len(PROGRAM) > 30 and any("--mode=serve" in parameter.values[0] for parameter in PROGRAM)


def test_benchmarks_scripts_and_tests_that_a_page_names_are_there_and_take_its_flags():
  for page, words in SHELL:
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
      source = ROOT / (words[2].replace(".", "/") + ".py")
      assert source.is_file(), f"{page.name}: {words[2]}"
      for word in words[3:]:
        name = word.partition("=")[0].strip("[]")
        assert not name.startswith("--") or f'"{name}"' in source.read_text(encoding="utf-8"), f"{page.name}: {word}"
    for word in words:
      if re.match(r"(scripts|tests|\.ci|benchmarks|docs)/", word):
        assert (ROOT / word).exists(), f"{page.name}: {word}"


def anchors(page: pathlib.Path) -> set[str]:
  """The targets of `#...` on a page: its headings, as a browser of the repository writes them."""
  headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_and_a_heading(page):
  for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
    if "://" in target:
      continue
    file = (page.parent / target).resolve() if target else page
    assert file.exists(), target
    assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_the_readme_is_one_screen_and_a_few():
  assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
  """A fresh copy of what is tracked."""
  folder = tmp_path_factory.mktemp("clone") / "gmsrm"
  subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
  return folder


def run(folder: pathlib.Path, *words: str) -> str:
  # Compiled once, and quickly: the pixels are not looked at.
  quick = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  quick |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  # The python of these tests, where a command is named without a folder.
  environment = os.environ | quick | {"PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
  words = (shutil.which(words[0], path=environment["PATH"]) or words[0], *words[1:])
  done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def test_the_first_commands_of_the_readme_run_as_written(clone):
  fill = next(words for words in commands(ROOT / "README.md") if "inpaint" in words)
  assert "side by side: filled_sheet.png" in run(clone, sys.executable, *fill[1:])
  (clone / "filled.py").write_text(blocks(ROOT / "README.md", "python")[0], encoding="utf-8")
  run(clone, sys.executable, "filled.py")
  assert (clone / "filled_sheet.png").is_file() and (clone / "filled.png").is_file()


NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def cells_of(notebook: pathlib.Path) -> list:
  return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


def test_the_notebook_was_run_from_its_first_cell_to_its_last():
  cells = cells_of(NOTEBOOK)
  assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
  assert not re.search(r"/(home|root|tmp|Users)/", NOTEBOOK.read_text(encoding="utf-8"))


def test_the_notebook_runs(clone):
  steps = "memory_steps, inpaint_steps, tuning_steps = "
  notebook = clone / "docs" / "quickstart.ipynb"
  written = notebook.read_text(encoding="utf-8")
  short, count = re.subn(steps + r"\d+, \d+, \d+", steps + "2, 2, 2", written)
  short, runs = re.subn(r"(run\.py --workdir=\S+)", r"\1 eval.max_images=2 eval.baselines=", short)
  assert (count, runs) == (1, 2)
  notebook.write_text(short, encoding="utf-8")
  run(clone, "jupyter-execute", "--inplace", str(notebook))
  pictures = [output for cell in cells_of(notebook) for output in cell.outputs if "image/png" in output.get("data", {})]
  assert len(pictures) == 4
  for name in ("demo", "tuned"):
    assert json.loads((clone / "runs" / "notebook" / name / "report.json").read_text(encoding="utf-8"))["step"] == 2
