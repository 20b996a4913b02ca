r"""The nuclear norm as a prior of matrices of low rank.

.. math:: p(X) = \frac{1}{Z_{r,c}\, s^{rc}} e^{-\|X\|_* / s}

for matrices of r rows and c columns, with the sum of the singular values in the exponent. The mode
of a posterior with normal noise is the matrix completion of Mazumder, Hastie and Tibshirani (2010),
J. Mach. Learn. Res. 11. :math:`Z` is known to all digits, see
:mod:`numpyro_rwpo.distributions.singular_values`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from numpyro_rwpo.distributions.singular_values import draw_singular_values, log_normalizer
from numpyro_rwpo.distributions.structured import (
    StructuredDistribution,
    check_event,
    checked_scale,
    checked_size,
)
from numpyro_rwpo.priors.nuclear import nuclear_norm


class NuclearNorm(StructuredDistribution):
    r"""Density proportional to ``scale^-(rows * columns) exp(-nuclear norm / scale)`` of matrices.

    It favors matrices of which few singular values are large. The directions of rows and columns
    are uniform. No singular value is exactly zero; a priori, their sum is about
    ``rows * columns * scale``.

    Args:
        scale: Scale > 0 in the units of the entries; its shape is the batch's.
        shape: Rows and columns of the matrix.
        validate_args: As for any NumPyro distribution.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a concrete scale is not positive, or ``shape`` is not that of a matrix.

    Example:
        >>> NuclearNorm(0.5, (20, 15)).shape()
        (20, 15)
    """

    support = constraints.real_matrix
    pytree_data_fields = ("scale",)

    def __init__(
        self, scale: Any, shape: tuple[int, int], *, validate_args: bool | None = None
    ) -> None:
        self.scale = checked_scale("scale", scale)
        if not isinstance(shape, tuple | list) or len(shape) != 2:
            raise ValueError(f"`shape` must be (rows, columns) of a matrix; got {shape!r}.")
        event_shape = tuple(checked_size("shape", n, 1) for n in shape)
        super().__init__(self.scale.shape, event_shape, validate_args=validate_args)

    def standard(self, scale: Any) -> "NuclearNorm":
        """See :class:`StructuredDistribution`."""
        return NuclearNorm(scale, self.event_shape)

    def coordinate_scale(self) -> jax.Array:
        """See :class:`StructuredDistribution`."""
        return jnp.broadcast_to(jnp.asarray(self.scale)[..., None, None], self.shape())

    @validate_sample  # type: ignore[untyped-decorator]
    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density of matrices (..., rows, columns), (...).

        Its gradient is a subgradient everywhere, also where singular values are 0 or coincide.
        """
        check_event("NuclearNorm", value, self.event_shape)
        rows, columns = self.event_shape
        norm = nuclear_norm(jnp.asarray(value, jnp.result_type(float, value)))
        shape = jnp.broadcast_shapes(norm.shape, self.batch_shape)
        norm, scale = jnp.broadcast_to(norm, shape), jnp.broadcast_to(self.scale, shape)
        return -norm / scale - rows * columns * jnp.log(scale) - log_normalizer(rows, columns)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Singular values of :func:`draw_singular_values`, and uniform singular vectors."""
        shape, dtype = self.shape(sample_shape), jnp.asarray(self.scale).dtype
        rows, columns = self.event_shape
        keys = random.split(key, 3)
        s = draw_singular_values(keys[0], shape[:-2], rows, columns, dtype)
        left = _orthonormal(keys[1], (*shape[:-1], s.shape[-1]), dtype)
        right = _orthonormal(keys[2], (*shape[:-2], columns, s.shape[-1]), dtype)
        draws = (left * s[..., None, :]) @ jnp.swapaxes(right, -1, -2)
        return jnp.broadcast_to(self.coordinate_scale(), shape) * draws

    @property
    def mean(self) -> jax.Array:
        """Mean, 0."""
        return jnp.zeros(self.shape())


def _orthonormal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Matrices with uniformly distributed orthonormal columns."""
    q, r = jnp.linalg.qr(random.normal(key, shape, dtype))
    # Without these signs, the columns of a decomposition are not uniform (Mezzadri 2007).
    return q * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
