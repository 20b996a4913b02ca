r"""Importance ratios between the posterior and densities fitted to particles.

An attention head (:mod:`numpyro_rwpo.heads.density`) turns particles into a normalized density q
that can be sampled. Draws x from q have importance ratios w = p(x)/q(x) against the joint density p
of parameters and data. Their Pareto tail index **k-hat** says whether q covers the posterior
(Vehtari, Simpson, Gelman, Yao and Gabry 2024, arXiv:1507.02646), and their mean is the evidence.

The method itself works with the density of **one ensemble**, so that is the density to judge
(:func:`ensemble_coverage`). A density fitted to thousands of corrected draws covers nearly any
posterior with one mode and would hide that the density of an ensemble does not.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.diagnostics.convergence import pareto_smoothing
from numpyro_rwpo.heads.density import ProximalDensity, relative_prox_time
from numpyro_rwpo.heads.registry import BUILT_IN_HEADS, Head
from numpyro_rwpo.priors.protocol import AnyPrior

LogDensity = Callable[[Any], np.ndarray]

# Pareto k-hat up to which Pareto-smoothed importance sampling is reliable (Vehtari et al. 2024,
# sec. 3); k-hat is the tail index of the importance ratios and has no unit.
MAX_RELIABLE = 0.7
# Coordinates of all proposals together. In thousands of dimensions a fitted density hardly covers a
# posterior, and with more of them it would take longer than the run to say so.
_MAX_COORDINATES = 2**22


class Coverage(NamedTuple):
    """How well the densities of single ensembles cover the posterior.

    Attributes:
        k_hat: Pareto tail index of the ratios of all ensembles together, each against the density
            of its own ensemble; they are reliable up to 0.7.
        efficiency: effective share of the proposals, between 0 and 1, by the smoothed weights,
            because a single proposal far out can dominate the raw ones.
        num_proposals: draws from the densities, of all ensembles together.
        num_fitted: particles that each density was fitted to.
    """

    k_hat: float
    efficiency: float
    num_proposals: int
    num_fitted: int

    @property
    def is_sufficient(self) -> bool:
        """Whether the densities cover the posterior well enough for importance sampling.

        The efficiency is 1 / (1 + chi-square distance). If k-hat is large, at least half of the
        proposals must be effective. In one to three dimensions that is common, because a large
        k-hat then comes from tails beyond the outermost particle that have almost no mass. If k-hat
        is small, a hundredth is enough: it leaves about a hundred effective proposals, as many as a
        Monte Carlo standard error needs.
        """
        return self.efficiency >= (0.01 if self.k_hat <= MAX_RELIABLE else 0.5)


@partial(jax.jit, static_argnames=("attention", "num_proposals"))
def _propose(
    rng_key: jax.Array,
    draws: jax.Array,
    prior: AnyPrior,
    relative_time: float,
    *,
    attention: Head,
    num_proposals: int,
) -> tuple[ProximalDensity, jax.Array, jax.Array]:
    """The density fitted to draws (n, dim), draws from it, and its log density at these."""
    density = attention.fit(draws, prior, relative_prox_time(draws, relative_time))
    proposals = density.sample(rng_key, num_proposals)
    return density, proposals, density.log_prob(proposals)


def finite_or_zero(log_values: Any) -> np.ndarray:
    """Log densities in double precision; one that is not finite becomes minus infinity."""
    log_values = np.asarray(log_values, np.float64)
    return np.where(np.isfinite(log_values), log_values, -np.inf)


def affordable(num_proposals: int, dim: int) -> int:
    """The number of proposals, or fewer in more than 500 dimensions, but at least 100."""
    return max(min(num_proposals, _MAX_COORDINATES // dim), 100)


def fitted_ratios(
    rng_key: jax.Array,
    draws: np.ndarray,
    log_density: LogDensity,
    prior: AnyPrior,
    *,
    attention: Head,
    relative_time: float,
    num_proposals: int,
) -> tuple[ProximalDensity, np.ndarray]:
    """The density fitted to draws, and log importance ratios at draws from it.

    Args:
        rng_key: one key.
        draws: draws in unconstrained space, (n, dim), all finite.
        log_density: joint log density with all constants, (n, dim) -> (n,).
        prior: Laplace part of the density, fields (dim,).
        attention: the attention head.
        relative_time: prox time in units of each coordinate's variance.
        num_proposals: draws from the fitted density.

    Returns:
        The density, and the logarithms of the ratios, (num_proposals,).
    """
    density, proposals, log_proposal = _propose(
        rng_key,
        jnp.asarray(draws),
        jax.tree.map(lambda field: jnp.asarray(field, draws.dtype), prior),
        relative_time,
        attention=attention,
        num_proposals=num_proposals,
    )
    own = np.asarray(log_proposal, np.float64)
    return density, finite_or_zero(finite_or_zero(log_density(proposals)) - own)


def importance_evidence(log_ratios: np.ndarray) -> tuple[float, float, float]:
    """Log of the mean ratio, its standard error, and the effective share of the proposals.

    Args:
        log_ratios: log p(x)/q(x) at draws x from q, (n,); minus infinity where p is 0.
    """
    top = log_ratios.max()
    if not np.isfinite(top):
        return -math.inf, math.nan, 0.0
    log_evidence = float(top + np.log(np.mean(np.exp(log_ratios - top))))
    weights = np.exp(log_ratios - log_evidence)  # their mean is 1
    variance = weights.var(ddof=1)
    return log_evidence, math.sqrt(variance / weights.size), float(1 / np.mean(weights**2))


def coverage_of_ratios(log_ratios: np.ndarray, num_fitted: int) -> Coverage:
    """How well a density covers the posterior, by log importance ratios at its draws, (n,).

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), arXiv:1507.02646, on the smoothed weights.
    """
    log_weights, k_hat = pareto_smoothing(log_ratios)
    sum_of_squares = float(np.exp(2 * log_weights).sum())
    efficiency = 1 / (log_ratios.size * sum_of_squares) if sum_of_squares > 0 else 0.0
    return Coverage(k_hat, efficiency, log_ratios.size, num_fitted)


def ensemble_coverage(
    rng_key: jax.Array,
    ensembles: np.ndarray,
    log_density: LogDensity,
    prior: AnyPrior,
    *,
    attention: Head = BUILT_IN_HEADS["copula"],
    relative_time: float = 0.1,
) -> Coverage:
    """K-hat of the densities fitted to single ensembles, one for every chain.

    Every density gets the same number of proposals, and their ratios are pooled, as in an
    importance sampler that uses all the densities in equal shares.

    Args:
        rng_key: one key.
        ensembles: particles in unconstrained space, (chains, num_particles, dim), all finite.
        log_density: joint log density, (n, dim) -> (n,).
        prior: Laplace part of the density, fields (dim,).
        attention: the attention head.
        relative_time: prox time in units of each coordinate's variance.
    """
    num_chains, num_fitted = ensembles.shape[:2]
    # Each proposal takes an evaluation of the posterior. k-hat is fitted to the 3 sqrt(n) largest
    # of n ratios and has a standard error of about (1 + k) / sqrt(3 sqrt(n)), 0.1 for 8000.
    total = affordable(8000, ensembles.shape[2])
    num_proposals = max(total // num_chains, 1)
    keys = jax.random.split(rng_key, num_chains)
    ratios = [
        fitted_ratios(
            key,
            ensemble,
            log_density,
            prior,
            attention=attention,
            relative_time=relative_time,
            num_proposals=num_proposals,
        )[1]
        for key, ensemble in zip(keys, ensembles, strict=True)
    ]
    return coverage_of_ratios(np.concatenate(ratios), num_fitted)
