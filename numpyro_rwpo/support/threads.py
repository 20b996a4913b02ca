"""Runs in several threads: only one thread at a time traces a model.

NumPyro keeps its effect handlers on one stack for all threads, so two models that are traced at the
same time would see each other's sites. Compiling and running need no lock.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

_TRACING = threading.RLock()
P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """Allow only one thread at a time to execute the decorated functions, which may be nested."""

    @wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _TRACING:
            return function(*args, **kwargs)

    return alone
