r"""Correlations of normal scores, as the Gaussian copula needs them.

With at least as many particles as coordinates the sample correlation, shrunk toward the identity.
With fewer, most of its eigenvalues are zero and all others noise but for a few: there it is the
factor model :math:`R = L L^\top + \operatorname{diag}(\psi)` of those few.
"""

from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numpyro_rwpo.heads.density import least_spread
from numpyro_rwpo.support.broadcasting import same_rank

# Single-precision products must not be rounded to fewer bits on accelerators.
_EXACT = lax.Precision.HIGHEST


class Correlation(Protocol):
    """A correlation matrix R of (dim,) normal scores."""

    @property
    def half_log_det(self) -> jax.Array:
        """Half the log determinant of R, scalar."""

    def pull(self, normal: jax.Array) -> jax.Array:
        """Vectors (..., dim) times the inverse of R minus the identity."""

    def times(self, normal: jax.Array) -> jax.Array:
        """Vectors (..., dim) times R."""

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent normal draws with this correlation, (num_samples, dim)."""


class DenseCorrelation(NamedTuple):
    """A correlation matrix, decomposed.

    Attributes:
        factor: A with R = A A^T, (dim, dim).
        coupling: The inverse of R minus the identity, (dim, dim).
        half_log_det: Half the log determinant of R, scalar.
    """

    factor: jax.Array
    coupling: jax.Array
    half_log_det: jax.Array

    def pull(self, normal: jax.Array) -> jax.Array:
        """See :class:`Correlation`."""
        return jnp.matmul(normal, self.coupling, precision=_EXACT)

    def times(self, normal: jax.Array) -> jax.Array:
        """See :class:`Correlation`."""
        return _product(_product(normal, self.factor), self.factor.T)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`Correlation`."""
        white = jax.random.normal(rng_key, (num_samples, len(self.factor)), self.factor.dtype)
        return _product(white, self.factor.T)


class FactorCorrelation(NamedTuple):
    r"""A factor model, :math:`R = L L^\top + \operatorname{diag}(\psi)` with ones on its diagonal.

    Attributes:
        loadings: L, (dim, factors).
        noise: psi > 0, (dim,).
        coupling: B with :math:`R^{-1} = \operatorname{diag}(1/\psi) - B B^\top`, (dim, factors).
        half_log_det: Half the log determinant of R, scalar.
    """

    loadings: jax.Array
    noise: jax.Array
    coupling: jax.Array
    half_log_det: jax.Array

    def pull(self, normal: jax.Array) -> jax.Array:
        """See :class:`Correlation`."""
        common = _product(_product(normal, self.coupling), self.coupling.T)
        normal, noise = same_rank(normal, self.noise)
        return normal * (1 / noise - 1) - common

    def times(self, normal: jax.Array) -> jax.Array:
        """See :class:`Correlation`."""
        common = _product(_product(normal, self.loadings), self.loadings.T)
        normal, noise = same_rank(normal, self.noise)
        return normal * noise + common

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`Correlation`."""
        dim, num_factors = self.loadings.shape
        white = jax.random.normal(rng_key, (num_samples, dim + num_factors), self.noise.dtype)
        root = jnp.sqrt(self.noise)[None]
        return white[:, :dim] * root + _product(white[:, dim:], self.loadings.T)


def fit_correlation(normal: jax.Array) -> DenseCorrelation | FactorCorrelation:
    """The correlation of normal scores (num_particles, dim), of the form that suits their shape."""
    num_particles, dim = normal.shape
    if dim > num_particles:
        return _factor_model(normal)
    return DenseCorrelation(*_factorized(_shrunk_correlation(normal)))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_EXACT)


def _centered(normal: jax.Array) -> jax.Array:
    return normal - jnp.mean(normal, 0, keepdims=True)


def _inverse_deviation(variance: jax.Array) -> jax.Array:
    """One over the root of the normal scores' variances (dim,), and 0 where particles coincide.

    Coinciding particles have no correlation, only rounding. (Neither the root nor its inverse has a
    derivative at 0, and a selection after them would not keep it out.)
    """
    has_spread = jnp.sqrt(variance) > least_spread(variance.dtype)
    return jnp.where(has_spread, 1 / jnp.sqrt(jnp.where(has_spread, variance, 1)), 0)


def max_factors(num_particles: int) -> int:
    """The largest number of directions that are estimated from so many particles.

    At most 16 directions bound the time of a product with R at 32 dim multiplications a particle.
    Each of them needs eight particles, whose covariance along it is then known to a third; in
    smaller ensembles the eigenvalues of noise scatter far beyond their limit for many particles.
    """
    return min(16, num_particles // 8)


def _factor_model(normal: jax.Array) -> FactorCorrelation:
    r"""Factors from the leading eigenvalues of the sample correlation, freed of noise.

    Of n draws of independent coordinates the sample eigenvalues reach :math:`(1 + \sqrt\gamma)^2`,
    :math:`\gamma` = dim/n. One beyond is :math:`\hat\ell = \ell (1 + \gamma/(\ell - 1))` of a true
    :math:`\ell`, and its vector has the squared cosine :math:`c^2 = (1 - \gamma/(\ell-1)^2) / (1 +
    \gamma/(\ell-1))` with the true one. Taking :math:`1 + (\ell - 1) c^2` instead minimizes the
    squared error, and goes to 1, no factor, at the edge (Donoho, Gavish and Johnstone 2018,
    arXiv:1311.0851, eqs. 1.2, 1.3, 1.9 and 1.12).
    """
    num_particles, dim = normal.shape
    centered = _centered(normal)
    scores = centered * _inverse_deviation(jnp.mean(centered**2, 0, keepdims=True))
    number = max(1, max_factors(num_particles))
    largest, vectors = _leading(_product(scores, scores.T) / num_particles, number)
    gamma = dim / num_particles
    edge = (1 + gamma**0.5) ** 2
    # At the edge itself, the factor's strength has an infinite derivative.
    is_factor = largest > edge * (1 + 1e-3)
    # An eigenvalue that is no factor is replaced by any number with finite derivatives.
    seen = jnp.where(is_factor, largest, 2 * edge)
    excess = (seen - 1 - gamma + jnp.sqrt((seen - 1 - gamma) ** 2 - 4 * gamma)) / 2  # l - 1
    cosine = (1 - gamma / excess**2) / (1 + gamma / excess)
    strength = jnp.where(is_factor, excess * cosine / (num_particles * seen), 1)
    root = jnp.where(is_factor, jnp.sqrt(strength), 0)
    return _with_unit_diagonal(_product(scores.T, vectors) * root[None])


def _with_unit_diagonal(loadings: jax.Array) -> FactorCorrelation:
    """The factor model of loadings (dim, factors), shortened where they explain too much."""
    common = jnp.sum(loadings**2, 1, keepdims=True)
    # A hundredth of each variance, which is 1, is left unexplained at least, so that the inverse of
    # R has eigenvalues of at most 100.
    limit = 1 - 0.01
    is_over = common > limit
    loadings = loadings * jnp.where(is_over, jnp.sqrt(limit / jnp.where(is_over, common, 1)), 1)
    noise = 1 - jnp.sum(loadings**2, 1)
    scaled = loadings / noise[:, None]
    # Woodbury's identity.
    identity = jnp.eye(loadings.shape[1], dtype=loadings.dtype)
    root = jnp.linalg.cholesky(identity + _product(loadings.T, scaled))
    inverse_root = lax.linalg.triangular_solve(root, identity, left_side=True, lower=True)
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(root))) + 0.5 * jnp.sum(jnp.log(noise))
    return FactorCorrelation(loadings, noise, _product(scaled, inverse_root.T), half_log_det)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _leading(matrix: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """The largest eigenvalues (number,) of a symmetric matrix (n, n) and their vectors (n, number).

    Derivatives are coded: between two eigenvalues that coincide, like the zeros of duplicate
    particles, vectors turn without any change in what is made of them.
    """
    spectrum, vectors = jnp.linalg.eigh(matrix)
    return spectrum[-number:], vectors[:, -number:]


@_leading.defjvp
def _leading_jvp(
    number: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (matrix,), (change,) = primals, tangents
    spectrum, vectors = jnp.linalg.eigh(matrix)
    largest, leading = spectrum[-number:], vectors[:, -number:]
    image = _product(change, leading)
    gap = largest[None] - spectrum[:, None]
    # `eigh` knows eigenvalues to a few roundings of the largest; below 16 of them two coincide.
    is_apart = jnp.abs(gap) > 16 * float(np.finfo(matrix.dtype).eps) * jnp.abs(spectrum).max()
    turn = jnp.where(is_apart, 1 / jnp.where(is_apart, gap, 1), 0) * _product(vectors.T, image)
    changes = jnp.sum(leading * image, 0), _product(vectors, turn)
    return (largest, leading), changes


@jax.custom_jvp
def _factorized(correlation: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A with R = A A^T, the inverse of R minus the identity, half the log determinant of R.

    Its derivatives are coded: those of eigenvectors are infinite where eigenvalues coincide, as all
    do once the correlations have been shrunk to none, but no density depends on the choice of
    eigenvectors. Of A only A A^T matters; dA = dR R^-1 A / 2 is one change that follows it.
    """
    # Not Cholesky: on CPUs a triangular solve takes longer than all else, because LAPACK's threads
    # and XLA's wait for each other.
    spectrum, rotation = jnp.linalg.eigh(correlation)
    spectrum = jnp.maximum(spectrum, correlation.shape[0] * float(np.finfo(spectrum.dtype).eps))
    coupling = _product(rotation * (1 / spectrum - 1)[None], rotation.T)
    factor = rotation * jnp.sqrt(spectrum)[None]
    # Rounding of the eigenvectors, which differs by processor, must not change the variances.
    factor = factor / jnp.linalg.norm(factor, axis=1, keepdims=True)
    return factor, coupling, 0.5 * jnp.sum(jnp.log(spectrum))


@_factorized.defjvp
def _factorized_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    factor, coupling, half_log_det = _factorized(*primals)
    (change,) = tangents
    change_inverse = change + jnp.matmul(change, coupling, precision=_EXACT)  # dR R^-1
    inverse_both = change_inverse + jnp.matmul(coupling, change_inverse, precision=_EXACT)
    factor_change = 0.5 * jnp.matmul(change_inverse, factor, precision=_EXACT)
    changes = factor_change, -inverse_both, 0.5 * jnp.trace(change_inverse)
    return (factor, coupling, half_log_det), changes


def _shrunk_correlation(normal: jax.Array) -> jax.Array:
    r"""Correlation of (num_particles, dim) normal scores, shrunk toward the identity.

    The weight on the identity is the one that minimizes the expected squared error, the sum of the
    variances of the correlations over the sum of their squares (Schaefer and Strimmer 2005), with
    the variance :math:`(1 - r^2)^2/(N-1)` of normal data.
    """
    num_particles, dim = normal.shape
    centered = _centered(normal)
    covariance = _product(centered.T, centered) / num_particles
    inverse = _inverse_deviation(jnp.diagonal(covariance))
    identity = jnp.eye(dim, dtype=normal.dtype)
    correlation = (1 - identity) * jnp.clip(covariance * inverse[:, None] * inverse[None], -1, 1)
    squares = correlation**2
    noise = (jnp.sum((1 - squares) ** 2) - dim) / max(num_particles - 1, 1)
    # `eigh` knows eigenvalues to a few roundings of the largest, which is at most dim. Shrinkage by
    # 16 dim roundings keeps all of them positive.
    smallest = 16 * dim * float(np.finfo(normal.dtype).eps)
    # More noise than correlation is as good as equally much. The least divisor has a finite square.
    least = float(np.finfo(normal.dtype).tiny) ** 0.5
    shrinkage = noise / jnp.maximum(jnp.maximum(jnp.sum(squares), noise), least)
    shrinkage = jnp.clip(shrinkage, smallest, 1)
    return (1 - shrinkage) * correlation + identity
