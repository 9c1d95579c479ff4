"""Reports: the page picks the right pictures, numbers are written plainly."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest

from gmsrm_jax.evaluation import report, scorer
from gmsrm_jax.evaluation.scorer import ALL

BUCKET = "20-30%"


def scores_of(names=None, **values):
  names = names or [f"n{i}" for i in range(len(next(iter(values.values()))))]
  arrays = {name: np.array(array, np.float64)[:, None] for name, array in values.items()}
  check = scorer.self_check({"psnr": np.array([np.inf]), "lpips": np.array([0.0])}, {})
  keys, distances = [(BUCKET, name) for name in names], {"model": {BUCKET: {}, ALL: {}}}
  return scorer.Scores(["model"], keys, arrays, distances, {"model": {"images": 0}}, check)


def test_best_median_and_worst_are_ranked_by_the_hole():
  def chosen(**values):
    return report.choose(scores_of(**values), BUCKET)

  assert chosen(lpips_hole=[0.3, 0.1, 0.5, 0.2, 0.4], psnr=[1, 2, 3, 4, 5]) == {"best": 1, "median": 0, "worst": 2}
  assert chosen(psnr=[10.0, np.inf, 20.0]) == {"best": 1, "median": 2, "worst": 0}
  assert chosen(lpips=[0.1]) == {"best": 0} and chosen(lpips=[0.2, 0.1]) == {"best": 1, "worst": 0}


def test_the_console_shows_what_counts_beside_telea_alone():
  methods = ["model", "initial", "Telea"]
  tree = {"scores": {"psnr": 20.0, "lpips": 0.25, "ssim": 0.5, "detail": -3.0}, "distribution": {"kid_vgg16": 0.01}}
  given = {part: {method: {BUCKET: values} for method in methods} for part, values in tree.items()}
  lines = report.summary({**given, "images": {BUCKET: 60}}).splitlines()
  assert lines[0].split() == [BUCKET] and len(lines) == 10
  rows = [line.split() for line in lines[2:]]
  assert [row[0] for row in rows if "(dB)" in row] == ["PSNR", "PSNR", "Detail", "Detail"]
  assert [(row[0], row[-2], row[-1]) for row in rows] == [
    (title, method, number)
    for title, number in (("PSNR", "20.00"), ("LPIPS", "0.2500"), ("Detail", "-3.00"), ("Kernel", "10.00"))
    for method in ("model", "Telea")
  ]


def test_infinite_and_awkward_names_survive_the_table():
  text = report.table(scores_of(['a, "b".png', "c"], psnr=[np.inf, 1 / 3]))
  rows = list(csv.reader(io.StringIO(text)))
  assert rows == [
    ["method", "bucket", "image", "psnr"],
    ["model", BUCKET, 'a, "b".png', "inf"],
    ["model", BUCKET, "c", "0.333333333"],
  ]


@pytest.mark.parametrize("kind", ["csv", "png", "md"])
def test_the_file_that_says_done_is_not_there_before_the_others(kind, tmp_path, monkeypatch):
  def no_room(path, *_):
    if path.suffix == f".{kind}":
      raise OSError(28, "No space left on device")

  for name in ("write_text", "save_panel"):
    monkeypatch.setattr(report, name, no_room)
  monkeypatch.setattr(report, "markdown", str)
  monkeypatch.setattr(report, "_page", lambda *_: {})
  with pytest.raises(OSError, match="No space"):
    report.write_report(tmp_path, {"step": 3}, lambda *_: None, {}, scores_of(psnr=[1.0]))
  assert not list(tmp_path.iterdir())


def test_a_failed_self_check_is_said_aloud():
  scores = scores_of(psnr=[20.0, 30.0], lpips=[0.1, 0.2])
  protocol = {"name": "ours", "source": "x", "composite": True, "psnr": "dB", "lpips": "v0.1"}
  head = {"title": "t", "notes": [], "protocol": protocol}
  assert "passed." in report.markdown(report.make_report(head, scores))
  scores.check = scorer.self_check({"psnr": np.array([np.inf]), "lpips": np.array([0.5])}, {})
  text = report.markdown(report.make_report(head, scores))
  assert "FAILED" in text and "passed" not in text
  assert re.search(r"\| model +\| 25\.00 +\| 25\.00 +\|", text)
