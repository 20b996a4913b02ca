"""What is asked of a model before and while it is sampled, and what is said where it fails.

The sampler compiles the model once and calls it a handful of times while it does. It must do the
same each time: a latent site that comes, goes or changes its shape between these calls would leave
coordinates without a density, so every call is compared with the first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from numpyro_rwpo.model.laplace_sites import BASE_SUFFIX, inspect_trace, is_latent, trace_model

Shapes = dict[str, tuple[int, ...]]

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


def check_model(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Shapes:
    """Trace the model once, abstractly, and return the shapes of its latent sites.

    Raises:
        ValueError: latent sites that are discrete, or none at all; a site name that comes twice; a
            plate that is empty or subsampled.
        Exception: whatever the model raises, with a note on the arguments it was called with.
    """
    with explained(model, args, kwargs):
        shapes, fault = inspect_trace(
            model, args, kwargs, lambda trace: (_latent_shapes(trace), _fault(trace))
        )
    if fault is not None:
        raise ValueError(fault)
    return shapes


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


def _latent_shapes(trace: dict[str, Any]) -> Shapes:
    return {name: jnp.shape(site["value"]) for name, site in trace.items() if is_latent(site)}


def _fault(trace: dict[str, Any]) -> str | None:
    """Why a model with this trace cannot be sampled, if it cannot."""
    for name, site in trace.items():
        if site["type"] == "plate" and len(site["value"]) < site["args"][0]:
            return (
                f"Plate '{name}' draws {len(site['value'])} of {site['args'][0]} rows at random; "
                "RWPO needs the whole likelihood. Leave `subsample_size` out, or use NumPyro's "
                "HMCECS."
            )
        if is_latent(site) and site["fn"].support.is_discrete:
            return (
                f"Latent site '{name}' is discrete ({type(site['fn']).__name__}); RWPO moves "
                "particles by gradients and needs continuous latent sites. Marginalise the site "
                "in the model, or use DiscreteHMCGibbs or MixedHMC for it."
            )
    shapes = _latent_shapes(trace)
    if any(np.prod(shape, dtype=int) for shape in shapes.values()):
        return None
    received = f" Its latent sites are empty: {shapes}." if shapes else ""
    return (
        f"The model has no latent sample sites, so there is nothing to sample.{received} Check "
        "that not every site is observed or conditioned, or use Predictive to run the model."
    )


def _leak(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Which latent sites belong to a function that JAX traced on its own."""
    names: list[str] = []

    def look(outer: Any) -> Any:
        for name, site in trace_model(model, args, kwargs).items():
            inner = getattr(site["value"], "_trace", None)
            if is_latent(site) and inner not in (None, getattr(outer, "_trace", None)):
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

    def __init__(self, expected: Shapes) -> None:
        self.expected = expected
        self.seen: set[str] = set()
        super().__init__(None)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Refuse a latent site that the first call did not have, or had in another shape."""
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        name = msg["name"]
        if name.endswith(BASE_SUFFIX) and name.removesuffix(BASE_SUFFIX) in self.expected:
            return  # our own rewriting of a site sends its base site past here, too
        self.seen.add(name)
        shape = msg["fn"].shape(msg["kwargs"].get("sample_shape", ()))
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


def with_fixed_sites(model: Callable[..., Any], expected: Shapes) -> Callable[..., Any]:
    """The model, which from now on raises ``ValueError`` where its latent sites change."""

    @wraps(model)
    def watched(*args: Any, **kwargs: Any) -> Any:
        watch = _Watch(expected)
        with watch:
            result = model(*args, **kwargs)
        watch.finish()
        return result

    return watched
