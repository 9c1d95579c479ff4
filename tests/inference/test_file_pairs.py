"""Pictures and masks belong together by stem, no file is its own mask, and no two results get one name."""

from __future__ import annotations

import unicodedata

import pytest
from PIL import Image

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference.file_pairs import pair_files


def save(root, *names):
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(root / name)
  return root


def named(root, images, masks, output="out"):
  """Image, mask and stem of each pair, of words that are paths below the root."""
  words = [[str(root / word) for word in text.split()] for text in (images, masks)]
  pairs = pair_files(words[0], words[1] or None, str(root / output))
  return [(str(image.relative_to(root)), mask and str(mask.relative_to(root)), stem) for image, mask, stem in pairs]


@pytest.mark.parametrize(
  ("files", "images", "masks", "pairs"),
  [
    ("i/b.jpg i/deep/a.png m/b.png m/deep/a.png", "i", "m", "i/b.jpg:m/b.png:b i/deep/a.png:m/deep/a.png:a"),
    ("i/b.jpg i/a.png m/b.png", "i", "m/b.png", "i/a.png:m/b.png:a i/b.jpg:m/b.png:b"),
    ("i/b.jpg i/a.png", "i", "", "i/a.png::a i/b.jpg::b"),
    # As LaMa has it, in one folder.
    ("d/a.png d/a_mask001.png d/b.jpg d/b_mask.png", "d", "d", "d/a.png:d/a_mask001.png:a d/b.jpg:d/b_mask.png:b"),
    (
      "d/a.png d/a_mask1.png d/a_mask2.png",
      "d",
      "d",
      "d/a.png:d/a_mask1.png:a_mask1 d/a.png:d/a_mask2.png:a_mask2",
    ),
    ("d/a.png d/a_mask.png", "d/*.png", "d/*_mask.png", "d/a.png:d/a_mask.png:a"),
    ("d/a.png d/my_mask.png m/a.png m/my_mask.png", "d", "m", "d/a.png:m/a.png:a d/my_mask.png:m/my_mask.png:my_mask"),
    # One folder in the other, a mask among the pictures, and results of yesterday among them.
    ("d/a.png d/m/a.png", "d", "d/m", "d/a.png:d/m/a.png:a"),
    ("d/i/a.png d/a.png", "d/i", "d", "d/i/a.png:d/a.png:a"),
    ("d/a.png d/b.png d/mask.png", "d", "d/mask.png", "d/a.png:d/mask.png:a d/b.png:d/mask.png:b"),
    ("d/a.png d/mask.png", "d/a.png d/mask.png", "d/mask.png", "d/a.png:d/mask.png:a"),
    ("d/a.png d/out/a.png", "d", "", "d/a.png::a"),
    # Several, and a pattern that no shell replaced.
    ("x/a.png y/b.png x/c.jpg", "x/*.png y", "", "x/a.png::a y/b.png::b"),
  ],
)
def test_who_belongs_to_whom(files, images, masks, pairs, tmp_path):
  save(tmp_path, *files.split())
  expected = [tuple(part or None for part in pair.split(":")) for pair in pairs.split()]
  assert named(tmp_path, images, masks, output="d/out") == expected


def test_names_that_look_alike_belong_together_and_a_clash_shows_where_they_differ(tmp_path):
  composed, split = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
  save(tmp_path, f"i/{composed}", f"m/{split}")
  assert named(tmp_path, "i", "m") == [(f"i/{composed}", f"m/{split}", "é")]
  save(tmp_path, f"i/{split}")
  with pytest.raises(ConfigError, match=r"e\\u0301\.png.*xe9\.png.*rename one"):
    named(tmp_path, "i", "m")


@pytest.mark.parametrize(
  ("files", "images", "masks", "parts"),
  [
    ("i/b.jpg i/a.png m/a.png", "i", "m", ["--masks", "no mask for 1 of 2 images (b.jpg)", "one mask"]),
    ("i/b.jpg", "i", "m", ["--masks", "does not exist"]),
    ("i/notes.gif m/a.png", "m/none*.png", "m", ["--images", "does not exist"]),
    ("i/a.png i/a.jpg m/a.png", "i", "m", ["--images", "share the name 'a'", "rename"]),
    ("d/a.png d/b.png", "d", "d", ["--masks", "names the files of --images", "STEM_mask.png"]),
    ("d/a.png d/a_mask1.png d/b.png", "d", "", ["holds a_mask1.png, called like masks", "--masks=", "/d, too"]),
    ("d/a.png", "d/a.png", "d/a.png", ["--masks", "names the files of --images"]),
  ],
)
def test_files_that_do_not_pair_are_named(files, images, masks, parts, tmp_path):
  save(tmp_path, *files.split())
  with pytest.raises(ConfigError) as error:
    named(tmp_path, images, masks)
  assert [part for part in parts if part not in str(error.value)] == []
