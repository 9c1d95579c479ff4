"""Our parameter trees as state_dicts of the twin: names by rule, layouts by what stands before or after a layer."""

# PyTorch is a peer to compare with, not a requirement.
# pyright: reportMissingImports=false

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.torch_twin.optim import Player

# In this order; each is tried on the whole dotted name.
_RULES = (
  (r"\.LayerNorm_0\b", ""),
  (r"\bmemory\.retrieval\.", "memory.codebook."),
  (r"\bcontext(\d+)\.ChannelNorm_0\b", r"contexts.\1.norm1"),
  (r"\bcontext(\d+)\.ChannelNorm_1\b", r"contexts.\1.norm2"),
  (r"\bcontext(\d+)\.", r"contexts.\1."),
  (r"\btransfer\.ChannelNorm_([1-9]\d*)\b", lambda match: f"transfer.norms.{int(match[1]) - 1}"),
  (r"\btransfer\.project(\d+)\b", r"transfer.projects.\1"),
  (r"\bChannelNorm_0\b", "norm"),
  (r"\bDense_0\b", "conv"),
  (r"\bblock(\d+)_(\d+)\b", r"blocks.\1.\2"),
  (r"\bup(\d+)\b", r"ups.\1"),
  (r"\bdown(\d+)\b", lambda match: f"downs.{int(match[1]) - 1}"),
  (r"\bfuse(\d+)\b", r"fuses.\1"),
  (r"\bstrength_(\d+)\b", r"strengths.\1"),
  (r"^conv(\d+)\b", r"layers.\1"),  # the discriminator's
  (r"^spectral(_logits|\d+)\.(\w+)\.kernel\.", r"\2."),
  (r"^conv(\d+)\b", r"layers.\1"),
  (r"\.(kernel|scale)$", ".weight"),
)
_UNSHUFFLED_INPUT = re.compile(r"(^|\.)(stem|downs\.\d+\.conv|layers\.\d+)\.weight$")
_SHUFFLED_OUTPUT = re.compile(r"(^|\.)(ups\.\d+\.conv|to_pixels)\.(weight|bias)$")


def torch_name(path: str) -> str:
  """The twin's name of 'encoder/block0_1/expand/kernel'."""
  name = path.replace("/", ".")
  for pattern, replacement in _RULES:
    name = re.sub(pattern, replacement, name)
  return name


def torch_layout(name: str, array: Any) -> Tensor:
  """An array of ours in the layout of the twin's tensor of that name."""
  array = np.array(array)
  if name.endswith(".u"):
    return torch.from_numpy(array[0])
  if name.endswith(".weight") and array.ndim == 2:
    array = array[None, None]
  if array.ndim == 4:
    array = array.transpose(3, 2, 0, 1)
  # Ours folds 2x2 pixels as (row, column, channel), torch as (channel, row, column).
  if _UNSHUFFLED_INPUT.search(name):
    outputs, inputs, *window = array.shape
    array = array.reshape(outputs, 4, inputs // 4, *window).swapaxes(1, 2).reshape(array.shape)
  if _SHUFFLED_OUTPUT.search(name):
    array = array.reshape(4, len(array) // 4, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
  return torch.from_numpy(array.copy(order="C"))


def convert(tree: Mapping[str, Any]) -> dict[str, Tensor]:
  """A tree of parameters, gradients or moments as a state_dict."""
  converted: dict[str, Tensor] = {}
  for path, leaf in _flat(tree).items():
    name = torch_name(path)
    if name in converted:
      raise ValueError(f"{path} and another parameter are both called {name}")
    converted[name] = torch_layout(name, leaf)
  return converted


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Leaves by their path; Flax writes some keys with slashes already."""
  found: dict[str, Any] = {}
  for key, value in tree.items():
    path = f"{prefix}{key}"
    found |= _flat(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
  return found


def load(network: nn.Module, *trees: Mapping[str, Any], partial: bool = False) -> None:
  """Puts our trees into a network.

  Raises:
    ValueError: a name is on one side only, or the shapes differ. `partial` allows names that the network alone has
      (a teacher has no generator).
  """
  state: dict[str, Tensor] = {}
  for tree in trees:
    state |= convert(tree)
  wanted = network.state_dict()
  unmapped, missing = sorted(set(state) - set(wanted)), sorted(set(wanted) - set(state))
  if unmapped or (missing and not partial):
    raise ValueError(f"only in our tree: {unmapped}; only in the twin: {missing}")
  wrong = [name for name, tensor in state.items() if tensor.shape != wanted[name].shape]
  if wrong:
    raise ValueError(f"shapes differ: {[(n, tuple(state[n].shape), tuple(wanted[n].shape)) for n in wrong]}")
  network.load_state_dict(state, strict=not partial)


def load_player(
  player: Player, step: int, first: Mapping[str, Any], second: Mapping[str, Any], ema: Mapping[str, Any] | None = None
) -> None:
  """Puts Adam's two moments, as trees, and the average into a player that has made so many steps."""
  moments = convert(first), convert(second)
  average = {} if ema is None else convert(ema)
  for index, (name, parameter) in enumerate(zip(player.names, player.params, strict=True)):
    exp_avg, exp_avg_sq = (torch.empty_like(parameter).copy_(moment[name]) for moment in moments)
    counter = torch.tensor(float(step), device=parameter.device)
    player.adam.state[parameter] = {"step": counter, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    if average:
      player.ema[index].copy_(average[name])
  player.schedule.last_epoch = step
  for group, base, rate in zip(
    player.adam.param_groups, player.schedule.base_lrs, player.schedule.lr_lambdas, strict=True
  ):
    group["lr"] = base * rate(step)
