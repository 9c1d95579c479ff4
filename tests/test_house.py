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
from gmsrm_jax import overrides
from scripts import settings_page

ROOT = pathlib.Path(run.__file__).parent
PACKAGE = ROOT / "gmsrm_jax"

# The floors from the ground up, each with its rooms, each with its files. A room imports itself and the floors below
# it, never a room beside or above it. Whoever adds a file writes it down here, so that it has a place.
GROUND = "ground"
FLOORS: tuple[dict[str, str], ...] = (
  {GROUND: "__init__ arrays config errors files overrides panels"},
  {
    "models": "__init__ blocks codebook context decoder discriminator encoder generator inpainter memory retrieval",
    "pretrained": "__init__ inception lpips vgg16 weight_files",
    "parallel": "__init__ backend fixed_batches preemption processes sharding",
    "data": "__init__ augment datasets pictures pipeline prepare records sources workers masks.__init__ masks.draw"
    " masks.fixed masks.hole_files masks.shapes masks.strokes",
    "experiments": "__init__ celebahq demo faces paris places2 street",
  },
  {
    "training": "__init__ checkpoint finetune logger loop losses microbatch optimiser profiling run_folder sample_grids"
    " state steps variation weights",
  },
  {"inference": "__init__ file_pairs inpainter photos tiling"},
  {
    "evaluation": "__init__ baselines bootstrap distances distribution from_files held_out instruments metrics"
    " picture_page protocols report scorer summary",
    "serving": "__init__ requests server",
    "hardware": "__init__ benchmark compare machine measure tpu.__init__ tpu.collectives tpu.compile tpu.roofline"
    " tpu.topologies",
  },
  {"commands": "__init__ benchmark check compile evaluate export flags inpaint masks prepare serve train"},
)
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
HOMES = {room: set(files.split()) for rooms in FLOORS for room, files in rooms.items()}


def sources(folder: pathlib.Path) -> dict[str, ast.Module]:
  """Dotted module name to its syntax tree."""
  found = {}
  paths = [*folder.rglob("*.py"), *(folder / "experiments").glob("*.py")]  # a link, into which rglob does not go
  for path in sorted(set(paths)):
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


def place(module: str) -> tuple[str, str]:
  """The room of a module and its name there: gmsrm_jax.data.masks.draw is masks.draw in data."""
  room, _, name = module.removeprefix("gmsrm_jax").removeprefix(".").partition(".")
  return (room, name or "__init__") if room in HOMES else (GROUND, f"{room}.{name}".rstrip(".") or "__init__")


def faults(modules: dict[str, ast.Module]) -> list[str]:
  """Files without a room, and imports that do not point down."""
  found = []
  for module, tree in modules.items():
    room, name = place(module)
    if name not in HOMES[room] and f"{name}.__init__" not in HOMES[room]:
      found.append(f"{module} has no room")
    for other in sorted(inner_imports(tree, modules)) if module != "gmsrm_jax" else ():
      target = place(other)[0]
      if target != room and FLOOR_OF[target] >= FLOOR_OF[room]:
        found.append(f"{module} imports {other}")
  return found


def test_every_file_has_a_room_and_imports_point_down():
  assert faults(MODULES) == []
  homeless = {f"{room}.{name}" for room, names in HOMES.items() for name in names}
  homeless -= {".".join(place(module)) for module in MODULES}
  assert {name for name in homeless if not name.endswith(".__init__")} == set(), "written down, but not there"


@pytest.mark.parametrize(
  ("module", "text", "fault"),
  [
    ("models.blocks", "from gmsrm_jax.training import steps", "models.blocks imports gmsrm_jax.training.steps"),
    ("models.blocks", "def f():\n  from gmsrm_jax.data import sources", "models.blocks imports gmsrm_jax.data.sources"),
    (
      "arrays",
      "from gmsrm_jax import config\nfrom gmsrm_jax.models import blocks",
      "arrays imports gmsrm_jax.models.blocks",
    ),
    ("serving.server", "import gmsrm_jax.evaluation.metrics", "serving.server imports gmsrm_jax.evaluation.metrics"),
    ("instruments", "", "instruments has no room"),
    ("data.common", "", "data.common has no room"),
    ("data.masks.more.deep", "", "data.masks.more.deep has no room"),
    ("shed.door", "", "shed.door has no room"),
  ],
)
def test_a_broken_rule_would_be_seen(module, text, fault):
  assert faults({**MODULES, f"gmsrm_jax.{module}": ast.parse(text)}) == [f"gmsrm_jax.{fault}"]


def test_no_two_modules_import_each_other():
  graph = {module: inner_imports(tree, MODULES) - {module} for module, tree in MODULES.items()}
  tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
  ("package", "homes"),
  [
    ("orbax", ("training.checkpoint", "parallel.processes")),
    ("grain", ("data.pipeline", "data.workers", "training.checkpoint")),
    ("tensorboardX", ("training.logger",)),
    ("tensorflow", ()),
    ("torch", ()),
  ],
)
def test_a_package_is_known_in_its_home_only(package, homes):
  users = {".".join(place(name)) for name, tree in MODULES.items() if package in packages(tree)}
  assert users - set(homes) == set()


def identifiers(tree: ast.Module) -> set[str]:
  names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
  return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_only_sharding_builds_a_partition_spec():
  users = {
    name
    for name, tree in MODULES.items()
    if "PartitionSpec" in identifiers(tree) | {found.rpartition(".")[2] for found in imports(tree)}
  }
  assert users <= {"gmsrm_jax.parallel.sharding"}


def test_what_is_pure_leaves_jit_to_its_callers():
  callers = {
    name
    for name, tree in MODULES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and node.attr in ("jit", "pjit")
  }
  pure = {f"training.{name}" for name in ("losses", "steps", "variation", "microbatch", "optimiser", "state")}
  rooms = {".".join(place(name)) for name in callers}
  assert rooms & pure == set()
  assert {name.split(".")[0] for name in rooms} & {GROUND, "models", "pretrained", "data", "experiments"} == set()


def test_experiments_import_the_settings_alone():
  for name, tree in MODULES.items():
    room, file = place(name)
    if room == "experiments" and file != "__init__":
      assert {found for found in packages(tree) if found not in sys.stdlib_module_names} <= {"gmsrm_jax"}, name
      assert inner_imports(tree, MODULES) <= {"gmsrm_jax.config"}, name


def test_the_door_imports_no_mode_before_the_back_end_is_chosen():
  trees = [ast.parse((ROOT / "run.py").read_text(encoding="utf-8"))]
  trees += [MODULES["gmsrm_jax.commands"], MODULES["gmsrm_jax.commands.flags"]]
  light = {"commands", "commands.flags", "config", "errors", "experiments", "files", "overrides", "parallel.backend"}
  for tree in trees:
    assert inner_imports(tree, MODULES) <= {f"gmsrm_jax.{name}" for name in light}


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_documented(name):
  tree = MODULES[name]
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  public = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
  assert [node.name for node in public if not ast.get_docstring(node)] == []
  assert ast.get_docstring(tree) or not tree.body, f"{name} has no docstring"


SETTINGS = sorted(overrides.settings())


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


def test_the_settings_page_says_what_the_settings_say():
  text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
  assert text == settings_page.page(), "stale: python -m scripts.settings_page > docs/settings.md"


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
