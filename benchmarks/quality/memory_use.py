"""Puts other reads into a trained model: do its fills depend on what it reads from its memory?

  python -m benchmarks.quality.memory_use --workdir=runs/mine --images=my/held_out [--masks=...]

  own      what the model retrieves for the damaged picture
  teacher  what the recognition encoder retrieves for the whole picture: the best that supervision could reach
  other    the read of another picture of the set
  mean     the picture's mean read at every position: all semantics the same

If `other` and `mean` cost nothing, either the decoder ignores what it is given or its own read says nothing about this
hole; `teacher` tells which: what it gains is what better retrieval could.
PSNR in dB and LPIPS over held-out images, composited, with the 95 % interval of the difference to `own`.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from benchmarks.quality.held_out import held_out
from gmsrm_jax.arrays import Image, Mask, composite, image_from_uint8, image_to_uint8, mask_from_uint8
from gmsrm_jax.data.masks.fixed import BUCKETS, bucket_name
from gmsrm_jax.evaluation import metrics
from gmsrm_jax.evaluation.distribution import interval
from gmsrm_jax.models.memory import teach
from gmsrm_jax.pretrained import lpips
from gmsrm_jax.training.run_folder import read_config
from gmsrm_jax.training.state import make_networks
from gmsrm_jax.training.weights import load_weights

READS = ("own", "teacher", "other", "mean")


def fills(module: Any, image: Image, mask: Mask, taught: Float[Array, "b q d"]) -> dict[str, Image]:
  """The deterministic fill with each kind of read; `taught` is the teacher's."""
  filled, encoded, shares = module.encode(image, mask)
  own, _ = module.recall(encoded[-1], shares[-1])
  reads = {
    "own": own,
    "teacher": taught.reshape(own.shape),
    "other": jnp.roll(own, 1, axis=0),
    "mean": jnp.broadcast_to(jnp.mean(own, axis=(1, 2), keepdims=True), own.shape),
  }
  return {
    name: composite(filled + module.decoder(encoded, module.memory.generator(read)[0], shares), image, mask)
    for name, read in reads.items()
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a table per bucket, then one line of JSON."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of a run (an export has no teacher)")
  parser.add_argument("--images", required=True, metavar="DIR", help="held-out images")
  parser.add_argument("--masks", default="", help="as eval.masks; packed masks are taken by their index")
  parser.add_argument("--batch_size", type=int, default=10, help="pictures at once, two at least (default: 10)")
  flags = parser.parse_args(argv)

  config = read_config(flags.workdir)
  weights = load_weights(config, pathlib.Path(flags.workdir))
  if weights.teacher is None or flags.batch_size < 2:
    parser.error("this needs a run with a pre-learned memory, and batches of two pictures at least")
  evaluation = held_out(config, flags.images, flags.masks)
  networks, alexnet = make_networks(config), lpips.load_alexnet()

  @jax.jit
  def measure(params: Any, teacher: Any, alexnet: Any, images: jax.Array, masks: jax.Array) -> dict[str, Any]:
    image, mask = image_from_uint8(images), mask_from_uint8(masks)
    taught = teach(networks.memory, teacher, image).read
    found = nn.apply(fills, networks.inpaint)({"params": params}, image, mask, taught)
    shown = {name: image_from_uint8(image_to_uint8(fill)) for name, fill in found.items()}
    return {
      name: {"psnr": metrics.psnr(fill, image), "lpips": lpips.lpips(alexnet, fill, image)}
      for name, fill in shown.items()
    }

  measured = functools.partial(measure, weights.params, {**weights.teacher}, alexnet)
  rows: dict[str, dict[str, dict[str, Any]]] = {}
  for bucket in tqdm(BUCKETS, unit="bucket", disable=None):
    parts = []
    for start in range(0, len(evaluation), flags.batch_size):
      indices = range(start, min(start + flags.batch_size, len(evaluation)))
      images = np.stack([evaluation[index][1] for index in indices])
      masks = np.stack([evaluation.mask(index, bucket) for index in indices])[..., None]
      parts.append(jax.device_get(measured(images, masks)))
    row = rows.setdefault(bucket_name(bucket), {})
    for name in READS:
      row[name] = {}
      for metric in ("psnr", "lpips"):
        values, own = (np.concatenate([part[n][metric] for part in parts]) for n in (name, "own"))
        row[name][metric] = float(values.mean())
        row[name][f"{metric}_minus_own"] = [float((values - own).mean()), *interval(values - own)]
  for bucket, row in rows.items():
    for name in READS:
      differs = "  ".join(
        f"{metric} {row[name][metric]:7.3f} ({mean:+.3f}, {low:+.3f} to {high:+.3f})"
        for metric in ("psnr", "lpips")
        for mean, low, high in [row[name][f"{metric}_minus_own"]]
      )
      print(f"{bucket:8s} {name:8s} {differs}")
  print(json.dumps(rows))


if __name__ == "__main__":
  main()
