"""Checks of the arguments of flows."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_rwpo.heads.registry import BUILT_IN_HEADS
from numpyro_rwpo.support.checks import check_choice


def check_count(name: str, value: Any) -> None:
    """Raise unless ``value`` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer; got {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1; got {value}.")


def check_weight(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number; got {value!r}.")
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"`{name}` must be >= 0 and finite; got {value!r}.")


def check_layer_choice(attention: Any, learn: Iterable[str], learnable: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless head and learned quantities are known ones."""
    check_choice("attention", attention, tuple(BUILT_IN_HEADS))
    if isinstance(learn, str) or not set(learn) <= set(learnable):
        raise ValueError(f"`learn` must be a tuple of names among {learnable}; got {learn!r}.")


def checked_row(name: str, value: ArrayLike, dim: int, *, is_positive: bool = False) -> np.ndarray:
    """``value`` as a row of floats (dim,); raise unless finite and, if requested, positive."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must be a real number or array; got {value!r}.")
    if array.shape not in ((), (dim,)):
        raise ValueError(
            f"`{name}` must be a scalar or have shape (dim,) = ({dim},); got shape {array.shape}."
        )
    if not np.isfinite(array).all() or (is_positive and (array <= 0).any()):
        kind = "positive and finite" if is_positive else "finite"
        raise ValueError(f"`{name}` must be {kind}; got {value!r}.")
    return np.broadcast_to(array, (dim,)).astype(jnp.result_type(float))


def checked_particles(name: str, value: ArrayLike, dim: int, dtype: Any) -> jax.Array:
    """``value`` as an array (num_particles, dim); raise ``ValueError`` if it has another shape."""
    particles = jnp.asarray(value, dtype)
    if particles.ndim != 2 or particles.shape[1] != dim or particles.shape[0] == 0:
        raise ValueError(f"`{name}` must have shape (num_particles, {dim}); got {particles.shape}.")
    return particles


def checked_points(value: ArrayLike, dim: int) -> jax.Array:
    """``value`` as an array (..., dim); raise ``ValueError`` if its last axis is not ``dim``."""
    points = jnp.asarray(value)
    if points.ndim == 0 or points.shape[-1] != dim:
        raise ValueError(f"`x` must have shape (..., {dim}); got {points.shape}.")
    return points
