r"""Factors A of a metric G = A A^T in three forms, and the maps to and from whitened coordinates.

- *dense*, (dim, dim);
- *diagonal*, (dim,);
- *low rank*, :class:`LowRank`: diagonal but for a few directions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.support.broadcasting import same_rank


class LowRank(NamedTuple):
    r"""A diagonal factor times one that differs from the identity in a few directions only.

    With scale s, directions U and core C, it is
    :math:`A = \operatorname{diag}(s) \, (I + U (C - I) U^\top)`. As the inverse of a factor, it
    stands for :math:`(I + U (C - I) U^\top) \operatorname{diag}(s)`, in which the scale is applied
    first.

    Attributes:
        scale: s, (dim,).
        directions: U, with orthonormal columns, (dim, rank).
        core: C, (rank, rank).
    """

    scale: jax.Array
    directions: jax.Array
    core: jax.Array

    def turned(self, x: jax.Array, core: jax.Array) -> jax.Array:
        """Vectors (..., dim) times (I + U (core - I) U^T)^T."""
        along = x @ self.directions
        return x + (along @ core.T - along) @ self.directions.T


Factor = jax.Array | LowRank


def is_diagonal(factor: Factor) -> bool:
    """Whether a factor has the diagonal form."""
    return not isinstance(factor, LowRank) and factor.ndim == 1


def diagonal_like(factor: Factor, scale: jax.Array) -> Factor:
    """The diagonal factor of ``scale`` (dim,), in the form of another factor."""
    if isinstance(factor, LowRank):
        return LowRank(scale, factor.directions, jnp.eye(factor.core.shape[0], dtype=scale.dtype))
    return scale if factor.ndim == 1 else jnp.diag(scale)


def squared(factor: Factor) -> Factor:
    """A A^T in the form of A; for a :class:`LowRank`, the scale is then applied on both sides."""
    if isinstance(factor, LowRank):
        return factor._replace(core=factor.core @ factor.core.T)
    return factor**2 if factor.ndim == 1 else factor @ factor.T


def _times(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Vectors (..., dim) times a diagonal matrix (dim,)."""
    x, scale = same_rank(x, scale)
    return x * scale


def times_squared(square: Factor, x: jax.Array) -> jax.Array:
    """Vectors (..., dim) times a matrix that :func:`squared` returned."""
    if isinstance(square, LowRank):
        return _times(square.turned(_times(x, square.scale), square.core), square.scale)
    return _times(x, square) if square.ndim == 1 else x @ square


def to_position(factor: Factor, whitened: jax.Array) -> jax.Array:
    """Map whitened vectors (..., dim) to position units: A w."""
    if isinstance(factor, LowRank):
        return _times(factor.turned(whitened, factor.core), factor.scale)
    return _times(whitened, factor) if factor.ndim == 1 else whitened @ factor.T


def to_whitened(inverse: Factor, position: jax.Array) -> jax.Array:
    """Map vectors in position units (..., dim) to whitened coordinates: w = A^-1 x."""
    if isinstance(inverse, LowRank):
        return inverse.turned(_times(position, inverse.scale), inverse.core)
    return _times(position, inverse) if inverse.ndim == 1 else position @ inverse.T


def to_whitened_gradient(factor: Factor, gradient: jax.Array) -> jax.Array:
    """Map gradients (..., dim) to whitened coordinates: A^T g."""
    if isinstance(factor, LowRank):
        return factor.turned(_times(gradient, factor.scale), factor.core.T)
    return _times(gradient, factor) if factor.ndim == 1 else gradient @ factor
