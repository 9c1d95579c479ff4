"""--mode=evaluate: scores the held-out images per hole-area bucket, beside plain baselines, or anybody's folders.

One code path (`scoring`) for the end of a training run, for a checkpoint later and for folders of files.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmsrm_jax import files
from gmsrm_jax.arrays import image_from_uint8, image_to_uint8
from gmsrm_jax.config import BUCKETS, Config, bucket_name
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.data.masks.fixed import masks_sha256
from gmsrm_jax.evaluation import instruments, metrics
from gmsrm_jax.evaluation.baselines import Fill, baselines
from gmsrm_jax.evaluation.from_files import FolderResults
from gmsrm_jax.evaluation.protocols import PROTOCOLS
from gmsrm_jax.evaluation.report import make_report, write_report
from gmsrm_jax.evaluation.scorer import Batch, Results, score
from gmsrm_jax.models import codebook
from gmsrm_jax.models.inpainter import fill_pixels
from gmsrm_jax.models.memory import recognise
from gmsrm_jax.panels import save_panel
from gmsrm_jax.parallel.fixed_batches import in_fixed_batches
from gmsrm_jax.training.run_folder import REPORT
from gmsrm_jax.training.state import make_networks
from gmsrm_jax.training.weights import Weights, load_weights

METHOD = "GM-SRM"


def make_fill(config: Config, params: Any) -> Fill:
  """The model's deterministic fill, composited, as a function of uint8 arrays."""
  return in_fixed_batches(functools.partial(fill_pixels, make_networks(config).inpaint), params)


class HeldOutResults:
  """Fills of the held-out images, made while they are scored; see `scoring.Results`."""

  has_masks = True

  def __init__(self, config: Config, fills: Mapping[str, Fill], evaluation: pipeline.EvaluationSet):
    self._fills, self._evaluation, self._batch_size = dict(fills), evaluation, config.eval.batch_size
    self.methods = tuple(self._fills)

  def count(self) -> int:
    return len(self._evaluation) * len(BUCKETS)

  def batches(self) -> Iterator[Batch]:
    for bucket in BUCKETS:
      for batch in self._evaluation.batches(bucket, self._batch_size):
        names = [name for name, valid in zip(batch.names, batch.valid, strict=True) if valid]
        if names:
          yield self._filled(bucket_name(bucket), names, batch.images[batch.valid], batch.masks[batch.valid])

  def example(self, bucket: str, name: str) -> Batch:
    index = self._evaluation.names.index(name)
    mask = self._evaluation.mask(index, next(bounds for bounds in BUCKETS if bucket_name(bounds) == bucket))
    return self._filled(bucket, [name], self._evaluation[index][1][None], mask[None, ..., None])

  def _filled(self, bucket: str, names: list[str], images: np.ndarray, masks: np.ndarray) -> Batch:
    return Batch(bucket, names, images, masks, {title: fill(images, masks) for title, fill in self._fills.items()})


def memory_health(config: Config, teacher: Any, generator: Any, evaluation: pipeline.EvaluationSet) -> dict[str, float]:
  """What the teacher makes of the held-out images: how many slots it uses and how well its reads can be drawn."""
  network = make_networks(config).memory
  params = {**teacher, "memory": {**teacher["memory"], "generator": generator}}

  def redraw(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    image = image_from_uint8(images)
    out = recognise(network, params, image)
    drawn = image_from_uint8(image_to_uint8(out.rendering.image))
    weights = jax.vmap(lambda w: codebook.mean_weights(w[None]))(out.retrieval.log_weights)
    return weights, metrics.psnr(drawn, image)

  program = in_fixed_batches(redraw, params)
  usage, total = np.zeros(config.memory.num_slots), metrics.Sums()
  for batch in evaluation.batches(BUCKETS[0], config.eval.batch_size):
    weights, psnr = program(batch.images)
    usage += weights[batch.valid].astype(np.float64).sum(axis=0)
    total = total.merge(metrics.Sums.of({"psnr": psnr}, valid=batch.valid))
  shares = jnp.asarray(usage / usage.sum(), jnp.float32)
  return {
    "slots": config.memory.num_slots,
    "perplexity": float(codebook.perplexity(shares)),
    "used_slots": float(codebook.used_slots(shares, codebook.REVIVE_BELOW)),
    "reconstruction_psnr": total.finalise()["psnr"],
  }


def evaluate_weights(config: Config, weights: Weights, evaluation: pipeline.EvaluationSet, root: pathlib.Path) -> None:
  """Scores the model and writes the report and pictures per bucket."""
  PROTOCOLS[config.eval.protocol].check(config.model.image_size, config.model.image_size)
  fills = {METHOD: make_fill(config, weights.params), **baselines(config.eval)}
  settings = protocol(config, evaluation)
  about: dict[str, Any] = {
    "experiment": config.name,
    "step": weights.step,
    "title": f"{config.name}, step {weights.step}",
    "summary": (
      f"{settings['images']} held-out images at {settings['image_size']}x{settings['image_size']}, one fixed mask per "
      f"image and bucket; all methods composited and scored as uint8. Images sha256 "
      f"{settings['images_sha256'][:12]}. Masks: {settings['masks']}; sha256 {settings['masks_sha256'][:12]}."
    ),
    "notes": [],
    "protocol": settings,
  }
  if weights.teacher is not None:
    about["memory"] = memory_health(config, weights.teacher, weights.params["memory"]["generator"], evaluation)
  save_examples(config, fills, evaluation, root / "samples")
  results = HeldOutResults(config, fills, evaluation)
  _score_and_report(config, results, about, root)
  print(f"pictures: {root / 'samples'}    report: {root / REPORT}.md")


def _score_and_report(config: Config, results: Results, about: dict[str, Any], root: pathlib.Path) -> None:
  tools = instruments.load(config.eval)
  scores = score(results, tools.measure, config.eval.bootstrap_seed)
  about |= {"weights": tools.weights, "commit": files.git_commit(), "versions": files.versions()}
  about["notes"] = [*about["notes"], *tools.notes]
  if isinstance(results, FolderResults):
    about["notes"] += results.conversions()
  print(write_report(root, make_report(about, scores, config.eval.bootstrap_seed), results, scores))


def protocol(config: Config, evaluation: pipeline.EvaluationSet) -> dict[str, Any]:
  """Everything that the numbers depend on besides the weights."""
  size = config.model.image_size
  holes = (
    (name, bucket, evaluation.mask(index, bucket)) for index, name in enumerate(evaluation.names) for bucket in BUCKETS
  )
  return {
    **PROTOCOLS[config.eval.protocol].describe(size, size),
    "images": len(evaluation),
    "image_size": size,
    "images_sha256": sources.split_hash(evaluation.source),
    "masks_sha256": masks_sha256(holes),
    "masks": evaluation.mask_source,
    "composite": True,
    "telea_radius": config.eval.telea_radius,
  }


def save_examples(
  config: Config, methods: Mapping[str, Fill], evaluation: pipeline.EvaluationSet, folder: pathlib.Path
) -> None:
  """One panel per bucket with every method's fill of images spread over the held-out set; not chosen by result."""
  count = min(config.run.panel_images, len(evaluation))
  chosen = [index * len(evaluation) // count for index in range(count)]
  images = np.stack([evaluation[index][1] for index in chosen])
  for bucket in BUCKETS:
    masks = np.stack([evaluation.mask(index, bucket) for index in chosen])[..., None]
    columns = {"image": images, "masked": np.where(masks > 0, np.uint8(255), images)}
    columns |= {name: np.where(masks > 0, fill(images, masks), images) for name, fill in methods.items()}
    save_panel(folder / f"eval_{bucket_name(bucket).rstrip('%')}.png", columns)


def evaluate(config: Config, checkpoint: str, output: str) -> None:
  """Scores the weights of a folder on held-out images; the report goes to `output`.

  Raises:
    ConfigError: there are none, or they do not fit.
  """
  weights = load_weights(config, pathlib.Path(checkpoint))
  evaluate_weights(config, weights, pipeline.evaluation_set(config), pathlib.Path(output))


def evaluate_folders(
  config: Config,
  *,
  experiment: str | None,
  images: str,
  inpainted: str,
  masks: str | None,
  output: str,
  mask_invert: bool,
) -> None:
  """Scores the pictures of a folder against the truth in another; the report goes to `output`.

  Raises:
    ConfigError: nothing can be paired, or sizes differ.
  """
  results = FolderResults(
    images,
    inpainted,
    masks,
    invert=mask_invert,
    batch_size=config.eval.batch_size,
    max_images=config.eval.max_images,
    baselines=baselines(config.eval),
  )
  PROTOCOLS[config.eval.protocol].check(*results.least_size())
  hole = "without masks" if masks is None else f"masks of {masks}, bucket by measured area"
  settings: dict[str, Any] = {
    **PROTOCOLS[config.eval.protocol].describe(*results.least_size()),
    "images": results.count(),
    "truth": images,
    "inpainted": inpainted,
    "inpainted_sha256": results.results_hash(),
    "masks": masks,
    "masks_sha256": results.masks_hash(),
    "composite": masks is not None,
    "telea_radius": config.eval.telea_radius,
  }
  about = {
    "experiment": experiment,
    "step": None,
    "title": f"{inpainted} against {images}",
    "summary": (
      f"{results.count()} pictures as files, {hole}. Pictures sha256 {settings['inpainted_sha256'][:12]}"
      f"{'' if masks is None else ', masks sha256 ' + settings['masks_sha256'][:12]}."
    ),
    "notes": results.notes,
    "protocol": settings,
  }
  _score_and_report(config, results, about, pathlib.Path(output))
  print(f"report: {pathlib.Path(output) / REPORT}.md")
