"""Checks of public arguments; the errors say what was expected, what was received, what to do."""

import numbers
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices`` and of the same type."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        options = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {options}; got {value!r}.")


def check_range(name: str, value: Any, low: float, high: float) -> None:
    """Raise unless ``value`` is a number strictly between ``low`` and ``high``.

    A traced number, which has no value yet, passes if it is a real scalar.
    """
    if isinstance(value, jax.core.Tracer):
        if value.ndim or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"`{name}` must be a number; got {value!r}.")
        return
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a number; got {value!r}.") from None
    if not low < number < high:
        raise ValueError(f"`{name}` must lie strictly between {low} and {high}; got {value!r}.")
    if not 1e-18 < number < 1e18:
        raise ValueError(
            f"`{name}` must lie between 1e-18 and 1e+18, the range in which single precision can "
            f"square it; got {value!r}."
        )


def check_num_particles(value: Any) -> None:
    """Raise unless ``value`` is ``None`` or an integer of at least 4."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`num_particles` must be an integer or None; got {value!r}.")
    if value < 4:
        raise ValueError(
            f"`num_particles` must be at least 4; got {value}. The ensemble's moments tune the "
            "sampler; leave it None to have a number picked from the dimension."
        )
    most = 2**30  # Particles and their draws are counted by 32-bit integers.
    if int(value) > most:
        raise ValueError(
            f"`num_particles` must be at most {most}; got {value}. Draws of one chain may exceed "
            "the number of particles: leave it None."
        )


def check_target(model: Any, potential_fn: Any) -> None:
    """Raise unless exactly one of the two is given and it is callable."""
    if (model is None) == (potential_fn is None):
        raise ValueError(
            "Exactly one of `model` and `potential_fn` must be given; got "
            f"{'neither' if model is None else 'both'}."
        )
    for name, value in (("model", model), ("potential_fn", potential_fn)):
        if value is not None and not callable(value):
            raise TypeError(f"`{name}` must be callable; got {value!r}.")


def check_site_names(laplace_sites: Any) -> None:
    """Raise unless ``laplace_sites`` is ``"auto"``, ``None`` or site names."""
    if laplace_sites is None or (isinstance(laplace_sites, str) and laplace_sites == "auto"):
        return
    is_names = isinstance(laplace_sites, Iterable) and not isinstance(laplace_sites, (str, dict))
    if not is_names or not all(isinstance(name, str) for name in laplace_sites):
        raise ValueError(
            "`laplace_sites` must be 'auto', None or a list of names of Laplace sites when a model "
            f"is given; got {laplace_sites!r}."
        )


def check_init_strategy(value: Any) -> None:
    """Raise unless ``value`` can be one of NumPyro's per-site initialization strategies."""
    if not callable(value):
        raise TypeError(
            "`init_strategy` must be a strategy of numpyro.infer such as init_to_median or "
            f"init_to_value(values=...); got {value!r}."
        )


def check_rng_key(value: Any) -> None:
    """Raise unless ``value`` is a random key or a batch of them, one per chain."""
    is_old_style = isinstance(value, (jax.Array, np.ndarray)) and value.dtype == np.uint32
    is_new_style = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not (is_old_style or is_new_style):
        raise TypeError(
            "`rng_key` must be a key such as jax.random.key(0), or an array of keys, one per "
            f"chain; got {value!r}."
        )
