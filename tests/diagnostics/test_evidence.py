"""Importance and bridge estimates of a known constant; k-hat of proposals that fit and do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from numpyro_rwpo.diagnostics.convergence import pareto_k_hat
from numpyro_rwpo.diagnostics.evidence import bridge_evidence, estimate_evidence
from numpyro_rwpo.diagnostics.importance import (
    coverage_of_ratios,
    ensemble_coverage,
    importance_evidence,
)
from numpyro_rwpo.heads.registry import find_head
from numpyro_rwpo.priors.laplace import laplace_prior

LOG_Z = 3.7
NUM_REPEATS = 100


def log_ratio(x: np.ndarray, scale: float) -> np.ndarray:
    """log p/q for p = e^LOG_Z times a standard normal and q normal with another scale."""
    return LOG_Z + stats.norm.logpdf(x) - stats.norm.logpdf(x, scale=scale)


def z_scores(estimate) -> np.ndarray:
    rng = np.random.default_rng(0)
    pairs = np.array([estimate(rng) for _ in range(NUM_REPEATS)])
    return (pairs[:, 0] - LOG_Z) / pairs[:, 1]


def importance(rng) -> tuple[float, float]:
    return importance_evidence(log_ratio(1.2 * rng.normal(size=1000), 1.2))[:2]


def bridge(rng) -> tuple[float, float]:
    proposals = log_ratio(0.7 * rng.normal(size=1000), 0.7)  # too narrow for importance sampling
    return bridge_evidence(proposals, log_ratio(rng.normal(size=(4, 150)), 0.7))


@pytest.mark.parametrize("estimate", [importance, bridge])
def test_standard_errors_are_honest(estimate):
    """The z-scores of 100 estimates are standard normal: mean +- 0.1, sd +- 0.07."""
    z = z_scores(estimate)
    assert abs(z.mean()) < 4 / np.sqrt(NUM_REPEATS)
    assert abs(z.std() - 1) < 4 / np.sqrt(2 * NUM_REPEATS)


def test_narrow_proposals_have_large_k_hat():
    rng = np.random.default_rng(1)

    def k_hat(scale: float) -> float:
        return pareto_k_hat(log_ratio(scale * rng.normal(size=4000), scale))

    # Ratios exp(x^2 (1/s^2 - 1) / 2) of a normal with sd s have tail index 1 - s^2.
    assert k_hat(1.3) < 0.3
    assert 0.5 < k_hat(0.4) < 1.2
    assert k_hat(0.4) > k_hat(0.8)


def test_ratios_that_are_zero_are_left_to_the_lower_tail():
    ratios = log_ratio(1.3 * np.random.default_rng(1).normal(size=2000), 1.3)
    ratios[::3] = -np.inf
    assert np.isfinite(pareto_k_hat(ratios))
    expected = LOG_Z + np.log(2 / 3)
    log_evidence, error, _ = importance_evidence(ratios)
    assert abs(log_evidence - expected) < 4 * error
    assert pareto_k_hat(np.full(100, -np.inf)) == np.inf
    assert importance_evidence(np.full(100, -np.inf))[0] == -np.inf


def test_efficiency_is_not_decided_by_one_proposal():
    """A single ratio far beyond the others; the raw weights make of it what they will."""
    ratios = log_ratio(0.8 * np.random.default_rng(1).normal(size=8000), 0.8)
    spoilt = ratios.copy()
    spoilt[0] = ratios.max() + 6
    before, after = (coverage_of_ratios(r, 64).efficiency for r in (ratios, spoilt))
    assert importance_evidence(spoilt)[2] < 0.1 * importance_evidence(ratios)[2]
    assert after > 0.5 * before
    assert coverage_of_ratios(np.full(100, -np.inf), 64).efficiency == 0


def test_no_overlap_is_not_a_number():
    far = bridge_evidence(np.full(1000, -5000.0), np.linspace(0, 1, 400).reshape(4, 100) + 5000.0)
    assert np.all(np.isnan(far)) or far[1] > 1


def exact_draws(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Correlated normal coordinates and a Laplace one."""
    normal = rng.normal(size=(*shape, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    return np.concatenate([normal, rng.laplace(size=(*shape, 1))], 2).astype(np.float32)


def log_density(x: jax.Array) -> np.ndarray:
    x = np.asarray(x, np.float64)
    normal = stats.multivariate_normal(np.zeros(2), [[1.0, 0.8], [0.8, 1.0]])
    return LOG_Z + normal.logpdf(x[:, :2]) + stats.laplace.logpdf(x[:, 2])


@pytest.mark.parametrize("attention", ["copula", "joint"])
def test_fitted_density_gives_the_constant_of_a_density(attention):
    prior = laplace_prior(jnp.array([0.0, 0.0, 1.0]))
    draws = exact_draws(np.random.default_rng(2), (4, 500))
    evidence = estimate_evidence(
        jax.random.key(0),
        draws,
        log_density,
        prior,
        attention=find_head(attention),
        num_proposals=2000,
    )
    assert evidence.k_hat < 0.7
    assert abs(evidence.log_evidence - LOG_Z) < max(4 * evidence.standard_error, 0.02)
    assert evidence.standard_error < 0.05
    assert evidence.efficiency > 0.3


def test_a_missing_constant_shows():
    """A density whose constant is off by log 2, as a Laplace prior without its own would be."""
    prior = laplace_prior(jnp.array([0.0, 0.0, 1.0]))
    draws = exact_draws(np.random.default_rng(2), (4, 500))
    evidence = estimate_evidence(
        jax.random.key(0), draws, lambda x: log_density(x) + np.log(2), prior, num_proposals=2000
    )
    assert abs(evidence.log_evidence - LOG_Z) > 4 * evidence.standard_error


def coverage(draws: np.ndarray, num_particles: int):
    prior = laplace_prior(jnp.array([0.0, 0.0, 1.0]))
    return ensemble_coverage(jax.random.key(0), draws[:, -num_particles:], log_density, prior)


def test_coverage_is_that_of_single_ensembles():
    """Right draws cover; an ensemble that is too narrow does not, however many draws there are."""
    draws = exact_draws(np.random.default_rng(2), (4, 500))
    right = coverage(draws, 64)
    assert right.is_sufficient
    assert right.efficiency > 0.5
    assert (right.num_proposals, right.num_fitted) == (8000, 64)
    draws[:, -64:] *= 0.3
    narrow = coverage(draws, 64)
    assert narrow.k_hat > 0.7
    assert not narrow.is_sufficient
    assert coverage(draws, 500).is_sufficient  # lost among the others
    assert coverage(draws, 1000).num_fitted == 500


def test_noise_free_evidence_has_no_error_where_the_ratios_have_no_variance():
    prior = laplace_prior(jnp.array([0.0, 0.0, 1.0]))
    narrow = 0.3 * exact_draws(np.random.default_rng(2), (4, 64))
    evidence = estimate_evidence(jax.random.key(0), narrow, log_density, prior, is_exact=False)
    assert evidence.method == "importance sampling"
    assert evidence.k_hat > 0.7
    assert evidence.standard_error == np.inf
