"""An evaluated ensemble of particles, and the replacement of particles that are not finite."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from numpyro_rwpo.model.target import Target

# Arrays that have a row for each particle.
Rows = TypeVar("Rows")


class Ensemble(NamedTuple):
    """Particles with the smooth potential and its gradient at each.

    Attributes:
        particles: (num_particles, dim).
        smooth: smooth part of the potential, (num_particles,).
        gradient: gradient of the smooth part, (num_particles, dim).
    """

    particles: jax.Array
    smooth: jax.Array
    gradient: jax.Array


def unevaluated(particles: jax.Array) -> Ensemble:
    """An ensemble that is not evaluated yet, with a potential that is infinite everywhere."""
    smooth = jnp.full(particles.shape[:-1], jnp.inf, particles.dtype)
    return Ensemble(particles, smooth, jnp.zeros_like(particles))


def potential(ensemble: Ensemble, target: Target) -> jax.Array:
    """The potential at the particles, prior included, (num_particles,)."""
    return ensemble.smooth + target.prior_potential(ensemble.particles)


def gradient(ensemble: Ensemble, target: Target) -> jax.Array:
    """A (sub)gradient of the potential at the particles, prior included, (num_particles, dim)."""
    return ensemble.gradient + target.prior_subgradient(ensemble.particles)


def thinned(x: jax.Array) -> jax.Array:
    """Every few rows of an array that has a row for each particle.

    At least 512 rows are left, which are enough for a median. A sort of all rows would bring them
    to one place where devices share the particles.
    """
    return x[:: max(1, x.shape[0] // 512)]


def is_far(height: jax.Array) -> jax.Array:
    """Particles whose potential is higher than that of any draw, (n,) -> (n,).

    The tail of the potential is exponential even where the posterior has power tails: twenty times
    the distance from median to upper quartile is exceeded by less than one draw in 100,000.
    """
    ordered = jnp.sort(thinned(height))
    count = ordered.shape[0]
    median, upper = ordered[count // 2], ordered[(3 * count) // 4]
    return ~(height <= median + 20.0 * (upper - median))


def is_usable(smooth: jax.Array, gradient: jax.Array) -> jax.Array:
    """Whether both the potential (n,) and its gradient (n, dim) are finite, (n,)."""
    return jnp.isfinite(smooth) & jnp.all(jnp.isfinite(gradient), -1)


def replace(rows: Rows, is_bad: jax.Array, target: Target) -> Rows:
    """Move the particles in ``is_bad``, (num_particles,), onto the others, in turn.

    ``rows`` is an ensemble, or arrays with a row for each particle that go with it.
    If all particles are bad, nothing is moved. This is only for warm-up, because it does not leave
    the posterior invariant.
    """

    def replaced(rows: Rows) -> Rows:
        order = jnp.argsort(is_bad, stable=True)
        index = jnp.arange(is_bad.size)
        substitute = order[index % jnp.maximum((~is_bad).sum(), 1)]
        source = jnp.where(is_bad & ~is_bad.all(), substitute, index)
        return jax.tree.map(lambda x: x[source], rows)

    return target.placement.rows(target.placement.where_needed(is_bad, replaced, rows))


def evaluate(particles: jax.Array, target: Target) -> Ensemble:
    """Evaluate the particles, and move those that are not finite onto finite ones.

    If no particle has a finite potential and gradient, nothing is moved.
    """
    smooth, gradient = target.value_and_grad(particles)
    return replace(Ensemble(particles, smooth, gradient), ~is_usable(smooth, gradient), target)
