"""The example with a PyMC model: the draws are PyMC's, and so are their names."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import numpyro.distributions as dist
import pytest

# PyTensor warns if there is no BLAS that it can link to, which has nothing to do with this package.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("silent_broadcasting"),
    pytest.mark.filterwarnings("ignore"),
]

SCRIPT = Path(__file__).parents[2] / "examples" / "pymc_lasso.py"
PRIOR = {"beta": dist.Laplace(0.0, 0.1), "noise_log__": None}


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    pytest.importorskip("pymc")
    pytest.importorskip("sklearn")
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize("laplace_sites", [PRIOR, None], ids=["laplace_sites", "smooth"])
def test_agrees_with_the_nuts_of_pymc(example: dict[str, Any], laplace_sites: Any) -> None:
    """Means and standard deviations within 4.5 Monte Carlo standard errors of the difference."""
    import arviz as az
    import pymc as pm

    model = example["lasso"]()
    mcmc = example["sample"](model, 200, 1000, 0, laplace_sites=laplace_sites)
    rwpo = example["to_inference_data"](mcmc, model)
    nuts = pm.sample(
        1000, chains=4, random_seed=0, model=model, nuts_sampler="numpyro", progressbar=False
    )

    assert set(rwpo.posterior.data_vars) == set(nuts.posterior.data_vars)
    for name, draws in rwpo.posterior.data_vars.items():
        assert draws.dims == nuts.posterior[name].dims
        for dim in draws.dims[2:]:
            np.testing.assert_array_equal(draws[dim], nuts.posterior[name][dim])
    np.testing.assert_allclose(
        rwpo.posterior["signal_to_noise"],
        np.sqrt((rwpo.posterior["beta"] ** 2).sum("covariate")) / rwpo.posterior["noise"],
        rtol=1e-10,
    )

    ours, theirs = (az.summary(data, round_to="none") for data in (rwpo, nuts))
    assert ours["r_hat"].max() < 1.02
    for value, error in (("mean", "mcse_mean"), ("sd", "mcse_sd")):
        z = (ours[value] - theirs[value]) / np.hypot(ours[error], theirs[error])
        assert z.abs().max() < 4.5, z

    # PyMC continues with these draws as with its own.
    pm.compute_log_likelihood(rwpo, model=model, progressbar=False)
    assert rwpo.log_likelihood["progression"].dims == ("chain", "draw", "patient")
    assert rwpo.sample_stats["lp"].shape == (4, 1000)
