"""Checks of the flows' arguments."""

import numbers
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from numpyro_rwpo.arguments import check_choice
from numpyro_rwpo.attention import HEADS


def check_count(name: str, value: Any) -> None:
    """Raise unless ``value`` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer; got {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1; got {value}.")


def check_layer_choice(attention: Any, learn: Iterable[str], learnable: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless head and learnt quantities are known ones."""
    check_choice("attention", attention, tuple(HEADS))
    if isinstance(learn, str) or not set(learn) <= set(learnable):
        raise ValueError(f"`learn` must be a tuple of names among {learnable}; got {learn!r}.")


def checked_row(name: str, value: ArrayLike, dim: int, *, is_positive: bool = False) -> np.ndarray:
    """``value`` as a row of floats (dim,); raise unless finite and, if asked, positive."""
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
