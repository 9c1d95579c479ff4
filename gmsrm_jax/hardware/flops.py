"""Floating-point operations of matrix products and convolutions, counted in the traced program.

Before any compiler has seen it the program is the same on every back end, so the count is, too; what a compiler says of
its own result leaves out the libraries it calls (cuDNN, cuBLAS) and takes a loop for one turn. A multiply-add is two;
what no result depends on is left out, as any compiler would.
Everything else (norms, activations, copies) counts nothing: published peaks are those of the matrix units.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax.extend import core


def count(program: core.ClosedJaxpr) -> int:
  """The operations of one run; a loop counts all its turns, a choice its largest branch.

  Raises:
    ValueError: a `while` loop holds matrix products, and how often it turns is not known.
  """
  return _count(program.jaxpr)


def _count(program: core.Jaxpr) -> int:
  total, needed = 0, {variable for variable in program.outvars if isinstance(variable, core.Var)}
  for equation in reversed(program.eqns):
    if needed.isdisjoint(equation.outvars):
      continue
    total += _of_equation(equation)
    needed.update(variable for variable in equation.invars if isinstance(variable, core.Var))
  return total


def _of_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  inner = [_count(program) for program in _programs(params)]
  if name == "cond":
    return max(inner, default=0)
  if name == "while" and sum(inner):
    raise ValueError("a while loop with matrix products: its turns cannot be counted")
  return sum(inner) * (params["length"] if name == "scan" else 1)


def _programs(params: dict[str, Any]) -> list[core.Jaxpr]:
  """The programs that an equation runs, such as a loop's body."""
  values = [item for value in params.values() for item in (value if isinstance(value, (tuple, list)) else (value,))]
  closed = [value.jaxpr if isinstance(value, core.ClosedJaxpr) else value for value in values]
  return [value for value in closed if isinstance(value, core.Jaxpr)]


def _dot(equation: Any) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
  """Padding and the zeros between dilated pixels count nothing."""
  params = equation.params
  numbers = params["dimension_numbers"]
  left, right = (variable.aval.shape for variable in equation.invars)
  out = equation.outvars[0].aval.shape
  pairs = 1
  for axis in range(len(out) - 2):
    pairs *= _pairs(
      left[numbers.lhs_spec[2 + axis]],
      right[numbers.rhs_spec[2 + axis]],
      out[numbers.out_spec[2 + axis]],
      params["window_strides"][axis],
      params["padding"][axis][0],
      params["lhs_dilation"][axis],
      params["rhs_dilation"][axis],
    )
  # Batch, output channels, and the input channels of one group.
  return 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * right[numbers.rhs_spec[1]] * pairs


def _pairs(pixels: int, taps: int, outputs: int, stride: int, before: int, spread: int, dilation: int) -> int:
  """How many pairs of output position and tap meet a pixel, along one axis."""
  places = np.arange(outputs)[:, None] * stride + np.arange(taps)[None] * dilation - before
  return int(np.sum((places >= 0) & (places <= (pixels - 1) * spread) & (places % spread == 0)))
