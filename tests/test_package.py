"""The files that `pip install .` installs, and that the image copies."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import run

ROOT = pathlib.Path(run.__file__).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
  """A folder with the files of the wheel."""
  folder = tmp_path_factory.mktemp("wheel")
  # Building leaves folders behind, so a copy is built.
  shutil.copytree(
    ROOT / "gmsrm_jax", folder / "source/gmsrm_jax", symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
  )
  for name in ("experiments", "tests", "benchmarks", "scripts"):
    shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "requirements.txt", "README.md", "run.py"):
    shutil.copy(ROOT / name, folder / "source")
  command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
  subprocess.run([*command, f"--wheel-dir={folder}", str(folder / "source")], check=True)
  (wheel,) = folder.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / "installed")
  return folder / "installed"


def test_only_the_package_is_installed_with_all_that_it_reads(installed):
  package, described = sorted(installed.iterdir())
  assert package.name == "gmsrm_jax" and described.name.endswith(".dist-info")
  ours = [path for path in (ROOT / "gmsrm_jax").rglob("*") if path.is_file() and path.suffix != ".pyc"]
  files = {path.relative_to(ROOT / "gmsrm_jax") for path in ours}
  files |= {pathlib.Path("experiments", path.name) for path in (ROOT / "experiments").glob("*.py")}
  assert {path.relative_to(package) for path in package.rglob("*") if path.is_file()} == files
  for name in ("experiments/paris.py", "pretrained/street/weights.safetensors", "serving/page/index.html"):
    assert (package / name).read_bytes() == (ROOT / "gmsrm_jax" / name).read_bytes()


def test_the_command_is_the_program_of_run_py(installed):
  (entry,) = (next(installed.glob("*.dist-info")) / "entry_points.txt").read_text().split("\n\n")
  assert entry.split() == ["[console_scripts]", "gmsrm", "=", "gmsrm_jax.commands:main"]
  start = "import sys; sys.argv[0] = 'gmsrm'; from gmsrm_jax.commands import main; sys.exit(main())"
  command = [sys.executable, "-c", start, "--help"]
  done = subprocess.run(command, cwd=installed, capture_output=True, text=True, check=True)
  assert done.stdout.startswith("usage: gmsrm") and "places2" in done.stdout


def test_the_experiments_of_the_package_are_the_files_that_a_user_edits():
  for path in (ROOT / "experiments").glob("*.py"):
    assert (ROOT / "gmsrm_jax" / "experiments" / path.name).samefile(path)


def test_the_image_copies_what_is_there():
  dockerfile, ignored = ((ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", ".dockerignore"))
  copied = {name for line in dockerfile.splitlines() if line.startswith("COPY ") for name in line.split()[1:-1]}
  kept = {line.removeprefix("!") for line in ignored.splitlines()}
  assert {name for name in copied if not (ROOT / name).exists() or name.split("/")[0] not in kept} == set()
