"""One tiny benchmark, whole: every promised number is there, and they fit each other."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmsrm_jax import experiments, overrides
from gmsrm_jax.config import SIZES
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.hardware import benchmark, compare, flops, machine, parts
from gmsrm_jax.hardware.measure_step import input_share, useful_flops
from gmsrm_jax.models.inpainter import apply_inpainter
from gmsrm_jax.training.state import abstract_state, make_networks

SETTINGS = [
  *("model.image_size=32", "model.widths=8,16", "model.heads=2", "model.context_blocks=0"),
  *("model.discriminator_width=8", "model.discriminator_layers=1"),
  *("memory.num_groups=4", "memory.slots_per_group=4", "memory.slot_dim=16", "memory.heads=2"),
  *("data.threads=1", "data.prefetch=2"),
  *("loss.features=recognition", "loss.feature_crop=0"),
]
FAST = benchmark.Pace(0.0, 0.0, 0.0, 0.1)
DEMO = experiments.load("demo")


def tiny(batch: int = 4):
  return overrides.override(DEMO, ["model.size=tiny", *SETTINGS, f"run.batch_size={batch}"])


@pytest.fixture(scope="module")
def document(tmp_path_factory):
  path = tmp_path_factory.mktemp("benchmark") / "new" / "result.json"
  with pytest.MonkeyPatch.context() as patch:
    # Not a machine's real speed, which takes seconds to find out.
    peak = {"chip": None, "published_flops": 4e12, "measured_flops": 1e12, "measured_with": "nothing"}
    patch.setattr(machine, "measure_peak", lambda dtype, seconds: peak)
    # Nobody has the photographs of this experiment here.
    benchmark.benchmark(experiments.load("paris"), SETTINGS, ["tiny"], [1, 4], str(path), FAST)
  return json.loads(path.read_text(encoding="utf-8"))


def rows(document, program):
  return {row["batch"]: row for row in document["rows"] if row["program"] == program}


def test_the_file_names_device_driver_and_versions(document):
  here = document["machine"]
  assert here["platform"] == "cpu" and here["device_count"] == jax.device_count()
  assert here["device_kind"] == jax.devices()[0].device_kind and here["runtime"] and here["cpu"]
  assert here["cores"] > 0 and len(here["load_average"]) == len(here["load_average_after"]) == 3
  assert {"jax", "jaxlib", "flax", "python"} <= set(here["versions"]) and "commit" in here
  assert (document["format"], document["version"]) == (compare.FORMAT, compare.VERSION)
  assert document["finished"] and document["seconds"] > 0
  assert document["settings"]["memory"]["num_groups"] == 4


def test_both_stages_and_the_fill_are_measured(document):
  found = [(row["program"], row["batch"]) for row in document["rows"]]
  assert found == [("fill", 1), ("fill", 4), ("memory", 4), ("inpaint", 4)]
  for row in document["rows"]:
    assert row["status"] == "ok" and row["image_size"] == 32 and row["model"]["widths"] == [8, 16]
    assert row["dtype"] == "float32" and row["accumulate"] == 1
    assert row["trace_seconds"] > 0 and row["compile_seconds"] > 0
    assert row["memory"]["planned_bytes"] > 0
    # The CPU's allocator does not tell, and a plan is no measurement.
    assert row["memory"]["peak_bytes"] is None
  assert any(text.startswith("training of tiny at batch 1: ") for text in document["left_out"])


@pytest.mark.parametrize("program", ["memory", "inpaint", "fill"])
def test_rates_and_shares_follow_from_times(document, program):
  row = rows(document, program)[4]
  times = row["device_seconds" if program == "fill" else "seconds"]
  assert 0 < times["q1"] <= times["median"] <= times["q3"] <= times["p95"] and times["repeats"] >= 5
  assert row["images_per_second"] == pytest.approx(4 / times["median"])
  rate = row["flops"] / times["median"]
  assert row["utilisation"] == pytest.approx({"of_published": rate / 4e12, "of_measured": rate / 1e12})
  if program == "fill":
    assert row["images_per_second_with_copies"] == pytest.approx(4 / row["copies_seconds"]["median"])
  else:
    assert row["images_per_second_per_device"] == pytest.approx(row["images_per_second"] / jax.device_count())
    made = document["input"]["images_per_second"]
    assert row["input_seconds"] == pytest.approx(4 / made)
    assert row["input_wait_share"] == pytest.approx(max(0.0, 1 - made / row["images_per_second"]))


@pytest.mark.parametrize("program", ["memory", "inpaint", "fill"])
def test_every_part_is_timed_and_the_rest_makes_up_the_whole(document, program):
  row = rows(document, program)[4]
  expected = parts.FILL_PARTS if program == "fill" else parts.STEP_PARTS[program]
  assert [part["part"] for part in row["parts"]] == [*expected, "rest"]
  whole = row["device_seconds" if program == "fill" else "seconds"]["median"]
  assert sum(part["seconds"] for part in row["parts"]) == pytest.approx(whole)
  assert sum(part["share"] for part in row["parts"]) == pytest.approx(1.0)
  assert all(part["seconds"] > 0 for part in row["parts"][:-1])
  # Nothing is counted twice, and little is missing: what the parts compute is what the whole computes.
  assert sum(part["flops"] for part in row["parts"][:-1]) == pytest.approx(row["flops"], rel=0.01)


def test_a_single_fill_is_also_timed_as_a_call(document):
  found = rows(document, "fill")
  assert found[1]["call_seconds"]["median"] > 0 and found[4]["call_seconds"] is None
  assert found[4]["flops"] == pytest.approx(4 * found[1]["flops"], rel=1e-4)


def test_the_input_is_of_photographs_where_the_data_is_not_here(document):
  assert document["input"]["images_per_second"] > 0 and "JPEG" in document["input"]["source"]


def test_the_file_can_be_shown_and_compared(document):
  text = compare.describe(document)
  for word in ("stage 1 tiny batch 4", "encoder", "retrieval", "decoder", "left out: "):
    assert word in text
  assert "(x1)" in compare.table([document, document], ["a", "b"])


def test_operations_of_a_step_are_proportional_to_its_images():
  def step(batch):
    config = tiny(batch)
    shapes = {name: jax.ShapeDtypeStruct((batch, 32, 32, c), jnp.uint8) for name, c in (("image", 3), ("mask", 1))}
    return [useful_flops(config, stage, abstract_state(config, stage), shapes, {}) for stage in ("memory", "inpaint")]

  # Spectral norms look at parameters alone, so that a step of twice the images has not quite twice the operations.
  two, four, eight = step(2), step(4), step(8)
  assert [c - b for b, c in zip(four, eight, strict=True)] == [2 * (b - a) for a, b in zip(two, four, strict=True)]
  assert [b / a for a, b in zip(two, four, strict=True)] == pytest.approx([2, 2], rel=0.02)


def test_recomputing_is_no_useful_work():
  batch = {name: jax.ShapeDtypeStruct((4, 32, 32, c), jnp.uint8) for name, c in (("image", 3), ("mask", 1))}
  config = tiny()
  again = overrides.override(config, ["run.remat=encoder,decoder"])
  arguments = "inpaint", abstract_state(config, "inpaint"), batch, {}
  assert useful_flops(again, *arguments) == useful_flops(config, *arguments)


def test_the_parts_of_a_fill_put_together_are_the_fill():
  config = tiny()
  inpainter = make_networks(config).inpainter
  image = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1.0)
  mask = jnp.zeros((2, 32, 32, 1)).at[:, 8:20, 8:20].set(1.0)
  params = jax.jit(inpainter.init)(jax.random.key(1, impl="unsafe_rbg"), image, mask)["params"]
  # The last layer begins at zero, where every decoder is right.
  last = params["decoder"]["to_pixels"]
  last["kernel"] = jax.random.normal(jax.random.key(2), last["kernel"].shape)

  def together(params):
    part = lambda method, *a: inpainter.apply({"params": params}, *a, method=method)  # noqa: E731
    features, _, query = part(parts.encode, image, mask)
    read, _ = part(parts.recall, query)
    return part(parts.decode, features, part(parts.generate, read, None).priors, mask)

  whole = jax.jit(lambda p: apply_inpainter(inpainter, p, image, mask).prediction)(params)
  filled = parts.push_pull_fill(image, mask)
  residual = jax.jit(together)(params)
  assert float(jnp.max(jnp.abs(residual))) > 0.01
  np.testing.assert_allclose(filled + residual, whole, atol=1e-5)


@pytest.mark.parametrize(("step", "made", "share"), [(10.0, 20.0, 0.0), (10.0, 10.0, 0.0), (10.0, 2.5, 0.75)])
def test_a_loop_waits_for_an_input_that_is_slower_than_its_step(step, made, share):
  assert input_share(step, made) == share


def plan(sizes, batches, *assignments):
  def configured(size, batch=None):
    more = [] if batch is None else [f"run.batch_size={batch}"]
    return overrides.override(DEMO, [*assignments, f"model.size={size}", *more])

  return plan_lib.make_plan(configured, sizes, batches)


def test_a_cpu_measures_little_unless_it_is_asked():
  found = plan(None, None)
  assert found.steps == [("small", 4)] and found.fills == [("small", 1), ("small", 4), ("base", 1)]
  assert any("--sizes base" in text for text in found.left_out)
  assert plan(list(SIZES), [8]).steps == [(size, 8) for size in SIZES]


@pytest.mark.parametrize(
  ("sizes", "batches", "assignments", "message"),
  [
    (["smal"], None, [], "did you mean 'small'?"),
    (None, [6], [], "not divisible by the 4 devices: use 4"),
    (None, [3], [], "is odd"),
    (None, [0], [], "must be greater than 0"),
    (None, [4], ["run.accumulate=2"], "use 8"),
    (None, None, ["memory.heads=0"], "memory.heads=0"),
  ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(sizes, batches, assignments, message):
  with pytest.raises(ConfigError) as caught:
    plan(sizes, batches, *assignments)
  assert message in str(caught.value)


@pytest.mark.parametrize(
  ("assignments", "output", "message"),
  [
    (["model.size=base"], None, "use --sizes"),
    (["run.batch_size=4"], None, "use --batches"),
    ([], ".", "is a folder"),
    (["data.train=not_there"], None, "data.train='not_there' does not exist"),
  ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, monkeypatch, assignments, output, message):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(machine, "measure_peak", lambda dtype, seconds: {"measured_flops": 1e12})
  with pytest.raises(ConfigError, match=message):
    benchmark.benchmark(DEMO, assignments, None, None, output, FAST)


def test_a_row_that_runs_out_of_memory_says_so_and_a_bug_is_no_lack_of_memory():
  def fail(error):
    raise error

  for error in (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), MemoryError()):
    row = benchmark._row("inpaint", tiny(), 4, 4, lambda e=error: fail(e))
    assert row["status"] == "out of memory" and "images_per_second" not in row
    assert compare.line(row) == "stage 2 tiny batch 4: out of memory"
  with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID"):
    benchmark._row("inpaint", tiny(), 4, 4, lambda: fail(jax.errors.JaxRuntimeError("INVALID_ARGUMENT")))


def test_a_mark_that_an_earlier_program_left_is_not_this_ones(monkeypatch):
  monkeypatch.setattr(machine, "peak_bytes", lambda: 100)
  assert machine.own_peak(100) is None and machine.own_peak(None) is None
  assert machine.own_peak(60) == 100


def test_the_rate_of_matrix_products_is_that_of_its_time(monkeypatch):
  took = machine.timing.summarise([2.0] * 5)
  monkeypatch.setattr(machine.timing, "measure", lambda call, seconds: took)
  found = machine.measure_peak(jnp.float32, 1.0)
  assert (
    found["measured_flops"] == 2048**3 and found["published_flops"] is None and "2048x2048" in found["measured_with"]
  )
  # Four simulated devices share the cores of one machine.
  assert jax.device_count() == 4
  assert math.isclose(machine.utilisation(2048**3 / 2, found)["of_measured"], 0.5)
  product = jax.jit(jnp.dot).trace(jnp.ones((4, 4)), jnp.ones((4, 4)))
  assert flops.count(product.jaxpr) == 2 * 4**3
