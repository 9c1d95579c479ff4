"""One pure function per loss term, each one float32 value per image; `weigh` alone applies weights.

Targets (the second features, the teacher's weights and read) receive no gradient. Statistics are float32 whatever the
type of the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gmsrm_jax.arrays import Image, Mask, PerImage, masked_mean
from gmsrm_jax.config import LossConfig

# Layers differ in all axes but the batch.
Features = Sequence[Float[Array, "b _h _w _c"]]
Logits = Float[Array, "b h w 1"]


def _absolute(a: Float[Array, "*shape"], b: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  return jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))


def hole_l1(prediction: Image, image: Image, mask: Mask) -> PerImage:
  """Returns the mean absolute error over the hole, in units of [-1, 1]; 0 for an image without a hole."""
  return masked_mean(_absolute(prediction, image), mask)


def valid_l1(prediction: Image, image: Image, mask: Mask) -> PerImage:
  """Returns the mean absolute error over the known pixels, in units of [-1, 1]; 0 for an image that is all hole."""
  return masked_mean(_absolute(prediction, image), 1.0 - mask)


def l1(prediction: Image, image: Image) -> PerImage:
  """Returns the mean absolute error over all pixels, in units of [-1, 1]."""
  return jnp.mean(_absolute(prediction, image), axis=(1, 2, 3))


def perceptual(features: Features, target_features: Features) -> PerImage:
  """Returns the sum over layers of the mean absolute difference of features.

  As AOT-GAN (Zeng et al. 2021), which takes other layers, of VGG19.
  """
  total = jnp.zeros(features[0].shape[0], jnp.float32)
  for a, b in zip(features, target_features, strict=True):
    total = total + jnp.mean(_absolute(a, jax.lax.stop_gradient(b)), axis=(1, 2, 3))
  return total


def gram(x: Float[Array, "b h w c"]) -> Float[Array, "b c c"]:
  """Returns the Gram matrix F^T F / (h w c) of the channels, float32."""
  _, height, width, channels = x.shape
  x = x.astype(jnp.float32)
  product = jnp.einsum("bhwc,bhwe->bce", x, x, precision=jax.lax.Precision.HIGHEST)
  return product / (height * width * channels)


def style(features: Features, target_features: Features) -> PerImage:
  """Returns the sum over layers of the mean absolute difference of Gram matrices.

  As AOT-GAN (Zeng et al. 2021), which takes other layers, of VGG19. Blind to where in the image a feature lies.
  """
  total = jnp.zeros(features[0].shape[0], jnp.float32)
  for a, b in zip(features, target_features, strict=True):
    total = total + jnp.mean(jnp.abs(gram(a) - gram(jax.lax.stop_gradient(b))), axis=(1, 2))
  return total


def retrieval_kl(
  teacher_log_weights: Float[Array, "b n q s"],
  student_log_weights: Float[Array, "b n q s"],
  weight: Float[Array, "b q"],
) -> PerImage:
  """Returns KL(teacher || student) of the retrieval weights in nats, a mean over heads and weighted positions.

  Takes log-probabilities over all slots; weights are 0 or more. At least 0, and 0 only when both agree
  wherever there is weight. The idea is CodeFormer's (Zhou et al. 2022), whose codes are hard.
  """
  teacher = jax.lax.stop_gradient(teacher_log_weights.astype(jnp.float32))
  student = student_log_weights.astype(jnp.float32)
  weights = jnp.exp(teacher)
  # A weight of 0 adds 0, also where its logarithm is -inf.
  divergence = jnp.sum(jnp.where(weights > 0, weights * (teacher - student), 0.0), axis=-1)
  return masked_mean(jnp.mean(divergence, axis=1), weight)


def choice(
  teacher_log_weights: Float[Array, "b n q s"],
  student_log_weights: Float[Array, "b n q s"],
  weight: Float[Array, "b n q"],
) -> PerImage:
  """Returns the cross-entropy in nats of the teacher's likeliest slots, a mean over weighted slots (CodeFormer)."""
  likeliest = jnp.argmax(teacher_log_weights, axis=-1)[..., None]
  surprise = -jnp.take_along_axis(student_log_weights.astype(jnp.float32), likeliest, axis=-1)[..., 0]
  return masked_mean(surprise, weight)


def read_loss(
  teacher_read: Float[Array, "b q d"], student_read: Float[Array, "b q d"], weight: Float[Array, "b q"]
) -> PerImage:
  """Returns the squared error of the student's read, a mean over channels and weighted positions (after CodeFormer)."""
  teacher = jax.lax.stop_gradient(teacher_read.astype(jnp.float32))
  return masked_mean(jnp.mean(jnp.square(student_read.astype(jnp.float32) - teacher), axis=-1), weight)


def balance(mean_weights: Float[Array, "*heads s"]) -> Float[Array, ""]:
  """Returns log(s) minus the entropy of the batch's mean retrieval weights, in nats: 0 when all slots are used alike.

  Not a value per image but a statistic of the batch, averaged over any leading axes (heads). Lies in [0, log(s)].
  """
  p = mean_weights.astype(jnp.float32)
  # The floor keeps the gradient of an unused slot finite, and large.
  entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-12)), axis=-1)
  return jnp.log(jnp.float32(p.shape[-1])) - jnp.mean(entropy)


def hinge_generator(fake_logits: Logits) -> PerImage:
  """Returns minus the mean logit of an image's patches (Lim & Ye 2017)."""
  return -jnp.mean(fake_logits.astype(jnp.float32), axis=(1, 2, 3))


def hinge_discriminator(real_logits: Logits, fake_logits: Logits, *, hole: Logits | None = None) -> PerImage:
  """Returns the mean over patches of max(0, 1 - real) + max(0, 1 + fake) (Lim & Ye 2017).

  With `hole`, each patch's share of hole in [0, 1] at the logits' resolution, a patch of the inpainted image is as fake
  as it has hole: hole max(0, 1 + fake) + (1 - hole) max(0, 1 - fake). The soft target is AOT-GAN's (SM-PatchGAN), which
  takes squared errors.
  """
  real = jax.nn.relu(1.0 - real_logits.astype(jnp.float32))
  logits = fake_logits.astype(jnp.float32)
  fake = jax.nn.relu(1.0 + logits)
  if hole is not None:
    share = hole.astype(jnp.float32)
    fake = share * fake + (1.0 - share) * jax.nn.relu(1.0 - logits)
  return jnp.mean(real, axis=(1, 2, 3)) + jnp.mean(fake, axis=(1, 2, 3))


def weigh(
  terms: Mapping[str, PerImage | Float[Array, ""]], weights: LossConfig
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Returns the weighted sum of the terms' means, and every mean without its weight, for the log.

  A term of weight 0 is left out of both.
  """
  means = {name: jnp.mean(term.astype(jnp.float32)) for name, term in terms.items() if getattr(weights, name) > 0}
  total = jnp.zeros((), jnp.float32)
  for name, mean in means.items():
    total = total + getattr(weights, name) * mean
  return total, means


def window_corners(key: PRNGKeyArray, batch: int, height: int, width: int, side: int) -> Int[Array, "b 2"]:
  """Returns the upper left corner (row, column) of a random window of each image, uniform over those inside."""
  row_key, column_key = jax.random.split(key)
  rows = jax.random.randint(row_key, (batch,), 0, height - side + 1)
  columns = jax.random.randint(column_key, (batch,), 0, width - side + 1)
  return jnp.stack([rows, columns], axis=1)


def cut_windows(image: Float[Array, "b h w c"], corners: Int[Array, "b 2"], side: int) -> Float[Array, "b side side c"]:
  """Returns the window of `side` x `side` pixels of each image. Bounds what the feature losses cost (ours)."""

  def cut(one: Float[Array, "h w c"], corner: Int[Array, 2]) -> Float[Array, "side side c"]:
    return jax.lax.dynamic_slice(one, (corner[0], corner[1], 0), (side, side, one.shape[-1]))

  return jax.vmap(cut)(image, corners)
