"""``to_arviz``: groups, names and attributes; with ArviZ 0.x and 1.x alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from numpyro_rwpo import to_arviz
from tests.helpers import light_kernel, normal_mean, regression_data, run_mcmc

Y = regression_data()[1]


def test_posterior_and_sample_stats(lasso_run: Any) -> None:
    mcmc = lasso_run.mcmc
    data = to_arviz(mcmc, dims={"weights": ["feature"]}, coords={"feature": ["a", "b", "c"]})
    posterior, stats = data["posterior"], data["sample_stats"]
    samples = mcmc.get_samples(group_by_chain=True)
    np.testing.assert_array_equal(posterior["weights"].values, samples["weights"])
    assert posterior["weights"].dims == ("chain", "draw", "feature")
    assert stats["diverging"].dtype == bool
    assert stats["n_steps"].shape == stats["step_size"].shape == (2, 160)
    assert np.all(stats["n_steps"].values == mcmc.last_state.num_steps[:, None])
    assert "tree_depth" not in stats
    attributes = posterior.attrs
    assert attributes["sampler"] == "RWPO"
    assert attributes["num_particles"] == lasso_run.num_particles
    assert np.isfinite(attributes["log_evidence"])
    assert np.isfinite(attributes["pareto_k_hat"])
    assert attributes["log_evidence_method"] in ("importance sampling", "bridge sampling")


def test_warm_up_with_the_ensembles(lasso_run: Any) -> None:
    before = to_arviz(lasso_run.warmed)
    assert "posterior" not in before
    data = to_arviz(lasso_run.mcmc, warmup=before, evidence=False)
    assert data["posterior"].sizes["draw"] == 160
    assert data["warmup_posterior"]["noise"].shape == (2, 160)
    particles = data["warmup_ensemble"]["particles"]
    assert particles.dims == ("chain", "draw", "particle", "coordinate")
    assert particles.shape == (2, 160, lasso_run.num_particles, 5)
    # Warm-up is over before NumPyro's first iteration: they are those that sampling starts from.
    np.testing.assert_array_equal(particles[:, :1], particles[:, 1:][:, -1:])
    np.testing.assert_array_equal(particles[:, -1], lasso_run.warmed.last_state.ensemble.particles)


def test_it_goes_to_a_file_and_back(lasso_run: Any, tmp_path: Any) -> None:
    data = to_arviz(lasso_run.mcmc, warmup=to_arviz(lasso_run.warmed))
    pytest.importorskip("h5netcdf", reason="writes NetCDF")
    pytest.importorskip("h5py", reason="h5netcdf needs it")
    data.to_netcdf(str(tmp_path / "run.nc"), engine="h5netcdf")


@pytest.fixture(scope="module")
def noise_free() -> Any:
    kernel = light_kernel(normal_mean, corrected=False)
    return run_mcmc(kernel, Y, num_chains=2, num_warmup=60, num_samples=100)


def test_noise_free_particles_are_the_draws_once(noise_free: Any) -> None:
    data = to_arviz(noise_free, evidence=False)
    assert data["posterior"]["mu"].shape == (2, 16)
    assert data["sample_stats"]["diverging"].shape == (2, 16)
    particles = noise_free.last_state.ensemble.particles
    np.testing.assert_array_equal(data["posterior"]["mu"].values, particles[:, :, 0])
    assert "noise-free" in data["posterior"].attrs["correction"]


def test_noise_free_particles_are_not_called_draws(noise_free: Any) -> None:
    from numpyro_rwpo import diagnose

    report = diagnose(noise_free)
    assert "R-hat and ESS do not apply" in str(report)
    measured = report.measurements
    assert measured.settings.num_draws == 16
    assert "repeats" in {finding.about for finding in report.findings}
    assert not {"R-hat", "ESS", "chains"} & {finding.about for finding in report.findings}
    # What takes their place: k-hat, the discrepancy and the identities.
    assert np.isfinite(measured.evidence.k_hat)
    assert measured.stein.discrepancy.num_draws == 32
    assert len(measured.stein.virial) == 1


def test_bad_input(lasso_run: Any) -> None:
    with pytest.raises(TypeError, match="whose kernel is RWPO"):
        to_arviz({})
    with pytest.raises(TypeError, match="`warmup` must be what `to_arviz` returned"):
        to_arviz(lasso_run.mcmc, warmup={"a": 1})
