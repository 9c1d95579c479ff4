"""--mode=evaluate: scores the held-out images per hole-area bucket, beside plain baselines.

One code path for the end of a training run and for a checkpoint later. Every method is scored on the same uint8
composites, so nothing outside the hole can differ.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from gmsrm_jax import features, metrics
from gmsrm_jax.arrays import image_from_uint8, image_to_uint8, mask_from_uint8
from gmsrm_jax.checkpoint import Checkpointer, with_shardings
from gmsrm_jax.config import BUCKETS, Config, require
from gmsrm_jax.data import pipeline, sources
from gmsrm_jax.data.evaluation_masks import masks_sha256
from gmsrm_jax.models import codebook
from gmsrm_jax.models.blocks import push_pull_fill
from gmsrm_jax.models.inpainter import apply_inpainter, apply_learner
from gmsrm_jax.sharding import make_mesh
from gmsrm_jax.state import TrainState, make_networks, release_params
from gmsrm_jax.writer import save_panel, write_json, write_text

METHOD = "GM-SRM"
REPORT = "report"
Fill = Callable[[UInt8[np.ndarray, "b h w 3"], UInt8[np.ndarray, "b h w 1"]], UInt8[np.ndarray, "b h w 3"]]


def bucket_name(bucket: tuple[float, float]) -> str:
  """'20-30%'."""
  return f"{bucket[0] * 100:.0f}-{bucket[1] * 100:.0f}%"


def mean_fill(images: UInt8[np.ndarray, "b h w 3"], masks: UInt8[np.ndarray, "b h w 1"]):
  """Each hole takes the mean colour of its image's known pixels."""
  known = 1.0 - masks
  mean = (images * known).sum((1, 2), keepdims=True) / np.maximum(known.sum((1, 2), keepdims=True), 1.0)
  return np.where(masks > 0, np.round(mean).astype(np.uint8), images)


def telea_fill(images: UInt8[np.ndarray, "b h w 3"], masks: UInt8[np.ndarray, "b h w 1"], *, radius: float):
  """OpenCV's fast-marching inpainting (Telea 2004)."""
  images = mean_fill(images, masks)  # OpenCV's gradients reach into the hole, where the truth would still be.
  return np.stack(
    [
      cv2.inpaint(np.ascontiguousarray(image), np.ascontiguousarray(mask[..., 0]), radius, cv2.INPAINT_TELEA)
      for image, mask in zip(images, masks, strict=True)
    ]
  )


@jax.jit
def _initial_fill(images: jax.Array, masks: jax.Array) -> jax.Array:
  fill = push_pull_fill(image_from_uint8(images), mask_from_uint8(masks))
  return jnp.where(masks > 0, image_to_uint8(fill), images)


def initial_fill(
  images: UInt8[np.ndarray, "b h w 3"], masks: UInt8[np.ndarray, "b h w 1"]
) -> UInt8[np.ndarray, "b h w 3"]:
  """The smooth fill that the network starts from: what a row adds to this one was learned."""
  return np.asarray(_initial_fill(images, masks))


def make_fill(config: Config, params: Any) -> Fill:
  """The model's deterministic fill, composited, as a function of uint8 arrays."""
  inpainter = make_networks(config).inpainter

  @jax.jit
  def fill(params: Any, images: jax.Array, masks: jax.Array) -> jax.Array:
    image, mask = image_from_uint8(images), mask_from_uint8(masks)
    out = apply_inpainter(inpainter, params, image, mask)
    return jnp.where(masks > 0, image_to_uint8(out.prediction), images)

  return lambda images, masks: np.asarray(fill(params, images, masks))


@jax.jit
def _scores(lpips_params: Any, filled: jax.Array, images: jax.Array, masks: jax.Array) -> dict[str, jax.Array]:
  """Every per-image metric of uint8 pictures."""
  a, b, mask = image_from_uint8(filled), image_from_uint8(images), mask_from_uint8(masks)
  return {
    "psnr": metrics.psnr(a, b),
    "ssim": metrics.ssim(a, b),
    "l1": metrics.l1(a, b),
    "lpips": features.lpips(lpips_params, a, b, net="alex"),
    "psnr_hole": metrics.psnr_hole(a, b, mask),
    "l1_hole": metrics.l1_hole(a, b, mask),
    "hole_area": jnp.mean(mask, axis=(1, 2, 3)),
  }


def score(
  config: Config, methods: Mapping[str, Fill], evaluation: pipeline.EvaluationSet
) -> dict[str, dict[str, dict[str, float]]]:
  """Means by method, bucket (and 'all') and metric; independent of the batch size."""
  lpips_params = features.load_alexnet()
  table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in methods}
  totals = {name: metrics.Sums() for name in methods}
  batches = -(-len(evaluation) // config.eval.batch_size)
  with tqdm(total=batches * len(BUCKETS), desc="evaluate", unit="batch", disable=None) as progress:
    for bucket in BUCKETS:
      sums = {name: metrics.Sums() for name in methods}
      for _, images, masks, valid in evaluation.batches(bucket, config.eval.batch_size):
        for name, fill in methods.items():
          filled = np.where(masks > 0, fill(images, masks), images)
          scores = {k: np.asarray(v) for k, v in _scores(lpips_params, filled, images, masks).items()}
          sums[name] = sums[name].merge(metrics.Sums.of(scores, valid=valid))
        progress.update()
      for name in methods:
        table[name][bucket_name(bucket)] = sums[name].finalise()
        totals[name] = totals[name].merge(sums[name])
  for name in methods:
    table[name]["all"] = totals[name].finalise()
  return table


def memory_health(config: Config, state: TrainState, evaluation: pipeline.EvaluationSet) -> dict[str, float]:
  """What the teacher makes of the held-out images: how many slots it uses and how well its reads can be drawn."""
  learner = make_networks(config).learner
  teacher = state.frozen["teacher"]
  params = {**teacher, "memory": {**teacher["memory"], "generator": release_params(state)["memory"]["generator"]}}

  @jax.jit
  def recognise(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    image = image_from_uint8(images)
    out = apply_learner(learner, params, image)
    drawn = image_from_uint8(image_to_uint8(out.rendering.image))
    return codebook.mean_weights(out.retrieval.log_weights), metrics.psnr(drawn, image)

  usage, total = np.zeros(config.memory.num_slots), metrics.Sums()
  for batch in evaluation.batches(BUCKETS[0], config.eval.batch_size):
    weights, psnr = recognise(params, batch.images)
    # A padded batch counts its last image more often: too little to matter for a share of slots.
    usage += np.asarray(weights)
    total = total.merge(metrics.Sums.of({"psnr": psnr}, valid=batch.valid))
  usage = jnp.asarray(usage / usage.sum(), jnp.float32)
  return {
    "slots": config.memory.num_slots,
    "perplexity": float(codebook.perplexity(usage)),
    "used_slots": float(codebook.used_slots(usage, config.memory.revive_below)),
    "reconstruction_psnr": total.finalise()["psnr"],
  }


def evaluate_state(config: Config, state: TrainState, evaluation: pipeline.EvaluationSet, root: pathlib.Path) -> None:
  """Scores the averaged parameters of stage 2 and writes `report.json`, `report.md` and pictures per bucket."""
  fill = make_fill(config, release_params(state))
  methods = {
    METHOD: fill,
    "Telea": functools.partial(telea_fill, radius=config.eval.telea_radius),
    "initial fill": initial_fill,
    "mean fill": mean_fill,
  }
  report = {
    "experiment": config.name,
    "step": int(state.step),
    "protocol": protocol(config, evaluation),
    "scores": score(config, methods, evaluation),
  }
  if "teacher" in state.frozen:
    report["memory"] = memory_health(config, state, evaluation)
  save_examples(config, methods, evaluation, root / "samples")
  write_json(root / f"{REPORT}.json", report)
  text = markdown(report)
  write_text(root / f"{REPORT}.md", text)
  print(text)
  print(f"pictures: {root / 'samples'}    report: {root / REPORT}.md")


def protocol(config: Config, evaluation: pipeline.EvaluationSet) -> dict[str, Any]:
  """Everything that the numbers depend on besides the weights."""
  holes = (
    (name, bucket, evaluation.mask(index, bucket)) for index, name in enumerate(evaluation.names) for bucket in BUCKETS
  )
  return {
    "images": len(evaluation),
    "image_size": config.model.image_size,
    "images_sha256": sources.split_hash(evaluation.source),
    "masks_sha256": masks_sha256(holes),
    "masks": evaluation.mask_source,
    "composite": True,
    "psnr": "uint8 RGB, data range 1, mean of dB per image",
    "ssim": "Gaussian window 11, sigma 1.5, data range 1, mean over RGB",
    "lpips": "AlexNet, v0.1",
    "telea_radius": config.eval.telea_radius,
  }


def markdown(report: Mapping[str, Any]) -> str:
  """The report as a page: one table per metric, a row per method, a column per bucket."""
  settings = report["protocol"]
  lines = [
    f"# {report['experiment']}, step {report['step']}",
    "",
    f"{settings['images']} held-out images at {settings['image_size']}x{settings['image_size']}, one fixed mask per "
    f"image and bucket; all methods composited and scored as uint8. Images sha256 "
    f"{settings['images_sha256'][:12]}. Masks: {settings['masks']}; sha256 {settings['masks_sha256'][:12]}.",
  ]
  buckets = [bucket_name(bucket) for bucket in BUCKETS] + ["all"]
  shown = {"psnr": "PSNR (dB, higher is better)", "ssim": "SSIM (higher is better)", "l1": "L1 (lower is better)"}
  for metric, title in {**shown, "lpips": "LPIPS, AlexNet (lower is better)"}.items():
    lines += ["", f"## {title}", "", "| | " + " | ".join(buckets) + " |", "|---" * (len(buckets) + 1) + "|"]
    digits = 2 if metric == "psnr" else 4
    for method, rows in report["scores"].items():
      values = [f"{rows[bucket][metric]:.{digits}f}" for bucket in buckets]
      lines.append(f"| {method} | " + " | ".join(values) + " |")
  if "memory" in report:
    health = report["memory"]
    lines += [
      "",
      "## Memory",
      "",
      f"Perplexity {health['perplexity']:.0f} of {health['slots']} slots, {health['used_slots']:.0f} in use; whole "
      f"held-out images drawn from their read alone: {health['reconstruction_psnr']:.2f} dB.",
    ]
  return "\n".join(lines) + "\n"


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


def evaluate(config: Config, workdir: str, checkpoint: str | None = None) -> None:
  """Scores the newest checkpoint of a trained folder again, or that of another folder.

  Raises:
    ConfigError: there is no checkpoint of stage 2, or it does not fit.
  """
  root = pathlib.Path(checkpoint or workdir)
  state = load_trained_state(config, root)
  evaluate_state(config, state, pipeline.evaluation_set(config), pathlib.Path(workdir))


def load_trained_state(config: Config, root: pathlib.Path) -> TrainState:
  """The newest state of stage 2 in a workdir, on this process's devices."""
  require(
    (root / "checkpoints" / "inpaint").is_dir(),
    f"{root} holds no checkpoint of stage 2: train there first, or name a folder that was",
  )
  saved = Checkpointer(str(root), "inpaint", keep=config.run.keep)
  return saved.restore(with_shardings(config, "inpaint", make_mesh(config)), None)
