"""``diagnose`` on runs: right figures on a sound one, a finding on each kind of trouble."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

import numpyro_rwpo
from numpyro_rwpo import RWPO, diagnose
from tests.helpers import (
    gaussian_potential,
    normal_mean,
    regression_data,
    run_mcmc,
)

Y = regression_data()[1]


def about(report: Any) -> set[str]:
    return {finding.about for finding in report.findings}


@pytest.fixture(scope="module")
def report(lasso_run: Any) -> Any:
    return diagnose(lasso_run.mcmc)


def test_a_sound_run(report: Any) -> None:
    measured = report.measurements
    # Divergences, R-hat and ESS of so short a run may be what they are; nothing else may be found.
    assert about(report) <= {"R-hat", "ESS", "divergences", "k-hat"}, str(report)
    assert [row.name for row in measured.coordinates] == [
        "intercept",
        "noise",
        "weights[0]",
        "weights[1]",
        "weights[2]",
    ]
    assert measured.laplace_sites["weights"].startswith("known location and scale")
    assert measured.mixing.draws_per_particle == 32  # of five of the particles
    assert measured.settings.is_normalized


def test_a_report_prints_everywhere(report: Any) -> None:
    text = str(report)
    assert repr(report) == text
    for part in ("R-hat", "acceptance", "transport residual", "gradient", "k-hat", "log evidence"):
        assert part in text
    assert max(map(len, text.splitlines())) < 120
    assert report._repr_html_().count("<table>") == text.count("\n\n") - 1
    # Plain values only.
    assert json.loads(json.dumps(report.to_dict()))["settings"]["dim"] == 5


def test_r_hat_and_ess_are_those_of_arviz(lasso_run: Any, report: Any) -> None:
    import arviz as az

    draws = lasso_run.mcmc.get_samples(group_by_chain=True)["weights"]
    data = az.convert_to_dataset({"weights": np.asarray(draws, np.float64)})
    rows = report.measurements.coordinates[2:]
    np.testing.assert_allclose([r.r_hat for r in rows], az.rhat(data)["weights"], rtol=1e-6)
    np.testing.assert_allclose([r.ess_bulk for r in rows], az.ess(data)["weights"], rtol=1e-6)


def test_gradients_are_counted_with_the_warm_up(lasso_run: Any) -> None:
    """Those of warm-up, and those of the one refresh that made all the draws.

    The number of steps is the same for all draws of a chain: its trajectories have one length.
    """
    state = lasso_run.mcmc.last_state
    num_steps = np.asarray(lasso_run.mcmc.get_extra_fields(group_by_chain=True)["num_steps"])
    move, number = state.move, state.buffer.potential[0].size
    assert number > num_steps.shape[1]
    expected = np.asarray(move.num_steps * move.num_sweeps)
    np.testing.assert_array_equal(num_steps, np.broadcast_to(expected[:, None], num_steps.shape))
    in_warm_up = np.asarray(state.warm_up.num_gradients)
    np.testing.assert_array_equal(state.num_gradients, in_warm_up + number * expected)
    # Each update has a trajectory of at least one step for each particle, and so has transport.
    least = state.warm_up.num_updates + state.warm_up.progress.steps
    assert np.all(in_warm_up >= lasso_run.num_particles * np.asarray(least))
    np.testing.assert_array_equal(lasso_run.warmed.last_state.num_gradients, in_warm_up)


def test_a_pickled_run_has_the_same_report(lasso_run: Any, report: Any) -> None:
    again = diagnose(pickle.loads(pickle.dumps(lasso_run.mcmc)))
    assert again.to_dict() == report.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chain_method", "num_chains"), [("vectorized", 1), ("sequential", 2), ("parallel", 2)]
)
def test_every_chain_method(chain_method: str, num_chains: int) -> None:
    mcmc = run_mcmc(
        RWPO(normal_mean, num_particles=8),
        Y,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )
    report = diagnose(mcmc)
    assert len(report.measurements.chains) == num_chains
    assert ("chains" in about(report)) == (num_chains == 1)
    assert str(report)


def latent_scale(y: Any) -> None:
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Laplace(0.0, tau).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(beta, 0.5).to_event(1), obs=y)


@pytest.mark.slow
def test_evidence_does_not_depend_on_the_parameterization() -> None:
    """Standardized Laplace sites and the sites as written: constants and Jacobians must be right.

    Exact value by quadrature over tau and, inside, over each coefficient.
    """
    from numpyro_rwpo.diagnostics.evidence import estimate_evidence
    from numpyro_rwpo.diagnostics.posterior import posterior_of
    from numpyro_rwpo.runs.mcmc import read_finished_run

    y = np.array([-0.3, 0.4, 1.0], np.float32)
    mcmc = run_mcmc(
        RWPO(latent_scale, num_particles=32), y, num_chains=2, num_warmup=100, num_samples=640
    )
    taus = np.linspace(1e-3, 8, 2000)
    beta = np.linspace(-12, 12, 8001)
    log_prior = -np.abs(beta) / taus[:, None] - np.log(2 * taus[:, None])
    likelihood = np.exp(-0.5 * ((y[:, None] - beta) / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    inner = np.trapezoid(np.exp(log_prior)[None] * likelihood[:, None], beta, axis=2).prod(0)
    half_normal = np.sqrt(2 / np.pi) * np.exp(-0.5 * taus**2)
    exact = np.log(np.trapezoid(half_normal * inner, taus))
    run = read_finished_run(mcmc)
    for centering, names in ((0, "beta_decentered[0]"), (1, "beta[0]")):
        posterior = posterior_of(run, centering=centering)
        assert posterior.names[0] == names
        evidence = estimate_evidence(
            jax.random.key(1),
            posterior.draws,
            lambda x, posterior=posterior: posterior.evaluate(x)[0],
            posterior.prior,
        )
        # 0.02: near tau = 0 the inner integral's grid is as coarse as the prior is narrow.
        limit = 4 * evidence.standard_error + 0.02
        assert abs(evidence.log_evidence - exact) < limit, (centering, evidence, exact)


@pytest.mark.slow
def test_a_potential_function() -> None:
    mcmc = run_mcmc(
        RWPO(potential_fn=gaussian_potential, num_particles=16),
        num_chains=2,
        init_params=jnp.zeros((2, 2)),
        num_samples=160,
    )
    report = diagnose(mcmc)
    measured = report.measurements
    assert [row.name for row in measured.coordinates] == ["x[0]", "x[1]"]
    assert not measured.settings.is_normalized
    assert "up to the constants" in str(report)
    # The integral of exp(-potential): 2 pi sqrt(det covariance), det = 1 * 2 - 0.9^2.
    exact = np.log(2 * np.pi) + 0.5 * np.log(2 - 0.81)
    evidence = measured.evidence
    assert abs(evidence.log_evidence - exact) < 4 * evidence.standard_error + 1e-3


def funnel() -> None:
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([9]).to_event(1))


@pytest.mark.slow
def test_a_funnel_is_found_though_r_hat_is_good() -> None:
    """The case that R-hat and ESS pass: particles that hardly move from pass to pass."""
    mcmc = run_mcmc(RWPO(funnel), num_chains=4, num_warmup=200, num_samples=1000)
    report = diagnose(mcmc)
    rows = report.measurements.coordinates
    assert max(row.r_hat for row in rows) < 1.01
    assert min(row.ess_bulk for row in rows) > 2000
    assert next(row.sd for row in rows if row.name == "v") < 2.8  # 3 is right
    assert {"slow particles", "divergences"} <= about(report), str(report)


@pytest.mark.slow
def test_an_ensemble_that_is_not_there_yet_is_found() -> None:
    """Two chains in two modes: R-hat must say so, and name the setting to change."""
    mcmc = run_mcmc(
        RWPO(bimodal, num_particles=8), num_chains=2, init_params={"x": jnp.array([-20.0, 20.0])}
    )
    report = diagnose(mcmc)
    (finding,) = (f for f in report.findings if f.about == "R-hat")
    assert "num_warmup" in finding.sentence


def bimodal() -> None:
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    modes = jnp.array([-20.0, 20.0])
    numpyro.factor("modes", jax.nn.logsumexp(dist.Normal(modes, 1.0).log_prob(x)))


def test_bad_input_gets_one_clear_error(lasso_run: Any) -> None:
    with pytest.raises(TypeError, match="whose kernel is RWPO; got NUTS"):
        diagnose(MCMC(NUTS(normal_mean), num_warmup=1, num_samples=1))
    with pytest.raises(TypeError, match="got dict"):
        diagnose({})
    with pytest.raises(ValueError, match="has not been run"):
        diagnose(MCMC(RWPO(normal_mean), num_warmup=1, num_samples=1))
    with pytest.raises(ValueError, match="warm-up"):
        diagnose(lasso_run.warmed)
    lacking = copy.copy(lasso_run.mcmc)  # as after extra_fields=("~z.noise",)
    draws = {k: v for k, v in lacking._states["z"].items() if k != "noise"}
    lacking._states = {**lacking._states, "z": draws}
    with pytest.raises(ValueError, match="lack the latent sites .'noise'."):
        diagnose(lacking)


def test_the_package_does_not_import_plotting() -> None:
    import subprocess
    import sys

    code = "import sys, numpyro_rwpo; print('matplotlib' in sys.modules, 'arviz' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert numpyro_rwpo.diagnose is diagnose
