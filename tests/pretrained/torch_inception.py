"""InceptionV3 with FID's changes in plain torch.nn, written from the tables of the paper and of TensorFlow's graph.

Each branch is a list of (name, width, window, stride, padding); nothing of it is shared with the network under test.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Unit(nn.Module):
  def __init__(self, before, width, window, stride, padding):
    super().__init__()
    self.conv = nn.Conv2d(before, width, window, stride, padding, bias=False)
    self.bn = nn.BatchNorm2d(width, eps=0.001)

  def forward(self, x):
    return F.relu(self.bn(self.conv(x)))


def mean_pool(x):
  """Zero padding that does not count: the sum over what is there, divided by how much is there."""
  ones = torch.ones_like(x[:1, :1])
  return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)


POOLS = {
  "mean": mean_pool,
  "max": lambda x: F.max_pool2d(x, 3, 1, 1),
  "reduce": lambda x: F.max_pool2d(x, 3, 2),
}
ONE, ROW7, COLUMN7 = ((1, 1), 1, (0, 0)), ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
THREE, FIVE, HALF = ((3, 3), 1, (1, 1)), ((5, 5), 1, (2, 2)), ((3, 3), 2, (0, 0))
ROW3, COLUMN3 = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))


def block_a(pool):
  return [
    [("branch1x1", 64, *ONE)],
    [("branch5x5_1", 48, *ONE), ("branch5x5_2", 64, *FIVE)],
    [("branch3x3dbl_1", 64, *ONE), ("branch3x3dbl_2", 96, *THREE), ("branch3x3dbl_3", 96, *THREE)],
    ["mean", ("branch_pool", pool, *ONE)],
  ]


BLOCK_B = [
  [("branch3x3", 384, *HALF)],
  [("branch3x3dbl_1", 64, *ONE), ("branch3x3dbl_2", 96, *THREE), ("branch3x3dbl_3", 96, *HALF)],
  ["reduce"],
]


def block_c(n):
  seven = [("branch7x7_1", n, *ONE), ("branch7x7_2", n, *ROW7), ("branch7x7_3", 192, *COLUMN7)]
  twice = [("branch7x7dbl_1", n, *ONE), ("branch7x7dbl_2", n, *COLUMN7), ("branch7x7dbl_3", n, *ROW7)]
  twice += [("branch7x7dbl_4", n, *COLUMN7), ("branch7x7dbl_5", 192, *ROW7)]
  return [[("branch1x1", 192, *ONE)], seven, twice, ["mean", ("branch_pool", 192, *ONE)]]


BLOCK_D = [
  [("branch3x3_1", 192, *ONE), ("branch3x3_2", 320, *HALF)],
  [("branch7x7x3_1", 192, *ONE), ("branch7x7x3_2", 192, *ROW7), ("branch7x7x3_3", 192, *COLUMN7)]
  + [("branch7x7x3_4", 192, *HALF)],
  ["reduce"],
]


def block_e(pool):
  fork = lambda name: [(f"{name}a", 384, *ROW3), (f"{name}b", 384, *COLUMN3)]  # noqa: E731
  return [
    [("branch1x1", 320, *ONE)],
    [("branch3x3_1", 384, *ONE), fork("branch3x3_2")],
    [("branch3x3dbl_1", 448, *ONE), ("branch3x3dbl_2", 384, *THREE), fork("branch3x3dbl_3")],
    [pool, ("branch_pool", 192, *ONE)],
  ]


class Block(nn.Module):
  def __init__(self, before, plan):
    super().__init__()
    self.plan, self.width = plan, 0
    for branch in plan:
      width = before
      for step in branch:
        if isinstance(step, tuple):
          name, after, *rest = step
          setattr(self, name, Unit(width, after, *rest))
          width = after
        elif isinstance(step, list):
          for name, after, *rest in step:
            setattr(self, name, Unit(width, after, *rest))
          width = sum(after for _, after, *_ in step)
      self.width += width

  def forward(self, x):
    out = []
    for branch in self.plan:
      y = x
      for step in branch:
        if isinstance(step, str):
          y = POOLS[step](y)
        elif isinstance(step, tuple):
          y = getattr(self, step[0])(y)
        else:
          y = torch.cat([getattr(self, name)(y) for name, *_ in step], 1)
      out.append(y)
    return torch.cat(out, 1)


class Inception(nn.Module):
  def __init__(self):
    super().__init__()
    self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2, 0)
    self.Conv2d_2a_3x3 = Unit(32, 32, 3, 1, 0)
    self.Conv2d_2b_3x3 = Unit(32, 64, 3, 1, 1)
    self.Conv2d_3b_1x1 = Unit(64, 80, 1, 1, 0)
    self.Conv2d_4a_3x3 = Unit(80, 192, 3, 1, 0)
    plans = {"5b": block_a(32), "5c": block_a(64), "5d": block_a(64), "6a": BLOCK_B}
    plans |= {"6b": block_c(128), "6c": block_c(160), "6d": block_c(160), "6e": block_c(192)}
    plans |= {"7a": BLOCK_D, "7b": block_e("mean"), "7c": block_e("max")}
    width, self.blocks = 192, []
    for name, plan in plans.items():
      block = Block(width, plan)
      setattr(self, f"Mixed_{name}", block)
      self.blocks.append(f"Mixed_{name}")
      width = block.width
    self.fc = nn.Linear(2048, 1008)

  def forward(self, x):
    """Takes pictures of any size in [0, 1]."""
    x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    x = 2 * x - 1
    x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
    x = F.max_pool2d(x, 3, 2)
    x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
    for name in self.blocks:
      x = getattr(self, name)(x)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def random_network(seed=0):
  """With batch norms that have seen something."""
  torch.manual_seed(seed)
  network = Inception().eval()
  for module in network.modules():
    if isinstance(module, nn.BatchNorm2d):
      module.running_mean.normal_(0, 0.2)
      module.running_var.uniform_(0.6, 1.4)
      nn.init.uniform_(module.weight, 0.5, 1.5)
      nn.init.normal_(module.bias, 0.1, 0.2)
    elif isinstance(module, nn.Conv2d):
      nn.init.kaiming_normal_(module.weight)
  return network
