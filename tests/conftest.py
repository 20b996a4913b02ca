"""Settings and fixtures shared by the whole test suite."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from quick_compilation import FLAGS

# All must be set before anything imports matplotlib or starts a JAX backend. Most of a test's time
# is compilation: a fifth as long when XLA does not optimize what it generates, and generates it
# without MLIR.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("XLA_FLAGS", FLAGS)

import jax
import numpyro
import pytest

# JAX then refuses what NumPy broadcasts silently, a frequent mistake of shape; users may ask for
# it, and NumPyro's kernels run with it. Strict promotion of dtypes NumPyro does not survive: NUTS
# adds integers to floating-point numbers, and so do some distributions when they are made. Where no
# NumPyro is involved, in `heads` and `priors`, the fixture `strict_dtypes` asks for it.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing leaves millions of small objects that live on. Looking them through for cycles after every
# 700 new ones takes a tenth of the time.
gc.set_threshold(50_000, 20, 100)

# Two devices, so that `chain_method="parallel"` really runs in parallel on a CPU.
numpyro.set_host_device_count(2)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `test_soak.py`."""
    parser.addoption(
        "--soak-minutes", type=float, default=5.0, help="time of the random models (slow group)"
    )


# Fixtures that take a while to make, the costliest first.
SHARED_RUNS = (
    "lasso_run",
    "means_kernel",
    "lasso",
    "checkpoint_kernel",
    "undisturbed",
    "noise_free",
    "nuts_record",
    "normal_prior_run",
    "own_head_run",
    "bimodal_run",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under ``--dist loadgroup`` one worker makes a shared run and has all tests of it."""
    for item in items:
        for name in SHARED_RUNS:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(name))
                break


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


class LassoRun(NamedTuple):
    """A short run of `lasso_regression`, two chains, with what was collected on the way.

    Attributes:
        mcmc: after `run`.
        warmed: the same object as it was after `warmup`, with the warm-up's draws.
        num_particles: particles of an ensemble.
    """

    mcmc: Any
    warmed: Any
    num_particles: int


@pytest.fixture(scope="session")
def lasso_run() -> LassoRun:
    """One run for all tests that look at results: compiling it takes longer than they do."""
    from numpyro.infer import MCMC

    from numpyro_rwpo import RWPO
    from tests.helpers import lasso_regression, regression_data

    X, y = regression_data()
    kernel = RWPO(lasso_regression, num_particles=32)
    mcmc = MCMC(kernel, num_warmup=160, num_samples=160, num_chains=2, chain_method="vectorized")
    mcmc.progress_bar = True  # compiles one step and not the whole loop, twice
    fields = ("num_steps", "ensemble.particles")
    mcmc.warmup(jax.random.key(0), X, y=y, collect_warmup=True, extra_fields=fields)
    warmed = copy.copy(mcmc)
    mcmc.run(jax.random.key(1), X, y=y, extra_fields=fields)  # the same program
    return LassoRun(mcmc, warmed, 32)


@pytest.fixture
def silent_broadcasting() -> Iterator[None]:
    """Let JAX broadcast as NumPy does, for code of others that needs it."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """Refuse arithmetic of arrays of different dtypes."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def no_nans() -> Iterator[None]:
    """Raise where a program that is not expected to computes a nan."""
    with jax.debug_nans(True):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Run one test in double precision."""
    with jax.enable_x64(True):
        yield
