"""Traces of a NumPyro model, and what can be read off the sites in them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.initialization import init_to_uniform
from numpyro.primitives import Messenger

Model = Callable[..., Any]
T = TypeVar("T")
_DIRECT = "_rwpo_direct"  # key in `infer` under which a site holds its name, see `mark_direct`


class default_key(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Give a fixed key to whatever in the model asks for one (``numpyro.prng_key``)."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Set the key."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            msg["value"] = jax.random.key(0)


class mark_direct(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Mark the sites that the model itself samples, with the names that it gives them.

    NumPyro's ``scan`` and ``cond`` send the sites inside them once more, with their values: these
    cannot be rewritten. Nor can sites that a handler around the whole run renames.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        """Mark a site that comes without a value."""
        if msg["type"] == "sample" and msg["value"] is None:
            msg["infer"] = {**msg["infer"], _DIRECT: msg["name"]}


def trace_model(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The trace of a model whose latent sites have some valid values."""
    # init_to_uniform gives values to improper sites too, which cannot be sampled.
    started = handlers.substitute(
        handlers.seed(mark_direct(default_key(model)), 0), substitute_fn=init_to_uniform()
    )
    return handlers.trace(started).get_trace(*args, **kwargs)


def trace_at(
    model: Model, values: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The trace of a model at unconstrained values; discrete sites have some value."""

    def constrained(site: dict[str, Any]) -> Any:
        if site["type"] != "sample" or site["name"] not in values:
            return None
        return biject_to(site["fn"].support)(values[site["name"]])

    started = handlers.substitute(handlers.seed(default_key(model), 0), substitute_fn=constrained)
    return handlers.trace(started).get_trace(*args, **kwargs)


def inspect_trace(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], read: Callable[[Any], T]
) -> T:
    """What ``read`` says of the model's trace, which is made abstractly: nothing is computed."""
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
