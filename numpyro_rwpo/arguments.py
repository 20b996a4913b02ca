"""Checks of public arguments: what was wrong, what was received, what to do."""

from typing import Any


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices`` (same type, too)."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        options = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {options}; got {value!r}.")


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Raise unless ``value`` is a number strictly between ``low`` and ``high``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a number; got {value!r}.") from None
    if not low < number < high:
        raise ValueError(f"`{name}` must lie strictly between {low} and {high}; got {value!r}.")


def check_num_particles(value: Any) -> None:
    """Raise unless ``value`` is ``None`` or an integer of at least 4."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`num_particles` must be an integer or None; got {value!r}.")
    if value < 4:
        raise ValueError(
            f"`num_particles` must be at least 4; got {value}. The ensemble's moments tune the "
            "sampler; leave it None to have a number picked from the dimension."
        )
