r"""Attention heads: densities that the regularized Wasserstein proximal operator fits to particles.

With prox time :math:`T`, inverse temperature :math:`\beta` and :math:`s^2 = 2T/\beta`, the operator
turns particles :math:`y_j` into the mixture

.. math:: \rho_T(x) = \frac1N \sum_j K(x, y_j), \qquad
    K(x, y) = \frac{1}{Z(y)} \exp\Bigl\{-\frac\beta2 \Bigl[g(x) + \frac{|x-y|^2}{2T}\Bigr]\Bigr\},

whose score is attention of the particles on each other (Li, Liu, Osher 2023, arXiv:2301.10301; Han,
Osher, Li 2025, arXiv:2502.16773):

.. math:: \nabla\log\rho_T(x_i) = -\frac\beta2 \Bigl[\partial g(x_i)
    + \frac{x_i - \sum_j w_{ij} y_j}{T}\Bigr], \qquad
    w_{ij} = \mathrm{softmax}_j \Bigl(-\frac{|x_i - y_j|^2}{2s^2} - \log Z(y_j)\Bigr).

Three heads differ in what shares one softmax, and how coordinates are tied together:

* ``joint``: all coordinates, as above. For a few dimensions, and several modes.
* ``marginal``: every coordinate has its own. For targets that are products.
* ``copula``: as marginal, then glued by a Gaussian copula. For everything else.

A head is a function ``fit(particles, prior, prox_time, inverse_temperature=1.0)`` that returns a
:class:`ProximalDensity`; to add one, write such a class and name its function in ``HEADS``. Fits
and densities may be jitted, vmapped over a leading axis of ensembles, and used inside loops.
Nothing is checked but shapes; non-finite particles give non-finite densities.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from numpyro_rwpo.arguments import check_choice
from numpyro_rwpo.grid import GridDensity, fit_grid
from numpyro_rwpo.priors import LaplacePrior
from numpyro_rwpo.streaming import streamed_attention

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
# Single-precision products must not be rounded to fewer bits on accelerators.
_EXACT = lax.Precision.HIGHEST


class ProximalDensity(Protocol):
    """What every head offers: a normalised density on R^dim, fitted to particles."""

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Normalised log density at points (..., dim), shape (...)."""

    def score(self, x: jax.Array) -> jax.Array:
        """Gradient of :meth:`log_prob` at points (num_points, dim), same shape."""

    def heat_score(self, x: jax.Array) -> jax.Array:
        r"""Score without the prior, ``score + inverse_temperature/2 * prior.subgradient(x)``.

        Computed without the detour: smooth across the prior's kinks.
        """

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent exact draws, (num_samples, dim)."""


def relative_prox_time(particles: jax.Array, relative: ArrayLike) -> jax.Array:
    """Prox time of every coordinate as a fraction of its variance over the ensemble.

    Args:
        particles: (num_particles, dim).
        relative: Fraction > 0, dimensionless; 0.1 suits most targets.

    Returns:
        (dim,), position units squared, positive even where the particles of a coordinate coincide:
        the standard deviation counts as at least 32 roundings of the coordinate's magnitude.
    """
    epsilon = float(np.finfo(particles.dtype).eps)
    # A coordinate that is zero throughout has no magnitude; any small number will do.
    magnitude = jnp.maximum(jnp.max(jnp.abs(particles), 0), math.sqrt(epsilon))
    variance = jnp.maximum(jnp.var(particles, 0), (32 * epsilon * magnitude) ** 2)
    return jnp.asarray(relative, particles.dtype) * variance


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
    prior: LaplacePrior
    prox_time: jax.Array
    inverse_temperature: jax.Array

    @property
    def _scale(self) -> jax.Array:
        return jnp.sqrt(2 * self.prox_time / self.inverse_temperature)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        points = x.reshape(-1, x.shape[-1])
        log_sum, _ = streamed_attention(points, self.particles, self.log_normalizer, self._scale)
        prior = 0.5 * self.inverse_temperature * jnp.sum(self.prior.potential(x), -1)
        return log_sum.reshape(x.shape[:-1]) - math.log(self.particles.shape[0]) - prior

    def score(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return self.heat_score(x) - 0.5 * self.inverse_temperature * self.prior.subgradient(x)

    def heat_score(
        self,
        x: jax.Array,
        attend: Callable[..., tuple[jax.Array, jax.Array]] = streamed_attention,
    ) -> jax.Array:
        """See :class:`ProximalDensity`; ``attend`` says where the keys come from."""
        _, displacement = attend(x, self.particles, self.log_normalizer, self._scale)
        return 0.5 * self.inverse_temperature * displacement / self.prox_time

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`ProximalDensity`."""
        key_particle, key_kernel = jax.random.split(rng_key)
        index = jax.random.randint(key_particle, (num_samples,), 0, self.particles.shape[0])
        return self.prior.sample(
            key_kernel, self.particles[index], self.prox_time, self.inverse_temperature
        )


class MarginalDensity(NamedTuple):
    """The product of the coordinates' proximal densities, each with its own softmax.

    Attributes:
        grid: The coordinates' densities.
    """

    grid: GridDensity

    def log_prob(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return jnp.sum(self.grid.log_prob(x), -1)

    def score(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return self.grid.score(x)

    def heat_score(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return self.grid.heat_score(x)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`ProximalDensity`."""
        shape = (num_samples, *self.grid.origin.shape)
        return self.grid.from_normal(jax.random.normal(rng_key, shape, self.grid.origin.dtype))


class CopulaDensity(NamedTuple):
    r"""Proximal densities of the coordinates, tied together by a Gaussian copula.

    With :math:`u_k = \Phi^{-1}(F_k(x_k))` the density is :math:`\prod_k \rho_k(x_k)\, c_R(u)`,
    :math:`c_R(u) = |R|^{-1/2} \exp\{-\tfrac12 u^\top (R^{-1} - I) u\}`.

    Attributes:
        grid: The coordinates' densities.
        factor: A with R = A A^T, (dim, dim).
        coupling: The inverse of R minus the identity, (dim, dim).
        half_log_det: Half the log determinant of R, scalar.
    """

    grid: GridDensity
    factor: jax.Array
    coupling: jax.Array
    half_log_det: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        normal = self.grid.to_normal(x)
        energy = 0.5 * jnp.sum(normal * self._pull(normal), -1)
        return jnp.sum(self.grid.log_prob(x), -1) - energy - self.half_log_det

    def _pull(self, normal: jax.Array) -> jax.Array:
        return jnp.matmul(normal, self.coupling, precision=_EXACT)

    def _glue(self, x: jax.Array) -> jax.Array:
        """Score of the copula's factor, ``-[(1/R - I) u]_k rho_k / phi(u_k)``."""
        normal = self.grid.to_normal(x)
        jacobian = jnp.exp(self.grid.log_prob(x) + 0.5 * normal**2 + _HALF_LOG_TWO_PI)
        return -self._pull(normal) * jacobian

    def score(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return self.grid.score(x) + self._glue(x)

    def heat_score(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return self.grid.heat_score(x) + self._glue(x)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`ProximalDensity`."""
        shape = (num_samples, self.factor.shape[0])
        white = jax.random.normal(rng_key, shape, self.factor.dtype)
        return self.grid.from_normal(jnp.matmul(white, self.factor.T, precision=_EXACT))


def fit_joint(
    particles: jax.Array,
    prior: LaplacePrior,
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


def fit_marginal(
    particles: jax.Array,
    prior: LaplacePrior,
    prox_time: ArrayLike,
    inverse_temperature: ArrayLike = 1.0,
) -> MarginalDensity:
    """Fit every coordinate on its own, on a grid, in O(num_particles dim).

    Arguments, result and errors are those of :func:`fit_joint`.
    """
    check_particles(particles)
    return MarginalDensity(fit_grid(particles, prior, prox_time, inverse_temperature))


def fit_copula(
    particles: jax.Array,
    prior: LaplacePrior,
    prox_time: ArrayLike,
    inverse_temperature: ArrayLike = 1.0,
) -> CopulaDensity | MarginalDensity:
    """Fit the coordinates and a Gaussian copula, in O(num_particles dim^2 + dim^3).

    With more coordinates than particles the correlations cannot be told from noise: the marginal
    fit is returned as it is, and nothing of size dim x dim is ever formed. Arguments and errors
    are those of :func:`fit_joint`.
    """
    check_particles(particles)
    grid = fit_grid(particles, prior, prox_time, inverse_temperature)
    if particles.shape[1] > particles.shape[0]:
        return MarginalDensity(grid)
    return CopulaDensity(grid, *_factorised(_shrunk_correlation(grid.to_normal(particles))))


def attention_weights(
    particles: ArrayLike,
    query: int,
    prior: LaplacePrior | None,
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
    square = (particles - particles[query]) ** 2
    logits = -square * jnp.asarray(inverse_temperature) / (4 * jnp.asarray(prox_time))
    if prior is not None:
        logits -= prior.log_normalizer(particles, prox_time, inverse_temperature)
    return jax.nn.softmax(logits.sum(1) if attention == "joint" else logits, axis=0)


HEADS: dict[str, Callable[..., ProximalDensity]] = {
    "joint": fit_joint,
    "marginal": fit_marginal,
    "copula": fit_copula,
}


def check_particles(particles: jax.Array) -> None:
    """Raise ``ValueError`` unless ``particles`` is (num_particles, dim) with both at least 1."""
    if particles.ndim != 2 or 0 in particles.shape:
        raise ValueError(
            "`particles` must have shape (num_particles, dim), both at least 1; "
            f"got {particles.shape}. For a one-dimensional target pass shape (num_particles, 1)."
        )


@jax.custom_jvp
def _factorised(correlation: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A with R = A A^T, the inverse of R minus the identity, half the log determinant of R.

    Its derivatives are coded: those of eigenvectors are infinite where eigenvalues coincide, as all
    do once the correlations have been shrunk to none, but no density depends on the choice of
    eigenvectors. Of A only A A^T matters; dA = dR R^-1 A / 2 is one change that follows it.
    """
    # Not Cholesky: on CPUs a triangular solve takes longer than all else, because LAPACK's threads
    # and XLA's wait for each other.
    spectrum, rotation = jnp.linalg.eigh(correlation)
    spectrum = jnp.maximum(spectrum, correlation.shape[0] * float(np.finfo(spectrum.dtype).eps))
    coupling = jnp.matmul(rotation * (1 / spectrum - 1), rotation.T, precision=_EXACT)
    factor = rotation * jnp.sqrt(spectrum)
    # Rounding of the eigenvectors, which differs by processor, must not change the variances.
    factor = factor / jnp.linalg.norm(factor, axis=1, keepdims=True)
    return factor, coupling, 0.5 * jnp.sum(jnp.log(spectrum))


@_factorised.defjvp
def _factorised_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    factor, coupling, half_log_det = _factorised(*primals)
    (change,) = tangents
    change_inverse = change + jnp.matmul(change, coupling, precision=_EXACT)  # dR R^-1
    inverse_both = change_inverse + jnp.matmul(coupling, change_inverse, precision=_EXACT)
    factor_change = 0.5 * jnp.matmul(change_inverse, factor, precision=_EXACT)
    changes = factor_change, -inverse_both, 0.5 * jnp.trace(change_inverse)
    return (factor, coupling, half_log_det), changes


def _shrunk_correlation(normal: jax.Array) -> jax.Array:
    r"""Correlation of (num_particles, dim) normal scores, shrunk towards the identity.

    The weight on the identity is the one that minimises the expected squared error, the sum of the
    variances of the correlations over the sum of their squares (Schaefer and Strimmer 2005), with
    the variance :math:`(1 - r^2)^2/(N-1)` of normal data.
    """
    num_particles, dim = normal.shape
    epsilon = float(np.finfo(normal.dtype).eps)
    centred = normal - jnp.mean(normal, 0)
    covariance = jnp.matmul(centred.T, centred, precision=_EXACT) / num_particles
    variance = jnp.diagonal(covariance)
    # Coinciding particles have no correlation to speak of, only rounding. (Neither the root nor its
    # inverse has a derivative at 0, and a selection after them would not keep it out.)
    has_spread = jnp.sqrt(variance) > 32 * epsilon
    inverse = jnp.where(has_spread, 1 / jnp.sqrt(jnp.where(has_spread, variance, 1)), 0)
    identity = jnp.eye(dim, dtype=normal.dtype)
    correlation = (1 - identity) * jnp.clip(covariance * inverse[:, None] * inverse, -1, 1)
    squares = correlation**2
    noise = (jnp.sum((1 - squares) ** 2) - dim) / max(num_particles - 1, 1)
    # The floor covers the rounding of the eigenvalues.
    smallest = 16 * dim * epsilon
    # More noise than correlation is as good as equally much. The least divisor has a finite square.
    least = float(np.finfo(normal.dtype).tiny) ** 0.5
    shrinkage = noise / jnp.maximum(jnp.maximum(jnp.sum(squares), noise), least)
    shrinkage = jnp.clip(shrinkage, smallest, 1)
    return (1 - shrinkage) * correlation + identity
