"""Names of functions and classes, by which saved runs compare them."""

from functools import partial
from typing import Any


def qualified_name(thing: Any) -> str:
    """The name of a function or class with that of its module.

    A partial has the name of the function inside, and any other object that of its class.
    """
    if isinstance(thing, partial):
        return qualified_name(thing.func)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"
