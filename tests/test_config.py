"""Settings: overrides, round trips and the line each mistake gets."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import SIZES, Config, EvalConfig
from gmsrm_jax.errors import ConfigError


@pytest.fixture
def config() -> Config:
  return Config("demo", SIZES["tiny"])


def stored(config: Config) -> dict:
  """The configuration as it is read from a file."""
  return json.loads(json.dumps(overrides.to_dict(config)))


@pytest.mark.parametrize(
  ("assignment", "expected"),
  [
    ("memory.num_groups=1", 1),
    ("data.train=some folder/a=b", "some folder/a=b"),
    ("data.flip=false", False),
    ("model.widths=32,64,64", (32, 64, 64)),
    ("stage2.learning_rate=1e-4", 1e-4),
    ("loss.style=0", 0.0),
  ],
)
def test_an_assignment_changes_one_setting_and_no_other(config, assignment, expected):
  changed = overrides.override(config, [assignment])
  section, name = assignment.partition("=")[0].split(".")
  value = getattr(getattr(changed, section), name)
  assert value == expected and type(value) is type(expected)
  back = dataclasses.replace(getattr(changed, section), **{name: getattr(getattr(config, section), name)})
  assert dataclasses.replace(changed, **{section: back}) == config
  (line,) = overrides.differences(config, changed)
  assert line.startswith(f"{section}.{name}: ") and " -> " in line


def test_a_size_takes_its_whole_preset_before_the_other_settings(config):
  changed = overrides.override(config, ["model.blocks=3", "model.size=small"])
  assert changed.model == dataclasses.replace(SIZES["small"], blocks=3)


def test_checks_see_only_the_final_values(config):
  # 64 is no multiple of the 128 that seven scales need, and 256 with three scales never comes about.
  changed = overrides.override(config, [f"model.widths={','.join(['32'] * 7)}", "model.image_size=256"])
  assert changed.model.stride == 128
  overrides.override(config, ["mask.area_min=0.7", "mask.area_max=0.8"])
  overrides.override(config, ["mask.area_max=0.8", "mask.area_min=0.7"])


@pytest.mark.parametrize(
  ("assignment", "parts"),
  [
    ("memory.num_group=1", ["'memory.num_group'", "'memory.num_groups'?"]),
    ("heads=1", ["'model.heads' or 'memory.heads'?"]),
    ("model.num_groups=1", ["'memory.num_groups'?"]),
    ("qqqq=1", ["'qqqq'", "name, model, memory"]),
    ("memory=1", ["'memory' is a section", "memory.num_groups"]),
    ("memory.usage_decay=0.99", ["'memory.usage_decay'", "leave it out"]),
    ("run.seed", ["'run.seed'", "KEY=VALUE"]),
    *(
      (f"{name}={seed}", [f"{name}={seed}", "0 to 4294967295"])
      for name in ("run.seed", "eval.mask_seed")
      for seed in (-1, 2**32, 10**20)
    ),
    ("run.seed=one", ["run.seed='one'", "a whole number", "run.seed=4"]),
    ("data.flip=1", ["data.flip='1'", "true or false"]),
    ("data.workers=-1", ["data.workers=-1", "negative"]),
    ("data.jitter=1", ["data.jitter=1.0", "from 0 to below 1"]),
    ("variation.start=2", ["variation.start=2.0", "from 0 to 1"]),
    ("model.widths=32,big", ["model.widths='32,big'", "32,64,128"]),
    ("stage1.learning_rate=nan", ["stage1.learning_rate=nan", "a finite number"]),
    ("model.size=bse", ["model.size='bse'", "'base'?"]),
    ("stage2.steps=-1", ["stage2.steps=-1"]),
    ("stage2.beta1=1", ["stage2.beta1=1.0"]),
    ("model.image_size=60", ["model.image_size=60", "use 64"]),
    ("loss.feature_crop=65", ["loss.feature_crop=65", "model.image_size=64"]),
    ("memory.heads=3", ["memory.slot_dim=128", "memory.heads=3"]),
    ("mask.area_max=0", ["mask.area_max=0.0"]),
  ],
)
def test_a_mistake_gets_one_line_that_names_it(config, assignment, parts):
  with pytest.raises(ConfigError) as caught:
    overrides.override(config, [assignment])
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_a_setting_given_twice_is_refused(config):
  with pytest.raises(ConfigError, match="'run.seed'.*'1' and '2'"):
    overrides.override(config, ["run.seed=1", "run.batch_size=4", "run.seed=2"])


@pytest.mark.parametrize("name", experiments.names())
def test_json_reads_back_as_the_same_experiment(name):
  config = experiments.load(name)
  assert config.name == name
  assert overrides.from_dict(stored(config)) == config


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda tree: tree["model"].pop("heads"), "'model.heads' is missing"),
    (lambda tree: tree["memory"].update(head=1), "'memory.heads'"),
    (lambda tree: tree.update(extra={}), "'extra'"),
    (lambda tree: tree["run"].update(seed=True), "run.seed=True"),
    (lambda tree: tree["model"].update(widths=[32, 64.0]), r"model.widths=\(32, 64.0\)"),
    (lambda tree: tree["model"].update(size=3), "model.size=3"),
    (lambda tree: tree.update(memory=3), "'memory' is a section"),
  ],
)
def test_a_stored_configuration_of_another_shape_is_refused(config, change, message):
  tree = stored(config)
  change(tree)
  with pytest.raises(ConfigError, match=message):
    overrides.from_dict(tree)


def test_a_setting_that_an_older_version_did_not_know_takes_its_default(config):
  tree = stored(overrides.override(config, ["memory.heads=8"]))
  del tree["memory"]["heads"], tree["eval"]
  assert overrides.from_dict(tree) == dataclasses.replace(config, eval=EvalConfig())


def test_a_retired_setting_is_read_where_it_says_what_is_fixed_now(config):
  tree = stored(config)
  for key, value in overrides.RETIRED.items():
    section, name = key.split(".")
    tree[section][name] = 0.25 if value is overrides.ANYTHING else value
  assert overrides.from_dict(tree) == config
  tree["stage2"]["beta2"] = 0.5
  with pytest.raises(ConfigError, match="stage2.beta2=0.5.* 0.99 .*leave it out"):
    overrides.from_dict(tree)
  assert not overrides.RETIRED.keys() & overrides.settings().keys()


def test_an_unknown_experiment_gets_a_suggestion():
  with pytest.raises(ConfigError, match="--experiment=celeba.*'celebahq'?"):
    experiments.load("celeba")
