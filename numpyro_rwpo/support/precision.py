"""Matrix products in full precision, on accelerators that would round their factors.

GPUs since Ampere round the factors of single-precision products to ten bits of mantissa (TF32),
TPUs to seven (bfloat16), unless told otherwise. An acceptance probability needs differences of
potentials to be right, and leapfrog steps need products with a matrix and with its inverse to undo
each other.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Trace in full precision, the user's model included, unless the user chose a precision."""

    @wraps(function)
    def precise(*args: P.args, **kwargs: P.kwargs) -> R:
        chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        with jax.default_matmul_precision("highest" if chosen is None else chosen):
            return function(*args, **kwargs)

    return precise
