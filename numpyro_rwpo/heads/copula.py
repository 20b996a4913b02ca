"""The copula head: the marginal densities, tied together by a Gaussian copula.

For every target that does not ask for one of the other two.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_rwpo.heads.correlation import Correlation, fit_correlation
from numpyro_rwpo.heads.density import check_particles
from numpyro_rwpo.heads.grid import GridDensity, fit_grid
from numpyro_rwpo.heads.log_space import HALF_LOG_TWO_PI
from numpyro_rwpo.priors.protocol import AnyPrior, coupling, coupling_slope, separable_part


class CopulaDensity(NamedTuple):
    r"""Proximal densities of the coordinates, tied together by a Gaussian copula.

    With :math:`u_k = \Phi^{-1}(F_k(x_k))` the density is :math:`\prod_k \rho_k(x_k)\, c_R(u)`,
    :math:`c_R(u) = |R|^{-1/2} \exp\{-\tfrac12 u^\top (R^{-1} - I) u\}`.

    Attributes:
        grid: The coordinates' densities.
        correlation: R.
        coupling: As for :class:`~numpyro_rwpo.heads.marginal.MarginalDensity`.
    """

    grid: GridDensity
    correlation: Correlation
    coupling: AnyPrior | None = None

    def log_prob(self, x: jax.Array) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        normal = self.grid.to_normal(x)
        energy = 0.5 * jnp.sum(normal * self.correlation.pull(normal), -1)
        return jnp.sum(self.grid.log_prob(x), -1) - energy - self.correlation.half_log_det

    def _glue(self, x: jax.Array) -> jax.Array:
        """Score of the copula's factor, ``-[(1/R - I) u]_k rho_k / phi(u_k)``."""
        normal = self.grid.to_normal(x)
        jacobian = jnp.exp(self.grid.log_prob(x) + 0.5 * normal**2 + HALF_LOG_TWO_PI)
        return -self.correlation.pull(normal) * jacobian

    def score(self, x: jax.Array) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        return self.grid.score(x) + self._glue(x)

    def heat_score(self, x: jax.Array) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        return self.grid.heat_score(x) + self._glue(x) + coupling_slope(self.coupling, x)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        return self.grid.from_normal(self.correlation.sample(rng_key, num_samples))


def fit_copula(
    particles: jax.Array,
    prior: AnyPrior,
    prox_time: ArrayLike,
    inverse_temperature: ArrayLike = 1.0,
) -> CopulaDensity:
    """Fit the coordinates and a Gaussian copula, in O(num_particles dim^2 + dim^3).

    With more coordinates than particles its correlation is a factor model, in
    O(num_particles^2 dim): nothing of size dim x dim is ever formed. Arguments and errors are those
    of :func:`fit_joint`.
    """
    check_particles(particles)
    grid = fit_grid(particles, separable_part(prior), prox_time, inverse_temperature)
    correlation = fit_correlation(grid.to_normal(particles))
    return CopulaDensity(grid, correlation, coupling(prior.tempered(0.5 * inverse_temperature)))
