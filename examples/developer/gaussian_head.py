"""A fourth attention head: one normal density, fitted by moments.

Too simple to be of use (no mode but one, no kink), and complete.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.heads.attention import HEADS
from numpyro_rwpo.priors.laplace import LaplacePrior


class GaussianDensity(NamedTuple):
    """A normal density: what :class:`numpyro_rwpo.heads.attention.ProximalDensity` asks for."""

    mean: jax.Array  # (dim,)
    factor: jax.Array  # (dim, dim), lower triangular, of the covariance
    prior: LaplacePrior
    inverse_temperature: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Normalised log density, (..., dim) -> (...)."""
        return jax.scipy.stats.multivariate_normal.logpdf(x, self.mean, self.factor @ self.factor.T)

    def score(self, x: jax.Array) -> jax.Array:
        """Gradient of the log density, (num_points, dim)."""
        solved = jax.scipy.linalg.cho_solve((self.factor, True), (x - self.mean).T)
        return -solved.T

    def heat_score(self, x: jax.Array) -> jax.Array:
        """The score without the prior's half of it, which transport adds by the proximal map."""
        return self.score(x) + 0.5 * self.inverse_temperature * self.prior.subgradient(x)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, dim)."""
        white = jax.random.normal(rng_key, (num_samples, self.mean.size), self.mean.dtype)
        return self.mean + white @ self.factor.T


def fit_gaussian(particles, prior, prox_time, inverse_temperature=1.0) -> GaussianDensity:
    """Fit mean and covariance; smoothing with time T adds 2T / beta to the variances."""
    dim = particles.shape[1]
    smoothing = 2 * jnp.broadcast_to(jnp.asarray(prox_time), (dim,)) / inverse_temperature
    covariance = jnp.cov(particles.T).reshape(dim, dim) + jnp.diag(smoothing)
    beta = jnp.asarray(inverse_temperature, particles.dtype)
    return GaussianDensity(particles.mean(0), jnp.linalg.cholesky(covariance), prior, beta)


HEADS["gaussian"] = fit_gaussian  # from now on RWPO(model, attention="gaussian") works
