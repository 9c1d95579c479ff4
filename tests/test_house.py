"""The rules of the house, read from the source itself."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import pathlib
import re
import subprocess
import sys
import typing

import pytest

import run
from gmsrm_jax import config as config_lib
from gmsrm_jax import settings

ROOT = pathlib.Path(run.__file__).parent
PACKAGE = ROOT / "gmsrm_jax"

# Imports point from a higher layer to the same or a lower one; a module that is not named here is a mode.
LAYERS = (
  ("arrays", "config", "settings"),
  (
    *("models", "data", "losses", "variation", "metrics", "features", "protocols", "distribution", "bootstrap"),
    *("optim", "sharding", "writer", "platform", "windows", "photos", "pairs", "provenance", "published"),
    *("stopping", "profiling", "chips", "hlo", "roofline", "topology", "flops", "timing"),
  ),
  ("state", "checkpoint", "accumulation", "distributed"),
  ("steps",),
)
MODE = len(LAYERS)


def sources(folder: pathlib.Path) -> dict[str, ast.Module]:
  """Dotted module name to its syntax tree."""
  found = {}
  for path in sorted(folder.rglob("*.py")):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
  return found


MODULES = sources(PACKAGE)


def imports(tree: ast.Module) -> set[str]:
  """Everything a module imports, as dotted names; `from a import b` counts as a.b."""
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"relative import in line {node.lineno}"
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def packages(tree: ast.Module) -> set[str]:
  return {name.partition(".")[0] for name in imports(tree)}


def inner_imports(tree: ast.Module, modules: typing.Collection[str]) -> set[str]:
  """The modules of the package that a module imports."""
  found = set()
  for name in imports(tree):
    while name and name not in modules:
      name = name.rpartition(".")[0]
    if name and name != "gmsrm_jax":
      found.add(name)
  return found


def layer(module: str) -> int:
  part = module.split(".")[1]
  return next((index for index, names in enumerate(LAYERS) if part in names), MODE)


def upward_imports(modules: dict[str, ast.Module]) -> list[str]:
  return [
    f"{module} imports {other}"
    for module, tree in modules.items()
    if module != "gmsrm_jax"
    for other in inner_imports(tree, modules)
    if layer(other) > layer(module)
  ]


def test_imports_point_down():
  assert upward_imports(MODULES) == []


def test_an_upward_import_would_be_seen():
  modules = {**MODULES, "gmsrm_jax.models.bad": ast.parse("def f():\n  from gmsrm_jax import steps")}
  assert upward_imports(modules) == ["gmsrm_jax.models.bad imports gmsrm_jax.steps"]


def test_no_two_modules_import_each_other():
  graph = {module: inner_imports(tree, MODULES) - {module} for module, tree in MODULES.items()}
  tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
  ("package", "homes"),
  [
    ("orbax", ("checkpoint",)),
    ("grain", ("data", "checkpoint")),
    ("tensorboardX", ("writer",)),
    ("tensorflow", ()),
    ("torch", ()),
  ],
)
def test_a_package_is_known_in_its_home_only(package, homes):
  strangers = [name for name, tree in MODULES.items() if package in packages(tree)]
  assert [name for name in strangers if name.split(".")[1] not in homes] == []


def identifiers(tree: ast.Module) -> set[str]:
  names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
  return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_only_sharding_builds_a_partition_spec():
  users = {
    name
    for name, tree in MODULES.items()
    if "PartitionSpec" in identifiers(tree) | {found.rpartition(".")[2] for found in imports(tree)}
  }
  assert users <= {"gmsrm_jax.sharding"}


def test_only_modes_call_jit():
  callers = {
    name
    for name, tree in MODULES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit")
  }
  assert [name for name in callers if layer(name) < MODE] == []


def test_experiments_import_the_settings_alone():
  for name, tree in sources(ROOT / "experiments").items():
    assert {found for found in packages(tree) if found not in sys.stdlib_module_names} <= {"gmsrm_jax"}, name
    assert inner_imports(tree, MODULES) <= {"gmsrm_jax.config"}, name


def test_run_imports_no_mode_before_the_back_end_is_chosen():
  tree = ast.parse((ROOT / "run.py").read_text(encoding="utf-8"))
  top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
  light = {"config", "platform", "provenance", "settings"}
  assert inner_imports(top, MODULES) == {f"gmsrm_jax.{name}" for name in light}


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_documented(name):
  tree = MODULES[name]
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
  assert [node.name for node in public if not ast.get_docstring(node)] == []
  assert ast.get_docstring(tree) or not tree.body, f"{name} has no docstring"


SETTINGS = sorted(settings.setting_types())


def test_every_setting_says_what_it_means():
  text = (PACKAGE / "config.py").read_text(encoding="utf-8").splitlines()
  fields = {}
  for node in MODULES["gmsrm_jax.config"].body:
    if isinstance(node, ast.ClassDef):
      for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
          fields[node.name, item.target.id] = text[item.lineno - 1]
  sections = {field.name for field in dataclasses.fields(config_lib.Config)} - {"name"}
  bare = [key for key, line in fields.items() if "  # " not in line and key[1] not in sections]
  assert bare == []


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_read(setting):
  # A weight of a mask or of a loss may be looked up by its name; everything else is read as an attribute.
  section, _, name = setting.rpartition(".")
  readers = [tree for module, tree in MODULES.items() if module != "gmsrm_jax.config"]
  if section == "mask" and name in config_lib.MASK_KINDS:
    name = "weights"  # the property that hands them out
  read = any(
    (isinstance(node, ast.Attribute) and node.attr == name)
    or (section == "loss" and isinstance(node, ast.Constant) and node.value == name)
    for tree in readers
    for node in ast.walk(tree)
  )
  assert read, f"nothing reads {setting}: use it or delete it"


def tracked() -> list[pathlib.Path]:
  """The files of the checkout, or of the folder where there is no git."""
  listed = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=False
  )
  if listed.returncode == 0:
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
  else:
    paths = [path for path in ROOT.rglob("*") if not {".git", "__pycache__", "runs"} & set(path.parts)]
  return [path for path in paths if path.is_file()]


def test_no_file_names_a_folder_of_one_machine():
  pattern = re.compile(rb"(?<![\w.~*<>-])/(home|root|Users|work|scratch|workspace)/")
  assert [str(path.relative_to(ROOT)) for path in tracked() if pattern.search(path.read_bytes())] == []


def test_requirements_give_lower_bounds_only():
  lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
  assert [line for line in lines if not re.fullmatch(r"[A-Za-z][\w-]*>=\d[\d.]*", line)] == []
