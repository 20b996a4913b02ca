r"""Closed forms of the (asymmetric) Laplace prior: proximal map, proximal kernel, Hamiltonian flow.

The prior potential is separable, :math:`g(x) = \sum_k \lambda_{+,k} (x_k - c_k)_+ +
\lambda_{-,k} (c_k - x_k)_+`, and everything here works one coordinate at a time. There are three
families:

* the proximal map (soft threshold) and the gradient of the Moreau envelope;
* the kernel of the regularized Wasserstein proximal operator (Li, Liu, Osher 2023,
  arXiv:2301.10301; for the L1 prior Han, Osher, Li 2025, arXiv:2502.16773),
  :math:`K(x, y) = \exp\{-\tfrac\beta2 [g(x) + (x-y)^2/(2T)]\} / Z(y)`: its normalizer, density,
  distribution function and exact draws;
* the exact flow of kinetic energy plus prior (Pakman and Paninski 2013, arXiv:1311.2166).

The kernel is computed in units of :math:`s = \sqrt{2T/\beta}` around the kink, from
:math:`u = (y-c)/s` and :math:`\alpha_\pm = \beta\lambda_\pm s/2`; the special functions are in
:mod:`numpyro_rwpo.priors.mills`, the motion in :mod:`numpyro_rwpo.priors.kink`.

Priors whose location or rate is itself random must be reparameterized first.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jax.typing import ArrayLike, DTypeLike

from numpyro_rwpo.priors.kink import move_past_kink
from numpyro_rwpo.priors.mills import (
    SQRT_TWO_PI,
    envelope,
    log_distribution,
    log_integral,
    masses,
    quantile,
)
from numpyro_rwpo.support.broadcasting import same_rank


class LaplacePrior(NamedTuple):
    r"""Separable prior potential, rate_right (x - location)_+ + rate_left (location - x)_+.

    Methods work elementwise on arrays (..., dim) that broadcast with the fields and with scalar or
    (dim,) parameters, preserve the dtype, and may be jitted and vmapped; all except :meth:`sample`
    and :meth:`hamiltonian_flow` are intended to be differentiated. They do not check their
    arguments, so build priors with :func:`laplace_prior`. ``prox_time`` is :math:`T > 0` in
    position units squared, and ``inverse_temperature`` is :math:`\beta > 0`.

    Attributes:
        location: The kink, in position units, (dim,) or broadcastable.
        rate_left: Slope to its left, >= 0, in one over position units; both rates are 0 for a flat
            prior.
        rate_right: Slope to its right, >= 0, in one over position units.
    """

    location: jax.Array
    rate_left: jax.Array
    rate_right: jax.Array

    def potential(self, x: ArrayLike) -> jax.Array:
        """Minus the log prior density up to a constant, per coordinate."""
        x, location, rate_left, rate_right = same_rank(x, *self)
        distance = x - location
        return rate_right * jnp.maximum(distance, 0) + rate_left * jnp.maximum(-distance, 0)

    def subgradient(self, x: ArrayLike) -> jax.Array:
        """Slope of :meth:`potential`; at the kink the middle of the subdifferential."""
        x, location = same_rank(x, self.location)
        return self._slope(x - location)

    def rise(self, start: ArrayLike, step: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Increase of :meth:`potential` from ``start`` to ``start + step``, and the slope there.

        On one side of the kink it is the step times a rate, however far the kink is.
        """
        start, step, location, rate_left, rate_right = same_rank(start, step, *self)
        distance = start - location
        beyond, before = jnp.maximum(distance, 0), jnp.minimum(distance, 0)
        right = jnp.maximum(step + before, -beyond)
        left = jnp.maximum(-step - beyond, before)
        return rate_right * right + rate_left * left, self._slope(distance + step)

    def _slope(self, distance: jax.Array) -> jax.Array:
        """Slope at a distance from the kink."""
        distance, rate_left, rate_right = same_rank(distance, self.rate_left, self.rate_right)
        sign = jnp.sign(distance)
        return 0.5 * ((1 + sign) * rate_right - (1 - sign) * rate_left)

    def prox(self, x: ArrayLike, step_size: ArrayLike) -> jax.Array:
        """Proximal map ``argmin_z potential(z) + (z - x)^2 / (2 step_size)``, a soft threshold.

        Args:
            x: Points, (..., dim).
            step_size: Proximal step >= 0, position units squared.

        Returns:
            The minimizers; exactly ``location`` where the threshold is not exceeded.
        """
        # This avoids the distance to the kink, in which digits of x may have been lost.
        x, step_size, location, rate_left, rate_right = same_rank(x, step_size, *self)
        return jnp.clip(location, x - step_size * rate_right, x + step_size * rate_left)

    def moreau_gradient(self, x: ArrayLike, step_size: ArrayLike) -> jax.Array:
        """Gradient of the Moreau envelope, ``(x - prox(x)) / step_size`` without cancellation.

        Args:
            x: Points, (..., dim).
            step_size: Proximal step > 0, position units squared.

        Returns:
            Slopes between ``-rate_left`` and ``rate_right``.
        """
        x, step_size, location, rate_left, rate_right = same_rank(x, step_size, *self)
        return jnp.clip((x - location) / step_size, -rate_left, rate_right)

    def normal_fit(self, mean: ArrayLike, scale: ArrayLike) -> tuple[jax.Array, jax.Array]:
        r"""The straight line closest to the slope of :math:`g` under a normal density.

        With :math:`x \sim N(m, s^2)` this line is :math:`E g'(x) + E g''(x) (x - m)` (by Stein's
        identity), whatever the correlation with other coordinates; the second derivative at the
        kink is a point mass.

        Args:
            mean: :math:`m`, (..., dim).
            scale: :math:`s > 0`, (..., dim).

        Returns:
            :math:`E g'` and :math:`E g''`, (..., dim).
        """
        mean, scale, location, rate_left, rate_right = same_rank(mean, scale, *self)
        kink = (location - mean) / scale
        jump = rate_left + rate_right
        slope = rate_right * ndtr(-kink) - rate_left * ndtr(kink)
        return slope, jump * jnp.exp(-(kink**2) / 2) / (SQRT_TWO_PI * scale)

    def smoothed(self, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """The Moreau envelope of a step of one squared scale, and its slope.

        That is one over the square of the larger rate: the kink is rounded off over about the width
        of the prior.
        """
        rate = jnp.maximum(self.rate_left, self.rate_right)
        step_size = jnp.where(rate > 0, 1 / jnp.where(rate > 0, rate, 1.0) ** 2, 1.0)
        x, step_size = same_rank(x, step_size)
        nearest = self.prox(x, step_size)
        envelope = self.potential(nearest) + (x - nearest) ** 2 / (2 * step_size)
        return envelope, self.moreau_gradient(x, step_size)

    def scaled(self, scale: ArrayLike) -> "LaplacePrior":
        """The same prior in the coordinates ``x / scale``, ``scale > 0``."""
        scale, location, rate_left, rate_right = same_rank(scale, *self)
        return LaplacePrior(location / scale, rate_left * scale, rate_right * scale)

    def tempered(self, inverse_temperature: ArrayLike) -> "LaplacePrior":
        """The prior whose potential is ``inverse_temperature`` >= 0 times this one."""
        beta, location, rate_left, rate_right = same_rank(inverse_temperature, *self)
        return LaplacePrior(location, rate_left * beta, rate_right * beta)

    def log_mass(self) -> jax.Array:
        """Log of the integral of ``exp(-potential)``, infinite where a rate is 0."""
        return jnp.log(1 / self.rate_left + 1 / self.rate_right)

    def log_normalizer(
        self,
        y: ArrayLike,
        prox_time: ArrayLike,
        inverse_temperature: ArrayLike = 1.0,
        *,
        method: Literal["exact", "laplace"] = "exact",
    ) -> jax.Array:
        r"""Log of :math:`Z(y) = \int \exp\{-\tfrac\beta2 [g(x) + (x-y)^2/(2T)]\} dx`.

        ``"exact"`` is this integral. ``"laplace"`` is the Laplace approximation in the authors'
        code, minus :math:`\tfrac\beta2` times the bracket of the integrand at the proximal point.
        They drop the constant; here :math:`\log\sqrt{4\pi T/\beta}` is kept, so that the two
        methods agree as the rates go to 0.

        Args:
            y: Kernel centers, (..., dim).
            prox_time: :math:`T`.
            inverse_temperature: :math:`\beta`.
            method: ``"exact"`` or ``"laplace"``.

        Returns:
            Log normalizers per coordinate, including all constants.

        Raises:
            ValueError: If ``method`` is neither ``"exact"`` nor ``"laplace"``.
        """
        if method not in ("exact", "laplace"):
            raise ValueError(f"`method` must be 'exact' or 'laplace'; got {method!r}.")
        scale, offset, left, right = self.standardize(y, prox_time, inverse_temperature)
        if method == "laplace":
            return jnp.log(scale * SQRT_TWO_PI) - envelope(offset, left, right)
        return jnp.log(scale) + log_integral(offset, left, right)

    def log_prob(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, inverse_temperature: ArrayLike = 1.0
    ) -> jax.Array:
        r"""Normalized log density :math:`\log K(x, y)` per coordinate; integrates to 1 over ``x``.

        Args:
            x: Points at which to evaluate, (..., dim), broadcast against ``y``.
            y: Kernel centers, (..., dim).
            prox_time: :math:`T`.
            inverse_temperature: :math:`\beta`.

        Returns:
            Logs of the densities, which are in one over position units.
        """
        return self._distribution(x, y, prox_time, inverse_temperature)[0]

    def cdf(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, inverse_temperature: ArrayLike = 1.0
    ) -> jax.Array:
        """Kernel probability of ``(-inf, x]`` per coordinate; arguments as in :meth:`log_prob`."""
        return jnp.exp(self.log_cdf(x, y, prox_time, inverse_temperature))

    def log_cdf(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, inverse_temperature: ArrayLike = 1.0
    ) -> jax.Array:
        """Log of :meth:`cdf`, accurate in the left tail except at the foot of a steep kink."""
        return self._distribution(x, y, prox_time, inverse_temperature)[1]

    def log_survival(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, inverse_temperature: ArrayLike = 1.0
    ) -> jax.Array:
        """Log of ``1 - cdf``, accurate in the right tail except at the foot of a steep kink."""
        return self._distribution(x, y, prox_time, inverse_temperature)[2]

    def sample(
        self,
        rng_key: jax.Array,
        y: ArrayLike,
        prox_time: ArrayLike,
        inverse_temperature: ArrayLike = 1.0,
    ) -> jax.Array:
        """One exact draw from the kernel ``K(., y)`` per center: first its side, then its distance.

        Args:
            rng_key: A PRNG key.
            y: Kernel centers, (..., dim).
            prox_time: Proximal time T.
            inverse_temperature: Inverse temperature beta.

        Returns:
            Draws in the broadcast shape of ``y``, the fields and the parameters.
        """
        scale, offset, left, right = self.standardize(y, prox_time, inverse_temperature)
        mass_left, mass_right, _ = masses(left + offset, right - offset)
        shape = (2, *jnp.broadcast_shapes(scale.shape, mass_left.shape))
        side, level = jax.random.uniform(rng_key, shape, mass_left.dtype)
        # Centers of the generator's cells are used, so that p and 1 - p are exact and never 0.
        half_cell = 0.5 * np.finfo(mass_left.dtype).eps
        is_left = (side + half_cell) * (mass_left + mass_right) < mass_left
        t = jnp.where(is_left, left + offset, right - offset)
        distance = scale * quantile(t, level + half_cell)
        location, distance = same_rank(self.location, jnp.where(is_left, -distance, distance))
        return location + distance

    def hamiltonian_flow(
        self, x: ArrayLike, p: ArrayLike, time: ArrayLike
    ) -> tuple[jax.Array, jax.Array]:
        """Exact motion of unit masses in the prior's potential, ``H = p^2/2 + potential(x)``.

        The energy is conserved up to rounding for any number of periods; the phase loses digits in
        proportion to that number.

        Args:
            x: Positions, (..., dim).
            p: Momenta, in position units over time units.
            time: Duration; if negative, the motion runs backward.

        Returns:
            Positions and momenta after ``time``.
        """
        return move_past_kink(*same_rank(x, p, time, *self))

    def standardize(
        self, y: ArrayLike, prox_time: ArrayLike, inverse_temperature: ArrayLike
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The scale s and, in its units, the offset u and the two rates alpha."""
        y, prox_time, beta, location, rate_left, rate_right = same_rank(
            y, prox_time, inverse_temperature, *self
        )
        scale = jnp.sqrt(2 * prox_time / beta)
        half = 0.5 * beta * scale
        return scale, (y - location) / scale, half * rate_left, half * rate_right

    def _distribution(
        self, x: ArrayLike, y: ArrayLike, prox_time: ArrayLike, inverse_temperature: ArrayLike
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logs of the kernel's density, distribution function and survival function at ``x``."""
        x, y, prox_time, inverse_temperature, *fields = same_rank(
            x, y, prox_time, inverse_temperature, *self
        )
        prior = LaplacePrior(*fields)
        scale, offset, left, right = prior.standardize(y, prox_time, inverse_temperature)
        z, shift = (x - prior.location) / scale, (x - y) / scale
        log_prob, log_cdf, log_survival = log_distribution(z, shift, offset, left, right)
        return log_prob - jnp.log(scale), log_cdf, log_survival


def no_prior(dim: int, dtype: DTypeLike) -> LaplacePrior:
    """The flat prior: rates 0, fields (dim,)."""
    zero = jnp.zeros(dim, dtype)
    return LaplacePrior(zero, zero, zero)


def laplace_prior(
    rate: ArrayLike, location: ArrayLike = 0.0, *, rate_left: ArrayLike | None = None
) -> LaplacePrior:
    """Build a Laplace prior, with all checks that are possible before tracing.

    Args:
        rate: One over the scale of the Laplace density (to the right of ``location`` if
            ``rate_left`` is given), >= 0, scalar or (dim,). Zero means flat.
        location: The kink, scalar or (dim,).
        rate_left: Rate to the left of ``location``; ``None`` makes the prior symmetric.

    Returns:
        The prior, whose fields are floating-point arrays.

    Raises:
        TypeError: If an argument is not a real number or array.
        ValueError: If a concrete rate is negative or not finite, a concrete location not finite, or
            the shapes do not broadcast.

    Example:
        >>> float(laplace_prior(2.0).prox(1.5, step_size=0.5))
        0.5
    """
    right = _checked("rate", rate, is_rate=True)
    left = right if rate_left is None else _checked("rate_left", rate_left, is_rate=True)
    kink = _checked("location", location, is_rate=False)
    try:
        jnp.broadcast_shapes(left.shape, right.shape, kink.shape)
    except ValueError as error:
        raise ValueError(
            "`rate`, `location` and `rate_left` must have shapes that broadcast; "
            f"got {right.shape}, {kink.shape} and {left.shape}."
        ) from error
    return LaplacePrior(location=kink, rate_left=left, rate_right=right)


def _checked(name: str, value: ArrayLike, *, is_rate: bool) -> jax.Array:
    if not isinstance(value, jax.core.Tracer):
        concrete = np.asarray(value)
        if concrete.dtype.kind not in "iuf":
            raise TypeError(f"`{name}` must be a real number or array; got {value!r}.")
        if not np.isfinite(concrete).all():
            raise ValueError(f"`{name}` must be finite; got {value!r}.")
        if is_rate and (concrete < 0).any():
            raise ValueError(f"`{name}` must be >= 0: it is one over the scale; got {value!r}.")
    return jnp.asarray(value, jnp.result_type(float, value))
