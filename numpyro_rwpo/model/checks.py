"""Checks of a model before and during sampling, and explanations of the errors that it raises.

While the sampler compiles the model, it calls it several times. The model must do the same each
time: if a latent site appeared, disappeared, or changed its shape between two calls, coordinates
would be left without a density. Therefore every call is compared with the first one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from numpyro_rwpo.model.enumeration import check_funsor, discrete_fault
from numpyro_rwpo.model.tracing import (
    inspect_trace,
    is_discrete,
    is_latent,
    is_sampled,
    site_shape,
    trace_model,
)

Shapes = dict[str, tuple[int, ...]]
# The prefix that NumPyro gives to the names of sites in the first steps of an enumerated `scan`.
_PREVIOUS = "_PREV_"


class LatentSites(NamedTuple):
    """Properties of a model that must not change between two calls.

    Attributes:
        shapes: shapes of the continuous latent sites, by name.
        has_discrete: whether there are discrete latent sites, which are summed out.
        has_deterministic: whether there are deterministic sites.
    """

    shapes: Shapes
    has_discrete: bool
    has_deterministic: bool


def describe_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """A description of the model's arguments: dtype and shape of arrays, ``repr`` of all others.

    This function never raises, whatever the arguments are, because its result is part of the
    message of another error, which must not be lost.
    """
    parts = [_describe(value) for value in args]
    parts += [f"{name}={_describe(value)}" for name, value in kwargs.items()]
    return ", ".join(parts) or "none"


def _describe(value: Any) -> str:
    kind = type(value).__name__
    try:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if dtype is None or not isinstance(shape, tuple):
            return _shortened(repr(value))
        kind = "array" if isinstance(value, (np.ndarray, np.generic, jax.Array)) else kind
        text = f"{kind} of {_shortened(str(dtype))}, shape {shape}"
    except Exception:  # Attributes and `repr` may be the user's code, which may raise anything.
        return f"an object of class {kind}"
    number = _num_not_finite(value)
    return text + f" with {number} values nan or infinite" if number else text


def _shortened(text: str) -> str:
    """At most 60 characters of a text, enough to recognize an argument by its ``repr``."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def _num_not_finite(value: Any) -> int:
    """The number of elements that are nan or infinite; 0 if it cannot be determined."""
    try:
        if isinstance(value, jax.core.Tracer) or not jnp.issubdtype(value.dtype, jnp.inexact):
            return 0
        return int((~np.isfinite(np.asarray(value))).sum())
    except Exception:  # NumPy knows neither the dtypes of pandas nor sparse matrices.
        return 0


def check_model(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> LatentSites:
    """Trace the model once, abstractly, and return its latent sites.

    Raises:
        ValueError: a discrete latent site is not, or cannot be, summed out; two sites have the same
            name; a plate is empty or subsampled.
        ImportError: discrete latent sites are to be summed out, and funsor is not installed.
        Exception: the model raises it; a note with the model's arguments is added.
    """

    def read(trace: dict[str, Any]) -> tuple[LatentSites, list[str], str | None]:
        shapes = {
            name: jnp.shape(site["value"])
            for name, site in trace.items()
            if is_latent(site) and not isinstance(site["fn"], dist.Unit)
        }
        discrete = [name for name, site in trace.items() if is_discrete(site)]
        has_deterministic = any(site["type"] == "deterministic" for site in trace.values())
        return LatentSites(shapes, bool(discrete), has_deterministic), discrete, _fault(trace)

    with explained(model, args, kwargs):
        sites, discrete, fault = inspect_trace(model, args, kwargs, read)
    if fault is not None:
        raise ValueError(fault)
    if discrete:
        check_funsor(discrete[0])
    return sites


@contextmanager
def explained(
    model: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[None]:
    """Add to the errors of a model which site and which arguments caused them, and what to do."""
    if model is None:  # A potential function has neither sites nor arguments.
        yield
        return

    def called() -> str:  # Arguments may be large, so they are only described after an error.
        return f"The model's arguments were: {describe_arguments(args, kwargs)}."

    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(f"{_leak(model, args, kwargs)} {called()}") from error
    except AssertionError as error:
        if "unique names" in str(error):
            change = "Give every site a name of its own, in a loop for instance f'x_{i}'."
        elif "size of plate" in str(error):
            change = "A plate over data needs at least one row; see that the data are not empty."
        else:
            error.add_note(called())
            raise
        raise ValueError(f"The model cannot be run: {error}. {change} {called()}") from error
    except Exception as error:
        error.add_note(called())
        raise


@contextmanager
def batching_explained() -> Iterator[None]:
    """Explain the error of a model that cannot be run for several chains at once."""
    try:
        yield
    except NotImplementedError as error:
        if "vmap_method" not in str(error):
            raise
        raise NotImplementedError(
            "The model calls jax.pure_callback without `vmap_method`, so it cannot be run for "
            "several chains at once. Pass `vmap_method='sequential'` to jax.pure_callback, or "
            "`chain_method='sequential'` to MCMC."
        ) from error


def _fault(trace: dict[str, Any]) -> str | None:
    """Why a model with this trace cannot be sampled; ``None`` if it can."""
    for name, site in trace.items():
        if site["type"] == "plate" and len(site["value"]) < site["args"][0]:
            return (
                f"Plate '{name}' draws {len(site['value'])} of {site['args'][0]} rows at random; "
                "RWPO needs the whole likelihood. Leave `subsample_size` out, or use NumPyro's "
                "HMCECS."
            )
        if is_discrete(site) and (fault := discrete_fault(name, site)):
            return fault
    return None


def _leak(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The start of the error for a site inside a function that JAX traces on its own."""
    names: list[str] = []

    def look(outer: Any) -> Any:
        for name, site in trace_model(model, args, kwargs).items():
            inner = getattr(site["value"], "_trace", None)
            if is_sampled(site) and inner not in (None, getattr(outer, "_trace", None)):
                names.append(name)
        return outer

    jax.eval_shape(look, 0.0)
    which = f"Latent site '{names[0]}'" if names else "A site of the model"
    return (
        f"{which} is sampled inside a function that JAX traces on its own (one given to "
        "jax.lax.scan, cond, while_loop or fori_loop, or under jax.jit), where NumPyro cannot "
        "follow it. Use `scan` or `cond` of numpyro.contrib.control_flow or a plate, or sample the "
        "values before."
    )


def no_valid_start(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> RuntimeError:
    """The error for a model without a valid starting position, which names the sites to blame."""
    reasons = []
    with explained(model, args, kwargs):  # NumPyro may reject the parameters of a distribution.
        trace = trace_model(model, args, kwargs)
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        log_density = float(jnp.sum(site["fn"].log_prob(site["value"])))
        if np.isfinite(log_density):
            continue
        kind = "latent" if is_latent(site) else "observed"
        reason = f"{kind} site '{name}' has a log density of {log_density}"
        value = np.asarray(site["value"], np.float64)
        if kind == "observed" and not np.isfinite(value).all():
            reason += f" ({(~np.isfinite(value)).sum()} of its {value.size} values are not finite)"
        reasons.append(reason)
    seen = "; ".join(reasons) if reasons else "the log density is finite, its gradient is not"
    return RuntimeError(
        f"Cannot find valid initial parameters: at a typical starting point {seen}. Check the "
        "data and the scales in the model, bound what overflows, or give starting points by "
        "`init_strategy` or `init_params`. The model's arguments were: "
        f"{describe_arguments(args, kwargs)}."
    )


class _Watch(Messenger):
    """Compare the latent sites of one call with those of the first."""

    def __init__(self, expected: Shapes, *, has_discrete: bool) -> None:
        self.expected = expected
        self.has_discrete = has_discrete
        self.seen: set[str] = set()
        super().__init__(None)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Reject a latent site that the first call did not have, or had in another shape."""
        if not is_latent(msg) or isinstance(msg["fn"], dist.Unit):
            return  # A unit distribution is a factor, which `uncondition` makes a latent site.
        name = msg["name"]
        # A site that already has a value is inside `scan` or `cond`, which stack distributions.
        shape = site_shape(msg) if msg["value"] is None else jnp.shape(msg["value"])
        if self.has_discrete:
            # NumPyro unrolls the first steps of an enumerated `scan` under such names, and a site
            # whose distribution depends on an enumerated one has more dimensions there.
            name = name.replace(_PREVIOUS, "")
            shape = self.expected.get(name, shape)
        self.seen.add(name)
        if name not in self.expected:
            raise ValueError(_changed(f"'{name}' of shape {shape} is new", self.expected))
        if shape != self.expected[name]:
            raise ValueError(_changed(f"'{name}' now has the shape {shape}", self.expected))

    def finish(self) -> None:
        """Reject a call in which a latent site was missing."""
        missing = sorted(set(self.expected) - self.seen)
        if missing:
            raise ValueError(_changed(f"{missing} are missing", self.expected))


def _changed(what: str, expected: Shapes) -> str:
    return (
        f"The model's latent sites changed between two calls: {what}; the first call had "
        f"{expected}. A model must do the same whenever it is called: no counters, no random "
        "numbers of its own. For data that give sites of another shape, start anew with a "
        "warm-up (`mcmc.post_warmup_state = None`)."
    )


def with_fixed_sites(model: Callable[..., Any], sites: LatentSites) -> Callable[..., Any]:
    """The model, which now raises ``ValueError`` if its latent sites change."""

    @wraps(model)
    def watched(*args: Any, **kwargs: Any) -> Any:
        watch = _Watch(sites.shapes, has_discrete=sites.has_discrete)
        with watch:
            result = model(*args, **kwargs)
        watch.finish()
        return result

    return watched
