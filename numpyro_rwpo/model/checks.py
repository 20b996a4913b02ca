"""What is asked of a model before and while it is sampled, and what is said where it fails.

The sampler compiles the model once and calls it a handful of times while it does. It must do the
same each time: a latent site that comes, goes or changes its shape between these calls would leave
coordinates without a density, so every call is compared with the first.
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
_PREVIOUS = "_PREV_"  # NumPyro's prefix of sites in the first steps of an enumerated `scan`


class LatentSites(NamedTuple):
    """What must not change between two calls of a model.

    Attributes:
        shapes: of the continuous latent sites.
        has_discrete: whether there are discrete ones, which are summed out.
        has_deterministic: whether there are deterministic sites.
    """

    shapes: Shapes
    has_discrete: bool
    has_deterministic: bool


_MAX_WORDS = 60  # Characters of an argument's `repr` in a message: enough to recognize it.
_ARRAYS = (np.ndarray, np.generic, jax.Array)


def describe_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The model's arguments in words: arrays by dtype and shape, the rest as they are.

    It never fails, whatever the arguments are: the words belong to another error's message, which
    must not be lost.
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
        kind = "array" if isinstance(value, _ARRAYS) else kind
        text = f"{kind} of {_shortened(str(dtype))}, shape {shape}"
    except Exception:  # Attributes and `repr` are code of the user's, which may raise anything.
        return f"an object of class {kind}"
    number = _num_not_finite(value)
    return text + f" with {number} values nan or infinite" if number else text


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_WORDS else f"{text[: _MAX_WORDS - 3]}..."


def _num_not_finite(value: Any) -> int:
    """How many numbers of an array are nan or infinite; 0 where that cannot be known."""
    try:
        if isinstance(value, jax.core.Tracer) or not jnp.issubdtype(value.dtype, jnp.inexact):
            return 0
        return int((~np.isfinite(np.asarray(value))).sum())
    except Exception:  # NumPy does not know the dtypes of pandas, nor sparse matrices.
        return 0


def check_model(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> LatentSites:
    """Trace the model once, abstractly, and return its latent sites.

    Raises:
        ValueError: discrete latent sites that are not, or cannot be, summed out; a site name that
            comes twice; a plate that is empty or subsampled.
        ImportError: discrete latent sites to sum out, without funsor.
        Exception: whatever the model raises, with a note on the arguments it was called with.
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
    """Say more about what a call of the model raises: which site, which arguments, what to do."""
    if model is None:  # a potential function has no sites and no arguments to speak of
        yield
        return

    def called() -> str:  # only where something failed: arguments may be large
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
    """Say what to do where the model cannot be run for several chains at once."""
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
    """Why a model with this trace cannot be sampled, if it cannot."""
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
    """Which latent sites belong to a function that JAX traced on its own."""
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
    """The error where no valid starting position was found: which site is to blame."""
    reasons = []
    with explained(model, args, kwargs):  # NumPyro may refuse a distribution's parameters here
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
        """Refuse a latent site that the first call did not have, or had in another shape."""
        if not is_latent(msg) or isinstance(msg["fn"], dist.Unit):
            return  # a unit distribution is a factor, which `uncondition` makes a latent site
        name = msg["name"]
        # A site that comes with a value is inside `scan` or `cond`, which stack its distribution.
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
        """Refuse a call in which a latent site was missing."""
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
    """The model, which from now on raises ``ValueError`` where its latent sites change."""

    @wraps(model)
    def watched(*args: Any, **kwargs: Any) -> Any:
        watch = _Watch(sites.shapes, has_discrete=sites.has_discrete)
        with watch:
            result = model(*args, **kwargs)
        watch.finish()
        return result

    return watched
