"""The Python interface: `Inpainter.from_checkpoint(path)(image, mask)` fills the hole of a picture of any size."""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from PIL import Image as PilImage
from PIL import ImageOps

from gmsrm_jax.arrays import Image, Mask8, Rgb8
from gmsrm_jax.config import STRATEGIES, Config
from gmsrm_jax.data import pictures
from gmsrm_jax.data.masks.hole_files import read_hole
from gmsrm_jax.errors import one_of, require
from gmsrm_jax.files import SHIPPED
from gmsrm_jax.inference import tiling
from gmsrm_jax.models.inpainter import draw_noise, predict_pixels
from gmsrm_jax.training.run_folder import read_config
from gmsrm_jax.training.state import make_networks
from gmsrm_jax.training.weights import load_weights

Picture = PilImage.Image | np.ndarray | jax.Array

BATCH = 4
"""Windows that are filled at once; fewer than that are filled one by one, so that only two batch sizes compile."""


class Inpainter:
  """A trained model, ready to fill holes; compiled once per padded shape.

  Example:
    inpainter = Inpainter()  # the weights that come with this code, or Inpainter.from_checkpoint("runs/mine")
    filled = inpainter(PIL.Image.open("photo.jpg"), PIL.Image.open("mask.png"))
  """

  def __init__(self, config: Config | None = None, params: Any = None, source: str = "weights of the caller"):
    """Takes these parameters; without a configuration those that come with this code."""
    if config is None:
      config, params, source = _load(SHIPPED)
    self.config = config
    self.params = params
    self.source = source  # where the weights come from, in words

  @classmethod
  def from_checkpoint(cls, path: str | pathlib.Path) -> Inpainter:
    """Takes the weights of a run's folder (its newest averages), or of one that `--mode=export` wrote.

    Raises:
      ConfigError: the folder holds no trained model, or a damaged one.
    """
    return cls(*_load(path))

  def __call__(
    self, image: Picture, mask: Picture, *, num_samples: int = 1, seed: int = 0, strategy: str = "auto"
  ) -> Any:
    """Fills the hole; returns every pixel outside it as it was.

    Args:
      image: a PIL image, which is turned upright, or a uint8 RGB array [h w 3] or [b h w 3] (NumPy or JAX).
      mask: the hole: a PIL image, or an array [h w], [h w 1], [b h w] or [b h w 1]; `read_hole` says what is hole.
      num_samples: how many fills; 0 is the deterministic one, each further one is drawn.
      seed: another seed draws other samples; equal seeds repeat to the bit.
      strategy: how a large picture is seen, one of `config.STRATEGIES` (see `tiling.plan`).

    Returns:
      A picture of the type that was given (PIL images come back as RGB); a list of them if num_samples is above 1.

    Raises:
      ConfigError: image and mask do not fit each other, or a value is out of range.
    """
    pixels, holes = _image_array(image), _mask_array(mask)
    images = pixels if pixels.ndim == 4 else pixels[None]
    holes = holes if holes.ndim == 3 else np.broadcast_to(holes, (len(images), *holes.shape))
    require(
      holes.shape == images.shape[:3],
      f"mask of {_shape(holes)} does not fit image of {_shape(images)}: give them equal height and width",
    )
    options = {"num_samples": num_samples, "seed": seed, "strategy": strategy}
    fills = [self.fills(one, hole, **options) for one, hole in zip(images, holes, strict=True)]
    samples = [_like(image, np.stack(sample).reshape(pixels.shape)) for sample in zip(*fills, strict=True)]
    return samples[0] if num_samples == 1 else samples

  def fills(
    self,
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    *,
    num_samples: int = 1,
    seed: int = 0,
    strategy: str = "auto",
    before_batch: Callable[[], None] = lambda: None,
  ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields the samples of one picture: sample 0 is the deterministic fill.

    `before_batch` is called before the model is; what it raises ends a fill that nobody waits for any more.
    """
    height, width = mask.shape
    self.check(height, width, num_samples, seed, strategy)
    for sample in range(num_samples):
      key = jax.random.fold_in(jax.random.key(seed), sample)
      filled = image.copy()
      for patch in tiling.plan(mask, self.config.model.image_size, strategy):
        tiling.paste(filled, patch, self._predictions(image, mask, patch.windows, key, sample > 0, before_batch))
      yield filled

  def check(self, height: int, width: int, num_samples: int, seed: int, strategy: str) -> None:
    """Raises ConfigError for what cannot be done, before anything is computed."""
    one_of("strategy", strategy, STRATEGIES)
    require(num_samples > 0, f"num_samples={num_samples} must be greater than 0")
    require(seed >= 0, f"seed={seed} must not be negative")
    require(
      num_samples == 1 or self.config.variation.enabled,
      f"num_samples={num_samples}: this model has variation.enabled=false, so all fills would be equal; use 1",
    )
    stride = self.config.model.stride
    positions = -(-height // stride) * -(-width // stride)
    require(
      strategy != "full" or positions <= tiling.MAX_POSITIONS,
      f"strategy 'full': {width}x{height} pixels are {positions} positions of the attention grid, more than "
      f"{tiling.MAX_POSITIONS}: use 'auto' or 'crop'",
    )

  def _predictions(
    self,
    image: np.ndarray,
    mask: np.ndarray,
    windows: list[tiling.Window],
    key: Key[jax.Array, ""],
    noisy: bool,
    before_batch: Callable[[], None],
  ) -> Iterator[tuple[tiling.Window, np.ndarray]]:
    """Yields each window with the model's proposal. All share one draw of noise, so that their seams can meet."""
    rows, columns = windows[0].rows, windows[0].columns
    model = self.config.model
    lengths = [tiling.padded_length(length, model.image_size, model.stride) for length in (rows, columns)]
    padding = ((0, 0), (0, lengths[0] - rows), (0, lengths[1] - columns))
    whole = len(windows) // BATCH * BATCH
    for start, stop in itertools.pairwise([*range(0, whole, BATCH), *range(whole, len(windows) + 1)]):
      before_batch()
      views = zip(*(tiling.view(image, mask, window) for window in windows[start:stop]), strict=True)
      images, holes = map(np.stack, views)
      images = np.pad(images, (*padding, (0, 0)))
      holes = np.pad(holes, padding, constant_values=1)  # so that invented pixels do not count as evidence
      filled = np.asarray(predict(self.config, self.params, images, holes[..., None], key, jnp.float32(noisy)))
      yield from zip(windows[start:stop], filled[:, :rows, :columns], strict=True)


@functools.partial(jax.jit, static_argnums=0)
def predict(
  config: Config, params: Any, images: Rgb8, holes: Mask8, key: Key[Array, ""], noisy: Float[Array, ""]
) -> Image:
  """Fills in [-1, 1], not yet rounded; known pixels are theirs, so that enlarging blends with true colours."""
  noise = None
  if config.variation.enabled:
    noise = tuple(noisy * scale for scale in draw_noise(key, config.model, 1))
  return predict_pixels(make_networks(config).inpaint, params, images, holes, noise)


def _shape(array: np.ndarray) -> str:
  return "x".join(map(str, array.shape))


def _load(path: str | pathlib.Path) -> tuple[Config, Any, str]:
  """Configuration, parameters and, in words, where they come from."""
  config = read_config(path)
  weights = load_weights(config, pathlib.Path(path))
  size, stored = config.model.image_size, "" if weights.stored == "float32" else f", {weights.stored}"
  return config, weights.params, f"{path}: {config.name}, {size}x{size}, step {weights.step}{stored}"


def _image_array(image: Picture) -> np.ndarray:
  if isinstance(image, PilImage.Image):
    return pictures.as_rgb(ImageOps.exif_transpose(image))
  array = np.asarray(image)
  require(
    array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3 and array.size > 0,
    f"image is an array of {array.dtype} {_shape(array)}: give uint8 RGB of 0..255, [h w 3] or [b h w 3]",
  )
  return array


def _mask_array(mask: Picture) -> np.ndarray:
  if isinstance(mask, PilImage.Image):
    return read_hole(mask)
  array = np.asarray(mask)
  array = array[..., 0] if array.ndim in (3, 4) and array.shape[-1] == 1 else array
  return np.stack([read_hole(one) for one in array]) if array.ndim == 3 and len(array) else read_hole(array)


def _like(given: Picture, filled: UInt8[np.ndarray, "*b h w 3"]) -> Any:
  """The pixels in the type of what was given."""
  if isinstance(given, PilImage.Image):
    return PilImage.fromarray(filled)
  return jnp.asarray(filled) if isinstance(given, jax.Array) else filled
