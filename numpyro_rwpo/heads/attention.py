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
from jax.typing import ArrayLike

from numpyro_rwpo.heads.correlation import Correlation, fit_correlation
from numpyro_rwpo.heads.grid import GridDensity, fit_grid
from numpyro_rwpo.heads.online_softmax import streamed_attention
from numpyro_rwpo.priors.laplace import LaplacePrior
from numpyro_rwpo.support.checks import check_choice

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


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
        correlation: R.
    """

    grid: GridDensity
    correlation: Correlation

    def log_prob(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        normal = self.grid.to_normal(x)
        energy = 0.5 * jnp.sum(normal * self.correlation.pull(normal), -1)
        return jnp.sum(self.grid.log_prob(x), -1) - energy - self.correlation.half_log_det

    def _glue(self, x: jax.Array) -> jax.Array:
        """Score of the copula's factor, ``-[(1/R - I) u]_k rho_k / phi(u_k)``."""
        normal = self.grid.to_normal(x)
        jacobian = jnp.exp(self.grid.log_prob(x) + 0.5 * normal**2 + _HALF_LOG_TWO_PI)
        return -self.correlation.pull(normal) * jacobian

    def score(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return self.grid.score(x) + self._glue(x)

    def heat_score(self, x: jax.Array) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return self.grid.heat_score(x) + self._glue(x)

    def sample(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """See :class:`ProximalDensity`."""
        return self.grid.from_normal(self.correlation.sample(rng_key, num_samples))


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
) -> CopulaDensity:
    """Fit the coordinates and a Gaussian copula, in O(num_particles dim^2 + dim^3).

    With more coordinates than particles its correlation is a factor model, in
    O(num_particles^2 dim): nothing of size dim x dim is ever formed. Arguments and errors are those
    of :func:`fit_joint`.
    """
    check_particles(particles)
    grid = fit_grid(particles, prior, prox_time, inverse_temperature)
    return CopulaDensity(grid, fit_correlation(grid.to_normal(particles)))


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
