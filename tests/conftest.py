"""Settings and fixtures shared by the whole test suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# All must be set before anything imports matplotlib or starts a JAX backend. Most of a test's time
# is compilation, which takes XLA half as long when it does not optimise what it generates.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpyro
import pytest

# Two devices, so that `chain_method="parallel"` really runs in parallel on a CPU.
numpyro.set_host_device_count(2)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep compiled programs on disk for the session: most of a test's time is compilation.

    NumPyro compiles its whole loop anew on every run without a progress bar, so the same
    program comes back many times. The folder belongs to this process alone (two processes
    must not share one).
    """
    folder = tmp_path_factory.mktemp("jax_cache")
    before = (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield folder
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.fixture
def x64() -> Iterator[None]:
    """Run one test in double precision."""
    with jax.enable_x64(True):
        yield
