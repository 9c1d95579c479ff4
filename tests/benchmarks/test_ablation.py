"""The ablation's bookkeeping: what differs, what may be shared, and that differences are paired."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from benchmarks.quality import ablation
from gmsrm_jax import experiments, overrides
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name

BASE = experiments.load("paris")


def configured(name, seed=0):
  return overrides.override(BASE, ablation.changes_of(name, BASE, seed))


def test_a_variant_changes_what_its_title_says_and_nothing_else():
  full = configured("full")
  for name, variant in ablation.VARIANTS.items():
    expected = {change.partition("=")[0] for change in variant.changes}
    expected |= {"memory.slots_per_group"} if name == "flat" else set()
    expected |= {"stage2.steps"} if name == "no_memory_longer" else set()
    lines = overrides.differences(full, configured(name))
    assert {line.partition("=")[0].partition(":")[0] for line in lines} == expected, name


def test_stage_1_is_shared_where_it_would_be_the_same_and_only_there():
  stages = {name: ablation.first_stage(configured(name)) for name in ablation.VARIANTS}
  assert stages["full"] == stages["no_supervision"] == stages["no_variation"] != ""
  assert stages["full"] != stages["flat"]
  assert stages["no_memory"] == stages["no_memory_longer"] == stages["not_pretrained"] == ""
  assert ablation.first_stage(configured("full", seed=1)) != stages["full"]
  changed = overrides.override(BASE, ["loss.balance=0.2"])
  assert ablation.first_stage(changed) != ablation.first_stage(BASE)


def test_what_a_variant_changes_may_be_set_for_all_runs():
  common = ["stage1.steps=30", "stage2.steps=70", "memory.num_groups=8", "memory.slot_dim=64", "run.seed=5"]
  base = overrides.override(BASE, common)
  for name in ablation.VARIANTS:
    config = overrides.override(BASE, ablation.together(common, ablation.changes_of(name, base, seed=0)))
    assert config.run.seed == 0 and config.memory.num_slots == base.memory.num_slots
    assert config.stage1.steps == (1 if name == "untrained" else 30)
    assert config.stage2.steps == (100 if name == "no_memory_longer" else 70)


def test_runs_that_share_a_stage_1_wait_for_the_run_that_trains_it(tmp_path):
  runs = {(name, seed): tmp_path / f"{name}_{seed}" for seed in (0, 1) for name in ("full", "flat", "no_supervision")}
  flags = argparse.Namespace(experiment="paris", set=["model.size=small"])
  own, shared = ablation.plan(flags, runs)
  assert [run.folder.name for run in own] == ["full_0", "flat_0", "full_1", "flat_1"]
  assert [(run.folder.name, run.stage_1 and run.stage_1.name) for run in shared] == [
    ("no_supervision_0", "full_0"),
    ("no_supervision_1", "full_1"),
  ]
  assert {run.stage_1 for run in own} == {None}


def write_run(folder, lead):
  """A finished run whose images are far apart, and all better by `lead` than those of a run with 0."""
  folder.mkdir(parents=True)
  lines = ["method,bucket,image,psnr,ssim,lpips"]
  for bucket in map(bucket_name, BUCKETS):
    lowest = 8 if bucket == "50-60%" else 10
    for index, level in enumerate(np.linspace(lowest, lowest + 30, 12)):
      lines.append(f"Telea,{bucket},{index}.png,1,1,1")
      lines.append(f"GM-SRM,{bucket},{index}.png,{level + lead + 0.01 * (index % 3)},{level / 50},{0.5 - lead / 10}")
  (folder / "report.csv").write_text("\n".join(lines) + "\n")
  kid = {bucket_name(bucket): {"kid_vgg16": 0.25} for bucket in BUCKETS}
  (folder / "report.json").write_text(json.dumps({"distribution": {"GM-SRM": kid}}))
  return folder


def test_a_small_lead_on_every_image_is_seen_although_images_differ_by_far_more(tmp_path):
  leads = {("full", 0): 0.2, ("full", 1): 0.4, ("no_memory", 0): 0.0, ("no_memory", 1): 0.1, ("flat", 0): 0.2}
  runs = {key: write_run(tmp_path / f"{key[0]}_{key[1]}", lead) for key, lead in leads.items()}
  table = ablation.compare(runs)
  row = table["no_memory"]["40-50%"]["psnr"]
  assert row["full_minus_this"] == pytest.approx((0.2 + 0.4 - 0.0 - 0.1) / 2)
  assert row["interval"] == pytest.approx((0.25, 0.25))
  assert row["seeds"] == pytest.approx([25.01, 25.11])
  # Against the full model of its own seed alone, not the mean of both.
  assert table["flat"]["40-50%"]["psnr"]["full_minus_this"] == pytest.approx(0.0)
  assert table["full"]["0-10%"]["psnr"]["mean"] == pytest.approx(25.31)
  assert table["full"]["40-60%"]["psnr"]["mean"] == pytest.approx(24.31)
  text = ablation.as_markdown(table)
  header = "| | " + " | ".join(map(bucket_name, BUCKETS))
  assert text.count(f"{header} | 40-60% |") == 3 and text.count(f"{header} |\n") == 1  # KID has no such column
  assert "25.06 (**+0.25 ± 0.00**)" in text and "(+0.00 ± 0.00)" in text and "| full | 25.31 |" in text
