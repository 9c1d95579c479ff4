"""The Python interface: `Inpainter(folder)(image, mask)` fills the hole of a picture of any size."""

from __future__ import annotations

import functools
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

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
from gmsrm_jax.errors import ConfigError, check_number, check_seed, one_of, require
from gmsrm_jax.files import SHIPPED, local_path
from gmsrm_jax.inference import tiling
from gmsrm_jax.inference.detail import FINER, add_detail
from gmsrm_jax.models.inpainter import draw_noise, predict_pixels, varies
from gmsrm_jax.training.run_folder import read_config
from gmsrm_jax.training.state import make_networks
from gmsrm_jax.training.weights import load_weights

PictureLike = PilImage.Image | np.ndarray | jax.Array | str | os.PathLike[str]

BATCH = 4
"""Windows that are filled at once; fewer than that are filled one by one, so that only two batch sizes compile."""


class Step(NamedTuple):
  """The next step of a fill, for whoever waits for it."""

  phase: str  # 'compiling', which a first batch of its shape does before it is filled, 'filling' or 'detail'
  sample: int  # number of the fill, from 0
  window: int  # number of the first window of the batch, from 0; as many as there are once all are filled
  windows: int  # of one fill


class Inpainter:
  """A trained model, ready to fill holes; compiled once per padded shape.

  Example:
    inpainter = Inpainter()  # the weights that come with this code, or Inpainter("runs/mine")
    filled = inpainter("photo.jpg", "mask.png")
  """

  def __init__(
    self, weights: str | os.PathLike[str] | Config = SHIPPED, params: Any = None, source: str = "weights of the caller"
  ):
    """Takes the weights of a run's folder (its newest averages), or of one that `--mode=export` wrote.

    Args:
      weights: that folder, or a configuration, whose `params` then follow.
      params: parameters of the network, where `weights` is a configuration.
      source: where these come from, in words.

    Raises:
      ConfigError: the folder holds no trained model, or a damaged one.
    """
    if isinstance(weights, (str, os.PathLike)):
      weights, params, source = _load(weights)
    require(
      isinstance(weights, Config) and params is not None,
      f"weights is of type {type(weights).__name__}: give the folder of a run, or a Config and its parameters",
    )
    self.config, self.params, self.source = weights, params, source
    self._compiled: set[tuple[int, ...]] = set()

  @classmethod
  def from_checkpoint(cls, path: str | os.PathLike[str]) -> Inpainter:
    """The same as `Inpainter(path)`."""
    return cls(path)

  def __call__(
    self,
    image: PictureLike | Sequence[PictureLike],
    mask: PictureLike | Sequence[PictureLike],
    *,
    num_samples: int = 1,
    seed: int = 0,
    strategy: str = "auto",
    detail: float = 1.0,
  ) -> Any:
    """Fills the hole; returns every pixel outside it as it was.

    Args:
      image: a PIL image or the path of a file, which are turned upright, or a uint8 array (NumPy or JAX) of grey levels
        [h w] or of RGB [h w 3]. Several: a list of these, or an array [b h w 3].
      mask: the hole: a PIL image, a path, or an array [h w]; `read_hole` says what is hole, and in which other
        arrays. One for all images, or one for each: a list, or an array [b h w] or [b h w 1].
      num_samples: how many fills; 0 is the deterministic one, each further one is drawn.
      seed: another seed draws other samples; equal seeds repeat to the bit. At most `MAX_SEED`.
      strategy: how a large picture is seen, one of `config.STRATEGIES` (see `tiling.plan`).
      detail: how much fine detail of the known part is added to the fill, from 0, none, to 1 (see `detail`).

    Returns:
      The same as was given, filled: arrays of the same shape, RGB images for PIL images and paths, a list for a list.
      A list of such results if num_samples is above 1.

    Raises:
      ConfigError: image and mask do not fit each other, or a value is out of range.
    """
    images, masks = _members(image, "image"), _members(mask, "mask")
    require(
      len(masks) in (1, len(images)),
      f"{len(masks)} masks do not fit {len(images)} images: give one mask for each image, or one for all",
    )
    masks = masks * len(images) if len(masks) == 1 else masks
    # All are read, and so checked, before the first is filled.
    pairs = [_read_pair(*one, *hole) for one, hole in zip(images, masks, strict=True)]
    options = {"num_samples": num_samples, "seed": seed, "strategy": strategy, "detail": detail}
    fills = zip(*(self.fills(pixels, hole, **options) for pixels, hole in pairs), strict=True)
    samples = [_like(image, sample) for sample in fills]
    return samples[0] if num_samples == 1 else samples

  def fills(
    self,
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    *,
    num_samples: int = 1,
    seed: int = 0,
    strategy: str = "auto",
    detail: float = 1.0,
    before_step: Callable[[Step], None] = lambda _: None,
  ) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Yields the samples of one picture: sample 0 is the deterministic fill.

    `before_step` is told each step before it is done; what it raises ends a fill that nobody waits for any more.
    """
    height, width = mask.shape
    self.check(height, width, num_samples, seed, strategy, detail)
    patches = list(tiling.plan(mask, self.config.model.image_size, strategy))
    windows = sum(len(patch.windows) for patch in patches)
    for sample in range(num_samples):
      key = jax.random.fold_in(jax.random.key(seed), sample)
      filled, done = image.copy(), 0

      def before(phase: str, window: int, sample: int = sample) -> None:
        before_step(Step(phase, sample, window, windows))

      for patch in patches:
        fills = self._predictions(image, mask, patch.windows, key, sample > 0, before, done)
        tiling.paste(filled, patch, fills)
        done += len(patch.windows)
      # After all of them: until then what the other holes hide could be seen.
      for patch in patches if detail > 0 else ():
        before("detail", windows)
        scale = max(1.0, patch.windows[0].scale / FINER)
        add_detail(filled, mask, patch.hole, patch.place, scale, detail)
      yield filled

  @property
  def full_side(self) -> int:
    """The side of the largest square picture that 'full' takes, in pixels."""
    return math.isqrt(tiling.MAX_POSITIONS) * self.config.model.stride

  def check(self, height: int, width: int, num_samples: Any, seed: Any, strategy: Any, detail: Any) -> None:
    """Raises ConfigError for what cannot be done, before anything is computed."""
    one_of("strategy", strategy, STRATEGIES)
    check_number(f"detail={detail!r}", detail, float, 0, 1)
    check_number(f"num_samples={num_samples!r}", num_samples, int, 1)
    check_seed("seed", seed)
    require(
      num_samples == 1 or varies(self.config),
      f"num_samples={num_samples}: this model has variation.enabled=false, so all fills would be equal; use 1",
    )
    stride = self.config.model.stride
    positions = -(-height // stride) * -(-width // stride)
    side = self.full_side
    require(
      strategy != "full" or positions <= tiling.MAX_POSITIONS,
      f"strategy='full' shows the model all {width}x{height} pixels at once, which takes too much memory: use 'auto', "
      f"which looks through windows, or a picture of at most {side * side} pixels, such as {side}x{side}",
    )

  def _predictions(
    self,
    image: np.ndarray,
    mask: np.ndarray,
    windows: list[tiling.Window],
    key: Key[jax.Array, ""],
    noisy: bool,
    before: Callable[[str, int], None],
    done: int,
  ) -> Iterator[tuple[tiling.Window, np.ndarray]]:
    """Yields each window with the model's proposal. All share one draw of noise, so that their seams can meet."""
    rows, columns = windows[0].rows, windows[0].columns
    model = self.config.model
    lengths = [tiling.padded_length(length, model.image_size, model.stride) for length in (rows, columns)]
    padding = ((0, 0), (0, lengths[0] - rows), (0, lengths[1] - columns))
    whole = len(windows) // BATCH * BATCH
    for start, stop in itertools.pairwise([*range(0, whole, BATCH), *range(whole, len(windows) + 1)]):
      views = zip(*(tiling.view(image, mask, window) for window in windows[start:stop]), strict=True)
      images, holes = map(np.stack, views)
      images = np.pad(images, (*padding, (0, 0)))
      holes = np.pad(holes, padding, constant_values=1)  # so that invented pixels do not count as evidence
      before("filling" if images.shape in self._compiled else "compiling", done + start)
      filled = np.asarray(predict(self.config, self.params, images, holes[..., None], key, jnp.float32(noisy)))
      self._compiled.add(images.shape)
      yield from zip(windows[start:stop], filled[:, :rows, :columns], strict=True)


@functools.partial(jax.jit, static_argnums=0)
def predict(
  config: Config, params: Any, images: Rgb8, holes: Mask8, key: Key[Array, ""], noisy: Float[Array, ""]
) -> Image:
  """Fills in [-1, 1], not yet rounded; known pixels are theirs, so that enlarging blends with true colours."""
  noise = None
  if varies(config):
    noise = tuple(noisy * scale for scale in draw_noise(key, config.model, 1))
  return predict_pixels(make_networks(config).inpaint, params, images, holes, noise)


def _load(path: str | os.PathLike[str]) -> tuple[Config, Any, str]:
  """Configuration, parameters and, in words, where they come from."""
  folder = local_path(os.fspath(path), "weights")
  config = read_config(folder)
  weights = load_weights(config, folder)
  size, stored = config.model.image_size, "" if weights.stored == "float32" else f", {weights.stored}"
  return config, weights.params, f"{path}: {config.name}, {size}x{size}, step {weights.step}{stored}"


def _members(given: Any, name: str) -> list[tuple[str, Any]]:
  """The pictures in a list or in an array of several, or the only one; each after what errors call it."""
  shape = getattr(given, "shape", ())
  several = isinstance(given, (list, tuple)) or len(shape) == 4
  if several or (name == "mask" and len(shape) == 3 and shape[-1] > 4):
    require(len(given) > 0, f"{name} holds no picture: give one, or several")
    return [(f"{name}[{number}]", one) for number, one in enumerate(given)]
  return [(name, given)]


def _read_pair(image_name: str, image: Any, mask_name: str, mask: Any) -> tuple[np.ndarray, np.ndarray]:
  """Pixels and hole of a picture, upright."""
  pixels, hole = _read_pixels(image_name, image), read_hole(_opened(mask_name, mask))
  columns, rows, width, height = *hole.shape[::-1], *pixels.shape[1::-1]
  require(
    (columns, rows) == (width, height),
    f"{mask_name} is {columns}x{rows} but {image_name} is {width}x{height}: make the mask as large as its image",
  )
  return pixels, hole


def _opened(name: str, given: Any) -> pathlib.Path | PilImage.Image | np.ndarray:
  """A path for a name of a file, a NumPy array for any other."""
  if isinstance(given, (str, os.PathLike)):
    return local_path(os.fspath(given), name)
  given = np.asarray(given) if hasattr(given, "__array__") else given
  require(
    isinstance(given, (PilImage.Image, np.ndarray)),
    f"{name} is of type {type(given).__name__}: give a PIL image, the path of a file, or an array",
  )
  return given


def _read_pixels(name: str, image: Any) -> UInt8[np.ndarray, "h w 3"]:
  opened = _opened(name, image)
  if isinstance(opened, pathlib.Path):
    return pictures.decode(opened)
  if isinstance(opened, PilImage.Image):
    try:
      return pictures.as_rgb(ImageOps.exif_transpose(opened))
    except (ValueError, OSError) as error:
      raise ConfigError(f"{name} cannot be read ({error}): give another picture") from error
  array = opened[..., None] if opened.ndim == 2 else opened
  require(
    array.dtype == np.uint8 and array.ndim == 3 and array.shape[-1] in (1, 3) and array.size > 0,
    f"{name} is an array of {opened.dtype} {'x'.join(map(str, opened.shape))}: give uint8 of 0..255, grey levels [h w] "
    "or RGB [h w 3]; several as a list, or as [b h w 3]",
  )
  return np.broadcast_to(array, (*array.shape[:2], 3))


def _like(given: Any, fills: Sequence[np.ndarray]) -> Any:
  """The fills of one or more pictures, each [h w 3] of its own size, in the type of what was given."""
  if isinstance(given, (list, tuple)):
    return [_like(one, [fill]) for one, fill in zip(given, fills, strict=True)]
  if not hasattr(given, "ndim"):
    return PilImage.fromarray(fills[0])
  filled = np.stack(fills)
  if given.ndim == 2 or given.shape[-1] == 1:
    filled = np.stack([np.asarray(PilImage.fromarray(fill).convert("L")) for fill in fills])
  filled = filled.reshape(given.shape)
  return jnp.asarray(filled) if isinstance(given, jax.Array) else filled
