"""Pictures of the memory: slots are drawn for what they hold, reads are those of the network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

import run
from gmsrm_jax import Inpainter
from gmsrm_jax.commands import memory
from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference.memory_pictures import TILE, draw_slots, find_reads, sheet_of_reads, sheet_of_slots
from gmsrm_jax.training.state import release_params
from tests.inference.test_inpainter import hole_of, noisy_model
from tests.trained import one_line
from tests.training.test_steps import initial, small_config


def with_codebook(**changes):
  """The random model, with other parameters of its codebook: functions of the old ones."""
  model = noisy_model()
  book = {name: changes.get(name, lambda x: x)(value) for name, value in model.params["memory"]["codebook"].items()}
  return Inpainter(model.config, {**model.params, "memory": {**model.params["memory"], "codebook": book}})


def picture(height=48, width=80):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), hole_of(height, width, share=0.6)


def test_slots_of_equal_values_are_drawn_alike_and_others_are_not():
  drawn = draw_slots(with_codebook(values=lambda x: x.at[0, 1].set(3 * x[0, 0]).at[1, 2].set(x[0, 0])))
  np.testing.assert_array_equal(drawn[0, 0], drawn[1, 2])
  assert np.any(drawn[0, 0] != drawn[0, 1]) and drawn.shape[-1] == 3
  sheet = np.asarray(sheet_of_slots(drawn))
  side = drawn.shape[2]
  np.testing.assert_array_equal(sheet[side + 4 : 2 * side + 4, 2 * (side + 4) : 2 * (side + 4) + side], drawn[1, 2])


def test_where_all_keys_are_alike_every_slot_is_read_as_much():
  model = with_codebook(keys=lambda x: 0 * x, anchors=lambda x: 0 * x)
  reads, count = find_reads(model, *picture(), cells=4, top=3), model.config.memory.num_slots
  np.testing.assert_allclose(reads.weights, 1 / count, rtol=1e-5)
  np.testing.assert_allclose(reads.perplexity, count, rtol=1e-4)


def test_the_slots_that_count_most_come_first_for_cells_inside_the_hole():
  model = noisy_model()
  image, mask = picture()
  reads, stride = find_reads(model, image, mask, cells=3, top=4), model.config.model.stride
  assert np.all(np.diff(reads.weights, axis=1) <= 0) and reads.slots.shape == (3, 4)
  white = np.all(reads.seen == 255, axis=-1)
  for row, column in reads.cells:
    assert white[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride].all()
  sheet = sheet_of_reads(reads, draw_slots(model), stride)
  assert sheet.height == 3 * (TILE + 20)
  label = np.asarray(sheet.convert("L"))[TILE + 2 : TILE + 20, -(TILE + 4) :]
  letters = np.flatnonzero(np.any(label < 160, axis=0))
  assert np.diff(letters[letters < 40]).max() > 4  # a space is seen between slot and number


def test_the_command_writes_both_sheets_and_refuses_what_has_none(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(memory.Inpainter, "from_checkpoint", lambda path: noisy_model())
  image, mask = picture()
  Image.fromarray(image).save(tmp_path / "a.png")
  Image.fromarray(255 * mask).save(tmp_path / "hole.png")
  words = [f"--images={tmp_path / 'a.png'}", f"--masks={tmp_path / 'hole.png'}", f"--output={tmp_path / 'out'}"]
  assert run.main(["memory", *words]) == 0
  assert {path.name for path in (tmp_path / "out").iterdir()} == {"slots.png", "a_reads.png"}
  assert "slots" in capsys.readouterr().out

  Image.fromarray(0 * mask).save(tmp_path / "hole.png")
  assert run.main(["memory", *words]) == 2
  assert "hole.png has no hole" in one_line(capsys.readouterr().err)


def test_a_sheet_never_takes_the_place_of_an_input(tmp_path, monkeypatch):
  monkeypatch.setattr(memory.Inpainter, "from_checkpoint", lambda path: pytest.fail("after what is refused"))
  image, mask = picture()
  Image.fromarray(image).save(tmp_path / "slots.png")
  Image.fromarray(255 * mask).save(tmp_path / "hole.png")
  words = [f"--images={tmp_path / 'slots.png'}", f"--masks={tmp_path / 'hole.png'}", f"--output={tmp_path}"]
  assert run.main(["memory", *words]) == 2


def test_a_hole_that_is_lost_when_the_picture_is_reduced_is_refused():
  image, mask = picture(640, 640)
  mask[:] = 0
  mask[300, 100:500] = 1
  with pytest.raises(ConfigError):
    find_reads(noisy_model(), image, mask, cells=3, top=4)


def test_a_hard_memory_is_read_in_equal_parts_from_its_books():
  config = small_config("memory.kind=hard", "memory.slot_temperature=0.1")
  model = Inpainter(config, release_params(initial(config, "inpaint")))
  books, slots = config.memory.num_groups, config.memory.slots_per_group
  assert draw_slots(model).shape[:2] == (books, slots)
  reads = find_reads(model, *picture(), cells=4, top=books * slots)
  shares = np.stack([np.where(reads.slots // slots == book, reads.weights, 0).sum(axis=1) for book in range(books)])
  np.testing.assert_allclose(shares, 1 / books, rtol=1e-5)
  # Within a book the weights differ.
  assert reads.perplexity.max() < books * slots


def test_a_model_without_a_memory_has_nothing_to_show():
  model = noisy_model()
  config = dataclasses.replace(model.config, memory=dataclasses.replace(model.config.memory, enabled=False))
  with pytest.raises(ConfigError, match="memory.enabled=false"):
    draw_slots(Inpainter(config, model.params))
