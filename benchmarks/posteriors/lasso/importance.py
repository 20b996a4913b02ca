"""Importance sampling of a logistic regression with a Laplace prior and very many rows.

With many rows per column the likelihood is nearly normal, and the Laplace prior is nearly flat over
the width of the posterior. Draws of a multivariate t distribution at the mode, with the curvature
there and heavier tails than the posterior's, are then weighted by the exact density. There is no
chain and no adaptation, and the weights themselves show how well it worked (effective size,
Pareto k).
"""

from typing import Any, NamedTuple

import arviz as az
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
INTERCEPT_SD = 5.0
DEGREES_OF_FREEDOM = 30.0
DRAWS_AT_ONCE = 50  # bounds the memory of the logits


class Result(NamedTuple):
    """Moments by site, and the quality of the weights.

    Attributes:
        sites: For each site ``mean``, ``sd``, ``mcse_mean`` and ``mcse_sd``.
        ess: Kish's effective sample size, the squared sum of weights over the sum of squares.
        pareto_k: Shape of the weights' tail; below 0.5 the errors are trustworthy.
    """

    sites: dict[str, dict[str, Array]]
    ess: float
    pareto_k: float


def log_posterior(theta: Array, X: Array, y: Array, scale: float) -> Array:
    """Log density, up to a constant, of columns of coefficients; the first is the intercept.

    Args:
        theta: Shape (draws, 1 + columns).
        X: Covariates with a leading column of ones, shape (rows, 1 + columns).
        y: Classes 0 and 1, shape (rows,).
        scale: Scale of the Laplace prior.

    Returns:
        Shape (draws,).
    """
    logits = X @ theta.T
    likelihood = y @ logits - np.logaddexp(0.0, logits).sum(0)
    return (
        likelihood - 0.5 * (theta[:, 0] / INTERCEPT_SD) ** 2 - np.abs(theta[:, 1:]).sum(1) / scale
    )


def normal_approximation(X: Array, y: Array, scale: float) -> tuple[Array, Array]:
    """Mode and curvature of the posterior with the kink of the prior rounded off.

    Uses Newton's method. |x| becomes sqrt(x^2 + w^2), with w the standard error without a prior.

    Returns:
        Mode, shape (1 + columns,), and negative Hessian, shape (1 + columns, 1 + columns).
    """
    theta = np.zeros(X.shape[1])
    width = np.zeros(X.shape[1])
    for _ in range(25):
        p = 1.0 / (1.0 + np.exp(-(X @ theta)))
        gradient = X.T @ (y - p)
        hessian = X.T @ (X * (p * (1 - p))[:, None])
        width = np.sqrt(np.diagonal(np.linalg.inv(hessian)))
        root = np.sqrt(theta**2 + width**2)
        slope, curvature = theta / root / scale, width**2 / root**3 / scale
        slope[0], curvature[0] = theta[0] / INTERCEPT_SD**2, 1.0 / INTERCEPT_SD**2
        hessian += np.diag(curvature)
        theta = theta + np.linalg.solve(hessian, gradient - slope)
    return theta, hessian


def run(seed: int, X: Any, y: Any, *, scale: float, num_draws: int) -> Result:
    """Posterior moments of intercept and coefficients.

    Args:
        seed: Seed of the draws.
        X: Covariates, shape (rows, columns).
        y: Classes 0 and 1, shape (rows,).
        scale: Scale of the Laplace prior.
        num_draws: Number of draws from the proposal.

    Returns:
        Moments with their Monte Carlo errors.
    """
    X = np.concatenate([np.ones((len(X), 1)), np.asarray(X, np.float64)], 1)
    y = np.asarray(y, np.float64)
    mode, precision = normal_approximation(X, y, scale)
    dim = len(mode)
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((num_draws, dim))
    mixing = np.sqrt(DEGREES_OF_FREEDOM / rng.chisquare(DEGREES_OF_FREEDOM, num_draws))
    white *= mixing[:, None]
    theta = mode + np.linalg.solve(np.linalg.cholesky(precision).T, white.T).T
    square = (white**2).sum(1)
    log_proposal = -0.5 * (DEGREES_OF_FREEDOM + dim) * np.log1p(square / DEGREES_OF_FREEDOM)
    blocks = np.array_split(theta, max(1, num_draws // DRAWS_AT_ONCE))
    log_target = np.concatenate([log_posterior(block, X, y, scale) for block in blocks])
    log_weights = log_target - log_proposal
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    # Only the shape of the tail is used. The weights are not smoothed, so the estimates stay
    # consistent.
    pareto_k = float(az.psislw(log_weights.copy())[1])

    mean = weights @ theta
    centered = theta - mean
    variance = weights @ centered**2
    sd = np.sqrt(variance)
    columns = {
        "mean": mean,
        "sd": sd,
        "mcse_mean": np.sqrt(weights**2 @ centered**2),
        "mcse_sd": np.sqrt(weights**2 @ (centered**2 - variance) ** 2) / (2 * sd),
    }
    sites = {
        "intercept": {key: value[0] for key, value in columns.items()},
        "beta": {key: value[1:] for key, value in columns.items()},
    }
    return Result(sites, float(1.0 / np.sum(weights**2)), pareto_k)
