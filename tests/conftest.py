"""Settings of every test: shapes are checked, ranks never broadcast, one process sees four CPU devices."""

from __future__ import annotations

import os

from jaxtyping import install_import_hook

# The hook must come before any module of the package is imported. An int is a float, as PEP 484 has it.
install_import_hook("gmsrm_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# XLA ends the process (40 s) and gloo the connection (30 s) when one device reaches a collective much before another:
# no sign of anything on a busy machine, where they share a core. The processes that tests start inherit it.
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=300 --xla_cpu_collective_timeout_seconds=300"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_PATIENCE}".strip()

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
