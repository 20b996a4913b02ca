"""Many runs in one process: random models until the time is up, and memory that stays flat.

The time is an option: ``python -m pytest -m slow tests/runs/test_soak.py --soak-minutes 120 -s``.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

import hypothesis
import jax
import numpy as np
import pytest
from helpers import normal_mean, run_mcmc
from hypothesis import HealthCheck, Phase, given
from numpyro.infer import MCMC, init_to_median

from numpyro_rwpo import RWPO
from numpyro_rwpo.diagnostics.thresholds import max_z
from tests.random_models import Regression, make_regression, regressions, stein_scores

pytestmark = pytest.mark.slow

MAX_MODELS = 10_000
MIN_ESS = 400
SAMPLER = {"num_chains": 4, "num_warmup": 200, "num_samples": 1000, "progress_bar": False}


def test_random_models_until_the_time_is_up(pytestconfig: pytest.Config) -> None:
    """No run fails, none has bad draws; the limit allows for the number of identities looked at."""
    end = time.monotonic() + 60 * float(pytestconfig.getoption("--soak-minutes"))
    worst: list[tuple[float, float, Regression]] = []
    number = 0

    @hypothesis.settings(
        max_examples=MAX_MODELS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(regressions())
    def soak(regression: Regression) -> None:
        nonlocal number
        if time.monotonic() > end:
            return
        try:
            mcmc = run_mcmc(RWPO(regression.model), *regression.args, **SAMPLER)
        except RuntimeError as error:
            # Columns in the thousands leave no start within +-2, for NUTS neither: as advised.
            assert "Cannot find valid initial parameters" in str(error)
            assert "`init_strategy`" in str(error)
            kernel = RWPO(regression.model, init_strategy=init_to_median)
            mcmc = run_mcmc(kernel, *regression.args, **SAMPLER)
        draws = mcmc.get_samples(group_by_chain=True)["beta"]
        scores = stein_scores(regression, draws)
        number += scores.number
        worst.append((scores.max_z, scores.ess, regression))
        jax.clear_caches()  # the compiled programs of one model are of no use to the next

    soak()
    assert worst, "no time for a single model"
    largest, _, regression = max(worst, key=lambda row: row[0])
    smallest = min(ess for _, ess, _ in worst)
    print(f"\n{len(worst)} models, {number} identities: |z| up to {largest:.1f}, limit "
          f"{max_z(number):.1f}; smallest ESS {smallest:.0f}")  # fmt: skip
    assert largest < max_z(number), (regression.family, regression.X.shape, largest)
    assert smallest > MIN_ESS


def test_scales_from_a_hundred_thousandth_to_a_twentieth() -> None:
    """Variances of 1e-9 beside some of 1e-3, and a Poisson likelihood that overflows close by."""
    regression = make_regression(
        seed=137904,
        family="poisson",
        n=20,
        p=30,
        correlation=0.9,
        log_scale=3.0,
        log_rate=1.3725587764012257,
        flaws=frozenset(),
    )
    kernel = RWPO(regression.model, init_strategy=init_to_median)
    mcmc = run_mcmc(kernel, *regression.args, **SAMPLER)
    scores = stein_scores(regression, mcmc.get_samples(group_by_chain=True)["beta"])
    print(f"\n{scores}, limit {max_z(scores.number):.1f}")
    assert scores.max_z < max_z(scores.number)
    assert scores.ess > MIN_ESS


def resident_megabytes() -> float:
    """Memory of this process, from Linux's own account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's memory account")
def test_memory_is_flat_over_two_hundred_runs() -> None:
    """One object run 200 times on new data keeps no memory and compiles nothing new."""
    data = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    mcmc = MCMC(RWPO(normal_mean), num_warmup=40, num_samples=40, jit_model_args=True)
    mcmc.progress_bar = True
    sizes = []
    for seed, values in enumerate(data):
        mcmc.run(jax.random.key(seed), values)
        gc.collect()
        sizes.append(resident_megabytes())
    first, second = np.median(sizes[50:75]), np.median(sizes[175:])
    print(f"\n{first:.1f} MB after 60 runs, {second:.1f} MB after 190")
    assert second - first < 5.0  # a few MB of noise of the allocator; a leak of 0.05 MB a run
