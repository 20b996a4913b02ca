r"""The normal prior in closed form: :math:`g(x) = \tfrac12 \sum_k r_k (x_k - c_k)^2`.

The methods are those of :class:`numpyro_rwpo.LaplacePrior` that the joint head, the transport and
the moves use. They act elementwise on arrays (..., dim).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class NormalPrior(NamedTuple):
    """Location, in position units, and precision, in their inverse square; each (dim,)."""

    location: jax.Array
    precision: jax.Array

    def potential(self, x):
        """Minus the log density, up to a constant."""
        return 0.5 * self.precision * (x - self.location) ** 2

    def subgradient(self, x):
        """Slope of the potential."""
        return self.precision * (x - self.location)

    def prox(self, x, step_size):
        """The z that minimizes ``potential(z) + (z - x)^2 / (2 step_size)``."""
        shrinkage = 1 / (1 + step_size * self.precision)
        return self.location + shrinkage * (x - self.location)

    def moreau_gradient(self, x, step_size):
        """``(x - prox(x)) / step_size``, computed without cancellation."""
        return self.subgradient(x) / (1 + step_size * self.precision)

    def log_normalizer(self, y, prox_time, inverse_temperature=1.0):
        """Log of the integral of ``exp(-beta/2 [g(x) + (x - y)^2 / (2T)])`` over x."""
        precision = 0.5 * inverse_temperature * (self.precision + 1 / prox_time)
        least = self.potential(y) / (1 + prox_time * self.precision)  # minimum of the bracket
        return 0.5 * jnp.log(2 * math.pi / precision) - 0.5 * inverse_temperature * least

    def sample(self, rng_key, y, prox_time, inverse_temperature=1.0):
        """One draw from the proximal kernel for each center y."""
        total = self.precision + 1 / prox_time
        mean = (self.precision * self.location + y / prox_time) / total
        noise = jax.random.normal(rng_key, jnp.shape(mean))
        return mean + noise / jnp.sqrt(0.5 * inverse_temperature * total)

    def hamiltonian_flow(self, x, p, time):
        """Exact motion of unit masses in the potential, which is a rotation."""
        frequency = jnp.sqrt(self.precision)
        cos, sin = jnp.cos(frequency * time), jnp.sin(frequency * time)
        distance = x - self.location
        moved = self.location + cos * distance + sin * p / frequency
        return moved, cos * p - sin * frequency * distance
