"""ArviZ's convergence diagnostics on plain arrays, whichever ArviZ is installed.

ArviZ 0.x and 1.x agree on the functions of data sets; Pareto smoothing moved between them. ArviZ is
imported when a function is called: it takes about a second.
"""

from typing import Any

import numpy as np
from numpyro.diagnostics import effective_sample_size


def _over_dataset(name: str, draws: Any, **options: Any) -> np.ndarray:
    import arviz as az

    data = az.convert_to_dataset({"x": np.asarray(draws, np.float64)})
    with np.errstate(divide="ignore", invalid="ignore"):  # Constant draws give nan, as they should.
        return np.asarray(getattr(az, name)(data, **options)["x"].values, np.float64)


def r_hat(draws: Any) -> np.ndarray:
    """Rank-normalized split R-hat of draws (chains, draws, ...), shape (...); needs two chains.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021), Bayesian Analysis 16(2).
    """
    draws = np.asarray(draws)
    if draws.shape[0] < 2:
        return np.full(draws.shape[2:], np.nan)
    return _over_dataset("rhat", draws)


def within_r_hat(draws: Any) -> np.ndarray:
    """R-hat between the two halves of one chain, (draws, ...) -> (...)."""
    draws = np.asarray(draws)
    half = draws.shape[0] // 2
    return r_hat(np.stack([draws[:half], draws[half : 2 * half]]))


def ess(draws: Any, method: str = "bulk") -> np.ndarray:
    """Effective sample size of draws (chains, draws, ...) by ArviZ's ``method``, shape (...)."""
    return _over_dataset("ess", draws, method=method)


def ess_of_mean(draws: Any) -> np.ndarray:
    """Effective sample size for the mean of draws (chains, draws, ...), shape (...).

    NumPyro's, which takes all coordinates at once: ArviZ takes milliseconds for each.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(effective_sample_size(np.asarray(draws, np.float64)), np.float64)


def mcse(draws: Any, method: str = "mean", **options: Any) -> np.ndarray:
    """Monte Carlo standard error of a statistic of draws (chains, draws, ...), shape (...).

    ``method`` is ``"mean"``, ``"sd"`` or ``"quantile"``, the last with ``prob``.
    """
    if method == "sd":
        return _mcse_sd(np.asarray(draws, np.float64))
    return _over_dataset("mcse", draws, method=method, **options)


def _mcse_sd(draws: np.ndarray) -> np.ndarray:
    """Monte Carlo standard error of the standard deviation, by ArviZ's formula.

    ArviZ 0.23 raises a ``TypeError`` for it where Numba is installed, which PyMC brings along.
    """
    squares = (draws - draws.mean((0, 1))) ** 2
    variance = squares.mean((0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt(squares.var((0, 1)) / ess(squares, "mean") / variance / 4)


def pareto_smoothing(log_ratios: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed importance weights, as logarithms that sum to one, and k-hat.

    Args:
        log_ratios: logarithms of the ratios, (n,); where none is finite, all weights are zero and
            k-hat is infinite.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), arXiv:1507.02646.
    """
    finite = np.isfinite(log_ratios)
    if not finite.any():
        return np.full(log_ratios.shape, -np.inf), float("inf")
    # The fit uses the largest ratios only. A ratio of 0 needs a finite logarithm that is below all
    # others by enough for the weight to be 0 to rounding.
    zero = log_ratios[finite].min() + np.log(np.finfo(float).tiny)
    log_ratios = np.where(finite, log_ratios, zero)
    try:
        from arviz import psislw
    except ImportError:  # ArviZ 1.x, which negates: it expects log likelihoods, as for LOO
        from arviz_stats.base import array_stats

        log_weights, k_hat = array_stats.psislw(-log_ratios)
    else:
        log_weights, k_hat = psislw(log_ratios)
    return np.asarray(log_weights, np.float64), float(k_hat)


def pareto_k_hat(log_ratios: np.ndarray) -> float:
    """Pareto k-hat of importance ratios, given as logarithms (n,); infinite where all are zero.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), arXiv:1507.02646.
    """
    return pareto_smoothing(log_ratios)[1]
