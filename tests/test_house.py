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
from gmsrm_jax import overrides
from gmsrm_jax.config import MASK_KINDS, Config
from scripts import settings_page

ROOT = pathlib.Path(run.__file__).parent
PACKAGE = ROOT / "gmsrm_jax"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# The floors from the ground up, each with its rooms, each with its files. A room imports itself and the floors below
# it, never a room beside or above it. Whoever adds a file writes it down here, so that it has a place.
GROUND = "ground"
FLOORS: tuple[dict[str, str], ...] = (
  {GROUND: "__init__ arrays config errors files overrides panels progress"},
  {"kernels": "__init__ convolution"},
  {
    "models": "__init__ blocks codebook context decoder discriminator encoder generator inpainter memory reasoning "
    "retrieval",
    "pretrained": "__init__ canvas inception lpips vgg16 weight_files",
    "parallel": "__init__ backend fixed_batches preemption processes sharding",
    "data": "__init__ augment datasets pictures pipeline prepare records sources workers masks.__init__ masks.draw"
    " masks.fixed masks.hole_files masks.shapes masks.strokes",
    "experiments": "__init__ celebahq demo faces paris places2 street",
  },
  {
    "training": "__init__ adversary checkpoint curves finetune logger loop losses microbatch optimiser profiling"
    " run_folder sample_grids stages state steps variation weights",
  },
  {
    "inference": "__init__ detail file_pairs inpainter memory_pictures metadata modes output_plan photos tiff_files"
    " tiling"
  },
  {
    "evaluation": "__init__ baselines distribution from_files held_out judge metrics protocols report scorer",
    "serving": "__init__ connections requests server",
    "hardware": "__init__ benchmark compare machine measure tpu.__init__ tpu.collectives tpu.compile tpu.roofline"
    " tpu.topologies",
  },
  {"commands": "__init__ benchmark check compile evaluate export flags inpaint masks memory prepare serve train"},
)
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
HOMES = {room: set(files.split()) for rooms in FLOORS for room, files in rooms.items()}


def sources(folder: pathlib.Path) -> dict[str, ast.Module]:
  """Dotted module name to its syntax tree."""
  trees = {}
  paths = [*folder.rglob("*.py"), *(folder / "experiments").glob("*.py")]  # a link, into which rglob does not go
  for path in sorted(set(paths)):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
  return trees


MODULES = sources(PACKAGE)


def imports(tree: ast.Module) -> set[str]:
  """Everything a module imports, as dotted names; `from a import b` counts as a.b."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"relative import in line {node.lineno}"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def inner_imports(tree: ast.Module, modules: typing.Collection[str]) -> set[str]:
  """The modules of the package that a module imports."""
  inside = set()
  for name in imports(tree):
    while name and name not in modules:
      name = name.rpartition(".")[0]
    if name and name != "gmsrm_jax":
      inside.add(name)
  return inside


def place(module: str) -> tuple[str, str]:
  """The room of a module and its name there: gmsrm_jax.data.masks.draw is masks.draw in data."""
  room, _, name = module.removeprefix("gmsrm_jax").removeprefix(".").partition(".")
  return (room, name or "__init__") if room in HOMES else (GROUND, f"{room}.{name}".rstrip(".") or "__init__")


def faults(modules: dict[str, ast.Module]) -> list[str]:
  """Files without a room, and imports that do not point down."""
  seen = []
  for module, tree in modules.items():
    room, name = place(module)
    if name not in HOMES[room] and f"{name}.__init__" not in HOMES[room]:
      seen.append(f"{module} has no room")
    for other in sorted(inner_imports(tree, modules)) if module != "gmsrm_jax" else ():
      target = place(other)[0]
      if target != room and FLOOR_OF[target] >= FLOOR_OF[room]:
        seen.append(f"{module} imports {other}")
  return seen


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
    ("gadgets", "", "gadgets has no room"),
    ("data.masks.more.deep", "", "data.masks.more.deep has no room"),
    ("shed.door", "", "shed.door has no room"),
  ],
)
def test_a_broken_rule_would_be_seen(module, text, fault):
  assert faults({**MODULES, f"gmsrm_jax.{module}": ast.parse(text)}) == [f"gmsrm_jax.{fault}"]


def test_no_two_modules_import_each_other():
  graph = {module: inner_imports(tree, MODULES) - {module} for module, tree in MODULES.items()}
  tuple(graphlib.TopologicalSorter(graph).static_order())


def identifiers(tree: ast.Module) -> set[str]:
  names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
  return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(
  ("name", "homes"),
  [
    ("orbax", {"training.checkpoint", "parallel.processes"}),
    ("grain", {"data.pipeline", "data.workers", "training.checkpoint"}),
    ("tensorboardX", {"training.logger"}),
    ("PartitionSpec", {"parallel.sharding"}),
    ("tensorflow", set()),
    ("torch", set()),
  ],
)
def test_a_library_is_known_in_its_home_only(name, homes):
  users = set()
  for module, tree in MODULES.items():
    imported = {word for dotted in imports(tree) for word in (dotted.partition(".")[0], dotted.rpartition(".")[2])}
    if name in imported or (name == "PartitionSpec" and name in identifiers(tree)):
      users.add(".".join(place(module)))
  assert users <= homes


def test_what_is_pure_leaves_jit_to_its_callers():
  callers = {".".join(place(name)) for name, tree in MODULES.items() if {"jit", "pjit"} & identifiers(tree)}
  pure = {
    f"training.{name}" for name in ("losses", "steps", "adversary", "variation", "microbatch", "optimiser", "state")
  }
  assert callers & pure == set()
  assert {name.split(".")[0] for name in callers} & {GROUND, "models", "pretrained", "data", "experiments"} == set()


def test_experiments_import_the_settings_alone():
  for name, tree in MODULES.items():
    room, file = place(name)
    if room == "experiments" and file != "__init__":
      packages = {dotted.partition(".")[0] for dotted in imports(tree)}
      assert packages - set(sys.stdlib_module_names) == {"gmsrm_jax"}, name
      assert inner_imports(tree, MODULES) == {"gmsrm_jax.config"}, name


def test_what_is_public_is_documented():
  bare = []
  for module, tree in MODULES.items():
    public = [
      node for node in tree.body if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_")
    ]
    bare += [f"{module}.{node.name}" for node in public if not ast.get_docstring(node)]
    bare += [module] if tree.body and not ast.get_docstring(tree) else []
  assert bare == []


def test_every_setting_is_read_and_says_what_it_means():
  attributes, texts = set(), set()
  for module, tree in MODULES.items():
    if module != "gmsrm_jax.config":
      attributes |= identifiers(tree)
      texts |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
  unread = {key for key in overrides.settings() if key.rpartition(".")[2] not in attributes}
  # Weights of masks are handed out together; a weight of a loss may be looked up by its name.
  unread -= {f"mask.{kind}" for kind in MASK_KINDS} | {f"loss.{name}" for name in texts}
  assert unread == set(), "use it or delete it"
  sections = {field.name for field in dataclasses.fields(Config)} - {"name"}
  assert {key for key, meaning in settings_page.meanings().items() if not meaning and key[1] not in sections} == set()


def test_the_settings_page_says_what_the_settings_say():
  text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
  assert text == settings_page.page(), "stale: python -m scripts.settings_page > docs/settings.md"


def test_no_file_names_a_folder_of_one_machine():
  command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
  listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
  if listed.returncode:
    pytest.skip("no checkout")
  paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
  pattern = re.compile(rb"(?<![\w.~*<>-])/(home|root|Users|work|scratch|workspace)/")
  assert [path for path in paths if path.is_file() and pattern.search(path.read_bytes())] == []


def test_files_and_functions_are_short_and_few_files_are_flat():
  assert len(HOMES[GROUND]) <= 8
  paths = [path for kind in ("py", "js", "css", "html") for path in PACKAGE.rglob(f"*.{kind}")]
  assert [path for path in paths if len(path.read_text(encoding="utf-8").splitlines()) > 350] == []
  nodes = [(module, node) for module, tree in MODULES.items() for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
  assert [f"{module}.{node.name}" for module, node in nodes if node.end_lineno - node.lineno >= 60] == []
