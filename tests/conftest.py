"""Settings of every test: shapes are checked, ranks never broadcast, one process sees four CPU devices."""

from __future__ import annotations

import os

from jaxtyping import install_import_hook

# The hook must come before any module of the package is imported. An int is a float, as PEP 484 has it.
install_import_hook("gmsrm_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
