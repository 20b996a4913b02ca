r"""The moments of an ensemble and the metric that follows from them.

For positions with covariance :math:`\Sigma = L L^\top` and gradients of the potential with
covariance :math:`\Gamma`, the metric is the geometric mean of :math:`\Sigma` and
:math:`\Gamma^{-1}`,

.. math:: M = L^\top \Gamma L = U \operatorname{diag}(m) U^\top, \qquad
          G = L U \operatorname{diag}(m^{-1/2}) U^\top L^\top = A A^\top .

It minimizes the Fisher divergence to a Gaussian with that covariance. For a Gaussian target it is
the inverse precision *whatever the ensemble's covariance is*, and m describes how far the ensemble
is from it: where m = 1 the variances are equal, and where m > 1 the ensemble is too wide. The
diagonal form is ``G_k = sd(x_k) / sd(grad_k)``. Between the two forms,
:func:`low_rank_preconditioner` scales all coordinates by the diagonal form and applies the dense
form in the span of a few directions. These are the directions along which the sum of the two
covariances is largest, that is, the widest and the narrowest ones.

Reference: Seyboldt, Carlson and Carpenter (2026), "Preconditioning Hamiltonian Monte Carlo by
minimizing Fisher divergence", whose rules are also those of nutpie.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.dynamics.factors import (
    Factor,
    LowRank,
    to_whitened,
    to_whitened_gradient,
)


class Moments(NamedTuple):
    """Moments of an ensemble; covariances (dim, dim), or variances (dim,) for a diagonal metric.

    Attributes:
        mean: mean of the positions, (dim,).
        covariance: covariance of the positions.
        gradient_covariance: covariance of the gradients of the potential, prior included.
    """

    mean: jax.Array
    covariance: jax.Array
    gradient_covariance: jax.Array


class Preconditioner(NamedTuple):
    """A factor of the metric, and the spectrum of the ensemble relative to the metric.

    Attributes:
        factor: A with G = A A^T.
        inverse: the inverse of A, in the same form.
        spectrum: m, the squared ratio of the ensemble's variance to that of the metric along each
            column of A, (dim,).
    """

    factor: Factor
    inverse: Factor
    spectrum: jax.Array


def _covariance(centered: jax.Array, dense: bool) -> jax.Array:
    count = max(centered.shape[0] - 1, 1)
    return centered.T @ centered / count if dense else (centered**2).sum(0) / count


def _winsorize(x: jax.Array) -> jax.Array:
    """Clip each column at 15 half interquartile ranges around its median.

    These are ten standard deviations of a normal column. A few particles on a wall, with gradients
    of 1e10, must not determine the metric of all others.
    """
    # The quartiles of 64 particles have a standard error of a fifth of a standard deviation, which
    # is enough for such a wide range. A sort of all particles would cost more than all else here.
    ordered = jnp.sort(x[:: max(1, x.shape[0] // 64)], axis=0)
    count = ordered.shape[0]
    lower, median, upper = (ordered[None, (k * count) // 4] for k in (1, 2, 3))
    deviation = x - median
    limit = 15.0 * (upper - lower) / 2
    return median + jnp.where(limit > 0, jnp.clip(deviation, -limit, limit), deviation)


def without_outliers(particles: jax.Array, gradients: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Particles and gradients, (num_particles, dim), with outliers clipped."""
    # Both are sorted together, because XLA takes long to compile a sort.
    clipped = _winsorize(jnp.concatenate([particles, gradients], axis=1))
    particles, gradients = jnp.split(clipped, 2, axis=1)
    return particles, gradients


def ensemble_moments(particles: jax.Array, gradients: jax.Array, dense: bool) -> Moments:
    """Moments of particles and gradients without outliers, each (num_particles, dim)."""
    mean = particles.mean(0)
    return Moments(
        mean,
        _covariance(particles - mean[None], dense),
        _covariance(gradients - gradients.mean(0, keepdims=True), dense),
    )


def variances(moments: Moments) -> jax.Array:
    """Variances of the positions, (dim,)."""
    covariance = moments.covariance
    return covariance if covariance.ndim == 1 else jnp.diagonal(covariance)


def _positive(x: jax.Array) -> jax.Array:
    tiny = jnp.finfo(x.dtype).tiny
    return jnp.clip(jnp.where(jnp.isfinite(x), x, 1.0), tiny**0.5, tiny**-0.5)


def _eigen(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors of a symmetric matrix.

    The eigenvalues are kept above a millionth of the largest one, which is about eight times the
    rounding error of single precision.
    """
    spectrum, rotation = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return jnp.maximum(_positive(spectrum), 1e-6 * jnp.max(spectrum)), rotation


def _symmetric_roots(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The symmetric square root of a positive matrix, and its inverse."""
    spectrum, rotation = _eigen(matrix)
    root = jnp.sqrt(spectrum)[None]
    return (rotation * root) @ rotation.T, (rotation / root) @ rotation.T


def fisher_preconditioner(moments: Moments) -> Preconditioner:
    """The geometric-mean metric of the module's docstring, dense or diagonal as the moments are."""
    is_diagonal = moments.covariance.ndim == 1
    return Preconditioner(*(_diagonal(moments) if is_diagonal else _dense(moments)))


def _diagonal(moments: Moments) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Factor, inverse and spectrum, each (dim,)."""
    variance = _positive(moments.covariance)
    gradient_variance = _positive(moments.gradient_covariance)
    factor = (variance / gradient_variance) ** 0.25
    return factor, 1 / factor, variance * gradient_variance


def _dense(moments: Moments) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Factor and inverse, (dim, dim), and spectrum, (dim,)."""
    # Coordinates are standardized, so that eigenvalues do not depend on the units of parameters.
    scale = jnp.sqrt(_positive(jnp.diagonal(moments.covariance)))
    correlation = moments.covariance / jnp.outer(scale, scale)
    # L is the symmetric root. With the Cholesky factor, a triangular solve would take longer than
    # everything else on CPUs, because the threads of LAPACK and of XLA wait for each other.
    root, inverse_root = _symmetric_roots(correlation)
    m = root @ (moments.gradient_covariance * jnp.outer(scale, scale)) @ root
    spectrum, rotation = _eigen(m)
    factor = scale[:, None] * (root @ rotation) * spectrum[None] ** -0.25
    inverse = spectrum[:, None] ** 0.25 * (rotation.T @ inverse_root) / scale[None]
    usable = jnp.all(jnp.isfinite(factor)) & jnp.all(jnp.isfinite(inverse))
    return (
        jnp.where(usable, factor, jnp.diag(scale)),
        jnp.where(usable, inverse, jnp.diag(1 / scale)),
        jnp.where(usable, spectrum, 1.0),
    )


def initial_directions(dim: int, rank: int, dtype: jnp.dtype) -> jax.Array:
    """The first directions, orthonormal columns (dim, rank): cosines of decreasing wavelength."""
    wave_number = jnp.arange(1, rank + 1, dtype=dtype)[None]
    phase = (jnp.arange(dim, dtype=dtype)[:, None] + 0.5) * wave_number
    return jnp.cos(jnp.pi * phase / dim) * (2 / dim) ** 0.5


def low_rank_preconditioner(
    moments: Moments,
    particles: jax.Array,
    gradients: jax.Array,
    directions: jax.Array,
    weight: jax.Array,
) -> Preconditioner:
    """The metric of the module's docstring that is diagonal except in a few directions.

    The directions follow from subspace iteration, with one product with the sum of the two sample
    covariances in every update, averaged over updates. No array is larger than the ensemble.

    Args:
        moments: running moments, diagonal.
        particles: an ensemble without outliers, (num_particles, dim).
        gradients: gradients of its potential, (num_particles, dim).
        directions: directions of the last update, orthonormal columns (dim, rank).
        weight: weight of this ensemble in the directions, between 0 and 1.
    """
    scale, inverse_scale, _ = _diagonal(moments)
    particles = particles - particles.mean(0, keepdims=True)
    gradients = gradients - gradients.mean(0, keepdims=True)
    scaled, slope = particles * inverse_scale[None], gradients * scale[None]
    count = max(particles.shape[0] - 1, 1)

    along, along_slope = scaled @ directions, slope @ directions
    image = (scaled.T @ along + slope.T @ along_slope) / count
    within = directions @ (directions.T @ image)
    turned, _ = jnp.linalg.qr(within + weight * (image - within))
    directions = jnp.where(jnp.isfinite(turned).all(), turned, directions)

    along, along_slope = scaled @ directions, slope @ directions
    core, inverse_core, _ = _dense(
        Moments(along.mean(0), _covariance(along, True), _covariance(along_slope, True))
    )
    factor = LowRank(scale, directions, core)
    inverse = LowRank(inverse_scale, directions, inverse_core)
    # These are the variances of the coordinates after they have been mixed by the directions.
    variance = _covariance(to_whitened(inverse, particles), False)
    gradient_variance = _covariance(to_whitened_gradient(factor, gradients), False)
    return Preconditioner(factor, inverse, _positive(variance) * _positive(gradient_variance))
