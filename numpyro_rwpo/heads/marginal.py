"""The marginal head: every coordinate has a softmax of its own.

For targets whose coordinates are independent, or nearly so.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_rwpo.heads.density import check_particles
from numpyro_rwpo.heads.grid import GridDensity, fit_grid
from numpyro_rwpo.priors.protocol import AnyPrior, coupling, coupling_slope, separable_part


class MarginalDensity(NamedTuple):
    """The product of the coordinates' proximal densities, each with its own softmax.

    Attributes:
        grid: The coordinates' densities.
        coupling: A structured prior, tempered by half the inverse temperature. Its part that ties
            coordinates together is not in the density, but the heat score is defined with it.
    """

    grid: GridDensity
    coupling: AnyPrior | None = None

    def log_prob(self, x: jax.Array) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        return jnp.sum(self.grid.log_prob(x), -1)

    def score(self, x: jax.Array) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        return self.grid.score(x)

    def heat_score(self, x: jax.Array) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        return self.grid.heat_score(x) + coupling_slope(self.coupling, x)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        shape = (num_samples, *self.grid.origin.shape)
        return self.grid.from_normal(jax.random.normal(rng_key, shape, self.grid.origin.dtype))


def fit_marginal(
    particles: jax.Array,
    prior: AnyPrior,
    prox_time: ArrayLike,
    inverse_temperature: ArrayLike = 1.0,
) -> MarginalDensity:
    """Fit every coordinate on its own, on a grid, in O(num_particles dim).

    Arguments, result and errors are those of :func:`fit_joint`.
    """
    check_particles(particles)
    grid = fit_grid(particles, separable_part(prior), prox_time, inverse_temperature)
    return MarginalDensity(grid, coupling(prior.tempered(0.5 * inverse_temperature)))
