"""A fourth attention head: one normal density, fitted by moments.

It is too simple to be of use (one mode, no kink), and complete.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.priors.laplace import LaplacePrior


class GaussianDensity(NamedTuple):
    """A normal density with the methods of :class:`numpyro_rwpo.heads.density.ProximalDensity`."""

    mean: jax.Array  # (dim,)
    factor: jax.Array  # lower triangular factor of the covariance, (dim, dim)
    prior: LaplacePrior

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Normalized log density, (..., dim) -> (...)."""
        return jax.scipy.stats.multivariate_normal.logpdf(x, self.mean, self.factor @ self.factor.T)

    def score(self, x: jax.Array) -> jax.Array:
        """Gradient of the log density, (num_points, dim)."""
        solved = jax.scipy.linalg.cho_solve((self.factor, True), (x - self.mean).T)
        return -solved.T

    def heat_score(self, x: jax.Array) -> jax.Array:
        """The score without the prior's half of it, which transport adds by the proximal map."""
        return self.score(x) + 0.5 * self.prior.subgradient(x)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, dim)."""
        white = jax.random.normal(rng_key, (num_samples, self.mean.size), self.mean.dtype)
        return self.mean + white @ self.factor.T


def fit_gaussian(particles, prior, prox_time) -> GaussianDensity:
    """Fit mean and covariance; smoothing with prox time T adds 2 T to the variances."""
    dim = particles.shape[1]
    smoothing = 2 * jnp.broadcast_to(jnp.asarray(prox_time), (dim,))
    covariance = jnp.cov(particles.T).reshape(dim, dim) + jnp.diag(smoothing)
    return GaussianDensity(particles.mean(0), jnp.linalg.cholesky(covariance), prior)


# RWPO(model, attention=fit_gaussian) transports with it.
