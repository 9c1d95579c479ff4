"""Fixed holes: drawn ones can be written and read back; files are paired with images once and for all."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

import run
from gmsrm_jax import files, overrides
from gmsrm_jax.config import SIZES, Config, DataConfig, EvalConfig, MaskConfig
from gmsrm_jax.data import pipeline
from gmsrm_jax.data.masks import fixed, hole_files
from gmsrm_jax.data.masks.fixed import BUCKETS
from gmsrm_jax.errors import ConfigError

NAMES = ["a.jpg", "a.png", "sub/a.jpg", "sub/b.png"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  root = tmp_path_factory.mktemp("images")
  (root / "sub").mkdir()
  for index, name in enumerate(NAMES):
    Image.new("RGB", (70, 80), (40 * index, 90, 90)).save(root / name)
  return Config(name="demo", model=SIZES["tiny"], data=DataConfig(train=str(root), val=str(root)))


def with_masks(config, masks, **more):
  return dataclasses.replace(config, eval=dataclasses.replace(config.eval, masks=str(masks), **more))


def all_masks(config):
  evaluation = pipeline.evaluation_set(config)
  return {(name, bucket): evaluation.mask(i, bucket) for i, name in enumerate(evaluation.names) for bucket in BUCKETS}


def write(config, output):
  settings = [f"data.val={config.data.val}", f"eval.mask_seed={config.eval.mask_seed}", "model.size=tiny"]
  return run.main(["--mode=masks", f"--output={output}", "--set", *settings])


@pytest.fixture(scope="module")
def written(config, tmp_path_factory):
  output = tmp_path_factory.mktemp("masks")
  assert write(config, output) == 0
  return output


def test_a_manifest_gives_back_the_drawn_masks_and_their_hash(config, written):
  drawn, read = all_masks(config), all_masks(with_masks(config, written))
  assert drawn.keys() == read.keys() and len(drawn) == len(NAMES) * len(BUCKETS)
  for key, mask in drawn.items():
    np.testing.assert_array_equal(mask, read[key])
  manifest = json.loads((written / "manifest.json").read_text())
  whole = b"".join(fixed.mask_bytes(name, bucket, mask) for (name, bucket), mask in drawn.items())
  assert hashlib.sha256(whole).hexdigest() == manifest["masks_sha256"]
  sources = [pipeline.evaluation_set(c).mask_source for c in (config, with_masks(config, written))]
  assert "eval.mask_seed=2022" in sources[0]
  assert sources[0] in sources[1] and manifest["masks_sha256"] in sources[1]
  row = manifest["masks"][2]
  assert row["name"] == "a.jpg" and row["bucket"] == [0.2, 0.3]
  assert row["area"] == drawn["a.jpg", (0.2, 0.3)].mean()


def test_writing_again_repeats_it_and_other_settings_need_another_folder(config, written, tmp_path, capsys):
  assert write(config, tmp_path) == 0
  assert (tmp_path / "manifest.json").read_bytes() == (written / "manifest.json").read_bytes()
  assert write(config, tmp_path) == 0  # in place
  other = dataclasses.replace(config, eval=EvalConfig(mask_seed=1))
  capsys.readouterr()
  assert write(other, tmp_path) == 2
  assert "holds the masks of other settings or images: choose another folder" in capsys.readouterr().err
  assert (tmp_path / "manifest.json").read_bytes() == (written / "manifest.json").read_bytes()


def test_a_changed_missing_or_foreign_mask_is_refused_by_name(config, tmp_path):
  assert write(config, tmp_path) == 0
  evaluation = pipeline.evaluation_set(with_masks(config, tmp_path))
  victim = tmp_path / "20-30" / "a.png.png"
  mask = hole_files.read_hole(victim) > 0
  mask[0, 0] ^= True
  Image.fromarray(mask).save(victim)
  evaluation.mask(0, BUCKETS[2])
  with pytest.raises(ConfigError, match="20-30/a.png.png was changed since the manifest was written"):
    evaluation.mask(1, BUCKETS[2])
  victim.unlink()
  with pytest.raises(ConfigError, match="20-30/a.png.png is missing"):
    evaluation.mask(1, BUCKETS[2])
  with pytest.raises(ConfigError, match="masks of 64 pixels, but model.image_size=128"):
    pipeline.evaluation_set(dataclasses.replace(with_masks(config, tmp_path), model=SIZES["small"]))
  foreign = dataclasses.replace(config, data=DataConfig(val="demo"))
  with pytest.raises(ConfigError, match=r"has no masks for 24 of 24 held-out images \(spb_img_"):
    pipeline.evaluation_set(with_masks(foreign, tmp_path))
  (tmp_path / "manifest.json").write_text("{")
  with pytest.raises(ConfigError, match="manifest.json is no manifest of masks"):
    pipeline.evaluation_set(with_masks(config, tmp_path))


def test_masks_of_a_trained_folder_are_those_it_is_evaluated_with(config, tmp_path):
  seeded = dataclasses.replace(config, eval=EvalConfig(mask_seed=7, max_images=2))
  (tmp_path / "run").mkdir()
  files.write_json(tmp_path / "run" / "config.json", {"config": overrides.to_dict(seeded), "splits": {}})
  assert run.main(["--mode=masks", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}"]) == 0
  manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
  assert manifest["seed"] == 7 and {row["name"] for row in manifest["masks"]} == set(NAMES[:2])


def mask_folder(root, sides):
  """Squares of these sides in pictures of 100x100: areas are known."""
  root.mkdir(exist_ok=True)
  for index, side in enumerate(sides):
    picture = np.zeros((100, 100), np.uint8)
    picture[:side, :side] = 255
    Image.fromarray(picture).save(root / f"{index:05d}.png")
  return root


SIDES = (10, 20, 25, 35, 38, 42, 48, 52, 58, 60, 65, 68, 72, 74, 76)


def test_files_are_paired_by_name_bucket_and_seed(config, tmp_path):
  folder = mask_folder(tmp_path / "masks", SIDES)
  first, again = all_masks(with_masks(config, folder)), all_masks(with_masks(config, folder))
  reseeded = all_masks(with_masks(config, folder, mask_seed=5))
  for (name, (low, high)), mask in first.items():
    assert mask.shape == (64, 64) and low < mask.mean() <= high
    np.testing.assert_array_equal(mask, again[name, (low, high)])
  assert any((first[key] != reseeded[key]).any() for key in first)
  assert any((first["a.jpg", bucket] != first["a.png", bucket]).any() for bucket in BUCKETS)
  # Leaving images out changes no pair.
  fewer = all_masks(with_masks(config, folder, max_images=2))
  for key, mask in fewer.items():
    np.testing.assert_array_equal(mask, first[key])
  assert pipeline.evaluation_set(with_masks(config, folder)).mask_source == (
    "15 masks of masks, buckets by area, picked by name, bucket and eval.mask_seed=2022"
  )


def test_masks_that_are_final_are_not_changed(config, written):
  with pytest.raises(ConfigError, match="eval.mask_invert=True changes mask files"):
    pipeline.evaluation_set(with_masks(config, written, mask_invert=True))
  with pytest.raises(ConfigError, match="eval.mask_dilate=2 changes mask files, not drawn"):
    pipeline.evaluation_set(with_masks(config, "", mask_dilate=2))


def test_a_bucket_without_a_mask_is_named(config, tmp_path):
  folder = mask_folder(tmp_path / "masks", [side for side in SIDES if not 46 <= side <= 60])
  with pytest.raises(ConfigError, match="none of its 11 masks covers 20-30% or 30-40% of the image"):
    pipeline.evaluation_set(with_masks(config, folder))


def test_nvidias_buckets_go_by_index_or_by_area(config, tmp_path, monkeypatch):
  monkeypatch.setattr(hole_files, "NVIDIA_PER_BUCKET", 2)
  sides = (10, 20, 33, 40, 50, 52, 57, 60, 65, 68, 76, 30)  # the last lies in another bucket than its index says
  folder = mask_folder(tmp_path / "testing_mask_dataset", sides)
  by_index = pipeline.evaluation_set(with_masks(config, tmp_path, mask_bucket="index", mask_seed=0))
  bits = [hole_files.read_hole(folder / f"{i:05d}.png") for i in range(12)]
  last = {by_index.mask(i, BUCKETS[5]).tobytes() for i in range(len(NAMES))}
  assert last <= {hole_files.resize_mask(bits[i], 64, 64).tobytes() for i in (10, 11)}
  by_area = pipeline.evaluation_set(with_masks(config, tmp_path))
  for i in range(len(NAMES)):
    assert 0.5 < by_area.mask(i, BUCKETS[5]).mean() <= 0.6
  # The same masks, packed.
  packed = np.stack([np.packbits(hole_files.resize_mask(mask, 256, 256)) for mask in bits])
  np.savez(tmp_path / "masks.npz", bits=packed)
  from_file = pipeline.evaluation_set(with_masks(config, tmp_path / "masks.npz", mask_bucket="index", mask_seed=0))
  # Through 256 pixels an edge may move by one.
  assert np.abs(from_file.mask(0, BUCKETS[5]).astype(int) - by_index.mask(0, BUCKETS[5])).mean() < 0.05


def test_what_cannot_be_masks_is_refused(config, tmp_path):
  folder = mask_folder(tmp_path / "masks", SIDES)
  with pytest.raises(ConfigError, match="eval.mask_bucket='index' needs NVIDIA's 12000 test masks, but .* 15 masks"):
    pipeline.evaluation_set(with_masks(config, folder, mask_bucket="index"))
  with pytest.raises(ConfigError, match="eval.masks='.*nowhere' does not exist"):
    pipeline.evaluation_set(with_masks(config, tmp_path / "nowhere"))
  with pytest.raises(ConfigError, match="00000.png' holds no packed masks"):
    pipeline.evaluation_set(with_masks(config, folder / "00000.png"))
  with pytest.raises(ConfigError, match="eval.mask_bucket='indx' is unknown: did you mean 'index'?"):
    EvalConfig(mask_bucket="indx")
  bad = dataclasses.replace(config, mask=MaskConfig(objects=1.0, objects_folder=str(tmp_path / "nowhere")))
  for reader in (pipeline.evaluation_set, lambda c: pipeline.training_iterator(c, "memory")):
    with pytest.raises(ConfigError, match="mask.objects_folder='.*nowhere' does not exist"):
      reader(bad)
