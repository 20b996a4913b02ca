"""Calibration: ranks under the prior, a joint test of the correction moves, evidence, k-hat.

Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788): parameters drawn from the prior,
data from the parameters; then the rank of the true parameter among posterior draws is uniform.
NumPyro's ``numpyro.infer.calibration`` is for variational guides (it runs SVI) and does not serve.
Data sets run twenty-five at a time, under ``vmap``.

The joint test is Geweke's (2004): alternate a move of the parameters given the data and new data
given the parameters; the parameters must keep the distribution of the prior.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from numpyro.infer import MCMC, Predictive
from scipy import stats

from benchmarks.problems import PROBLEMS
from numpyro_rwpo import RWPO, diagnose
from numpyro_rwpo.distributions import (
    FusedLaplace,
    GroupLaplace,
    NuclearNorm,
    SparseGroupLaplace,
)
from numpyro_rwpo.dynamics.ensemble import evaluate
from numpyro_rwpo.dynamics.flows import ExactFlow, Flow, HarmonicFlow
from numpyro_rwpo.dynamics.moves import hamiltonian_sweep, proposal_sweep
from numpyro_rwpo.dynamics.settings import num_states
from numpyro_rwpo.model.target import Differentiation, Proposal
from numpyro_rwpo.priors.laplace import laplace_prior

REFERENCES = Path(__file__).parents[2] / "benchmarks" / "posteriors" / "evidence"
NUM_REPLICATIONS = 200
NUM_PARTICLES = 32  # ranks of 31 draws: 32 values
NUM_BINS = 16
NUM_AT_ONCE = 25  # data sets under one vmap; all wait for the one with the longest trajectories
LEVEL = 0.01  # of each model's test, over all its parameters together

# A data set's run is mapped with all others: XLA cannot use the buffers that NumPyro donates.
pytestmark = pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")


# ------------------------------------------------------------------ rank histograms


def normal_normal(y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([5]).to_event(1), obs=y)


def design(num_rows: int, num_columns: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_rows, num_columns)).astype(np.float32)


def lasso_fixed_scale(y: Any = None) -> None:
    sigma = numpyro.sample("sigma", dist.LogNormal(-0.5, 0.5))
    beta = numpyro.sample("beta", dist.Laplace(0.0, 0.5).expand([4]).to_event(1))
    numpyro.sample("y", dist.Normal(design(20, 4) @ beta, sigma).to_event(1), obs=y)


def lasso_latent_scale(y: Any = None) -> None:
    tau = numpyro.sample("tau", dist.LogNormal(-0.5, 0.5))
    beta = numpyro.sample("beta", dist.Laplace(0.0, tau).expand([4]).to_event(1))
    numpyro.sample("y", dist.Normal(design(20, 4) @ beta, 1.0).to_event(1), obs=y)


def logistic_lasso(y: Any = None) -> None:
    beta = numpyro.sample("beta", dist.Laplace(0.0, 1.0).expand([4]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=design(30, 4) @ beta).to_event(1), obs=y)


def schools(y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([8]).to_event(1))
    errors = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    numpyro.sample("y", dist.Normal(mu + tau * z, errors).to_event(1), obs=y)


def poisson_log_link(y: Any = None) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(1.0, 0.5))
    beta = numpyro.sample("beta", dist.Normal(0.0, 0.3).expand([3]).to_event(1))
    rate = jnp.exp(intercept + design(20, 3) @ beta)
    numpyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)


def group_lasso(y: Any = None) -> None:
    tau = numpyro.sample("tau", dist.LogNormal(-0.5, 0.5))
    beta = numpyro.sample("beta", GroupLaplace(tau, groups=[[0, 3], [1, 2, 4]]))
    numpyro.sample("y", dist.Normal(design(20, 5) @ beta, 1.0).to_event(1), obs=y)


def sparse_group_lasso(y: Any = None) -> None:
    tau = numpyro.sample("tau", dist.LogNormal(-0.5, 0.5))
    beta = numpyro.sample("beta", SparseGroupLaplace(tau, 2).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(design(20, 4) @ beta.reshape(-1), 1.0).to_event(1), obs=y)


def trend_filter(y: Any = None) -> None:
    tau = numpyro.sample("tau", dist.LogNormal(-1.0, 0.5))
    line = numpyro.sample("line", FusedLaplace(tau, 8, 2, start_scale=1.0))
    numpyro.sample("y", dist.Normal(line, 0.5).to_event(1), obs=y)


def low_rank(y: Any = None) -> None:
    tau = numpyro.sample("tau", dist.LogNormal(-0.5, 0.5))
    x = numpyro.sample("x", NuclearNorm(tau, (3, 2)))
    numpyro.sample("y", dist.Normal(jnp.stack([x, x]), 0.7).to_event(3), obs=y)


def fraction_of_ranks(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Ranks of the truth (replications, k) among draws (replications, draws, k)."""
    return (draws < truth[:, None]).sum(1)


def uniformity(ranks: np.ndarray) -> np.ndarray:
    """p-values of a chi-square test that ranks 0 .. NUM_PARTICLES - 1 are uniform, by column."""
    width = NUM_PARTICLES // NUM_BINS
    counts = np.stack([np.bincount(r // width, minlength=NUM_BINS) for r in ranks.T])
    return np.asarray(stats.chisquare(counts, axis=1).pvalue)


def columns(sites: dict[str, Any], num_leading: int) -> np.ndarray:
    arrays = [np.asarray(sites[name]) for name in sorted(sites)]
    return np.concatenate([x.reshape(*x.shape[:num_leading], -1) for x in arrays], axis=-1)


def replicate(model: Callable[..., None]) -> tuple[np.ndarray, np.ndarray]:
    """One draw of each particle but the first, (replications, NUM_PARTICLES - 1, k), and the truth.

    The last of its successive states in a refresh: those before depend on each other.
    """
    key_prior, key_runs = jax.random.split(jax.random.key(0))
    simulated = Predictive(model, num_samples=NUM_REPLICATIONS)(key_prior)
    data = simulated.pop("y")

    def run(rng_key: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
        mcmc = MCMC(
            RWPO(model, num_particles=NUM_PARTICLES),
            num_warmup=100,
            num_samples=NUM_PARTICLES * num_states(NUM_PARTICLES),
            thinning=num_states(NUM_PARTICLES),
            progress_bar=False,
        )
        mcmc.run(rng_key, y)
        return {k: v[1:] for k, v in mcmc.get_samples().items()}

    inputs = jax.random.split(key_runs, NUM_REPLICATIONS), data
    draws = jax.jit(lambda xs: lax.map(lambda x: run(*x), xs, batch_size=NUM_AT_ONCE))(inputs)
    truth = {name: simulated[name] for name in draws}
    return columns(draws, 2), columns(truth, 1)


MODELS = [
    normal_normal,
    lasso_fixed_scale,
    lasso_latent_scale,
    logistic_lasso,
    schools,
    poisson_log_link,
    group_lasso,
    sparse_group_lasso,
    trend_filter,
    low_rank,
]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_ranks_under_the_prior_are_uniform(model):
    draws, truth = replicate(model)
    assert draws.shape[:2] == (NUM_REPLICATIONS, NUM_PARTICLES - 1)
    p_values = uniformity(fraction_of_ranks(draws, truth))
    print(
        f"\n{model.__name__}: p-values of {len(p_values)} ranks: {np.round(p_values, 3).tolist()}"
    )
    assert p_values.min() > LEVEL / len(p_values)  # Bonferroni
    # The same draws, pulled toward their mean or shifted by half a standard deviation, must fail.
    mean, sd = draws.mean(1, keepdims=True), draws.std(1, keepdims=True)
    for wrong in (mean + 0.7 * (draws - mean), draws + 0.5 * sd):
        spoilt = uniformity(fraction_of_ranks(wrong, truth))
        assert spoilt.min() < LEVEL / len(spoilt)


def test_uniformity_accepts_uniform_ranks_at_the_stated_level():
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, NUM_PARTICLES, (NUM_REPLICATIONS, 2000))
    rejected = (uniformity(ranks) < 0.05).mean()
    assert abs(rejected - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 2000)


# ------------------------------------------------------- joint test of the moves


OBSERVATION = jnp.array([[1.0, 0.5], [-0.3, 1.0], [0.2, 0.8]])
PRIOR_RATE = 1.0


def run_joint(
    move: str, rate: float, num_chains: int = 4000, num_cycles: int = 15
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters after cycles of one move and new data, (num_chains, 2), and the mean acceptance.

    ``rate`` is that of the Laplace prior which the move believes in; the data know PRIOR_RATE.
    """
    scale = jnp.array([0.9, 0.6])
    factor = jnp.array([[0.9, 0.0], [-0.2, 0.6]])
    prior = laplace_prior(jnp.full(2, rate))
    slope, curvature = prior.normal_fit(jnp.zeros(2), scale)
    flows: dict[str, Flow] = {
        "exact": ExactFlow(scale),
        "harmonic": HarmonicFlow(jnp.zeros(2), factor, jnp.linalg.inv(factor), slope, curvature),
    }
    wide = dist.StudentT(5.0, jnp.zeros(2), scale).to_event(1)
    proposal = Proposal(lambda key, n: wide.sample(key, (n,)), wide.log_prob)

    def cycle(beta: jax.Array, rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_data, key_move = jax.random.split(rng_key)
        y = OBSERVATION @ beta + jax.random.normal(key_data, (3,))

        def smooth(x: jax.Array, _: jax.Array) -> jax.Array:
            return 0.5 * jnp.sum((y - OBSERVATION @ x) ** 2)

        target = Differentiation(1.0, False).target(smooth, prior)._replace(proposal=proposal)
        ensemble = evaluate(beta[None], target)
        if move == "jump":
            moved, accept_prob = proposal_sweep(key_move, ensemble, target)
        else:
            step_size, two = jnp.asarray(0.6), jnp.asarray(2)
            moved, done = hamiltonian_sweep(key_move, ensemble, flows[move], step_size, two, target)
            accept_prob = done.accept_prob
        return moved.particles[0], accept_prob[0]

    def chain(rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_start, key_cycles = jax.random.split(rng_key)
        start = jax.random.laplace(key_start, (2,)) / PRIOR_RATE
        return lax.scan(cycle, start, jax.random.split(key_cycles, num_cycles))

    keys = jax.random.split(jax.random.key(1), num_chains)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions need it for batches.
        beta, accept_prob = jax.jit(jax.vmap(chain))(keys)
    return np.asarray(beta), np.asarray(accept_prob)


@pytest.mark.slow
@pytest.mark.parametrize("move", ["exact", "harmonic", "jump"])
def test_moves_keep_the_joint_distribution(move):
    beta, accept_prob = run_joint(move, PRIOR_RATE)
    assert accept_prob.mean() > 0.2  # a move that rejects everything would pass
    p_values = [stats.kstest(column, stats.laplace.cdf).pvalue for column in beta.T]
    print(f"\n{move}: acceptance {accept_prob.mean():.2f}, p-values {np.round(p_values, 3)}")
    assert min(p_values) > LEVEL / 2
    wrong, _ = run_joint(move, 1.3 * PRIOR_RATE, num_chains=10_000)
    assert stats.kstest(wrong[:, 0], stats.laplace.cdf).pvalue < 1e-6


# ----------------------------------------------------------------------- evidence


class Evidence(NamedTuple):
    model: Callable[..., None]
    data: Any
    exact: float


def normal_evidence() -> Evidence:
    y = np.array([0.3, 1.2, -0.5, 3.0], np.float32)
    exact = stats.multivariate_normal(np.ones(4), np.eye(4) + 4.0 * np.ones((4, 4))).logpdf(y)

    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(1.0, 2.0))
        numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)

    return Evidence(model, y, float(exact))


def regression_evidence() -> Evidence:
    X = design(30, 3)
    y = (X @ np.array([1.0, -0.5, 0.0]) + 0.5).astype(np.float32)
    covariance = 0.25 * np.eye(30) + 2.0 * X @ X.T
    exact = stats.multivariate_normal(np.zeros(30), covariance).logpdf(y)

    def model(y: Any) -> None:
        beta = numpyro.sample("beta", dist.Normal(0.0, np.sqrt(2.0)).expand([3]).to_event(1))
        numpyro.sample("y", dist.Normal(X @ beta, 0.5).to_event(1), obs=y)

    return Evidence(model, y, float(exact))


def beta_binomial_evidence() -> Evidence:
    """A constrained site: the Jacobian's constants matter."""
    exact = stats.betabinom(20, 2.0, 5.0).logpmf(7)

    def model(y: Any) -> None:
        p = numpyro.sample("p", dist.Beta(2.0, 5.0))
        numpyro.sample("y", dist.Binomial(20, p), obs=y)

    return Evidence(model, np.array(7), float(exact))


def gamma_poisson_evidence() -> Evidence:
    y = np.array([3, 1, 4, 1, 5])
    shape, rate = 3.0, 1.5
    # Each next count is negative binomial given those before.
    exact = 0.0
    for count in y:
        exact += stats.nbinom(shape, rate / (rate + 1)).logpmf(count)
        shape, rate = shape + count, rate + 1

    def model(y: Any) -> None:
        theta = numpyro.sample("theta", dist.Gamma(3.0, 1.5))
        numpyro.sample("y", dist.Poisson(theta).expand([5]).to_event(1), obs=y)

    return Evidence(model, y, float(exact))


NESTED = REFERENCES / "logistic_lasso.json"


def nested_evidence() -> Evidence:
    """Not conjugate: logistic lasso; the reference is dynesty's, see the script beside it."""
    stored = json.loads(NESTED.read_text())
    X = jnp.asarray(stored["X"], jnp.float32)

    def model(y: Any) -> None:
        beta = numpyro.sample("beta", dist.Laplace(0.0, 1.0).expand([X.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=X @ beta).to_event(1), obs=y)

    return Evidence(model, np.array(stored["y"]), stored["log_evidence"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        normal_evidence,
        regression_evidence,
        beta_binomial_evidence,
        gamma_poisson_evidence,
        nested_evidence,
    ],
)
def test_evidence(make):
    model, data, exact = make()
    mcmc = MCMC(
        RWPO(model),
        num_warmup=150,
        num_samples=500,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), data)
    evidence = diagnose(mcmc).measurements.evidence
    error = evidence.log_evidence - exact
    print(f"\n{make.__name__}: {evidence}, exact {exact:.4f}, error {error:+.4f}")
    # Nested sampling has an error of its own, stored with it.
    own = json.loads(NESTED.read_text())["standard_error"] if make is nested_evidence else 0.0
    assert abs(error) < 0.05 + 3 * own
    assert abs(error) < 4 * np.hypot(evidence.standard_error, own) + 1e-3
    assert evidence.standard_error < 0.05


NUM_SEEDS = 5
ANNEALED = (
    Path(__file__).parents[2]
    / "benchmarks"
    / "posteriors"
    / "evidence"
    / "breast_cancer_logistic.json"
)


def run_problem(name: str, seed: int, corrected: bool = True) -> Any:
    problem = PROBLEMS[name]()
    mcmc = MCMC(
        RWPO(problem.model, corrected=corrected),
        num_warmup=200,
        num_samples=1000 if corrected else 64,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), **problem.kwargs)
    return diagnose(mcmc)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "is_flagged"),
    [
        ("diabetes_lasso", False),
        ("breast_cancer_logistic", True),
        # Reported only: k-hat is 0.4 to 0.63 with a standard error of 0.1, too near the limit.
        ("l1_logistic_d50", None),
    ],
)
def test_k_hat_flags_the_fit_that_does_not_cover(name, is_flagged):
    """Of every seed: no statistic over seeds that one of them could spoil or save.

    k-hat has a standard error of about (1 + k)/sqrt(3 sqrt(8000)): 0.1 below the limit of 0.7, and
    0.15 above it.
    """
    exact = json.loads(ANNEALED.read_text())
    for seed in range(NUM_SEEDS):
        report = run_problem(name, seed)
        coverage, evidence = report.measurements.coverage, report.measurements.evidence
        print(f"\n{name}, seed {seed}: {coverage}\n  {evidence}\n  {report.remarks}")
        if is_flagged is not None:
            assert (coverage.k_hat > 0.7) == is_flagged
            assert ("k-hat" in {finding.about for finding in report.remarks}) == is_flagged
        if name == "breast_cancer_logistic":
            error = evidence.log_evidence - exact["log_evidence"]
            assert evidence.standard_error < 0.2
            assert abs(error) < 4 * np.hypot(evidence.standard_error, exact["standard_error"])


@pytest.mark.slow
def test_evidence_of_noise_free_particles_is_right_or_without_error():
    """The particles are biased; what importance sampling makes of them says how far to trust it."""
    exact = json.loads(ANNEALED.read_text())
    for seed in range(NUM_SEEDS):
        report = run_problem("breast_cancer_logistic", seed, corrected=False)
        evidence = report.measurements.evidence
        error = evidence.log_evidence - exact["log_evidence"]
        print(f"\nseed {seed}: {report.measurements.coverage}\n  {evidence}, error {error:+.3f}")
        assert {"k-hat", "spread"} <= {finding.about for finding in report.findings}
        assert abs(error) < 4 * np.hypot(evidence.standard_error, exact["standard_error"])
