r"""Laplace distributions of groups of coordinates: group lasso and sparse group lasso.

The density of a group of d coordinates is

.. math:: p(x) = \frac{1}{Z_d\, s^d} \exp\Bigl\{-\frac{(1 - a) |x|_2 + a |x|_1}{s}\Bigr\},

with a = 0 for :class:`GroupLaplace` (the prior whose posterior mode is the group lasso, Yuan and
Lin 2006, J. R. Stat. Soc. B 68). There :math:`Z_d = 2 \pi^{d/2} \Gamma(d) / \Gamma(d/2)`: the norm
has a Gamma distribution of shape d and scale s, and the direction is uniform. For the sparse group
lasso (Simon, Friedman, Hastie and Tibshirani 2013, J. Comput. Graph. Stat. 22), :math:`Z_d` is one
integral.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import random
from numpyro.distributions.util import validate_sample
from scipy.special import erfcx, logsumexp

from numpyro_rwpo.distributions.structured import (
    StructuredDistribution,
    check_event,
    checked_scale,
    checked_size,
)
from numpyro_rwpo.priors.group import GroupPrior
from numpyro_rwpo.priors.partition import Labels, group_sizes, group_sums, labels_of
from numpyro_rwpo.support.broadcasting import same_rank


@lru_cache(maxsize=1024)
def log_normalizer(size: int, l1_ratio: float) -> float:
    r"""Log of the integral of ``exp(-(1 - a) |x|_2 - a |x|_1)`` over a group, log Z.

    Args:
        size: Number of coordinates.
        l1_ratio: a, in [0, 1].
    """
    if l1_ratio == 0.0:
        sphere = math.log(2) + size / 2 * math.log(math.pi) - math.lgamma(size / 2)
        return sphere + math.lgamma(size)
    if l1_ratio == 1.0:
        return size * math.log(2)
    # The mixture of numpyro_rwpo.priors.mixture, by the trapezoidal rule in t = log u. The peak has
    # a width of at least one over the root of u, which is of the order of the size.
    t = np.linspace(-80.0, math.log(40.0 + 10 * size), int(4000 * math.sqrt(size)))
    u = np.exp(t)
    weight = 1 - l1_ratio
    half_line = np.log(np.pi * u) / 2 + np.log(erfcx(l1_ratio * np.sqrt(u) / weight) / weight)
    log_integrand = 0.5 * t - u - 0.5 * math.log(math.pi) + size * (math.log(2) + half_line)
    return float(logsumexp(log_integrand) + math.log(t[1] - t[0]))


class _GroupDistribution(StructuredDistribution):
    """What group lasso and sparse group lasso share.

    Attributes:
        scale: With ``dim``, in the batch's shape; with ``groups``, (..., groups).
        labels: Group of each coordinate.
        l1_ratio: Share of the L1 norm.
        by_group: Whether the last axis of ``scale`` has one entry for each group.
    """

    pytree_data_fields = ("scale",)
    pytree_aux_fields = ("labels", "l1_ratio", "by_group")

    def __init__(
        self,
        scale: Any,
        dim: int | None,
        groups: Sequence[Sequence[int]] | None,
        l1_ratio: float,
        validate_args: bool | None,
    ) -> None:
        name = type(self).__name__
        if (dim is None) == (groups is None):
            raise ValueError(f"{name} needs either `dim` or `groups`; got {dim!r} and {groups!r}.")
        scale = checked_scale("scale", scale)
        if groups is None:
            labels: Labels = (0,) * checked_size("dim", dim, 1)
        else:
            labels = labels_of(groups)
            number = max(labels) + 1
            scale = scale[None] if scale.ndim == 0 else scale
            if scale.shape[-1] not in (1, number):
                raise ValueError(
                    f"With `groups`, the last axis of `scale` must have one entry or one for each "
                    f"of the {number} groups; got shape {scale.shape}."
                )
            scale = jnp.broadcast_to(scale, (*scale.shape[:-1], number))
        _set_up(self, scale, labels, l1_ratio, groups is not None, validate_args)

    def standard(self, scale: Any) -> Self:
        """See :class:`StructuredDistribution`."""
        new = object.__new__(type(self))
        _set_up(new, scale, self.labels, self.l1_ratio, self.by_group)
        return new

    def coordinate_scale(self) -> jax.Array:
        """See :class:`StructuredDistribution`."""
        if self.by_group:
            return self.scale[..., np.asarray(self.labels)]
        return jnp.broadcast_to(jnp.asarray(self.scale)[..., None], self.shape())

    @property
    def prior(self) -> GroupPrior:
        """The potential with closed forms."""
        rate = 1 / self.coordinate_scale()
        l1_rate = None if self.l1_ratio == 0.0 else self.l1_ratio * rate
        return GroupPrior(jnp.zeros_like(rate), (1 - self.l1_ratio) * rate, l1_rate, self.labels)

    @validate_sample  # type: ignore[untyped-decorator]
    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of vectors (..., dim), with its dependence on the scale, (...)."""
        check_event(type(self).__name__, value, self.event_shape)
        sizes = np.bincount(self.labels)
        constant = sum(log_normalizer(int(size), self.l1_ratio) for size in sizes)
        _, scale = same_rank(value, self.coordinate_scale())
        return -(self.prior.potential(value) + jnp.log(scale)).sum(-1) - constant


def _set_up(
    distribution: _GroupDistribution,
    scale: Any,
    labels: Labels,
    l1_ratio: float,
    by_group: bool,
    validate_args: Any = None,
) -> None:
    """Give a distribution its attributes, all of them checked."""
    distribution.scale, distribution.labels = scale, labels
    distribution.l1_ratio, distribution.by_group = l1_ratio, by_group
    batch_shape = jnp.shape(scale)[:-1] if by_group else jnp.shape(scale)
    dist.Distribution.__init__(
        distribution, batch_shape, (len(labels),), validate_args=validate_args
    )


class GroupLaplace(_GroupDistribution):
    r"""Group lasso prior, density proportional to ``scale^-d exp(-|x|_2 / scale)`` for each group.

    A group is either near 0 as a whole or free as a whole. Marginally, a coordinate's density is
    rounder at its peak than a Laplace density. Yuan and Lin's penalty gives larger groups a larger
    rate: ``scale = tau / sqrt(size of the group)``.

    Args:
        scale: Scale > 0, in the units of the vector. With ``dim`` its shape is the batch shape, and
            with ``groups``, the last axis has one entry for each group or one for all.
        dim: Number of coordinates, which form one group.
        groups: Instead of ``dim``, a partition of the coordinates: lists of numbers from 0 on.
        validate_args: As for any NumPyro distribution.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a concrete scale is not positive, the groups are no partition, or the shape
            of the scale does not fit the groups.

    Example:
        >>> GroupLaplace(1.0, 3).shape()
        (3,)
        >>> GroupLaplace(0.5, groups=[[0, 2], [1]]).expand([4]).shape()
        (4, 3)
    """

    def __init__(
        self,
        scale: Any = 1.0,
        dim: int | None = None,
        *,
        groups: Sequence[Sequence[int]] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(scale, dim, groups, 0.0, validate_args)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Exact draws: a Gamma radius times a uniform direction for each group."""
        shape = self.shape(sample_shape)
        key_direction, key_radius = random.split(key)
        scale = self.coordinate_scale()
        normal = random.normal(key_direction, shape, scale.dtype)
        length = jnp.sqrt(group_sums(normal**2, self.labels))
        sizes = jnp.asarray(group_sizes(self.labels), scale.dtype)
        radius = random.gamma(key_radius, jnp.broadcast_to(sizes, shape), dtype=scale.dtype)
        _, first, inverse = np.unique(self.labels, return_index=True, return_inverse=True)
        scale = jnp.broadcast_to(scale, shape)
        return scale * radius[..., first[inverse]] * normal / length

    @property
    def mean(self) -> jax.Array:
        """Mean, 0."""
        return jnp.zeros(self.shape())

    @property
    def variance(self) -> jax.Array:
        """Variance of each coordinate, ``scale^2 (d + 1)`` in a group of d."""
        sizes = jnp.asarray(group_sizes(self.labels) + 1.0)
        return jnp.broadcast_to(sizes, self.shape()) * self.coordinate_scale() ** 2


class SparseGroupLaplace(_GroupDistribution):
    r"""Sparse group lasso prior: the norm of each group, and that of each coordinate.

    The density is proportional to ``scale^-d exp(-[(1 - a) |x|_2 + a |x|_1] / scale)``. Groups
    are selected, and coordinates within the groups that are not near 0.

    Args:
        scale: As for :class:`GroupLaplace`.
        dim: As for :class:`GroupLaplace`.
        groups: As for :class:`GroupLaplace`.
        l1_ratio: The share a of the L1 norm, in (0, 1), a Python number.
        validate_args: As for any NumPyro distribution.

    Raises:
        TypeError: As for :class:`GroupLaplace`.
        ValueError: As for :class:`GroupLaplace`, or if ``l1_ratio`` is not between 0 and 1.
    """

    def __init__(
        self,
        scale: Any = 1.0,
        dim: int | None = None,
        *,
        groups: Sequence[Sequence[int]] | None = None,
        l1_ratio: float = 0.5,
        validate_args: bool | None = None,
    ) -> None:
        if not (isinstance(l1_ratio, float | int) and 0 < l1_ratio < 1):
            raise ValueError(f"`l1_ratio` must be a number between 0 and 1; got {l1_ratio!r}.")
        super().__init__(scale, dim, groups, float(l1_ratio), validate_args)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws through the mixing variable of :mod:`numpyro_rwpo.priors.mixture`."""
        shape = self.shape(sample_shape)
        unit = self.standard(jnp.ones(jnp.shape(self.scale)[-1:] if self.by_group else ()))
        draws = unit.prior.sample_prior(key, shape[:-1])
        return jnp.broadcast_to(self.coordinate_scale(), shape) * draws
