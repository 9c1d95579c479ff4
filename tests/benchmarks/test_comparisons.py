"""Comparisons run by hand: leads over another method, the worth of a read of the memory, the time of a scope."""

from __future__ import annotations

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from benchmarks.quality import gallery, lead, memory_use, side_by_side
from benchmarks.speed import scopes
from gmsrm_jax.arrays import composite
from gmsrm_jax.evaluation.scorer import Picture
from gmsrm_jax.models import inpainter as models
from tests.models.test_inpainter import MODEL, _random_params, _scene

ROWS = [
  # The images lie 20 dB apart, the methods 1 and 2 dB.
  {"method": method, "bucket": "40-50%", "image": name, "psnr": str(level + ahead), "ssim": "0.5", "lpips": str(blur)}
  for method, blur, aheads in (("GM-SRM", 0.1, (1.0, 2.0)), ("Telea", 0.3, (0.0, 0.0)), ("mean fill", 0.4, (5.0, 5.0)))
  for name, level, ahead in zip(("a_1.png", "b_1.png"), (10.0, 30.0), aheads, strict=True)
]


@pytest.mark.parametrize(
  ("over", "prefix", "expected"), [("Telea", "", [1.0, 2.0]), ("Telea", "b_", [2.0]), ("mean fill", "", [-4.0, -3.0])]
)
def test_the_lead_is_taken_image_by_image_over_the_wanted_row(over, prefix, expected):
  assert lead.leads(ROWS, over, prefix, "psnr") == {"40-50%": expected}


@pytest.fixture(scope="module")
def pictures():
  image, mask = _scene()
  return jnp.concatenate([image, image[:, ::-1]]), jnp.concatenate([mask, mask[:, ::-1]])


@pytest.fixture(scope="module")
def reads(pictures):
  """Parameters, the model's own output, and a function from the teacher's read to the fills."""
  image, mask = pictures
  params = _random_params(MODEL, image, mask)
  fill = jax.jit(nn.apply(memory_use.fills, MODEL))
  out = jax.jit(functools.partial(models.inpaint, MODEL))(params, image, mask)
  return out, lambda taught: fill({"params": params}, image, mask, taught)


def test_its_own_read_gives_the_models_own_fill(reads, pictures):
  out, fills = reads
  found = fills(out.retrieval.read)
  np.testing.assert_allclose(found["own"], composite(out.prediction, *pictures), atol=1e-5)
  np.testing.assert_allclose(found["teacher"], found["own"], atol=1e-5)


def test_another_read_changes_the_hole_and_nothing_else(reads, pictures):
  out, fills = reads
  image, mask = pictures
  found = fills(out.retrieval.read + 1.0)
  for name in ("teacher", "other", "mean"):
    differs = np.abs(np.asarray(found[name] - found["own"]))
    assert differs[np.broadcast_to(np.asarray(mask) > 0, differs.shape)].max() > 1e-3, name
    np.testing.assert_array_equal(np.where(mask > 0, 0, found[name]), np.where(mask > 0, 0, image))


def test_the_other_read_is_that_of_another_picture(reads, pictures):
  out, fills = reads
  swapped = jnp.roll(out.retrieval.read, 1, axis=0)
  found = fills(swapped)
  np.testing.assert_allclose(found["other"], found["teacher"], atol=1e-5)


def test_a_sheet_shows_the_worst_of_a_report(tmp_path, capsys):
  """The CSV's rows rank; an image stands once, with the bucket where it is worst."""
  folder = tmp_path / "images"
  folder.mkdir()
  for name in ("a.png", "b.png", "c.png"):
    Image.fromarray(skimage.data.astronaut()[:140, : 150 + ord(name[0])]).save(folder / name)
  rows = [("GM-SRM", "40-50%", "a.png", 0.3), ("GM-SRM", "50-60%", "a.png", 0.4), ("GM-SRM", "10-20%", "b.png", 0.35)]
  rows += [("GM-SRM", "50-60%", "c.png", 0.2), ("Telea", "50-60%", "c.png", 0.9)]
  lines = ["method,bucket,image,psnr,lpips", *(f"{m},{b},{i},20,{lpips}" for m, b, i, lpips in rows)]
  (tmp_path / "report.csv").write_text("\n".join(lines) + "\n")
  sheet_of = {"images": folder, "report": tmp_path / "report.csv", "output": tmp_path / "worst.png"}
  gallery.main(["--count=2", "--num_samples=2", *(f"--{name}={path}" for name, path in sheet_of.items())])
  shown = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if ".png" in line]
  assert shown == [["a.png", "50-60%"], ["b.png", "10-20%"]]
  with Image.open(tmp_path / "worst.png") as sheet:
    assert sheet.width > 5 * 128 and sheet.height > 2 * 128  # five columns, two rows, gaps between


@pytest.mark.parametrize(
  ("op_name", "scope"),
  [
    ("jit(step)/jvp(Inpainter)/encoder/block0_0/add", ("Inpainter/encoder", False)),
    ("jit(step)/transpose(jvp(Inpainter))/encoder/add", ("Inpainter/encoder", True)),
    ("jit(step)/jvp(Inpainter)/mul", ("Inpainter", False)),
    ("jit(step)/transpose(jvp())/jit(_pad)/slice", ("rest", True)),
    ("jit(step)/optimiser/mul", ("optimiser", False)),
  ],
)
def test_an_operation_belongs_to_its_scope(op_name, scope):
  assert scopes.scope_of(op_name) == scope


@pytest.mark.parametrize(("angle", "share"), [(0, 1.0), (90, 1.0), (45, 0.0), (20, 0.0)])
def test_streaks_lie_along_rows_and_columns(angle, share):
  y, x = np.mgrid[:128, :128]
  wave = np.sin((x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))) / 3)
  image = np.repeat((127 + 100 * wave).astype(np.uint8)[..., None], 3, axis=-1)
  assert side_by_side.streaks(image, np.ones((128, 128), np.uint8)) == pytest.approx(share, abs=0.03)


def test_every_pair_of_methods_is_shown_once_with_who_is_who_in_the_file_alone(tmp_path):
  grey, hole = np.full((128, 128, 3), 9, np.uint8), np.zeros((128, 128, 1), np.uint8)
  pictures = [Picture("street", f"{number}.jpg", grey, hole) for number in range(4)]
  fills = {name: np.full((4, 128, 128, 3), level, np.uint8) for name, level in (("a", 50), ("b", 100), ("c", 150))}
  side_by_side.write_pairs(tmp_path, pictures, fills)
  told = json.loads((tmp_path / "pairs.json").read_text())
  seen = {(row["name"], frozenset((row["A"], row["B"]))) for row in told.values()}
  assert len(told) == len(seen) == 12 and len({row["A"] < row["B"] for row in told.values()}) == 2
  for number, row in told.items():
    with Image.open(tmp_path / "pairs" / f"{number}.png") as panel:
      # Three cells of 128 pixels, 4 apart, under a header.
      shown = [np.asarray(panel)[100, left + 64, 0] for left in (132, 264)]
    assert shown == [fills[row[side]].flat[0] for side in "AB"]


def test_the_fixed_holes_are_in_turn_a_box_a_horse_strokes_and_a_test_mask():
  masks = {2000 * 4 + 20 * 3 + 7: np.eye(256, dtype=np.uint8)}
  box, horse, strokes, given = (side_by_side.hole(index, masks) for index in range(4))
  assert box.sum() == box.any(axis=1).sum() * box.any(axis=0).sum()
  assert 120 <= max(horse.any(1).sum(), horse.any(0).sum()) <= 181 and 0.15 <= strokes.mean() <= 0.3
  np.testing.assert_array_equal(given, np.eye(256))
