"""Old public names: for one release they still work, with a warning that says what to write."""

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from numpyro_rwpo.support.checks import check_choice

P = ParamSpec("P")
R = TypeVar("R")


def _warn(change: str, num_calls: int = 1) -> None:
    """Warn at the line that is this number of calls above the caller."""
    message = f"{change}; the old name will be removed in the next release."
    warnings.warn(message, DeprecationWarning, stacklevel=2 + num_calls)


def renamed_names(module: str, names: Mapping[str, str], scope: Mapping[str, Any]) -> Any:
    """A ``__getattr__`` for a module some of whose names have changed.

    Args:
        module: Name of the module.
        names: New names by old ones.
        scope: The module's ``globals()``.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"`{module}.{name}` has been renamed to `{module}.{names[name]}`")
        return scope[names[name]]

    return find


class Renamed(NamedTuple):
    """What has become of an argument.

    Attributes:
        name: The new name.
        values: New values by old ones, ``None`` if the values are the same.
    """

    name: str
    values: Mapping[Any, Any] | None = None


def renamed_arguments(**arguments: Renamed) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of functions some of whose keyword arguments have changed their names.

    The signature remains that of the new names, so that to a type checker the old ones are errors.

    Args:
        arguments: What has become of the arguments, by their old names.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
            options: dict[str, Any] = kwargs
            for old in arguments.keys() & options.keys():
                _rename(options, old, arguments[old])
            return function(*args, **options)

        return renamed

    return decorate


def _rename(options: dict[str, Any], old: str, new: Renamed) -> None:
    """Give an option its new name, and its value too where this has changed.

    Raises:
        TypeError: The option is there under both names.
        ValueError: The value was never one of the old ones.
    """
    if new.name in options:
        raise TypeError(f"`{old}` has been renamed to `{new.name}`; got both. Leave `{old}` out.")
    value = options.pop(old)
    if new.values is None:
        options[new.name] = value
        _warn(f"`{old}` has been renamed to `{new.name}`", 2)
        return
    check_choice(old, value, tuple(new.values))
    options[new.name] = new.values[value]
    _warn(f"`{old}={value!r}` is written `{new.name}={new.values[value]!r}` now", 2)


def deprecated_property(read: Callable[[Any], Any], change: str) -> Any:
    """A property that will go.

    Args:
        read: Its value, of the object that has it.
        change: What to write instead: the beginning of the warning's sentence.
    """

    def warned(owner: Any) -> Any:
        _warn(change)
        return read(owner)

    return property(warned)
