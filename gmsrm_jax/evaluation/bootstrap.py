"""How far a mean over these images might lie from that over all images like them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000


def interval(values: ArrayLike, seed: int = 0, *, level: float = 0.95) -> tuple[float, float]:
  """The percentile bootstrap interval of the mean over images (Efron 1979), low and high.

  Images at +inf (PSNR of equal images) are left out, as in `metrics.Sums`; if all are, both ends are inf. NaN is not
  hidden; without any image both ends are NaN. The order of the values changes nothing. Of two methods' difference per
  image it tells whether one is better: the images' own spread drops out.
  """
  array = np.sort(np.asarray(values, np.float64).reshape(-1))
  finite = array[~np.isposinf(array)]
  if not len(finite) or np.isnan(finite).any():
    end = math.inf if len(array) and not len(finite) else math.nan
    return end, end
  rng = np.random.default_rng(seed)
  means = [finite[rng.integers(len(finite), size=len(finite))].mean() for _ in range(RESAMPLES)]
  low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
  return float(low), float(high)
