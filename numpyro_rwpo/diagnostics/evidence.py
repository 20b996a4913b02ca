r"""Model evidence from a density fitted to draws of all chains.

An attention head (:mod:`numpyro_rwpo.heads.density`) turns half of the draws into a normalized
density q that can be sampled. Draws x from q have importance ratios w = p(x)/q(x) against the joint
density p of parameters and data (:mod:`numpyro_rwpo.diagnostics.importance`).

* The mean of the ratios estimates the **evidence** Z, the integral of p. The estimate has a finite
  variance if the Pareto tail index k of the ratios is below 0.5.
* Where k-hat is larger, or where fewer proposals are effective than there are draws in the other
  half, **bridge sampling** (Meng and Wong 1996) uses those draws as well. It needs no more than an
  overlap of q and the posterior. Estimate and error follow Gronau et al. (2017), arXiv:1703.08614,
  eqs. 15 and 16.

No estimate here can account for a mode that no draw has visited.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from numpyro_rwpo.diagnostics.convergence import ess, pareto_k_hat
from numpyro_rwpo.diagnostics.importance import (
    LogDensity,
    affordable,
    fitted_ratios,
    importance_evidence,
)
from numpyro_rwpo.heads.registry import BUILT_IN_HEADS, Head
from numpyro_rwpo.priors.protocol import AnyPrior

# Draws that the density is fitted to, thinned evenly from half of all draws. Evaluating the density
# costs as many kernels as it was fitted to draws; with 2000 its k-hat is below 0.5 on all three
# posteriors in docs/diagnostics.md.
_MAX_FITTED = 2000


class Evidence(NamedTuple):
    """Evidence of a model, and how well the density behind it covers the posterior.

    Attributes:
        k_hat: Pareto tail index of the importance ratios.
        log_evidence: natural logarithm of the evidence.
        standard_error: standard error of ``log_evidence``, in nats.
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
    """Even and odd draws of (chains, draws, dim): one half to fit, the other to judge the fit."""
    return draws[:, 0::2], draws[:, 1::2]


def bridge_evidence(
    log_ratios_proposals: np.ndarray, log_ratios_draws: np.ndarray
) -> tuple[float, float]:
    """Bridge-sampling estimate of the log evidence and its standard error.

    With the optimal bridge function, the estimate r solves E_q[w / (s w + (1 - s) r)] =
    E_p[r / (s w + (1 - s) r)], where w = p/q are the importance ratios and s is the share of the
    draws among draws and proposals, both counted by their effective number. The two sides are means
    of logistic functions of log w, one decreasing and one increasing in log r, so that there is
    exactly one solution.

    Args:
        log_ratios_proposals: log p(x)/q(x) at draws x from q, (n,).
        log_ratios_draws: the same at draws from the posterior, (chains, draws).

    Returns:
        The estimate and its standard error; both are not a number where q and the posterior do not
        overlap.

    References:
        Meng and Wong (1996), Statistica Sinica 6; Gronau et al. (2017), arXiv:1703.08614, eqs. 15
        (optimal bridge function) and 16 (relative error, Fruehwirth-Schnatter 2004).
    """
    every = np.concatenate([log_ratios_proposals, log_ratios_draws.ravel()])
    finite = every[np.isfinite(every)]
    if np.isnan(every).any() or not finite.size:
        return math.nan, math.nan
    num_effective = float(np.nanmin([ess(log_ratios_draws), log_ratios_draws.size]))
    share = num_effective / (num_effective + log_ratios_proposals.size)

    def sides(offset: float) -> tuple[np.ndarray, np.ndarray]:
        """The bridge functions at the proposals and at the draws, for log r = offset + logit s."""
        first = expit(log_ratios_proposals - offset) / share
        return first, expit(offset - log_ratios_draws) / (1 - share)

    def difference(offset: float) -> float:
        first, second = sides(offset)
        return float(first.mean() - second.mean())

    beyond = math.log(np.finfo(float).max)  # where a logistic function is 0 or 1 to rounding
    offset = float(brentq(difference, finite.min() - beyond, finite.max() + beyond))
    first, second = sides(offset)
    if not (first.mean() > 0 and second.mean() > 0):
        return math.nan, math.nan
    second_ess = float(np.nanmin([ess(second), second.size]))
    # The square of a mean may be 0 to rounding where the mean is not.
    relative_variance = (first / first.mean()).var() / first.size
    relative_variance += (second / second.mean()).var() / second_ess
    return offset + float(logit(share)), math.sqrt(relative_variance)


def estimate_evidence(
    rng_key: jax.Array,
    draws: np.ndarray,
    log_density: LogDensity,
    prior: AnyPrior,
    *,
    attention: Head = BUILT_IN_HEADS["copula"],
    relative_time: float = 0.1,
    num_proposals: int = 2 * _MAX_FITTED,
    is_exact: bool = True,
) -> Evidence:
    """Fit a density to half of the draws, and estimate the evidence from it and the other half.

    Args:
        rng_key: one key.
        draws: posterior draws in unconstrained space, (chains, draws, dim), all finite.
        log_density: joint log density with all constants, (n, dim) -> (n,).
        prior: Laplace part of the density, fields (dim,).
        attention: the attention head.
        relative_time: prox time in units of each coordinate's variance.
        num_proposals: draws from the fitted density. By default they are twice as many as it is
            fitted to, because more proposals cost one batched evaluation of the posterior, and more
            draws a longer run.
        is_exact: whether the draws are from the posterior. Noise-free particles are not: all of
            them serve to fit the density, four times as many proposals take the place of a bridge,
            and the standard error is infinite where k-hat is above 0.5, because the ratios then
            have no variance.
    """
    fitted, other = halves(draws) if is_exact else (draws, draws)
    dim = draws.shape[2]
    density, ratios = fitted_ratios(
        rng_key,
        _at_most(fitted.reshape(-1, dim), _MAX_FITTED),
        log_density,
        prior,
        attention=attention,
        relative_time=relative_time,
        num_proposals=affordable(num_proposals if is_exact else 4 * num_proposals, dim),
    )
    k_hat = pareto_k_hat(ratios)
    log_evidence, error, efficiency = importance_evidence(ratios)
    num_other = other.shape[0] * other.shape[1]
    # Importance ratios have a variance if and only if their Pareto tail index is below one half.
    has_variance = k_hat <= 0.5
    if not is_exact or (has_variance and efficiency * ratios.size >= num_other):
        error = error if has_variance else math.inf
        return Evidence(k_hat, log_evidence, error, "importance sampling", efficiency)
    flat = jnp.asarray(other.reshape(-1, dim))
    at_draws = log_density(flat) - np.asarray(_log_prob(density, flat), np.float64)
    log_evidence, error = bridge_evidence(ratios, at_draws.reshape(other.shape[:2]))
    return Evidence(k_hat, log_evidence, error, "bridge sampling", efficiency)
