r"""Laplace distributions of differences along a line: fused lasso and trend filtering.

The density of a vector x of n values is

.. math:: p(x) = p_0(x_0, \Delta x_0, ..., \Delta^{k-1} x_0)
    \prod_{i=1}^{n-k} \frac{1}{2 s} e^{-|\Delta^k x_i| / s},

with differences of order k: the posterior mode is the fused lasso for k = 1 (Tibshirani, Saunders,
Rosset, Zhu and Knight 2005, J. R. Stat. Soc. B 67) and trend filtering for higher orders (Kim, Koh,
Boyd and Gorinevsky 2009, SIAM Review 51; Tibshirani 2014, Ann. Stat. 42). The start and the
differences are linear in x with determinant 1, and independent. The sampler therefore moves them
instead of x and follows their Laplace densities exactly.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import random
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_rwpo.distributions.structured import (
    StructuredDistribution,
    check_event,
    checked_scale,
    checked_size,
)
from numpyro_rwpo.priors.laplace import LaplacePrior
from numpyro_rwpo.support.broadcasting import same_rank

# The scale of a start without a prior, in the units of the vector. Its density is then constant in
# either precision, and its constant, which is arbitrary, is that of this scale.
FLAT_SCALE = 1e15


class Increments(dist.Distribution):
    """Independent Laplace coordinates: the start of a line and its differences.

    Args:
        scale: Scale of the differences, in the batch's shape.
        start_scale: Scale of each start coordinate, (order,).
        size: Number of coordinates.
    """

    arg_constraints = {"scale": constraints.positive, "start_scale": constraints.positive}
    support = constraints.real_vector
    pytree_data_fields = ("scale", "start_scale")

    def __init__(self, scale: Any, start_scale: Any, size: int) -> None:
        self.scale, self.start_scale = scale, start_scale
        super().__init__(jnp.shape(scale), (size,))

    @property
    def scales(self) -> jax.Array:
        """Scale of each coordinate, in the shape of the vector."""
        size = self.event_shape[0] - self.start_scale.shape[0]
        start = jnp.broadcast_to(self.start_scale, (*self.batch_shape, self.start_scale.shape[0]))
        rest = jnp.broadcast_to(jnp.asarray(self.scale)[..., None], (*self.batch_shape, size))
        return jnp.concatenate([start, rest.astype(start.dtype)], -1)

    @property
    def prior(self) -> LaplacePrior:
        """The potential with closed forms."""
        rate = 1 / self.scales
        return LaplacePrior(jnp.zeros_like(rate), rate, rate)

    @validate_sample  # type: ignore[untyped-decorator]
    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density, (...)."""
        value, scales = same_rank(value, self.scales)
        return -(jnp.abs(value) / scales + jnp.log(2 * scales)).sum(-1)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Exact draws."""
        shape, scales = self.shape(sample_shape), self.scales
        return jnp.broadcast_to(scales, shape) * random.laplace(key, shape, scales.dtype)


class FusedLaplace(StructuredDistribution):
    r"""Prior of a piecewise constant, linear, ... line: Laplace differences of neighbors.

    It is proper if ``start_scale`` is given; then the first value, and for higher orders its first
    differences up to order - 1, have Laplace priors. Otherwise the density is constant in them: it
    is improper, defined up to a constant, and cannot be sampled (:attr:`is_proper`).

    Args:
        scale: Scale > 0 of the differences, in the units of the vector; its shape is the batch's.
        size: Number of values, more than ``order``.
        order: 1 for lines that are constant in pieces, 2 for linear ones, ...
        start_scale: Scale > 0 of the first value and its differences, one number or ``order`` of
            them; ``None`` for none.
        validate_args: As for any NumPyro distribution.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a concrete scale is not positive, ``order`` is below 1 or ``size`` not above.

    Example:
        >>> FusedLaplace(0.1, 100, start_scale=2.0).shape()
        (100,)
    """

    arg_constraints = {"scale": constraints.positive}
    pytree_data_fields = ("scale", "start_scale")
    pytree_aux_fields = ("order", "is_proper")

    def __init__(
        self,
        scale: Any,
        size: int,
        order: int = 1,
        *,
        start_scale: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        self.order = checked_size("order", order, 1)
        size = checked_size("size", size, self.order + 1)
        self.scale = checked_scale("scale", scale)
        self.is_proper = start_scale is not None
        start = checked_scale("start_scale", start_scale if self.is_proper else FLAT_SCALE)
        if start.shape not in ((), (self.order,)):
            raise ValueError(
                f"`start_scale` must be one number or {self.order}, one for the first value and "
                f"each of its differences below the order; got shape {start.shape}."
            )
        self.start_scale = jnp.broadcast_to(start, (self.order,))
        super().__init__(self.scale.shape, (size,), validate_args=validate_args)

    def standard(self, scale: Any) -> Increments:
        """See :class:`StructuredDistribution`."""
        return Increments(scale, self.start_scale, self.event_shape[0])

    def coordinate_scale(self) -> jax.Array:
        """See :class:`StructuredDistribution`; the start is left in its own units."""
        ones = jnp.ones_like(self.start_scale)
        return Increments(self.scale, ones, self.event_shape[0]).scales

    def to_vector(self, coordinates: jax.Array) -> jax.Array:
        """The line of a start and differences: sums of sums."""
        line = coordinates[..., self.order :]
        for k in reversed(range(self.order)):
            start = coordinates[..., k, None]
            line = jnp.concatenate([start, start + jnp.cumsum(line, -1)], -1)
        return line

    def to_coordinates(self, vector: jax.Array) -> jax.Array:
        """Start and differences of a line."""
        start = []
        for _ in range(self.order):
            start.append(vector[..., :1])
            vector = jnp.diff(vector, axis=-1)
        return jnp.concatenate([*start, vector], -1)

    @validate_sample  # type: ignore[untyped-decorator]
    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of lines (..., size), (...); up to a constant if it is improper."""
        check_event("FusedLaplace", value, self.event_shape)
        return self.standard(self.scale).log_prob(self.to_coordinates(value))

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Exact draws of a proper distribution.

        Raises:
            NotImplementedError: If it is improper.
        """
        if not self.is_proper:
            raise NotImplementedError(
                "FusedLaplace without `start_scale` is improper: the level of the line has no "
                "prior, so that there is nothing to draw. Give a `start_scale`."
            )
        return self.to_vector(self.standard(self.scale).sample(key, sample_shape))
