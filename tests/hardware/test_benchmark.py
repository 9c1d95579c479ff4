"""One tiny benchmark, whole: every promised number is there, and they fit each other."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging

import jax
import jax.numpy as jnp
import pytest

from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import SIZES
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.hardware import benchmark, compare, machine, measure

SETTINGS = [
  *("model.image_size=32", "model.widths=8,16", "model.heads=2", "model.context_blocks=0"),
  *("model.discriminator_width=8", "model.discriminator_layers=1"),
  *("memory.num_groups=4", "memory.slots_per_group=4", "memory.slot_dim=16", "memory.heads=2"),
  *("data.threads=1", "data.prefetch=2"),
  # Without feature terms and second fills a step compiles in half the time.
  *("loss.features=vgg16", "loss.perceptual=0", "loss.style=0", "variation.enabled=false"),
]
DEMO = experiments.load("demo")
# Not a machine's real speed, which takes seconds to find out.
PEAK = {"chip": None, "published_flops": 4e12, "measured_flops": 1e12, "measured_with": "nothing"}


def tiny(*assignments: str):
  return overrides.override(DEMO, ["model.size=tiny", *SETTINGS, *assignments])


@pytest.fixture(scope="module")
def document(tmp_path_factory):
  path = tmp_path_factory.mktemp("benchmark") / "new" / "result.json"
  said = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(logging.Logger, "callHandlers", lambda _, record: said.append((record.name, record.getMessage())))
    patch.setattr(machine, "measure_peak", lambda dtype, seconds: PEAK)
    # Nobody has the photographs of this experiment here.
    benchmark.benchmark(experiments.load("paris"), SETTINGS, ["tiny"], [1, 4], str(path), seconds=0.1)
  assert [text for name, text in said if name.startswith("gmsrm_jax")] == [], "a measurement has nothing to warn of"
  return json.loads(path.read_text(encoding="utf-8"))


def rows(document, program):
  return {row["batch"]: row for row in document["rows"] if row["program"] == program}


def test_both_stages_and_the_fill_are_measured_on_a_machine_that_is_described(document):
  here = document["machine"]
  assert (here["platform"], here["device_count"]) == ("cpu", jax.device_count())
  assert here["device_kind"] == jax.devices()[0].device_kind and {"jax", "jaxlib"} <= set(here["versions"])
  assert document["finished"] and document["flops_from"] == measure.FLOPS_FROM
  assert document["settings"]["memory"]["num_groups"] == 4
  found = [(row["program"], row["batch"]) for row in document["rows"]]
  assert found == [("fill", 1), ("fill", 4), ("memory", 4), ("inpaint", 4)]
  for row in document["rows"]:
    assert row["status"] == "ok" and row["image_size"] == 32 and row["model"]["widths"] == [8, 16]
    assert row["dtype"] == "float32" and row["accumulate"] == 1
    assert row["trace_seconds"] > 0 and row["compile_seconds"] > 0 and row["memory"]["planned_bytes"] > 0
  assert any("tiny at batch 1" in text for text in document["left_out"])


@pytest.mark.parametrize("program", ["memory", "inpaint", "fill"])
def test_rates_and_shares_follow_from_times(document, program):
  row = rows(document, program)[4]
  times = row["device_seconds" if program == "fill" else "seconds"]
  assert 0 < times["q1"] <= times["median"] <= times["q3"] <= times["p95"] and times["repeats"] >= 5
  assert row["images_per_second"] == pytest.approx(4 / times["median"])
  rate = row["flops"] / times["median"]
  assert row["utilisation"] == pytest.approx({"of_published": rate / 4e12, "of_measured": rate / 1e12})
  if program != "fill":
    assert row["images_per_second_per_device"] == pytest.approx(row["images_per_second"] / jax.device_count())


def test_a_single_fill_is_also_timed_as_a_call(document):
  fills = rows(document, "fill")
  assert fills[1]["call_seconds"]["median"] > 0 and fills[4]["call_seconds"] is None
  assert fills[4]["flops"] == pytest.approx(4 * fills[1]["flops"], rel=0.01)


def test_a_fill_on_one_device_is_measured_by_the_peak_of_one():
  row = {"program": "fill", "flops": 1.0, "device_seconds": {"median": 1.0}}
  peak = {"published_flops": 16.0, "measured_flops": 8.0}
  document = {"peak": peak, "machine": {"platform": "gpu", "device_count": 4}}
  assert benchmark.utilisation(row, document) == {"of_published": 0.25, "of_measured": 0.5}


def test_operations_are_those_of_the_images_however_the_batch_is_cut():
  four, eight = (measure.count_flops(tiny("run.batch_size=8"), "memory", images) for images in (4, 8))
  assert eight / four == pytest.approx(2, rel=0.05)  # optimisers and spectral norms look at parameters alone
  assert measure.count_flops(tiny("run.batch_size=8", "run.accumulate=2"), "memory", 8) == eight
  assert measure.count_flops(tiny("run.remat=encoder,generator"), "memory", 4) > 1.05 * four


def plan(sizes, batches, *assignments):
  def configured(size, batch=None):
    more = [] if batch is None else [f"run.batch_size={batch}"]
    return overrides.override(DEMO, [*assignments, f"model.size={size}", *more])

  return benchmark.make_plan(configured, sizes, batches)


def test_a_cpu_measures_little_unless_it_is_asked():
  found, left_out = plan(None, None)
  fills, steps = [("fill", "small", 1), ("fill", "small", 4), ("fill", "base", 1)], ["memory", "inpaint"]
  assert found == [*fills, *((stage, "small", 4) for stage in steps)]
  assert any("--sizes base" in text for text in left_out)
  asked, _ = plan(list(SIZES), [8])
  assert asked == [*(("fill", size, 8) for size in SIZES), *((stage, size, 8) for size in SIZES for stage in steps)]


@pytest.mark.parametrize(
  ("sizes", "batches", "assignments", "fragments"),
  [
    (["smal"], None, [], ["'smal'", "'small'"]),
    (None, [6], [], ["--batches", "batch_size=6", "4 devices", "use 4"]),
    (None, [3], ["variation.enabled=true"], ["batch_size=3", "odd"]),
    (None, [0], [], ["batch_size=0"]),
    (None, [4], ["run.accumulate=2"], ["use 8"]),
    (None, None, ["memory.heads=0"], ["memory.heads=0"]),
    (None, None, ["model.size=base"], ["model.size"]),
  ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(sizes, batches, assignments, fragments):
  with pytest.raises(ConfigError) as caught:
    plan(sizes, batches, *assignments)
  assert [text for text in fragments if text not in str(caught.value)] == []


def test_a_folder_is_no_file_for_the_results(tmp_path):
  with pytest.raises(ConfigError, match="--output=.* is a folder"):
    benchmark.benchmark(DEMO, [], None, None, str(tmp_path))


@pytest.mark.parametrize(
  ("error", "status"),
  [
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "out of memory"),
    (MemoryError(), "out of memory"),
    (jax.errors.JaxRuntimeError("INVALID_ARGUMENT"), None),
  ],
)
def test_a_row_that_runs_out_of_memory_says_so_and_a_bug_is_no_lack_of_memory(monkeypatch, error, status):
  def fail(*_):
    raise error

  monkeypatch.setattr(measure, "measure_step", fail)
  with contextlib.nullcontext() if status else pytest.raises(type(error)):
    row = benchmark.measure_row("inpaint", tiny(), 4, 0.1)
    assert row["status"] == status and compare.title(row) == "stage 2 tiny batch 4"


def test_the_rate_of_matrix_products_is_that_of_its_time(monkeypatch):
  monkeypatch.setattr(measure, "time_calls", lambda call, seconds: {"median": 2.0})
  # Four simulated devices share the cores of one machine.
  assert jax.device_count() == 4 and machine.measure_peak(jnp.float32, 1.0)["measured_flops"] == 2048**3


def clock(monkeypatch, step: float) -> None:
  """Time goes on by `step` seconds whenever somebody looks."""
  ticks = itertools.count()
  monkeypatch.setattr(measure.time, "perf_counter", lambda: step * next(ticks))


@pytest.mark.parametrize(("step", "seconds", "repeats"), [(1.0, 3.0, 5), (0.1, 1.95, 20), (0.1, 1e9, 50)])
def test_repeats_go_on_until_the_seconds_are_over(monkeypatch, step, seconds, repeats):
  clock(monkeypatch, step)
  calls = []
  timed = measure.time_calls(lambda: calls.append(1), seconds=seconds, together=False)
  assert timed["repeats"] == repeats == len(calls) - 2  # two of them warm up
  assert timed["median"] == pytest.approx(step)


def test_short_calls_are_sent_off_together_and_share_their_time(monkeypatch):
  clock(monkeypatch, 0.01)
  calls = []
  timed = measure.time_calls(lambda: calls.append(1), seconds=0.05)
  assert timed["calls"] == 5 and len(calls) == 2 + 5 * timed["repeats"]
  assert timed["median"] == pytest.approx(0.01 / 5)


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v5 lite", "TPU v5e"),
    ("TPU v5", "TPU v5p"),
    ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
    ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe"),
    ("cpu", None),
    ("AMD Instinct MI300X", None),
  ],
)
def test_what_jax_calls_a_device_finds_its_chip(kind, name):
  chip = machine.find_chip(kind)
  assert chip is None if name is None else chip is machine.CHIPS[name]


@pytest.mark.parametrize("chip", machine.CHIPS.values(), ids=machine.CHIPS)
def test_no_unit_has_slipped(chip):
  # All these chips need between 100 and 1000 operations a byte to be busy, and read their memory in 10 to 100 ms.
  assert 100 < chip.flops / chip.bandwidth < 1000
  assert 0.01 < chip.memory / chip.bandwidth < 0.1
  assert chip.links * chip.link_bandwidth < chip.bandwidth
