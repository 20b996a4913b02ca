"""An evaluated ensemble of particles, and what to do with particles where nothing is finite."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.model.target import Target

_ENOUGH = 512  # particles for the quartiles of a scalar
_FAR = 20.0  # see `is_far`


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
    """An ensemble whose potential is not known yet: infinite everywhere."""
    smooth = jnp.full(particles.shape[:-1], jnp.inf, particles.dtype)
    return Ensemble(particles, smooth, jnp.zeros_like(particles))


def potential(ensemble: Ensemble, target: Target) -> jax.Array:
    """The whole potential at the particles, (num_particles,)."""
    return ensemble.smooth + target.prior_potential(ensemble.particles)


def gradient(ensemble: Ensemble, target: Target) -> jax.Array:
    """A (sub)gradient of the whole potential at the particles, (num_particles, dim)."""
    return ensemble.gradient + target.prior_subgradient(ensemble.particles)


def thinned(x: jax.Array) -> jax.Array:
    """Every few rows of an array with one for each particle: at least 512, enough for a median.

    A sort would bring all of them to one place where devices share the particles.
    """
    return x[:: max(1, x.shape[0] // _ENOUGH)]


def is_far(height: jax.Array) -> jax.Array:
    """Particles whose potential is higher than that of any draw, (n,) -> (n,).

    The tail of the potential is exponential even where the posterior has power tails: twenty times
    the distance from median to upper quartile is exceeded by less than one draw in 100,000.
    """
    ordered = jnp.sort(thinned(height))
    count = ordered.shape[0]
    median, upper = ordered[count // 2], ordered[(3 * count) // 4]
    return ~(height <= median + _FAR * (upper - median))


def is_usable(smooth: jax.Array, gradient: jax.Array) -> jax.Array:
    """Where both the potential (n,) and its gradient (n, dim) are finite, (n,)."""
    return jnp.isfinite(smooth) & jnp.all(jnp.isfinite(gradient), -1)


def replace(ensemble: Ensemble, is_bad: jax.Array, target: Target) -> Ensemble:
    """Move the particles in ``is_bad``, (num_particles,), onto the others, in turn.

    Where all are bad, nothing is moved. Only for warm-up, as it does not leave the posterior
    invariant.
    """

    def replaced(ensemble: Ensemble) -> Ensemble:
        order = jnp.argsort(is_bad, stable=True)
        index = jnp.arange(is_bad.size)
        substitute = order[index % jnp.maximum((~is_bad).sum(), 1)]
        source = jnp.where(is_bad & ~is_bad.all(), substitute, index)
        return jax.tree.map(lambda x: x[source], ensemble)

    return target.placement.rows(target.placement.where_needed(is_bad, replaced, ensemble))


def evaluate(particles: jax.Array, target: Target) -> Ensemble:
    """Evaluate the particles; those with a non-finite potential move onto finite ones.

    Where no particle is finite, nothing is moved and the potentials stay non-finite.
    """
    smooth, gradient = target.value_and_grad(particles)
    return replace(Ensemble(particles, smooth, gradient), ~is_usable(smooth, gradient), target)
