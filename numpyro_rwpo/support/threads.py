"""Several runs in several threads: models are traced by one of them at a time.

NumPyro keeps its effect handlers on one stack for all threads: two models that are traced at once
see each other's sites. Compiling and running need no lock.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_TRACING = threading.RLock()
P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Let one thread at a time into the functions so marked; it may call others inside."""

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _TRACING:
            return function(*args, **kwargs)

    return alone
