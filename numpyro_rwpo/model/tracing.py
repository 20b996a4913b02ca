"""Traces of a NumPyro model, and properties of the sites in them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.initialization import init_to_uniform
from numpyro.primitives import Messenger

Model = Callable[..., Any]
T = TypeVar("T")
# The key in a site's `infer` under which `mark_direct` stores the name of the site.
_DIRECT = "_rwpo_direct"


class default_key(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Give a fixed key to every call of ``numpyro.prng_key`` in the model."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Set the key."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            msg["value"] = jax.random.key(0)


class mark_direct(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Mark the sites that the model itself samples, with the names that it gives them.

    NumPyro's ``scan`` and ``cond`` send the sites inside them a second time, with their values.
    Such sites cannot be rewritten, and neither can sites that a handler around the whole run
    renames.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        """Mark a site that has no value yet."""
        if msg["type"] == "sample" and msg["value"] is None:
            msg["infer"] = {**msg["infer"], _DIRECT: msg["name"]}


def trace_model(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The trace of a model whose latent sites have some valid values."""
    # `init_to_uniform` also gives values to improper sites, which cannot be sampled.
    started = handlers.substitute(
        handlers.seed(mark_direct(default_key(model)), 0), substitute_fn=init_to_uniform()
    )
    return handlers.trace(started).get_trace(*args, **kwargs)


def trace_at(
    model: Model, values: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The trace of a model at unconstrained values; its discrete sites have arbitrary values."""

    def constrained(site: dict[str, Any]) -> Any:
        if site["type"] != "sample" or site["name"] not in values:
            return None
        return biject_to(site["fn"].support)(values[site["name"]])

    started = handlers.substitute(handlers.seed(default_key(model), 0), substitute_fn=constrained)
    return handlers.trace(started).get_trace(*args, **kwargs)


def inspect_trace(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], read: Callable[[Any], T]
) -> T:
    """The result of ``read`` for the model's trace.

    The trace is abstract: its arrays have shapes and types, but nothing is computed.
    """
    found: list[T] = []
    jax.eval_shape(lambda: found.append(read(trace_model(model, args, kwargs))))
    return found[0]


def is_sampled(site: dict[str, Any]) -> bool:
    """Whether a site of a trace is sampled and not observed."""
    return site["type"] == "sample" and not site["is_observed"]


def is_discrete(site: dict[str, Any]) -> bool:
    """Whether a site of a trace is sampled, not observed, and discrete."""
    return is_sampled(site) and bool(site["fn"].support.is_discrete)


def is_latent(site: dict[str, Any]) -> bool:
    """Whether a site of a trace is sampled, not observed, and continuous."""
    return is_sampled(site) and not is_discrete(site)


def is_direct(name: str, site: dict[str, Any]) -> bool:
    """Whether the model itself samples a site that has this name in the trace."""
    return bool(site["infer"].get(_DIRECT) == name)


def site_shape(site: dict[str, Any]) -> tuple[int, ...]:
    """Shape of a sample site's value according to its distribution and ``sample_shape``."""
    shape: tuple[int, ...] = tuple(site["kwargs"].get("sample_shape", ())) + site["fn"].shape()
    return shape
