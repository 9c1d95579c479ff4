"""Outputs are settled before anything is written: no input, no file beside one, and no other output is lost."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference import output_plan
from gmsrm_jax.inference.file_pairs import Pair
from tests.inference.test_file_pairs import save


def planned(root, images, output, wanted="keep", samples=1, sheet=False):
  pairs = [Pair(root / image, root / "m.png", (root / image).stem) for image in images.split()]
  return output_plan.plan(pairs, str(root / output), wanted, num_samples=samples, has_sheet=sheet)


@pytest.mark.parametrize(
  ("output", "samples", "files"),
  [
    ("x1.png", 1, ["x1.png"]),
    ("new/x1.JPG", 2, ["new/x1_0.JPG", "new/x1_1.JPG", "new/x1_sheet.png"]),
    ("there.png", 1, ["there.png/a.jpg", "there.png/a.png"]),  # a folder of this name
    ("there.xyz", 1, ["there.xyz/a.jpg", "there.xyz/a.png"]),
    ("out.v2", 1, ["out.v2/a.jpg", "out.v2/a.png"]),
    ("out", 1, ["out/a.jpg", "out/a.png"]),
  ],
)
def test_one_picture_goes_to_the_file_or_folder_that_is_named(output, samples, files, tmp_path):
  save(tmp_path, "i/a.jpg", "m.png", "x1.png")
  for name in ("there.png", "there.xyz"):
    (tmp_path / name).mkdir()
  (job,) = planned(tmp_path, "i/a.jpg", output, samples=samples, sheet=samples > 1)
  assert [str(path.relative_to(tmp_path)) for path in job.paths()] == files


@pytest.mark.parametrize(
  ("images", "output", "options", "parts"),
  [
    ("i/a.png", "i", {}, ["i/a.png is an input"]),
    ("i/a.png", "i/a.png", {}, ["i/a.png is an input"]),
    ("i/a.jpg", ".", {"wanted": "png", "sheet": True}, ["a_sheet.png is there already", "--output"]),
    ("i/a.jpg", "i", {"wanted": "png"}, ["i/a.png is there already"]),
    ("i/a.jpg i/a_sheet.png", "out", {"sheet": True}, ["i/a.jpg and", "a_sheet.png would both be written", "rename"]),
    ("i/a.png j/a.jpg", "out", {"wanted": "png"}, ["both be written"]),
    ("i/a.png i/a.jpg", "x.png", {}, ["names one file", "2 pictures", "folder"]),
    ("i/a.png", "x.gif", {}, [".gif", ".png"]),
    ("i/a.png", "x.heic", {}, [".heic"]),
    ("i/a.png", "x.xyz", {}, ["no .xyz files are written, but BMP, JPEG, ", "folder that is there"]),
    ("i/a.png", "x.jpg", {"wanted": "png"}, ["no PNG", "--format"]),
    ("i/a.png i/a.jpg", "text", {}, ["text is a file", "folder"]),
    (f"i/{'n' * 247}.png", "out", {"sheet": True}, ["255 bytes", "shorten"]),
    ("i/a.png", "link", {"wanted": "keep"}, ["a.png is an input"]),
  ],
)
def test_what_would_lose_a_file_is_refused(images, output, options, parts, tmp_path):
  save(tmp_path, "i/a.png", "i/a.jpg", "j/a.jpg", "i/a_sheet.png", "m.png", "a_sheet.png", images.split()[0])
  (tmp_path / "text").write_text("")
  (tmp_path / "link").symlink_to(tmp_path / "i")
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(ConfigError) as error:
    planned(tmp_path, images, output, **options)
  assert [part for part in parts if part not in str(error.value)] == []
  assert sorted(tmp_path.rglob("*")) == before


def test_a_doubt_about_a_suffix_is_settled_by_the_picture_itself(tmp_path):
  """A JPEG is written as a JPEG, so the PNG of its name that is a mask is in no danger; a CMYK bitmap is not kept."""
  save(tmp_path, "a.jpg", "m.png")
  (tmp_path / "a.png").write_bytes((tmp_path / "m.png").read_bytes())
  pair = Pair(tmp_path / "a.jpg", tmp_path / "a.png", "a")
  with pytest.raises(ConfigError, match=r"a\.jpg is an input"):
    output_plan.plan([pair], str(tmp_path), "keep", num_samples=1, has_sheet=False)
  (job,) = output_plan.plan([pair], str(tmp_path), "keep", num_samples=2, has_sheet=False)
  assert {path.name for path in job.paths()} == {"a_0.jpg", "a_1.jpg", "a_0.png", "a_1.png"}
  (tmp_path / "a_0.png").write_bytes((tmp_path / "m.png").read_bytes())
  (job,) = output_plan.plan([pair], str(tmp_path), "keep", num_samples=2, has_sheet=False)
  assert job.suffixes == (".jpg",)
  Image.new("P", (8, 8)).save(tmp_path / "a.gif")
  gif = Pair(tmp_path / "a.gif", tmp_path / "m.png", "a")
  with pytest.raises(ConfigError, match=r"a_0\.png is there already"):
    output_plan.plan([gif], str(tmp_path), "keep", num_samples=2, has_sheet=False)


def test_names_that_one_file_system_takes_for_one_are_refused_there_alone(tmp_path, monkeypatch):
  save(tmp_path, "i/A.png", "i/a.png", "m.png")
  assert len(planned(tmp_path, "i/A.png i/a.png", "out")) == 2

  def exists(path):  # where there is no difference between A and a
    folder, name = os.path.split(path)
    return os.path.isdir(folder) and name.lower() in {other.lower() for other in os.listdir(folder)}

  monkeypatch.setattr(os.path, "lexists", exists)
  with pytest.raises(ConfigError, match="both be written"):
    planned(tmp_path, "i/A.png i/a.png", "out")
  assert not list(tmp_path.glob(".*"))
