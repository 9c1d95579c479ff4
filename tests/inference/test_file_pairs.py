"""Pictures and masks belong together by stem, and no two results get one name."""

from __future__ import annotations

import pytest
from PIL import Image

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.inference.file_pairs import pair_files


@pytest.fixture
def folders(tmp_path):
  for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
    (tmp_path / folder / "deep").mkdir(parents=True)
    for stem in ("b", "deep/a"):
      Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{stem}{suffix}")
  return tmp_path / "images", tmp_path / "masks"


def test_pairs_go_by_stem_and_one_mask_serves_all(folders):
  def named(masks):
    return [(image.name, mask and mask.name) for image, mask in pair_files(str(folders[0]), masks).items()]

  assert named(str(folders[1])) == [("b.jpg", "b.png"), ("a.jpg", "a.png")]
  assert named(str(folders[1] / "b.png")) == [("b.jpg", "b.png"), ("a.jpg", "b.png")]
  assert named(None) == [("b.jpg", None), ("a.jpg", None)]


@pytest.mark.parametrize(
  ("change", "parts"),
  [
    (lambda images, masks: (masks / "b.png").unlink(), ["--masks", "no mask for 1 of 2 images (b.jpg)", "one mask"]),
    (lambda images, masks: masks.rename(masks.parent / "elsewhere"), ["--masks", "does not exist"]),
    (lambda images, masks: [file.unlink() for file in images.rglob("*.jpg")], ["--images", "holds no image"]),
    # Two photos must not be written to one file.
    (lambda images, masks: Image.new("L", (8, 8)).save(images / "a.png"), ["--images", "share the name 'a'", "rename"]),
  ],
)
def test_files_that_do_not_pair_are_named(change, parts, folders):
  change(*folders)
  with pytest.raises(ConfigError) as error:
    pair_files(*map(str, folders))
  assert [part for part in parts if part not in str(error.value)] == []
