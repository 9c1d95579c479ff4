"""What a report says about the values of an evaluation: means, intervals, counts, and the self-check."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmsrm_jax.config import ALL
from gmsrm_jax.evaluation import bootstrap, metrics
from gmsrm_jax.evaluation.scorer import Scores, SelfCheck

Tree = dict[str, dict[str, dict[str, Any]]]


def _by_image(scores: Scores, method: str, metric: str) -> np.ndarray:
  """Each image's mean over its buckets: holes in one image are no independent samples of images."""
  found: dict[str, list[float]] = {}
  for bucket, names in scores.names.items():
    for name, value in zip(names, scores.values[method][bucket][metric], strict=True):
      found.setdefault(name, []).append(float(value))
  return np.array([np.mean(found[name]) for name in sorted(found)])


def _interval(values: np.ndarray, seed: int) -> list[float] | None:
  """None of one image: drawn again and again it says nothing of others."""
  return list(bootstrap.interval(values, seed)) if len(values) > 1 else None


def summarise(scores: Scores, seed: int) -> tuple[Tree, Tree]:
  """Means, and 95 % bootstrap intervals over images, by method, bucket (and 'all') and metric."""
  means: Tree = {method: {} for method in scores.values}
  intervals: Tree = {method: {} for method in scores.values}
  for method, buckets in scores.values.items():
    for bucket, values in buckets.items():
      means[method][bucket] = metrics.Sums.of(values).finalise()
      intervals[method][bucket] = {name: _interval(array, seed) for name, array in values.items()}
    names = next(iter(buckets.values())).keys()
    joined = {name: np.concatenate([values[name] for values in buckets.values()]) for name in names}
    means[method][ALL] = metrics.Sums.of(joined).finalise()
    intervals[method][ALL] = {name: _interval(_by_image(scores, method, name), seed) for name in names}
  return means, intervals


def counts(scores: Scores) -> dict[str, int]:
  """Pictures per bucket and in all."""
  found = {bucket: len(names) for bucket, names in scores.names.items() if bucket != ALL}
  return found | {ALL: sum(len(names) for names in scores.names.values())}


_BEST = {"ssim": 1.0, "ms_ssim": 1.0}  # of equal pictures; every other error is 0, and PSNR has no end


def self_check(check: SelfCheck) -> dict[str, Any]:
  """How the truth scored against itself, and whether as it must: PSNR inf, every error and Fréchet distance 0."""
  psnr = check.values.get("psnr", np.array([]))
  off = {
    name: float(np.abs(array - _BEST.get(name, 0.0)).max())
    for name, array in check.values.items()
    if not name.startswith("psnr") and name != "hole_area"
  }
  frechet = {name: value for name, value in check.distances.items() if name.startswith(("fd", "fid"))}
  # HINT's protocol ends PSNR at 100 dB.
  perfect = np.all(np.isposinf(psnr) | (psnr == 100.0)) and all(value < 1e-5 for value in off.values())
  return {
    "images": len(psnr),
    "psnr": "inf" if np.all(np.isposinf(psnr)) else float(psnr.min()),
    "off_by": off,
    "frechet_distance": frechet,
    "passed": bool(perfect and all(value < 1e-3 for value in frechet.values())),
  }
