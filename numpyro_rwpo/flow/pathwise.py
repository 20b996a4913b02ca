r"""Draws from densities of particles that can be differentiated with respect to the density.

A draw x from a density with parameters :math:`\theta` and distribution function F stays at the same
quantile as :math:`\theta` changes, so :math:`dx = -\partial_\theta F(x)\,d\theta / F'(x)`
("implicit reparameterization", Figurnov, Mohamed and Mnih 2018, arXiv:1805.08498). The draws
themselves are those of the density's own ``sample``.
"""

import jax
import jax.numpy as jnp
from jax import lax

from numpyro_rwpo.heads.copula import CopulaDensity
from numpyro_rwpo.heads.density import ProximalDensity
from numpyro_rwpo.heads.grid import GridDensity
from numpyro_rwpo.heads.joint import JointDensity
from numpyro_rwpo.heads.log_space import HALF_LOG_TWO_PI
from numpyro_rwpo.heads.marginal import MarginalDensity
from numpyro_rwpo.priors.protocol import is_separable, separable_part


def pathwise_sample(rng_key: jax.Array, density: ProximalDensity, num_samples: int) -> jax.Array:
    """Independent draws (num_samples, dim), differentiable with respect to the density's arrays.

    Args:
        rng_key: A random key.
        density: A density from :func:`numpyro_rwpo.fit_joint`, ``fit_marginal`` or ``fit_copula``.
        num_samples: Number of draws.

    Returns:
        The draws. Averages of smooth functions of them have unbiased derivatives.

    Raises:
        TypeError: If ``density`` is of another kind, or its prior is not separable.
    """
    if isinstance(density, JointDensity):
        if not is_separable(density.prior):
            raise TypeError(
                "Draws are differentiated through distribution functions of single coordinates, "
                f"which {type(density.prior).__name__} has not; use a separable prior."
            )
        return _joint(rng_key, density, num_samples)
    if isinstance(density, MarginalDensity | CopulaDensity):
        return _glued(rng_key, density, num_samples)
    raise TypeError(
        "`density` must be a JointDensity, MarginalDensity or CopulaDensity; "
        f"got {type(density).__name__}."
    )


def _joint(rng_key: jax.Array, density: JointDensity, num_samples: int) -> jax.Array:
    key_particle, key_kernel = jax.random.split(rng_key)
    index = jax.random.randint(key_particle, (num_samples,), 0, density.particles.shape[0])
    parameters = density.particles[index], density.prox_time, density.inverse_temperature
    prior, fixed = lax.stop_gradient((density.prior, parameters))
    x = prior.sample(key_kernel, *fixed)
    log_prob = prior.log_prob(x, *fixed)
    separable = separable_part(density.prior)
    log_cdf = separable.log_cdf(x, *parameters)
    log_survival = separable.log_survival(x, *parameters)
    # Use the smaller of the two tails, which is accurate.
    is_left = log_cdf < log_survival
    log_tail = jnp.where(is_left, log_cdf, log_survival)
    spacing = jnp.exp(lax.stop_gradient(log_tail) - log_prob)
    return x - jnp.where(is_left, spacing, -spacing) * _change(log_tail)


def _glued(
    rng_key: jax.Array, density: MarginalDensity | CopulaDensity, num_samples: int
) -> jax.Array:
    grid: GridDensity = density.grid
    x = lax.stop_gradient(density).sample(rng_key, num_samples)
    normal = grid.to_normal(x)
    fixed = lax.stop_gradient(normal)
    jacobian = jnp.exp(lax.stop_gradient(grid).log_prob(x) + 0.5 * fixed**2 + HALF_LOG_TWO_PI)
    return x + (_normal_change(density, fixed) - _change(normal)) / jacobian


def _normal_change(density: MarginalDensity | CopulaDensity, normal: jax.Array) -> jax.Array:
    """Change dR R^-1 / 2 of normal scores with R, so that R stays their covariance."""
    if isinstance(density, MarginalDensity):
        return jnp.zeros_like(normal)
    whitened = normal + lax.stop_gradient(density.correlation).pull(normal)
    return 0.5 * _change(density.correlation.times(whitened))


def _change(value: jax.Array) -> jax.Array:
    """Zero, with the derivatives of ``value``."""
    return value - lax.stop_gradient(value)
