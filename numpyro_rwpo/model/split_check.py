"""Whether a split model has the density of the user's model, checked site by site.

To split a site off, the parameters of its distribution are read, and the site is changed by NumPyro
handlers. If the distribution had a density of its own, or if there were a handler that this change
does not take into account, the sampler would draw from another posterior without any warning. Both
models are therefore evaluated at one point in general position, the user's model at the values to
which this point is mapped back. If a site makes their densities differ by more than rounding, it is
left as the user wrote it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numpyro_rwpo.distributions.fused import FusedLaplace
from numpyro_rwpo.model.laplace_sites import (
    LaplaceSplit,
    split_laplace_sites,
)
from numpyro_rwpo.model.location_scale import LocationScale, is_mapped
from numpyro_rwpo.model.prior_registry import BUILT_IN_PRIORS, PriorRegistry, unwrapped
from numpyro_rwpo.model.site_bits import all_centered, is_centered
from numpyro_rwpo.model.tracing import inspect_trace, is_latent, site_shape, trace_at
from numpyro_rwpo.priors.protocol import AnyPrior


class _Term(NamedTuple):
    """The contribution of a site to the log density.

    Attributes:
        log_prob: log densities, in the batch shape of the value.
        shape: shape of the site's value.
        expected_shape: the shape that the value should have according to the distribution.
        event_dim: number of event dimensions of the distribution.
    """

    log_prob: jax.Array
    shape: tuple[int, ...]
    expected_shape: tuple[int, ...]
    event_dim: int


class _ClosedForm(NamedTuple):
    """The log density of a split site by the closed forms, in the user's coordinates.

    Attributes:
        log_prob: log densities, in the site's shape.
        magnitude: sum of the absolute values of their terms, which bounds their rounding errors.
    """

    log_prob: jax.Array
    magnitude: jax.Array


def split_errors(
    split: LaplaceSplit, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, jax.Array]:
    """How wrong the density of the split model is on account of each split site.

    Traceable, and the same for all chains, so that it can be part of a larger program.

    Returns:
        The largest relative error of each site that is split off or rewritten, with all of them
        standardized and all centered, () each: 0 up to rounding.
    """
    if not (split.names or split.rewritten):
        return {}
    values = _irregular_values(split.unconstrained_shapes(args, kwargs))
    priors = split.site_priors(args, kwargs)
    unknown = set(split.names) - set(priors)
    if unknown:
        known = split_errors(split.without(unknown), args, kwargs)
        return {**known, **dict.fromkeys(unknown, jnp.asarray(jnp.inf))}

    def at(centering: Any) -> dict[str, jax.Array]:
        return _errors_at(split, priors, values, centering, args, kwargs)

    if not split.rewritten:
        return at(0)
    # A loop and not a batch: it is compiled once, and some models cannot be batched.
    errors = lax.map(at, all_centered(len(split.rewritten)) * jnp.arange(2.0))
    return {name: error.max() for name, error in errors.items()}


def _irregular_values(shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """A point in general position: multiples of the golden ratio modulo 1, scaled to (-2, 2).

    The interval is that of ``init_to_uniform``. Such numbers are as good as random ones for this
    purpose, and take a few operations where a generator takes hundreds.
    """
    values, start, golden = {}, 1, (math.sqrt(5) - 1) / 2
    for name, x in sorted(shapes.items()):
        index = (start + jnp.arange(math.prod(x.shape))).reshape(x.shape)
        start += index.size
        values[name] = 2.0 * (2 * (index.astype(x.dtype) * golden % 1) - 1)
    return values


def _errors_at(
    split: LaplaceSplit,
    priors: dict[str, AnyPrior],
    values: dict[str, jax.Array],
    centering: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, jax.Array]:
    sites = split.rewritten_sites(values, centering, args, kwargs)
    users = {**values, **{name: site.unconstrained for name, site in sites.items()}}
    original = _terms(split.user_model, users, args, kwargs)
    smooth = _terms(split.smooth_model, values, args, {**kwargs, "_centering": centering})
    closed = {name: _closed_form(values[name], priors[name], sites.get(name)) for name in priors}
    is_split = {name: ~is_centered(centering, split.bits.get(name, 0)) for name in priors}
    errors = {
        name: _site_error(original.pop(name), smooth.pop(name), closed[name], is_split[name])
        for name in priors
    }
    is_standardized = {name: ~is_centered(centering, split.bits[name]) for name in split.smooth}
    for name in sorted(split.smooth):
        errors[name] = _standardized_error(
            original.pop(name), smooth.pop(name), sites[name], is_standardized[name]
        )
    rest = _rest_error(original, smooth)
    if split.enumeration_dim is not None:
        # The discrete sites had one value each. What is sampled is the sum over all of them.
        user_split = split.without(split.names + split.rewritten)
        whole = -user_split.potential(users, 0, args, kwargs)
        parts = [-split.potential(values, centering, args, kwargs, is_smooth_part=True)]
        parts += [jnp.where(is_split[name], closed[name].log_prob.sum(), 0.0) for name in priors]
        parts += [
            jnp.where(is_standardized[name], -sites[name].log_scale.sum(), 0.0)
            for name in sorted(split.smooth)
        ]
        terms = jnp.stack(parts)
        rest = jnp.maximum(rest, _gap(whole, terms.sum(), jnp.abs(terms).sum()))
    for name in split.rewritten or split.fixed:  # only a rewritten site can change others
        errors[name] = jnp.maximum(errors[name], rest)
    return errors


def _terms(
    model: Callable[..., Any],
    values: dict[str, jax.Array],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, _Term]:
    """The log density at unconstrained values, site by site."""
    terms = {}
    for name, site in trace_at(model, values, args, kwargs).items():
        if site["type"] != "sample":
            continue
        fn, value = site["fn"], site["value"]
        intermediates = (site["intermediates"],) if site["intermediates"] else ()
        log_prob = fn.log_prob(value, *intermediates)
        if site["scale"] is not None:
            log_prob = site["scale"] * log_prob
        terms[name] = _Term(log_prob, jnp.shape(value), site_shape(site), fn.event_dim)
    return terms


def _closed_form(x: jax.Array, prior: AnyPrior, site: LocationScale | None) -> _ClosedForm:
    """The closed form of a site, whose value or, if it is rewritten, base value is x."""
    log_mass, slope = prior.log_mass(), jnp.abs(prior.subgradient(x))
    log_prob = -prior.potential(x) - log_mass
    magnitude = slope * (jnp.abs(x) + jnp.abs(prior.location)) + jnp.abs(log_mass)
    if site is None:
        return _ClosedForm(log_prob, magnitude)
    log_scale = site.log_scale
    canceled = slope * (jnp.abs(site.coordinates) + jnp.abs(site.location)) / site.scale
    return _ClosedForm(log_prob - log_scale, magnitude + jnp.abs(log_scale) + canceled)


def _site_error(
    original: _Term, smooth: _Term, closed: _ClosedForm, is_split: jax.Array
) -> jax.Array:
    """The error of one Laplace site, which is split off or, at centering 1, left as written."""
    if not original.shape == original.expected_shape == closed.log_prob.shape:
        return jnp.asarray(jnp.inf)
    event = tuple(range(len(original.shape) - original.event_dim, len(original.shape)))
    log_prob, magnitude = closed.log_prob.sum(event), closed.magnitude.sum(event)
    split = jnp.maximum(
        _gap(original.log_prob, log_prob, magnitude),
        _gap(smooth.log_prob, jnp.zeros_like(log_prob), magnitude),
    )
    written = _gap(original.log_prob, smooth.log_prob, jnp.abs(original.log_prob))
    return jnp.where(is_split, split, written)


def _standardized_error(
    original: _Term, smooth: _Term, site: LocationScale, is_standardized: jax.Array
) -> jax.Array:
    """Of one site that is rewritten at centering 0 without being split off."""
    if not original.shape == original.expected_shape == smooth.shape:
        return jnp.asarray(jnp.inf)
    event = tuple(range(len(original.shape) - original.event_dim, len(original.shape)))
    log_scale = jnp.where(is_standardized, site.log_scale, 0.0)
    expected = smooth.log_prob - (log_scale + site.log_slope).sum(event)
    magnitude = jnp.abs(original.log_prob) + jnp.abs(log_scale).sum(event)
    magnitude += jnp.abs(site.log_slope).sum(event)
    return _gap(original.log_prob, expected, magnitude)


def _rest_error(original: dict[str, _Term], smooth: dict[str, _Term]) -> jax.Array:
    """The error of the sites that are not split off, which must be the same in both models."""
    error = jnp.zeros(())
    if set(original) != set(smooth):
        return error + jnp.inf
    for name, a in original.items():
        b = smooth[name]
        if a.shape != b.shape:
            return error + jnp.inf
        # Sums are compared, because a single term can lose more digits than the whole density.
        magnitude = jnp.abs(a.log_prob).sum()
        error = jnp.maximum(error, _gap(a.log_prob.sum(), b.log_prob.sum(), magnitude))
    return error


def _gap(a: jax.Array, b: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Largest difference relative to 1 + magnitude, (); 0 where neither value is finite."""
    if jnp.shape(a) != jnp.shape(b):
        return jnp.asarray(jnp.inf)
    a_finite, b_finite = jnp.isfinite(a), jnp.isfinite(b)
    gap = jnp.where(a_finite & b_finite, jnp.abs(a - b) / (1 + magnitude), jnp.inf)
    is_same = (a == b) | ~(a_finite | b_finite)
    return jnp.max(jnp.where(is_same, 0.0, gap), initial=0.0)


def concrete_split_errors(
    split: LaplaceSplit, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, jax.Array]:
    """The errors of :func:`split_errors` as numbers, even while JAX is tracing something else.

    The result is empty if JAX is tracing the arguments themselves.
    """
    compare = jax.jit(lambda: split_errors(split, args, kwargs))
    try:
        errors = compare()
        if not any(isinstance(error, jax.core.Tracer) for error in errors.values()):
            return errors
        # This runs every operation on its own, which takes seconds.
        with jax.ensure_compile_time_eval():
            return compare()
    except (jax.errors.UnexpectedTracerError, jax.errors.ConcretizationTypeError):
        return {}


def refused_sites(errors: Mapping[str, Any]) -> frozenset[str]:
    """Names of the sites whose errors, as :func:`split_errors` gives them, exceed rounding."""
    # NumPy compares the numbers, because comparisons in JAX would be traced if JAX is tracing
    # something else. An error that depends on traced arguments has no value to be compared.
    values = {
        name: np.asarray(error)
        for name, error in errors.items()
        if not isinstance(error, jax.core.Tracer)
    }
    return frozenset(name for name, x in values.items() if not x <= np.sqrt(np.finfo(x.dtype).eps))


def checked_split(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    laplace_sites: Any,
    registry: PriorRegistry = BUILT_IN_PRIORS,
) -> tuple[LaplaceSplit, frozenset[str]]:
    """The split that sampling uses, and the sites that were left alone because they were wrong.

    Args:
        model: NumPyro model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        laplace_sites: as for :func:`numpyro_rwpo.model.laplace_sites.split_laplace_sites`.
        registry: the kinds of distributions with closed forms.
    """
    whole = split_laplace_sites(model, args, kwargs, laplace_sites, registry)
    split, refused = whole, frozenset[str]()
    while wrong := refused_sites(concrete_split_errors(split, args, kwargs)):
        refused |= wrong
        split = whole.without(refused)
    return split, refused


_UNABLE = (
    "left in the smooth part: cannot be split (masked or scaled by weights, inside scan or cond, "
    "with a value from a handler, a latent asymmetry, latent parameters of a prior other than "
    "Laplace, a density of its own, or parameters that depend on an enumerated site)"
)


def describe_laplace_sites(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    laplace_sites: Any,
    centering: Any,
    registry: PriorRegistry = BUILT_IN_PRIORS,
) -> dict[str, str]:
    """Sentences about the treatment of the latent sites whose kind has closed forms, by name.

    Args:
        model: NumPyro model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        laplace_sites: as for :func:`numpyro_rwpo.model.laplace_sites.split_laplace_sites`.
        centering: parameterizations that each chain chose, (chains,), see
            :mod:`numpyro_rwpo.model.site_bits`.
        registry: the kinds of distributions with closed forms.
    """
    split, refused = checked_split(model, args, kwargs, laplace_sites, registry)
    able = split_laplace_sites(model, args, kwargs, registry=registry).names
    kinds = (*registry, FusedLaplace)
    names = inspect_trace(
        model,
        args,
        kwargs,
        lambda trace: {
            name: is_mapped(site["fn"])
            for name, site in trace.items()
            if is_latent(site)
            and (isinstance(unwrapped(site["fn"]), kinds) or name in split.rewritten)
        },
    )

    def describe(name: str) -> str:
        if name in split.fixed:
            return "known location and scale: split off, closed forms"
        as_written = int(is_centered(jnp.asarray(centering), split.bits.get(name, 0)).sum())
        standardized = len(centering) - as_written
        if name in split.smooth:
            return f"latent scale: standardized in {standardized} of {len(centering)} chains"
        if name in split.rewritten and names[name]:
            return (
                f"moved as its start and differences: split off in {standardized} of "
                f"{len(centering)} chains, left in the smooth part in {as_written}"
            )
        if name in split.rewritten:
            return (
                f"latent location or scale: standardized and split off in {standardized} of "
                f"{len(centering)} chains, left as written in {as_written}"
            )
        if name in refused:
            return (
                "left in the smooth part: with this site split off, the model's density or shapes "
                "would not be those that you wrote"
            )
        return "left in the smooth part, as `laplace_sites` says" if name in able else _UNABLE

    return {name: describe(name) for name in names}
