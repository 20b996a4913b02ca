r"""Closed forms of the group prior, with or without an L1 part: proximal map, kernel, motion.

The potential is a sum over the groups G of a partition of the coordinates,

.. math:: g(x) = \sum_k \lambda_k |x_k - c_k| + \sum_G \nu_G, \qquad
    \nu_G = \Bigl(\sum_{k \in G} w_k^2 (x_k - c_k)^2\Bigr)^{1/2},

with :math:`\lambda = 0` for the group lasso (Yuan and Lin 2006, J. R. Stat. Soc. B 68) and
otherwise the sparse group lasso (Simon, Friedman, Hastie and Tibshirani 2013, J. Comput. Graph.
Stat. 22). The weights w may differ within a group, as they do after a change of units.

Its kink is the origin of a group, a single point of the group's space: a path passes beside it. The
motion between two gradients of the likelihood is therefore made of short kicks with the gradient of
the norm, which cost no gradient of the likelihood, and of the L1 part's exact motion.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from numpyro_rwpo.priors.laplace import LaplacePrior
from numpyro_rwpo.priors.mixture import Mixture, draw_mixing, mix
from numpyro_rwpo.priors.partition import Labels, group_sizes, group_sums
from numpyro_rwpo.support.broadcasting import same_rank

# Newton steps for the norm of the proximal point. The first guess is exact where all coordinates of
# a group share one weight and one step size; otherwise the digits double in every step.
_NUM_NEWTON = 8
# Kicks with the norm's gradient in one motion. As in the harmonic flow, eight are so short that the
# kicks with the likelihood, not these, limit the step.
_NUM_SUBSTEPS = 8
# Nodes on the scale of log t for averages of the norm under normal densities, and their spacing.
_FIT_SPACING = 0.5
_FIT_NODES = np.arange(-24.0, 24.25, _FIT_SPACING)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["location", "weight", "rate"],
    meta_fields=["labels"],
)
@dataclass(frozen=True)
class GroupPrior:
    r"""Potential :math:`\sum_k \lambda_k |x_k - c_k| + \sum_G |w (x - c)|_G`.

    The methods are those of :class:`~numpyro_rwpo.priors.protocol.StructuredPrior`, on arrays
    (..., dim). A quantity of a group is shared out equally among its coordinates, so that sums over
    coordinates are right. ``prox_time`` is :math:`T > 0` in position units squared, ``beta`` the
    inverse temperature; step sizes, times, and units may differ between the coordinates.

    Attributes:
        location: The origin of the groups, position units, (dim,).
        weight: :math:`w \ge 0`, in one over position units, (dim,); 0 where the prior is flat.
        rate: :math:`\lambda \ge 0`, in one over position units, (dim,); ``None`` without L1 part.
        labels: The group of each coordinate in a row; the position consists of one or more rows.
    """

    location: jax.Array
    weight: jax.Array
    rate: jax.Array | None
    labels: Labels

    @property
    def separable(self) -> LaplacePrior:
        """The L1 part alone, which acts on each coordinate for itself."""
        rate = jnp.zeros_like(self.weight) if self.rate is None else self.rate
        return LaplacePrior(self.location, rate, rate)

    def _sums(self, x: jax.Array) -> jax.Array:
        """Sums over groups, at each of their coordinates."""
        return group_sums(x, self.labels)

    def _shared(self, total: jax.Array) -> jax.Array:
        """Equal shares of what belongs to a group."""
        return total / self._sizes(total)

    def _sizes(self, like: jax.Array) -> jax.Array:
        """Sizes of the coordinates' groups, to go with an array (..., dim)."""
        sizes = np.tile(group_sizes(self.labels), like.shape[-1] // len(self.labels))
        return jnp.asarray(sizes.reshape(*(1,) * (like.ndim - 1), -1), like.dtype)

    def _norm(self, distance: jax.Array) -> jax.Array:
        """The norm of each coordinate's group, for distances from the location."""
        _, weight = same_rank(distance, self.weight)
        # The slope of a root is infinite at 0, where this norm has the subgradient 0.
        square = self._sums((weight * distance) ** 2)
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    def _norm_slope(self, distance: jax.Array) -> jax.Array:
        """Gradient of the sum of the groups' norms; 0 at the origin of a group."""
        _, weight = same_rank(distance, self.weight)
        norm = self._norm(distance)
        return weight * (weight * distance / jnp.where(norm > 0, norm, 1.0))

    def potential(self, x: ArrayLike) -> jax.Array:
        """Minus the log density up to a constant, shared out among the coordinates."""
        x, location = same_rank(x, self.location)
        value = self._shared(self._norm(x - location))
        return value if self.rate is None else value + self.separable.potential(x)

    def subgradient(self, x: ArrayLike) -> jax.Array:
        """Gradient of the summed :meth:`potential`; at a kink the middle of its possible values."""
        x, location = same_rank(x, self.location)
        slope = self._norm_slope(x - location)
        return slope if self.rate is None else slope + self.separable.subgradient(x)

    def smoothed(self, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """The Moreau envelope of a step of one squared scale of each coordinate, and its slope."""
        steepest = self.weight if self.rate is None else self.weight + self.rate
        step = 1 / jnp.where(steepest > 0, steepest, 1.0) ** 2
        x, step = same_rank(x, step)
        nearest = self.prox(x, step)
        envelope = self.potential(nearest) + (x - nearest) ** 2 / (2 * step)
        return envelope, self.moreau_gradient(x, step)

    def _shrunk(self, x: ArrayLike, step_size: ArrayLike) -> tuple[jax.Array, ...]:
        r"""Distances after the soft threshold, weights, and the fraction of shrinkage by the norm.

        The proximal point is :math:`z_k = S_k \nu / (\nu + t_k w_k^2)` with the soft threshold S,
        and :math:`\nu` the root of :math:`\sum_k w_k^2 S_k^2 / (\nu + t_k w_k^2)^2 = 1`, or 0 if it
        has none. One over the root of the left side is concave and nearly straight: Newton steps
        from below converge to it from below (Moré and Sorensen 1983, as for trust regions).
        """
        x, step, location, weight = same_rank(x, step_size, self.location, self.weight)
        distance = x - location
        if self.rate is not None:
            _, rate = same_rank(x, self.rate)
            limit = step * rate
            distance = distance - jnp.clip(distance, -limit, limit)
        distance, step, weight = jnp.broadcast_arrays(distance, step, weight)
        pull = step * weight**2
        length = jnp.abs(weight * distance)
        has_pull = pull > 0
        least = jnp.where(has_pull, length / jnp.where(has_pull, pull, 1.0), 0.0)
        is_moved = self._sums(least**2) > 1
        # Groups without any pull stay where they are.
        is_moved = is_moved | ((self._sums(pull) == 0) & (self._sums(length) > 0))
        total = jnp.sqrt(jnp.where(is_moved, self._sums(length**2), 1.0))
        norm = jnp.maximum(total - self._largest(pull), 1e-6 * total)

        for _ in range(_NUM_NEWTON):
            shift = norm + pull
            square = self._sums((length / shift) ** 2)
            cube = self._sums((length / shift) ** 2 / shift)
            square, cube = (jnp.where(is_moved, v, 1.0) for v in (square, cube))
            norm = norm + jnp.maximum(square * (jnp.sqrt(square) - 1) / cube, 0.0)
        norm = jnp.where(is_moved, norm, 0.0)
        flat = norm + pull <= 0
        fraction = pull / jnp.where(flat, 1.0, norm + pull)
        return distance, weight, norm, fraction

    def _largest(self, x: jax.Array) -> jax.Array:
        """An upper bound of a nonnegative array in each group, exact if it is constant there."""
        mean = self._sums(x) / self._sums(jnp.ones_like(x))
        spread = self._sums((x - mean) ** 2)
        return mean + jnp.where(spread > 0, jnp.sqrt(jnp.where(spread > 0, spread, 1.0)), 0.0)

    def prox(self, x: ArrayLike, step_size: ArrayLike) -> jax.Array:
        """Proximal map: a soft threshold, then all of a group shrinks toward its origin.

        Exactly ``location`` for a whole group whose norm does not exceed the threshold. Source:
        Simon et al. 2013; the order of the two maps is also right for steps and weights
        that differ within a group.

        Args:
            x: Points, (..., dim).
            step_size: Proximal step >= 0, position units squared, scalar or (..., dim).
        """
        distance, _, _, fraction = self._shrunk(x, step_size)
        _, location = same_rank(distance, self.location)
        return location + distance * (1 - fraction)

    def moreau_gradient(self, x: ArrayLike, step_size: ArrayLike) -> jax.Array:
        """Gradient of the Moreau envelope, ``(x - prox(x)) / step_size`` without cancellation."""
        distance, weight, norm, _ = self._shrunk(x, step_size)
        x, step, location = same_rank(x, step_size, self.location)
        pull = step * weight**2
        flat = norm + pull <= 0
        slope = weight**2 * distance / jnp.where(flat, 1.0, norm + pull)
        return slope if self.rate is None else slope + self.separable.moreau_gradient(x, step)

    def normal_fit(self, mean: ArrayLike, scale: ArrayLike) -> tuple[jax.Array, jax.Array]:
        r"""Means of the gradient and of the second derivatives under independent normal densities.

        From :math:`\nu = \frac{1}{2\sqrt\pi} \int_0^\infty (1 - e^{-t \nu^2})\, t^{-3/2} dt`, whose
        mean is a product over coordinates under the integral; trapezoidal rule in log t.
        """
        mean, scale, location, weight = same_rank(mean, scale, self.location, self.weight)
        distance, scale, weight = jnp.broadcast_arrays(mean - location, scale, weight)
        # Weighted mean and standard deviation.
        m, s = weight * distance, weight * scale
        # t in units of one over the mean square of the norm.
        square = self._sums(m**2 + s**2)
        is_flat = square <= 0
        square = jnp.where(is_flat, 1.0, square)

        def add(total: tuple[jax.Array, jax.Array], log_t: jax.Array) -> tuple[Any, None]:
            slope, curvature = total
            t = jnp.exp(log_t) / square
            spread = 1 + 2 * t * s**2
            log_mean = self._sums(-0.5 * jnp.log(spread) - t * m**2 / spread)
            pull = 2 * t * weight / spread
            mass = jnp.exp(log_mean) / jnp.sqrt(t)
            curvature = curvature + mass * (pull * weight - (pull * m) ** 2)
            return (slope + mass * pull * m, curvature), None

        nodes = jnp.asarray(_FIT_NODES, square.dtype)
        zero = jnp.zeros_like(square)
        (slope, curvature), _ = lax.scan(add, (zero, zero), nodes)
        factor = _FIT_SPACING / (2 * math.sqrt(math.pi))
        slope, curvature = (jnp.where(is_flat, 0.0, factor * v) for v in (slope, curvature))
        if self.rate is None:
            return slope, curvature
        other_slope, other_curvature = self.separable.normal_fit(mean, scale)
        return slope + other_slope, curvature + other_curvature

    def scaled(self, scale: ArrayLike) -> "GroupPrior":
        """The same prior in the coordinates ``x / scale``, ``scale > 0``."""
        scale, location, weight = same_rank(scale, self.location, self.weight)
        return GroupPrior(location / scale, weight * scale, self._rate_times(scale), self.labels)

    def tempered(self, beta: ArrayLike) -> "GroupPrior":
        """The prior whose potential is ``beta`` >= 0 times this one, equal within each group."""
        beta, location, weight = same_rank(beta, self.location, self.weight)
        return GroupPrior(location, weight * beta, self._rate_times(beta), self.labels)

    def _rate_times(self, factor: jax.Array) -> jax.Array | None:
        """The L1 part's rate times a factor, ``None`` without L1 part."""
        if self.rate is None:
            return None
        rate, factor = same_rank(self.rate, factor)
        return rate * factor

    def log_mass(self) -> jax.Array:
        """Log of the integral of ``exp(-potential)``, in shares; infinite where it is flat."""
        if self.rate is None:
            size = self._sizes(self.weight)
            # (n - 1)! times the area of the unit sphere.
            sphere = gammaln(size) - gammaln(size / 2) + math.log(2) + size / 2 * math.log(math.pi)
            return sphere / size - jnp.log(self.weight)
        # A kernel without pull toward any y, at inverse temperature 2.
        zero = jnp.zeros_like(self.weight)
        return self._shared(self._mixture(zero, zero, zero + 2.0).log_integral())

    def _mixture(self, y: jax.Array, inverse_time: jax.Array, beta: jax.Array) -> Mixture:
        """The kernel's integral over a group, as one over the mixing variable u; (..., dim) all."""

        def log_factor(u: jax.Array) -> jax.Array:
            center, time, least = self._given(u, y, inverse_time, beta)
            if self.rate is None:  # a normal density
                log_mass = 0.5 * jnp.log(4 * math.pi * time / beta[None])
            else:
                log_mass = self.separable.log_normalizer(center, time, beta[None])
            return self._sums(log_mass - 0.5 * beta[None] * least)

        return mix(log_factor, y.shape, y.dtype)

    def _given(
        self, u: jax.Array, y: jax.Array, inverse_time: jax.Array, beta: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Center, time and least value of the bracket of the kernel of each coordinate, given u."""
        u, y, inverse_time, beta, weight, location = same_rank(
            u, y, inverse_time, beta, self.weight, self.location
        )
        curvature = beta * weight**2 / (4 * u)
        total = inverse_time + curvature
        distance = y - location
        # A tiny floor, so that a flat coordinate without pull has a kernel, if a very wide one.
        total = jnp.maximum(total, 1e-30)
        center = location + distance * inverse_time / total
        return center, 1 / total, 0.5 * distance**2 * inverse_time * curvature / total

    def _kernel(
        self, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Centers, inverse times and inverse temperatures in one shape, (..., dim)."""
        y, time, beta, _ = same_rank(y, prox_time, beta, self.weight)
        y, time, beta, _ = jnp.broadcast_arrays(y, time, beta, self.weight)
        return y, 1 / time, beta

    def log_normalizer(
        self, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0
    ) -> jax.Array:
        """Log of the integral of the kernel's exponential, with every constant, in shares."""
        return self._shared(self._mixture(*self._kernel(y, prox_time, beta)).log_integral())

    def log_prob(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0
    ) -> jax.Array:
        """Log density of the kernel around y, in shares: its sum over a group is normalized."""
        x, y, time, half = same_rank(x, y, prox_time, 0.5 * jnp.asarray(beta))
        bracket = self.potential(x) + (x - y) ** 2 / (2 * time)
        return -half * bracket - self.log_normalizer(y, prox_time, beta)

    def sample(
        self, rng_key: jax.Array, y: ArrayLike, prox_time: ArrayLike, beta: ArrayLike = 1.0
    ) -> jax.Array:
        """One draw from the kernel around each y: first the mixing variable, then coordinates."""
        return self._draw(rng_key, *self._kernel(y, prox_time, beta))

    def sample_prior(self, rng_key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Draws from the prior itself, of shape ``(*shape, dim)``."""
        whole = (*shape, self.weight.shape[-1])
        zero = jnp.zeros(whole, self.weight.dtype)
        return self._draw(rng_key, zero, zero, zero + 2.0)

    def _draw(
        self, rng_key: jax.Array, y: jax.Array, inverse_time: jax.Array, beta: jax.Array
    ) -> jax.Array:
        key_mixing, key_coordinates = jax.random.split(rng_key)
        u = draw_mixing(key_mixing, self._mixture(y, inverse_time, beta))
        # Every coordinate has drawn a u; those of a group share the first one's.
        u = self._first(u)
        center, time, _ = self._given(u, y, inverse_time, beta)
        return self.separable.sample(key_coordinates, center, time, beta)

    def _first(self, x: jax.Array) -> jax.Array:
        """The value of the first coordinate of each group, at all of its coordinates."""
        _, first, inverse = np.unique(self.labels, return_index=True, return_inverse=True)
        rows = x.reshape(*x.shape[:-1], -1, len(self.labels))
        return rows[..., first[inverse]].reshape(x.shape)

    def hamiltonian_flow(
        self, x: ArrayLike, p: ArrayLike, time: ArrayLike
    ) -> tuple[jax.Array, jax.Array]:
        """Motion of unit masses in the potential, by substeps: reversible, and volume is kept.

        The energy error is that of the kicks with the norm's gradient, second order in the time.
        """
        x, p, time, location = same_rank(x, p, time, self.location)
        shape = jnp.broadcast_shapes(x.shape, p.shape, time.shape, location.shape)
        x, p = jnp.broadcast_to(x, shape), jnp.broadcast_to(p, shape)
        step = time / _NUM_SUBSTEPS
        separable = None if self.rate is None else self.separable

        def once(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, p = carry
            p = p - 0.5 * step * self._norm_slope(x - location)
            if separable is None:
                x = x + step * p
            else:
                x, p = separable.hamiltonian_flow(x, p, step)
            return x, p - 0.5 * step * self._norm_slope(x - location)

        return lax.fori_loop(0, _NUM_SUBSTEPS, once, (x, p))
