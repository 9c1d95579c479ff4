"""3x3 convolutions, by XLA or, in training on one CPU that was prepared for it, by oneDNN.

`python -m gmsrm_jax.kernels.convolution` builds its function once (docs/speed.md), `run.convolution` asks for it.
XLA's own convolutions are slow on a CPU, their gradients above all, and gain nothing from bfloat16 there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gmsrm_jax.errors import ConfigError, require
from gmsrm_jax.files import cache_folder, replacing

_SOURCE = pathlib.Path(__file__).with_name("onednn.cc")
_TARGET = "gmsrm_convolve"
_FORWARD, _OF_PICTURE, _OF_KERNEL = range(3)
_LAYOUT = ("NHWC", "HWIO", "NHWC")
# With one channel oneDNN 2.6 takes long for the kernel's gradient in bfloat16 (docs/speed.md).
_NARROWEST = 8

Picture = Float[Array, "b h w _c"]
Kernel = Float[Array, "3 3 _i _o"]

_chosen = "xla"


def use(choice: str) -> None:
  """Chooses who computes from now on: xla, onednn (float32), or onednn_bfloat16 (operands rounded, sums float32).

  Whatever was compiled before stays as it is.

  Raises:
    ConfigError: oneDNN's function was not built, does not load or not compute here, or JAX has more than one CPU device
      or another back end.
  """
  global _chosen
  if choice != "xla":
    named = f"run.convolution={choice}"
    devices = f"{jax.device_count()} x {jax.default_backend()}"
    require(devices == "1 x cpu", f"{named} is for one CPU device, not for {devices}: use run.convolution=xla")
    _load(named)
  _chosen = choice
  if choice != "xla":
    try:
      jax.block_until_ready(jax.jit(convolve)(jnp.zeros((1, 8, 8, 16)), jnp.zeros((3, 3, 16, 16))))
    except jax.errors.JaxRuntimeError as error:
      _chosen = "xla"
      raise ConfigError(f"{named}: oneDNN computes none on this CPU ({error}): use run.convolution=xla") from None


def general(lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any) -> Array:
  """Serves as `jax.lax.conv_general_dilated`; hands over what `convolve` computes, unless a precision is asked for."""
  if _chosen == "xla" or not _is_plain(lhs, rhs, window_strides, padding, **options):
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
  return convolve(lhs, rhs)


def _is_plain(
  lhs: Array,
  rhs: Array,
  window_strides: Any,
  padding: Any,
  lhs_dilation: Any = None,
  rhs_dilation: Any = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  precision: Any = None,
) -> bool:
  if lhs.ndim != 4 or rhs.shape[:2] != (3, 3) or not lhs.dtype == rhs.dtype == jnp.float32:
    return False
  same = padding == "SAME" or [tuple(pair) for pair in padding] == [(1, 1), (1, 1)]
  ones = all(set(steps or (1,)) == {1} for steps in (window_strides, lhs_dilation, rhs_dilation))
  numbers = (lax.conv_dimension_numbers(lhs.shape, rhs.shape, layout) for layout in (dimension_numbers, _LAYOUT))
  return same and ones and len(set(numbers)) == 1 and feature_group_count == 1 and precision is None


@jax.custom_vjp
def convolve(x: Picture, kernel: Kernel) -> Picture:
  """Returns the 3x3 convolution of stride 1 with a border of zeros, by oneDNN; `use` it first."""
  return _call(_FORWARD, (*x.shape[:3], kernel.shape[3]), x, kernel)


# All three are linear in both arguments, so that they are each other's gradients, to any order.
@jax.custom_vjp
def _gradient_of_picture(cotangent: Picture, kernel: Kernel) -> Picture:
  return _call(_OF_PICTURE, (*cotangent.shape[:3], kernel.shape[2]), cotangent, kernel)


@jax.custom_vjp
def _gradient_of_kernel(x: Picture, cotangent: Picture) -> Kernel:
  return _call(_OF_KERNEL, (3, 3, x.shape[3], cotangent.shape[3]), x, cotangent)


convolve.defvjp(
  lambda x, kernel: (convolve(x, kernel), (x, kernel)),
  lambda kept, g: (_gradient_of_picture(g, kept[1]), _gradient_of_kernel(kept[0], g)),
)
_gradient_of_picture.defvjp(
  lambda cotangent, kernel: (_gradient_of_picture(cotangent, kernel), (cotangent, kernel)),
  lambda kept, g: (convolve(g, kept[1]), _gradient_of_kernel(g, kept[0])),
)
_gradient_of_kernel.defvjp(
  lambda x, cotangent: (_gradient_of_kernel(x, cotangent), (x, cotangent)),
  lambda kept, g: (_gradient_of_picture(kept[1], g), convolve(kept[0], g)),
)


def _call(kind: int, shape: tuple[int, ...], first: Array, second: Array) -> Array:
  narrow = _chosen == "onednn_bfloat16" and min(first.shape[3], second.shape[3], *shape[3:]) >= _NARROWEST
  result = jax.ShapeDtypeStruct(shape, jnp.float32)
  call = jax.ffi.ffi_call(_TARGET, result, vmap_method="sequential")
  return call(first, second, kind=np.int64(kind), bfloat16=narrow)


def library() -> pathlib.Path:
  """Returns where the built function lies: a file of its own for each version of its source and of jaxlib."""
  version = importlib.metadata.version("jaxlib")
  source = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:8]
  return cache_folder() / f"onednn-{source}-jaxlib-{version}.so"


@functools.lru_cache(maxsize=1)
def _load(named: str) -> None:
  """Loads the built function into this process."""
  path = library()
  way_out = "build it with python -m gmsrm_jax.kernels.convolution, or use run.convolution=xla"
  require(path.exists(), f"{named}: oneDNN's function was not built for this user and version of JAX: {way_out}")
  # Threads that wait busily would take the cores from XLA's own; read when the library is loaded.
  os.environ.setdefault("OMP_WAIT_POLICY", "passive")
  try:
    built = ctypes.CDLL(str(path))
  except OSError as error:
    raise ConfigError(f"{named}: {path} does not load ({error}): {way_out}") from None
  jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(built.GmsrmConvolve), platform="cpu")


def build() -> pathlib.Path:
  """Compiles the function against the oneDNN of this machine, and returns where it lies.

  Raises:
    ConfigError: there is no C++ compiler, no oneDNN, or it does not compile.
  """
  compiler = shutil.which("g++") or shutil.which("clang++")
  way_out = "install both (Debian and Ubuntu: apt-get install g++ libdnnl-dev; conda: gxx onednn)"
  require(compiler is not None, f"a C++ compiler and oneDNN are needed, and there is no g++ or clang++: {way_out}")
  path = library()
  path.parent.mkdir(parents=True, exist_ok=True)
  prefix = os.environ.get("CONDA_PREFIX")
  found = [f"-I{prefix}/include", f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib"] if prefix else []
  flags = ["-O2", "-std=c++17", "-shared", "-fPIC", f"-I{jax.ffi.include_dir()}", *found]
  with replacing(path) as unfinished:
    command = [str(compiler), *flags, str(_SOURCE), "-o", str(unfinished), "-ldnnl"]
    tried = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    errors = [line for line in tried.stderr.splitlines() if "error" in line] or tried.stderr.splitlines()[-1:]
    require(tried.returncode == 0, f"oneDNN's function does not compile ({'; '.join(errors[:1])}): {way_out}")
  return path


if __name__ == "__main__":
  try:
    print(f"built {build()}: use it with --set run.convolution=onednn_bfloat16")
  except ConfigError as failure:
    print(failure, file=sys.stderr)
    sys.exit(2)
