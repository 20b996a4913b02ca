"""Matrix products in full precision on accelerators that would round the factors.

Unless told otherwise, GPUs since Ampere round the factors of single-precision products to ten bits
of mantissa (TF32), and TPUs to seven (bfloat16). But acceptance probabilities need accurate
differences of potentials, and leapfrog steps need products with a matrix and with its inverse to
cancel each other.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Trace in full precision, including the user's model, unless the user chose a precision."""

    @wraps(function)
    def precise(*args: P.args, **kwargs: P.kwargs) -> R:
        chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        with jax.default_matmul_precision("highest" if chosen is None else chosen):
            return function(*args, **kwargs)

    return precise
