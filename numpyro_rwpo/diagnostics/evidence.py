r"""Model evidence from a density fitted to draws of all chains.

An attention head (:mod:`numpyro_rwpo.heads.density`) turns half of the draws into a normalised
density q that can be sampled. Its draws x have importance ratios w = p(x)/q(x) against the joint
density p of parameters and data (:mod:`numpyro_rwpo.diagnostics.importance`), and

* their mean estimates the **evidence** Z, the integral of p, with finite variance if their Pareto
  tail index k is below 0.5;
* where k-hat is larger, or fewer proposals are effective than there are draws in the other half,
  **bridge sampling** (Meng and Wong 1996) takes these in as well, and needs no more than overlap
  of q and the posterior. Iteration and error are those of Gronau et al. (2017),
  arXiv:1703.08614, eqs. 15 and 16.

Not for posteriors with modes that no draw has visited: what neither q nor the draws know, no
estimate here can see.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.diagnostics.convergence import ess, pareto_k_hat
from numpyro_rwpo.diagnostics.importance import (
    MAX_RELIABLE,
    LogDensity,
    fitted_ratios,
    importance_evidence,
)
from numpyro_rwpo.heads.registry import BUILT_IN_HEADS, Head
from numpyro_rwpo.priors.protocol import Prior

MAX_FITTED = 2000  # draws that the density is fitted to: more would no longer change it
NUM_PROPOSALS = 4000  # draws from the fitted density; four times as many where there is no bridge
MAX_FINITE_VARIANCE = 0.5  # k-hat up to which importance ratios have a variance
_TOLERANCE = 1e-10  # relative, of the bridge iteration
_MAX_ITERATIONS = 1000


class Evidence(NamedTuple):
    """Evidence of a model, and how well the density behind it covers the posterior.

    Attributes:
        k_hat: Pareto tail index of the ratios; here of a density fitted to draws of all chains.
        log_evidence: natural logarithm of the evidence.
        standard_error: of ``log_evidence``.
        method: ``"importance sampling"`` or ``"bridge sampling"``.
        efficiency: effective share of the proposals, between 0 and 1.
    """

    k_hat: float
    log_evidence: float
    standard_error: float
    method: str
    efficiency: float


@jax.jit
def _log_prob(density: Any, x: jax.Array) -> jax.Array:
    return density.log_prob(x)


def _at_most(draws: np.ndarray, number: int) -> np.ndarray:
    """Evenly thinned draws (n, ...), no more than ``number``."""
    return draws[:: max(1, math.ceil(len(draws) / number))]


def halves(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Even and odd draws of (chains, draws, dim): one half to fit, one to judge the fit."""
    return draws[:, 0::2], draws[:, 1::2]


def bridge_evidence(
    log_ratios_proposals: np.ndarray, log_ratios_draws: np.ndarray
) -> tuple[float, float]:
    """Bridge-sampling estimate of the log evidence and its standard error.

    Args:
        log_ratios_proposals: log p(x)/q(x) at draws x from q, (n,).
        log_ratios_draws: the same at draws from the posterior, (chains, draws).

    Returns:
        Both not a number where q and the posterior do not overlap and the iteration fails.

    References:
        Meng and Wong (1996), Statistica Sinica 6; Gronau et al. (2017), arXiv:1703.08614, eqs. 15
        (iteration, optimal bridge function) and 16 (relative error, Fruehwirth-Schnatter 2004).
    """
    shift = float(np.median(log_ratios_draws))  # Gronau et al., appendix B: keeps exp in range
    proposals = np.exp(np.clip(log_ratios_proposals - shift, -700, 700))
    draws = np.exp(np.clip(log_ratios_draws - shift, -700, 700))
    num_effective = float(np.nanmin([ess(log_ratios_draws), draws.size]))
    share = num_effective / (num_effective + proposals.size)
    ratio = 1.0
    for _ in range(_MAX_ITERATIONS):
        above = np.mean(proposals / (share * proposals + (1 - share) * ratio))
        below = np.mean(1 / (share * draws + (1 - share) * ratio))
        previous, ratio = ratio, float(above / below)
        if not (0 < ratio < math.inf):
            return math.nan, math.nan
        if abs(ratio - previous) <= _TOLERANCE * ratio:
            break
    else:
        return math.nan, math.nan
    # With p normalised by the estimate: f1 = p / (s1 p + s2 q) under q, f2 = q / (...) under p.
    first = proposals / (share * proposals + (1 - share) * ratio)
    second = ratio / (share * draws + (1 - share) * ratio)
    second_ess = float(np.nanmin([ess(second), second.size]))
    relative_variance = (
        first.var() / first.mean() ** 2 / first.size
        + second.var() / second.mean() ** 2 / second_ess
    )
    return math.log(ratio) + shift, math.sqrt(relative_variance)


def estimate_evidence(
    rng_key: jax.Array,
    draws: np.ndarray,
    log_density: LogDensity,
    prior: Prior,
    *,
    attention: Head = BUILT_IN_HEADS["copula"],
    relative_time: float = 0.1,
    num_proposals: int = NUM_PROPOSALS,
    is_exact: bool = True,
) -> Evidence:
    """Fit a density to half of the draws; evidence from it and the other half.

    Args:
        rng_key: one key.
        draws: posterior draws in unconstrained space, (chains, draws, dim), all finite.
        log_density: joint log density with all constants, (n, dim) -> (n,).
        prior: Laplace part of the density, fields (dim,).
        attention: the attention head.
        relative_time: prox time in units of each coordinate's variance.
        num_proposals: draws from the fitted density.
        is_exact: whether the draws are from the posterior. Noise-free particles are not; all
            serve to fit the density, and there is no bridge. Where k-hat is above 0.7, the
            standard error is then infinite: that of the mean ratio would mean nothing.
    """
    fitted, other = halves(draws) if is_exact else (draws, draws)
    dim = draws.shape[2]
    density, ratios = fitted_ratios(
        rng_key,
        _at_most(fitted.reshape(-1, dim), MAX_FITTED),
        log_density,
        prior,
        attention=attention,
        relative_time=relative_time,
        num_proposals=num_proposals if is_exact else 4 * num_proposals,
    )
    k_hat = pareto_k_hat(ratios)
    log_evidence, error, efficiency = importance_evidence(ratios)
    num_other = other.shape[0] * other.shape[1]
    covers = k_hat <= MAX_FINITE_VARIANCE and efficiency * ratios.size >= num_other
    if covers or not is_exact:
        error = error if k_hat <= MAX_RELIABLE else math.inf
        return Evidence(k_hat, log_evidence, error, "importance sampling", efficiency)
    flat = jnp.asarray(other.reshape(-1, dim))
    at_draws = log_density(flat) - np.asarray(_log_prob(density, flat), np.float64)
    log_evidence, error = bridge_evidence(ratios, at_draws.reshape(other.shape[:2]))
    return Evidence(k_hat, log_evidence, error, "bridge sampling", efficiency)
