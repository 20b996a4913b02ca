r"""What an attention head is: a density that the proximal operator fits to particles.

With prox time :math:`T`, inverse temperature :math:`\beta` and :math:`s^2 = 2T/\beta`, the
regularized Wasserstein proximal operator turns particles :math:`y_j` into the mixture

.. math:: \rho_T(x) = \frac1N \sum_j K(x, y_j), \qquad
    K(x, y) = \frac{1}{Z(y)} \exp\Bigl\{-\frac\beta2 \Bigl[g(x) + \frac{|x-y|^2}{2T}\Bigr]\Bigr\},

whose score is attention of the particles on each other (Li, Liu, Osher 2023, arXiv:2301.10301; Han,
Osher, Li 2025, arXiv:2502.16773):

.. math:: \nabla\log\rho_T(x_i) = -\frac\beta2 \Bigl[\partial g(x_i)
    + \frac{x_i - \sum_j w_{ij} y_j}{T}\Bigr], \qquad
    w_{ij} = \mathrm{softmax}_j \Bigl(-\frac{|x_i - y_j|^2}{2s^2} - \log Z(y_j)\Bigr).

The built-in heads (:mod:`numpyro_rwpo.heads.registry`) differ in which coordinates share one
softmax, and in how coordinates are tied together.
"""

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from numpyro_rwpo.priors.protocol import AnyPrior
from numpyro_rwpo.support.broadcasting import same_rank
from numpyro_rwpo.support.checks import check_choice


@runtime_checkable
class ProximalDensity(Protocol):
    """What every head offers: a normalized density on R^dim, fitted to particles."""

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Normalized log density at points (..., dim), shape (...)."""

    def score(self, x: jax.Array) -> jax.Array:
        """Gradient of :meth:`log_prob` at points (num_points, dim), same shape."""

    def heat_score(self, x: jax.Array) -> jax.Array:
        r"""Score without the prior, ``score + inverse_temperature/2 * prior.subgradient(x)``.

        Computed without the detour: smooth across the prior's kinks.
        """

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent exact draws, (num_samples, dim)."""


def check_particles(particles: jax.Array) -> None:
    """Raise ``ValueError`` unless ``particles`` is (num_particles, dim) with both at least 1."""
    if particles.ndim != 2 or 0 in particles.shape:
        raise ValueError(
            "`particles` must have shape (num_particles, dim), both at least 1; "
            f"got {particles.shape}. For a one-dimensional target pass shape (num_particles, 1)."
        )


def least_spread(dtype: DTypeLike) -> float:
    """Standard deviation below which particles coincide, relative to their magnitude.

    Numbers that are all the same have a computed standard deviation of up to 3 roundings of their
    magnitude (measured for 100,000 of them in single precision); the 32 roundings returned leave a
    margin of ten.
    """
    return 32 * float(np.finfo(dtype).eps)


def relative_prox_time(particles: jax.Array, relative: ArrayLike) -> jax.Array:
    """Prox time of every coordinate as a fraction of its variance over the ensemble.

    Args:
        particles: (num_particles, dim).
        relative: Fraction > 0, dimensionless.

    Returns:
        (dim,), position units squared, positive even where the particles of a coordinate coincide:
        the standard deviation counts as at least :func:`least_spread` of the coordinate's
        magnitude.
    """
    # A coordinate that is zero throughout has no magnitude. It gets the square root of the
    # precision, 3e-4 position units in single precision, whose square is no problem.
    floor = math.sqrt(float(np.finfo(particles.dtype).eps))
    magnitude = jnp.maximum(jnp.max(jnp.abs(particles), 0), floor)
    least = least_spread(particles.dtype) * magnitude
    variance = jnp.maximum(jnp.var(particles, 0), least**2)
    return jnp.asarray(relative, particles.dtype) * variance


def attention_weights(
    particles: ArrayLike,
    query: int,
    prior: AnyPrior | None,
    prox_time: ArrayLike,
    attention: str = "joint",
    inverse_temperature: ArrayLike = 1.0,
) -> jax.Array:
    """Attention of one particle on all, the softmax in the module's docstring.

    Args:
        particles: (num_particles, dim).
        query: Index of the particle that attends.
        prior: The part of the potential with closed forms, ``None`` without.
        prox_time: T > 0 in position units squared, scalar or (dim,).
        attention: ``"joint"`` for one softmax over all coordinates, ``"marginal"`` for one each.
        inverse_temperature: beta > 0.

    Returns:
        Weights that sum to 1 over particles, (num_particles,), or (num_particles, dim) for
        ``"marginal"``.

    Raises:
        ValueError: If ``particles`` is not two-dimensional, or ``attention`` is unknown.
    """
    check_choice("attention", attention, ("joint", "marginal"))
    particles = jnp.asarray(particles)
    check_particles(particles)
    square = (particles - particles[query][None]) ** 2
    square, time = same_rank(square, prox_time)
    logits = -square * jnp.asarray(inverse_temperature) / (4 * time)
    if prior is not None:
        logits -= prior.log_normalizer(particles, prox_time, inverse_temperature)
    return jax.nn.softmax(logits.sum(1) if attention == "joint" else logits, axis=0)
