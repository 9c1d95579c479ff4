"""oneDNN's convolutions against XLA's, and when they are asked."""

from __future__ import annotations

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gmsrm_jax.errors import ConfigError
from gmsrm_jax.kernels import convolution
from tests.trained import refused

HEADERS = pathlib.Path("/usr/include/oneapi/dnnl/dnnl.hpp")
LAYOUT = ("NHWC", "HWIO", "NHWC")


def by_xla(x, kernel):
  return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT, precision="highest")


@pytest.fixture(scope="module")
def built():
  """oneDNN's function, loaded; needed where CI runs."""
  if not HEADERS.exists() and "CI" not in os.environ:
    pytest.skip("Debian's libdnnl-dev is not installed")
  convolution.build()
  convolution._load("run.convolution=onednn")


@pytest.fixture
def choose(built, monkeypatch):
  return lambda choice: monkeypatch.setattr(convolution, "_chosen", choice)


def arguments(channels_in, channels_out, height=9, width=14):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, height, width, channels_in))
  kernel = rng.normal(size=(3, 3, channels_in, channels_out)) / np.sqrt(9 * channels_in)
  cotangent = rng.normal(size=(3, height, width, channels_out))
  return [jnp.asarray(a, jnp.float32) for a in (x, kernel, cotangent)]


def results(convolve, x, kernel, cotangent):
  """The convolution, both gradients, and the gradients of a penalty on the first of them: those of all three."""

  @jax.jit
  def compute(x, kernel, cotangent):
    y, back = jax.vjp(convolve, x, kernel)

    def penalty(x, kernel):
      of_x, of_kernel = jax.grad(lambda *a: jnp.sum(jnp.square(convolve(*a)) * cotangent), argnums=(0, 1))(x, kernel)
      return jnp.sum(jnp.square(of_x)) + jnp.sum(jnp.square(of_kernel))

    return y, *back(cotangent), *jax.grad(penalty, argnums=(0, 1))(x, kernel)

  return compute(x, kernel, cotangent)


@pytest.mark.parametrize(("channels_in", "channels_out"), [(16, 24), (3, 32), (32, 1)])
@pytest.mark.parametrize(("choice", "least", "most"), [("onednn", 0.0, 1e-5), ("onednn_bfloat16", 1e-4, 2e-2)])
def test_it_and_its_gradients_of_two_orders_are_those_of_xla(choose, choice, least, most, channels_in, channels_out):
  """To float32's last digits, or to those of bfloat16, which few channels are not rounded to."""
  if choice == "onednn_bfloat16" and "avx512bw" not in pathlib.Path("/proc/cpuinfo").read_text():
    pytest.skip("oneDNN has no bfloat16 for this CPU")
  choose(choice)
  given = arguments(channels_in, channels_out)
  if min(channels_in, channels_out) < 8:
    least, most = 0.0, 1e-5
  for ours, xla in zip(results(convolution.convolve, *given), results(by_xla, *given), strict=True):
    error = float(jnp.max(jnp.abs(ours - xla)) / jnp.max(jnp.abs(xla)))
    assert least <= error <= most


def test_a_batch_of_batches_is_one_call_after_the_other(choose):
  choose("onednn")
  x, kernel, _ = arguments(8, 8)
  several = jnp.stack([x, 2 * x, -x])
  ours = jax.jit(jax.vmap(convolution.convolve, in_axes=(0, None)))(several, kernel)
  np.testing.assert_allclose(ours, jax.vmap(by_xla, in_axes=(0, None))(several, kernel), atol=1e-5)


PLAIN = {"dimension_numbers": LAYOUT}


@pytest.mark.parametrize(
  ("asked", "shape", "strides", "padding", "options"),
  [
    (True, (3, 3, 8, 8), (1, 1), "SAME", PLAIN),
    (True, (3, 3, 8, 8), (1, 1), ((1, 1), (1, 1)), {**PLAIN, "rhs_dilation": (1, 1), "feature_group_count": 1}),
    (False, (3, 3, 8, 8), (2, 2), "SAME", PLAIN),
    (False, (3, 3, 8, 8), (1, 1), "VALID", PLAIN),
    (False, (3, 3, 8, 8), (1, 1), ((1, 1), (2, 0)), PLAIN),
    (False, (5, 5, 8, 8), (1, 1), "SAME", PLAIN),
    (False, (3, 3, 8, 8), (1, 1), "SAME", {**PLAIN, "rhs_dilation": (2, 2)}),
    (False, (3, 3, 4, 8), (1, 1), "SAME", {**PLAIN, "feature_group_count": 2}),
    (False, (3, 3, 8, 8), (1, 1), "SAME", {**PLAIN, "precision": lax.Precision.HIGHEST}),
    (False, (3, 3, 8, 8), (1, 1), "SAME", {"dimension_numbers": ("NWHC", "HWIO", "NHWC")}),
  ],
)
def test_only_what_it_computes_is_handed_over(choose, asked, shape, strides, padding, options):
  x, kernel = jnp.ones((2, 8, 8, 8)), jnp.ones(shape)

  def program():
    run = jax.jit(lambda x, kernel: convolution.general(x, kernel, strides, padding, **options))
    return run.lower(x, kernel).as_text()

  choose("onednn")
  assert ("gmsrm_convolve" in program()) == asked
  choose("xla")
  assert "gmsrm_convolve" not in program()


def test_what_cannot_be_used_is_refused_and_changes_nothing(monkeypatch, tmp_path, capsys):
  assert jax.device_count() == 4
  line = refused(capsys, ["--experiment=demo", f"--workdir={tmp_path}/run", "--set", "run.convolution=onednn"])
  assert "run.convolution=onednn" in line and "4 x cpu" in line and "run.convolution=xla" in line
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  convolution._load.cache_clear()
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  with pytest.raises(ConfigError, match=r"not built .*: build it with python -m gmsrm_jax\.kernels\.convolution"):
    convolution.use("onednn")
  convolution.library().parent.mkdir()
  convolution.library().write_bytes(b"no library")
  with pytest.raises(ConfigError, match="does not load"):
    convolution.use("onednn")
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(ConfigError, match=r"no g\+\+ or clang\+\+.*libdnnl-dev"):
    convolution.build()
  assert convolution._chosen == "xla"
