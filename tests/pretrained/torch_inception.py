"""InceptionV3 with FID's changes in torch, written from the paper's tables and TensorFlow's graph, with random weights.

A convolution is made when it is first called, so that the forward pass is the only table of widths and windows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

ROW7, COLUMN7, ROW3, COLUMN3 = (1, 7), (7, 1), (1, 3), (3, 1)


def mean_pool(x):
  """Zero padding that does not count: the sum over what is there, divided by how much is there."""
  return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(torch.ones_like(x[:1, :1]), 3, 1, 1)


class Inception:
  """Takes pictures of any size in [0, 1]; `state` is what the file would hold, once it has been called."""

  def __init__(self, seed=0):
    self.state, self._random = {}, torch.Generator().manual_seed(seed)

  def conv(self, name, x, width, window=(1, 1), stride=1, padding=None):
    def leaf(key, make):
      if f"{name}.{key}" not in self.state:
        self.state[f"{name}.{key}"] = make()
      return self.state[f"{name}.{key}"]

    def uniform(low, high):
      return lambda: torch.rand(width, generator=self._random) * (high - low) + low

    before = x.shape[1]
    spread = (2 / (before * window[0] * window[1])) ** 0.5
    kernel = leaf("conv.weight", lambda: torch.randn(width, before, *window, generator=self._random) * spread)
    mean, variance = leaf("bn.running_mean", uniform(-0.4, 0.4)), leaf("bn.running_var", uniform(0.6, 1.4))
    scale, bias = leaf("bn.weight", uniform(0.5, 1.5)), leaf("bn.bias", uniform(-0.2, 0.4))
    leaf("bn.num_batches_tracked", lambda: torch.tensor(7))
    padding = (window[0] // 2, window[1] // 2) if padding is None else padding
    return F.relu(F.batch_norm(F.conv2d(x, kernel, None, stride, padding), mean, variance, scale, bias, eps=0.001))

  def chain(self, name, x, *plan):
    for i, (width, window) in enumerate(plan, 1):
      x = self.conv(f"{name}_{i}", x, width, window)
    return x

  def block_a(self, name, x, pool):
    five = self.chain(f"{name}.branch5x5", x, (48, (1, 1)), (64, (5, 5)))
    three = self.chain(f"{name}.branch3x3dbl", x, (64, (1, 1)), (96, (3, 3)), (96, (3, 3)))
    pooled = self.conv(f"{name}.branch_pool", mean_pool(x), pool)
    return torch.cat([self.conv(f"{name}.branch1x1", x, 64), five, three, pooled], 1)

  def block_b(self, name, x):
    double = self.chain(f"{name}.branch3x3dbl", x, (64, (1, 1)), (96, (3, 3)))
    double = self.conv(f"{name}.branch3x3dbl_3", double, 96, (3, 3), 2, 0)
    return torch.cat([self.conv(f"{name}.branch3x3", x, 384, (3, 3), 2, 0), double, F.max_pool2d(x, 3, 2)], 1)

  def block_c(self, name, x, n):
    seven = self.chain(f"{name}.branch7x7", x, (n, (1, 1)), (n, ROW7), (192, COLUMN7))
    plan = ((n, (1, 1)), (n, COLUMN7), (n, ROW7), (n, COLUMN7), (192, ROW7))
    double = self.chain(f"{name}.branch7x7dbl", x, *plan)
    pooled = self.conv(f"{name}.branch_pool", mean_pool(x), 192)
    return torch.cat([self.conv(f"{name}.branch1x1", x, 192), seven, double, pooled], 1)

  def block_d(self, name, x):
    three = self.conv(f"{name}.branch3x3_2", self.conv(f"{name}.branch3x3_1", x, 192), 320, (3, 3), 2, 0)
    seven = self.chain(f"{name}.branch7x7x3", x, (192, (1, 1)), (192, ROW7), (192, COLUMN7))
    return torch.cat([three, self.conv(f"{name}.branch7x7x3_4", seven, 192, (3, 3), 2, 0), F.max_pool2d(x, 3, 2)], 1)

  def block_e(self, name, x, pooled):
    single = self.conv(f"{name}.branch3x3_1", x, 384)
    double = self.chain(f"{name}.branch3x3dbl", x, (448, (1, 1)), (384, (3, 3)))
    out = [self.conv(f"{name}.branch1x1", x, 320)]
    for fork, y in (("branch3x3_2", single), ("branch3x3dbl_3", double)):
      out += [self.conv(f"{name}.{fork}a", y, 384, ROW3), self.conv(f"{name}.{fork}b", y, 384, COLUMN3)]
    return torch.cat([*out, self.conv(f"{name}.branch_pool", pooled, 192)], 1)

  def __call__(self, x):
    x = 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
    x = self.conv("Conv2d_2a_3x3", self.conv("Conv2d_1a_3x3", x, 32, (3, 3), 2, 0), 32, (3, 3), 1, 0)
    x = F.max_pool2d(self.conv("Conv2d_2b_3x3", x, 64, (3, 3)), 3, 2)
    x = F.max_pool2d(self.conv("Conv2d_4a_3x3", self.conv("Conv2d_3b_1x1", x, 80), 192, (3, 3), 1, 0), 3, 2)
    for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
      x = self.block_a(name, x, pool)
    x = self.block_b("Mixed_6a", x)
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
      x = self.block_c(name, x, width)
    x = self.block_d("Mixed_7a", x)
    x = self.block_e("Mixed_7b", x, mean_pool(x))
    return self.block_e("Mixed_7c", x, F.max_pool2d(x, 3, 1, 1)).mean((2, 3))
