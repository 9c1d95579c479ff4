"""Settings: overrides, round trips and the line each mistake gets."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gmsrm_jax import config as config_lib
from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import SIZES, Config
from gmsrm_jax.errors import ConfigError


@pytest.fixture
def config() -> Config:
  return Config("demo", SIZES["tiny"])


def leaves(tree: dict, prefix: str = "") -> dict:
  flat = {}
  for key, value in tree.items():
    flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


@pytest.mark.parametrize(
  ("assignment", "expected"),
  [
    ("memory.num_groups=1", 1),
    ("data.train=some folder/a=b", "some folder/a=b"),
    ("data.flip=false", False),
    ("model.widths=32,64,64", (32, 64, 64)),
    ("stage2.learning_rate=1e-4", 1e-4),
    ("loss.style=0", 0.0),
    ("loss.features=recognition", "recognition"),
  ],
)
def test_an_assignment_changes_one_setting_and_no_other(config, assignment, expected):
  changed = overrides.override(config, [assignment])
  key = assignment.partition("=")[0]
  section, name = key.split(".")
  value = getattr(getattr(changed, section), name)
  assert value == expected and type(value) is type(expected)
  before, after = leaves(overrides.to_dict(config)), leaves(overrides.to_dict(changed))
  assert {other for other in before if before[other] != after[other]} == {key}


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
    ("memory.num_group=1", ["unknown setting 'memory.num_group'", "did you mean 'memory.num_groups'?"]),
    ("num_groups=1", ["did you mean 'memory.num_groups'?"]),
    ("heads=1", ["did you mean 'model.heads' or 'memory.heads'?"]),
    ("model.num_groups=1", ["did you mean 'memory.num_groups'?"]),
    ("qqqq=1", ["unknown setting 'qqqq'", "sections: name, model, memory"]),
    ("memory=1", ["'memory' is a section", "memory.num_groups"]),
    ("run.seed", ["'run.seed' has no '='", "KEY=VALUE"]),
    ("run.seed=one", ["run.seed='one'", "a whole number", "run.seed=4"]),
    ("run.fsdp=1.5", ["run.fsdp='1.5'", "a whole number"]),
    ("data.flip=1", ["data.flip='1'", "true or false"]),
    ("data.workers=-1", ["data.workers=-1 must not be negative"]),
    ("data.jitter=1", ["data.jitter=1.0 is out of range", "from 0 to below 1"]),
    ("model.widths=32,big", ["model.widths='32,big'", "32,64,128"]),
    ("stage1.learning_rate=nan", ["stage1.learning_rate=nan", "a finite number"]),
    ("model.size=bse", ["model.size='bse'", "did you mean 'base'?"]),
    ("stage1.steps=-1", ["stage1.steps=-1"]),
    ("stage2.beta1=1", ["stage2.beta1=1.0"]),
    ("model.image_size=60", ["model.image_size=60", "use 56 or 64"]),
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
  with pytest.raises(ConfigError, match="'run.seed' is given twice, '1' and '2'"):
    overrides.override(config, ["run.seed=1", "run.batch_size=4", "run.seed=2"])


@pytest.mark.parametrize("name", experiments.names())
def test_json_reads_back_as_the_same_experiment(name):
  config = experiments.load(name)
  assert config.name == name
  assert overrides.from_dict(json.loads(json.dumps(overrides.to_dict(config)))) == config


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda tree: tree["model"].pop("heads"), "'model.heads' is missing"),
    (lambda tree: tree.pop("name"), "'name' is missing"),
    (lambda tree: tree["memory"].update(head=1), "did you mean 'memory.heads'"),
    (lambda tree: tree.update(extra={}), "unknown setting 'extra'"),
    (lambda tree: tree["run"].update(seed=True), "run.seed=True has the wrong type"),
    (lambda tree: tree["run"].update(seed=None), "run.seed=None has the wrong type"),
    (lambda tree: tree["model"].update(widths=[32, 64.0]), r"model.widths=\[32, 64.0\] has the wrong type"),
    (lambda tree: tree.update(memory=3), "'memory' is a section"),
  ],
)
def test_a_stored_configuration_of_another_shape_is_refused(config, change, message):
  tree = json.loads(json.dumps(overrides.to_dict(config)))
  change(tree)
  with pytest.raises(ConfigError, match=message):
    overrides.from_dict(tree)


def test_a_setting_that_an_older_version_did_not_know_takes_its_default(config):
  tree = json.loads(json.dumps(overrides.to_dict(overrides.override(config, ["memory.heads=8"]))))
  del tree["memory"]["heads"], tree["eval"]
  assert overrides.from_dict(tree) == dataclasses.replace(config, eval=config_lib.EvalConfig())


def test_a_retired_setting_is_read_where_it_says_what_is_fixed_now(config, monkeypatch):
  monkeypatch.setitem(overrides.RETIRED, "memory.depth", 2)
  for key, value in (("variation.probability", 0.5), ("variation.probability", 0.25), ("memory.depth", 2)):
    section, name = key.split(".")
    tree = json.loads(json.dumps(overrides.to_dict(config)))
    tree[section][name] = value
    assert overrides.from_dict(tree) == config
    with pytest.raises(ConfigError, match=f"{key}.*leave it out"):
      overrides.override(config, [f"{key}={value}"])
  tree["memory"]["depth"] = 3
  with pytest.raises(ConfigError, match="memory.depth=3.* 2 .*leave it out"):
    overrides.from_dict(tree)
  assert not overrides.RETIRED.keys() & set(overrides.setting_types())


def test_differences_name_each_changed_setting(config):
  changed = overrides.override(config, ["memory.num_groups=1", "run.seed=7"])
  assert overrides.differences(config, changed) == ["memory.num_groups: 16 -> 1", "run.seed: 0 -> 7"]
  assert overrides.differences(config, config) == []


def test_an_unknown_experiment_gets_a_suggestion():
  with pytest.raises(ConfigError, match="--experiment=celeba is unknown: did you mean 'celebahq'?"):
    experiments.load("celeba")
