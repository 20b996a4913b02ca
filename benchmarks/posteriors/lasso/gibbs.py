"""An exact Gibbs sampler for the Bayesian lasso with known noise and more columns than rows.

It is independent of everything this package does: it has no gradients and no acceptance step. The
Laplace prior with scale b is a scale mixture of normals (Park and Casella 2008, section 2),

    beta_j | v_j ~ N(0, v_j),    v_j ~ Exponential(mean 2 b^2),

so both conditional distributions are standard:

- beta | v, y is normal; one draw costs O(rows^2 columns) by Bhattacharya, Chakraborty and Mallick
  (2016), *Fast sampling with Gaussian scale mixture priors in high-dimensional regression*,
  section 2, algorithm 1;
- 1 / v_j | beta_j is inverse Gaussian with mean 1 / (b |beta_j|) and shape 1 / b^2.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]


def draw_coefficients(rng: np.random.Generator, X: Array, y: Array, variances: Array) -> Array:
    """Draw from beta | v, y for unit noise.

    Args:
        rng: Generator.
        X: Covariates divided by the noise's sd, shape (rows, columns).
        y: Response divided by the noise's sd, shape (rows,).
        variances: v, shape (columns,).

    Returns:
        Coefficients, shape (columns,).
    """
    num_rows, num_columns = X.shape
    prior_draw = np.sqrt(variances) * rng.standard_normal(num_columns)
    data_draw = X @ prior_draw + rng.standard_normal(num_rows)
    scaled = X * np.sqrt(variances)
    factor = cho_factor(scaled @ scaled.T + np.eye(num_rows), overwrite_a=True)
    return prior_draw + variances * (X.T @ cho_solve(factor, y - data_draw))


def draw_variances(rng: np.random.Generator, beta: Array, scale: float) -> Array:
    """Draw from v | beta: the reciprocal of an inverse Gaussian.

    Michael, Schucany and Haas (1976), written for v itself so that nothing cancels, and nothing
    overflows when a coefficient is 0.

    Args:
        rng: Generator.
        beta: Coefficients, shape (columns,).
        scale: Scale b of the Laplace prior.

    Returns:
        Variances, shape (columns,).
    """
    mean = scale * np.abs(beta)  # reciprocal of the inverse Gaussian's mean
    half = 0.5 * scale**2 * rng.standard_normal(beta.shape) ** 2
    root = mean + half + np.sqrt(half * (half + 2.0 * mean))
    is_first = rng.random(beta.shape) * (root + mean) < root
    return np.where(is_first, root, mean**2 / root)


def sample(
    seed: int, X: Array, y: Array, *, scale: float, noise: float, num_warmup: int, num_samples: int
) -> Array:
    """Run one chain from a draw of the prior.

    Args:
        seed: Seed of the chain.
        X: Covariates, shape (rows, columns).
        y: Response, shape (rows,).
        scale: Scale of the Laplace prior.
        noise: Standard deviation of the response around its mean.
        num_warmup: Draws to discard.
        num_samples: Draws to keep.

    Returns:
        Draws, shape (num_samples, columns).
    """
    rng = np.random.default_rng(seed)
    X, y = np.asarray(X, np.float64) / noise, np.asarray(y, np.float64) / noise
    variances = rng.exponential(2.0 * scale**2, X.shape[1])
    draws = np.empty((num_samples, X.shape[1]))
    for i in range(-num_warmup, num_samples):
        beta = draw_coefficients(rng, X, y, variances)
        variances = draw_variances(rng, beta, scale)
        if i >= 0:
            draws[i] = beta
    return draws
