r"""Another prior in closed forms, the normal one: :math:`g(x) = \sum_k r_k (x_k - c_k)^2 / 2`.

The class has the methods of :class:`numpyro_rwpo.priors.protocol.Prior`, elementwise on arrays
(..., dim). With it and the function at the end, ``RWPO(model, priors={dist.Normal: normal_prior})``
follows Normal sites exactly, as it does Laplace sites.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr


class NormalPrior(NamedTuple):
    """Location, position units, and precision >= 0, one over their square; each (dim,)."""

    location: jax.Array
    precision: jax.Array

    def potential(self, x):
        """Minus the log density, up to a constant."""
        return 0.5 * self.precision * (x - self.location) ** 2

    def subgradient(self, x):
        """Slope of the potential."""
        return self.precision * (x - self.location)

    def rise(self, start, step):
        """Increase of the potential from start to start + step, and the slope there."""
        distance = start - self.location
        return self.precision * step * (distance + 0.5 * step), self.precision * (distance + step)

    def smoothed(self, x):
        """The potential is smooth already."""
        return self.potential(x), self.subgradient(x)

    def prox(self, x, step_size):
        """The z that minimizes ``potential(z) + (z - x)^2 / (2 step_size)``."""
        return self.location + (x - self.location) / (1 + step_size * self.precision)

    def moreau_gradient(self, x, step_size):
        """``(x - prox(x)) / step_size`` without its cancellation."""
        return self.subgradient(x) / (1 + step_size * self.precision)

    def normal_fit(self, mean, scale):
        """The slope is a straight line: its value at the mean, and its own slope."""
        slope = self.subgradient(mean)
        return slope, jnp.broadcast_to(
            self.precision, jnp.broadcast_shapes(slope.shape, scale.shape)
        )

    def scaled(self, scale):
        """The same prior in the coordinates ``x / scale``."""
        return NormalPrior(self.location / scale, self.precision * scale**2)

    def tempered(self, inverse_temperature):
        """The prior whose potential is ``inverse_temperature`` times this one."""
        return NormalPrior(self.location, self.precision * inverse_temperature)

    def log_mass(self):
        """Log of the integral of ``exp(-potential)``."""
        return 0.5 * jnp.log(2 * math.pi / self.precision)

    def _kernel(self, y, prox_time, inverse_temperature):
        """Mean and standard deviation of the proximal kernel around y, a normal density."""
        variance = 2 * prox_time / inverse_temperature / (1 + prox_time * self.precision)
        return self.prox(y, prox_time), jnp.sqrt(variance)

    def log_normalizer(self, y, prox_time, inverse_temperature=1.0):
        """Log of the integral of ``exp(-beta/2 [g(x) + (x - y)^2 / (2T)])`` over x."""
        _, scale = self._kernel(y, prox_time, inverse_temperature)
        least = self.potential(y) / (1 + prox_time * self.precision)  # of the bracket
        return jnp.log(scale) + 0.5 * math.log(2 * math.pi) - 0.5 * inverse_temperature * least

    def log_prob(self, x, y, prox_time, inverse_temperature=1.0):
        """Log density of the kernel around y."""
        mean, scale = self._kernel(y, prox_time, inverse_temperature)
        return jax.scipy.stats.norm.logpdf(x, mean, scale)

    def cdf(self, x, y, prox_time, inverse_temperature=1.0):
        """Probability of (-inf, x] under the kernel around y."""
        return jnp.exp(self.log_cdf(x, y, prox_time, inverse_temperature))

    def log_cdf(self, x, y, prox_time, inverse_temperature=1.0):
        """Log of that probability."""
        mean, scale = self._kernel(y, prox_time, inverse_temperature)
        return log_ndtr((x - mean) / scale)

    def log_survival(self, x, y, prox_time, inverse_temperature=1.0):
        """Log of one minus that probability."""
        mean, scale = self._kernel(y, prox_time, inverse_temperature)
        return log_ndtr((mean - x) / scale)

    def sample(self, rng_key, y, prox_time, inverse_temperature=1.0):
        """One draw of the kernel around each y."""
        mean, scale = self._kernel(y, prox_time, inverse_temperature)
        return mean + scale * jax.random.normal(rng_key, mean.shape, mean.dtype)

    def hamiltonian_flow(self, x, p, time):
        """Exact motion of unit masses in the potential: a rotation, a straight line if flat."""
        frequency = jnp.sqrt(self.precision)
        angle = frequency * time
        distance = x - self.location
        moved = self.location + jnp.cos(angle) * distance + time * jnp.sinc(angle / math.pi) * p
        return moved, jnp.cos(angle) * p - frequency * jnp.sin(angle) * distance


def normal_prior(site: dist.Normal) -> NormalPrior:
    """The prior of a Normal site."""
    return NormalPrior(site.loc, 1 / site.scale**2)
