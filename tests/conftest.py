"""Settings of every test: shapes are checked, ranks never broadcast, one process sees four CPU devices."""

from __future__ import annotations

import atexit
import os
import tempfile

from jaxtyping import install_import_hook

# The hook must come before any module of the package is imported. An int is a float, as PEP 484 has it.
install_import_hook("gmsrm_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What processes that tests start compile is kept for the session, not in the home of whoever runs the tests.
if "PYTEST_XDIST_WORKER" not in os.environ:  # which inherits it
  _cache = tempfile.TemporaryDirectory(prefix="gmsrm_tests_")
  os.environ["XDG_CACHE_HOME"] = _cache.name
  atexit.register(_cache.cleanup)

# XLA ends the process (40 s) and gloo the connection (30 s) when one device reaches a collective much before another:
# no sign of anything on a busy machine, where they share a core. The processes that tests start inherit it.
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=300 --xla_cpu_collective_timeout_seconds=300"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_PATIENCE}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)

# Those that take a minute or more, the longest first: none is then left for the end, where the other process is idle.
_LONG = [
  *("test_loop", "test_steps", "test_processes", "test_finetune", "test_sharding", "test_inpainter", "test_benchmark"),
  *("test_scorer", "test_torch_twin"),
]


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """The one tiny run that the processes of a session share: never written to."""
  from tests.trained import train_once

  base = tmp_path_factory.getbasetemp()
  return train_once((base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "trained")
