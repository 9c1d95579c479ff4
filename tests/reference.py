"""Slow, obvious NumPy float64 versions of the losses, metrics and feature networks, written from their definitions."""

from __future__ import annotations

import numpy as np
import scipy.signal


def masked_l1(a, b, mask):
  values = []
  for x, y, m in zip(np.float64(a), np.float64(b), np.asarray(mask)[..., 0] > 0.5, strict=True):
    values.append(np.abs(x[m] - y[m]).mean() if m.any() else 0.0)
  return np.array(values)


def perceptual(features, targets):
  return sum(np.abs(np.float64(a) - np.float64(b)).mean(axis=(1, 2, 3)) for a, b in zip(features, targets, strict=True))


def gram(x):
  height, width, channels = x.shape
  columns = np.float64(x).reshape(height * width, channels)
  return columns.T @ columns / (height * width * channels)


def style(features, targets):
  per_layer = [
    [np.abs(gram(x) - gram(y)).mean() for x, y in zip(a, b, strict=True)]
    for a, b in zip(features, targets, strict=True)
  ]
  return np.sum(per_layer, axis=0)


def hinge_discriminator(real, fake, hole):
  values = []
  for r, f, h in zip(np.float64(real), np.float64(fake), np.float64(hole), strict=True):
    on_real = [max(0.0, 1.0 - x) for x in r.ravel()]
    on_fake = [s * max(0.0, 1.0 + x) + (1 - s) * max(0.0, 1.0 - x) for x, s in zip(f.ravel(), h.ravel(), strict=True)]
    values.append(np.mean(on_real) + np.mean(on_fake))
  return np.array(values)


def retrieval_kl(teacher, student, hole):
  """Takes probabilities."""
  batch, heads, positions, slots = teacher.shape
  values = np.zeros(batch)
  for b in range(batch):
    for q in range(positions):
      for n in range(heads):
        for s in range(slots):
          p = float(teacher[b, n, q, s])
          if p > 0:
            values[b] += float(hole[b, q]) * p * np.log(p / float(student[b, n, q, s])) / heads
    values[b] /= max(float(hole[b].sum()), 1.0)
  return values


def read_loss(teacher, student, hole):
  error = ((np.float64(teacher) - np.float64(student)) ** 2).mean(axis=-1)
  return (error * hole).sum(axis=1) / np.maximum(np.float64(hole).sum(axis=1), 1.0)


def balance(p):
  p = np.float64(p)
  return np.mean(np.sum(p * np.log(p * p.shape[-1]), axis=-1))


def psnr(a, b, mask=None):
  """Of one image in [-1, 1]; over the whole of it, or where the mask is 1."""
  error = (np.float64(a) - np.float64(b)) / 2
  if mask is not None:
    error = error[np.asarray(mask)[..., 0] > 0.5]
  return 20 * np.log10(1 / np.sqrt((error**2).mean()))


def ms_ssim(a, b, scales):
  """Of one image in [-1, 1], from SciPy's correlation; sides must be even at every scale but the last."""
  offsets = np.arange(-5, 6)
  line = np.exp(-(offsets**2) / (2 * 1.5**2))
  window = np.outer(line, line) / line.sum() ** 2
  weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
  weights /= weights.sum()
  a, b = (np.float64(a) + 1) / 2, (np.float64(b) + 1) / 2
  values = []
  for c in range(a.shape[-1]):
    x, y, value = a[..., c], b[..., c], 1.0
    for scale, weight in enumerate(weights):
      mx, my, xx, yy, xy = (scipy.signal.correlate2d(z, window, mode="valid") for z in (x, y, x * x, y * y, x * y))
      factor = (2 * (xy - mx * my) + 0.03**2) / (xx - mx**2 + yy - my**2 + 0.03**2)
      if scale == scales - 1:
        factor = factor * (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
      value *= max(factor.mean(), 0.0) ** weight
      height, width = x.shape
      if scale < scales - 1:
        x, y = (z.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)) for z in (x, y))
    values.append(value)
  return np.mean(values)


def boundary_error(a, b, mask):
  """Of one image in [-1, 1], pair by pair."""
  a, b, mask = (np.float64(a) + 1) / 2, (np.float64(b) + 1) / 2, np.asarray(mask)[..., 0] > 0.5
  errors = []
  for i in range(mask.shape[0]):
    for j in range(mask.shape[1]):
      for k, m in ((i + 1, j), (i, j + 1)):
        if k < mask.shape[0] and m < mask.shape[1] and mask[i, j] != mask[k, m]:
          errors.append(np.abs((a[i, j] - a[k, m]) - (b[i, j] - b[k, m])).mean())
  return np.mean(errors) if errors else 0.0


def relu_conv(x, kernel, bias, stride, padding):
  """ReLU of the correlation of one image (h, w, c) with an HWIO kernel."""
  side = kernel.shape[0]
  x = np.pad(np.float64(x), ((padding, padding), (padding, padding), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))[::stride, ::stride]
  return np.maximum(np.einsum("hwcij,ijco->hwo", windows, np.float64(kernel), optimize=True) + bias, 0)


def max_pool(x, side, stride):
  return np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))[::stride, ::stride].max(axis=(-2, -1))


def normalise(image):
  """ImageNet's mean and standard deviation of [0, 1], for an image in [-1, 1]."""
  return ((np.float64(image) + 1) / 2 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def vgg16_features(params, image):
  """relu1_2, 2_2, 3_3, 4_3, 5_3 of one image in [-1, 1]."""
  x, activations, layers = normalise(image), [], iter(params["convolutions"])
  for block, depth in enumerate((2, 2, 3, 3, 3)):
    x = max_pool(x, 2, 2) if block else x
    for _ in range(depth):
      layer = next(layers)
      x = relu_conv(x, layer["kernel"], layer["bias"], 1, 1)
    activations.append(x)
  return activations


def alexnet_features(params, image):
  """relu1 to relu5 of one image in [-1, 1]."""
  c = [(layer["kernel"], layer["bias"]) for layer in params["convolutions"]]
  relu1 = relu_conv(normalise(image), *c[0], 4, 2)
  relu2 = relu_conv(max_pool(relu1, 3, 2), *c[1], 1, 2)
  relu3 = relu_conv(max_pool(relu2, 3, 2), *c[2], 1, 1)
  relu4 = relu_conv(relu3, *c[3], 1, 1)
  return [relu1, relu2, relu3, relu4, relu_conv(relu4, *c[4], 1, 1)]


def lpips_maps(features_a, features_b, heads):
  """Of one pair of images, layer by layer."""
  maps = []
  for a, b, head in zip(features_a, features_b, heads, strict=True):
    a = a / (np.linalg.norm(a, axis=-1, keepdims=True) + 1e-10)
    b = b / (np.linalg.norm(b, axis=-1, keepdims=True) + 1e-10)
    maps.append(((a - b) ** 2) @ np.float64(head))
  return maps
