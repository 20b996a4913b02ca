"""The joint head: one softmax over distances in all coordinates, as in the papers.

For a few dimensions, and for targets with several modes.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numpyro_rwpo.heads.density import check_particles
from numpyro_rwpo.heads.online_softmax import streamed_attention
from numpyro_rwpo.priors.protocol import AnyPrior


class JointDensity(NamedTuple):
    """The mixture of proximal kernels itself, one softmax over d-dimensional distances.

    Attributes:
        particles: (num_particles, dim).
        log_normalizer: log Z of the particles, (num_particles, 1).
        prior: Supplies g and the kernel's draws.
        prox_time: T, (dim,), position units squared.
        inverse_temperature: beta, ().
    """

    particles: jax.Array
    log_normalizer: jax.Array
    prior: AnyPrior
    prox_time: jax.Array
    inverse_temperature: jax.Array

    @property
    def _scale(self) -> jax.Array:
        return jnp.sqrt(2 * self.prox_time / self.inverse_temperature)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        points = x.reshape(-1, x.shape[-1])
        log_sum, _ = streamed_attention(points, self.particles, self.log_normalizer, self._scale)
        prior = 0.5 * self.inverse_temperature * jnp.sum(self.prior.potential(x), -1)
        return log_sum.reshape(x.shape[:-1]) - math.log(self.particles.shape[0]) - prior

    def score(self, x: jax.Array) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        return self.heat_score(x) - 0.5 * self.inverse_temperature * self.prior.subgradient(x)

    def heat_score(
        self,
        x: jax.Array,
        attend: Callable[..., tuple[jax.Array, jax.Array]] = streamed_attention,
    ) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`.

        ``attend`` says where the keys come from.
        """
        _, displacement = attend(x, self.particles, self.log_normalizer, self._scale)
        return 0.5 * self.inverse_temperature * displacement / self.prox_time[None]

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`~numpyro_rwpo.heads.density.ProximalDensity`."""
        key_particle, key_kernel = jax.random.split(rng_key)
        index = jax.random.randint(key_particle, (num_samples,), 0, self.particles.shape[0])
        return self.prior.sample(
            key_kernel, self.particles[index], self.prox_time, self.inverse_temperature
        )


def fit_joint(
    particles: jax.Array,
    prior: AnyPrior,
    prox_time: ArrayLike,
    inverse_temperature: ArrayLike = 1.0,
) -> JointDensity:
    """Fit the mixture of d-dimensional kernels; its scores cost O(num_particles^2 dim).

    Above a few dimensions a particle sees almost only itself, and the fitted density is too narrow.

    Args:
        particles: (num_particles, dim).
        prior: The part of the potential with closed forms.
        prox_time: T > 0 in position units squared, scalar or (dim,).
        inverse_temperature: beta > 0.

    Returns:
        The fitted density.

    Raises:
        ValueError: If ``particles`` is not two-dimensional, or empty.
    """
    check_particles(particles)
    particles = jnp.asarray(particles)
    log_normalizer = prior.log_normalizer(particles, prox_time, inverse_temperature)
    return JointDensity(
        particles,
        jnp.sum(jnp.broadcast_to(log_normalizer, particles.shape), 1, keepdims=True),
        prior,
        jnp.broadcast_to(jnp.asarray(prox_time, particles.dtype), particles.shape[1:]),
        jnp.asarray(inverse_temperature, particles.dtype),
    )
