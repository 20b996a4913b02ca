"""Which NumPyro distributions are priors with closed forms.

A registry maps a class of distributions to a function that makes a
:class:`~numpyro_rwpo.priors.protocol.Prior` of one of them. There is no global registry that could
be changed; the user's entries are an argument of ``RWPO``, ``priors``.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from numpyro_rwpo.distributions.fused import Increments
from numpyro_rwpo.distributions.group import GroupLaplace, SparseGroupLaplace
from numpyro_rwpo.priors.composite import Slice, compose_prior
from numpyro_rwpo.priors.laplace import LaplacePrior
from numpyro_rwpo.priors.protocol import AnyPrior, Prior, StructuredPrior
from numpyro_rwpo.support.names import qualified_name

PriorOf = Callable[[Any], AnyPrior]
PriorRegistry = Mapping[type[dist.Distribution], PriorOf]


def _laplace(site: Any) -> LaplacePrior:
    return LaplacePrior(site.loc, 1 / site.scale, 1 / site.scale)


def _asymmetric_laplace(site: Any) -> LaplacePrior:
    return LaplacePrior(site.loc, 1 / site.left_scale, 1 / site.right_scale)


def _own(site: Any) -> AnyPrior:
    """The prior of a distribution of this package, which makes it itself."""
    prior: AnyPrior = site.prior
    return prior


# Increments are what a FusedLaplace site becomes; users do not write them.
BUILT_IN_PRIORS: PriorRegistry = MappingProxyType(
    {
        dist.Laplace: _laplace,
        dist.AsymmetricLaplace: _asymmetric_laplace,
        GroupLaplace: _own,
        SparseGroupLaplace: _own,
        Increments: _own,
    }
)


def registry_with(priors: Any) -> PriorRegistry:
    """The built-in registry with the user's entries.

    Args:
        priors: Mapping of classes of distributions to functions, ``None`` for no entries. An entry
            for Laplace or AsymmetricLaplace replaces the built-in one.

    Returns:
        A new mapping.

    Raises:
        TypeError: If ``priors`` is not such a mapping.
        ValueError: If a class of distributions is not on the whole real line.
    """
    if priors is None:
        return dict(BUILT_IN_PRIORS)
    is_registry = isinstance(priors, Mapping) and all(
        isinstance(kind, type) and issubclass(kind, dist.Distribution) and callable(function)
        for kind, function in priors.items()
    )
    if not is_registry:
        raise TypeError(
            "`priors` must map classes of NumPyro distributions to functions that make a prior of "
            f"one, such as {{dist.Normal: normal_prior}}; got {priors!r}."
        )
    for kind in priors:
        if kind.support is not constraints.real:
            raise ValueError(
                "Closed forms are for distributions of numbers on the whole real line; `priors` "
                f"has an entry for {kind.__name__}, whose support is {kind.support}."
            )
    return {**BUILT_IN_PRIORS, **priors}


def entry_names(registry: PriorRegistry) -> dict[str, str] | None:
    """Names of the user's entries, by which saved runs compare them; ``None`` if there are none."""
    names = {
        qualified_name(kind): qualified_name(function)
        for kind, function in registry.items()
        if BUILT_IN_PRIORS.get(kind) is not function
    }
    return names or None


def kind_names(registry: PriorRegistry) -> str:
    """The registered kinds in words."""
    *most, last = (kind.__name__ for kind in registry if kind is not Increments)
    return f"{', '.join(most)} or {last}"


def unwrapped(fn: Any) -> Any:
    """The distribution inside ``expand`` and ``to_event``."""
    while type(fn) in (dist.ExpandedDistribution, dist.Independent):
        fn = fn.base_dist
    return fn


def find_kind(fn: Any, registry: PriorRegistry) -> type[dist.Distribution] | None:
    """The registered class that has the density of a distribution, expanded or not.

    A subclass of a registered class counts unless it defines a density or support of its own.
    """
    kind: Any = type(unwrapped(fn))
    for parent in kind.__mro__:
        if parent in registry:
            is_same = kind.log_prob is parent.log_prob and kind.support is parent.support
            return parent if is_same else None
    return None


def site_prior(fn: Any, registry: PriorRegistry, shape: tuple[int, ...] | None = None) -> AnyPrior:
    """The prior of a distribution whose kind is registered.

    Args:
        fn: The distribution.
        registry: A registry that contains its kind.
        shape: The shape of the site; ``None`` stands for that of the distribution.

    Returns:
        The prior, with its parameters broadcast to the shape.

    Raises:
        TypeError: If the registered function does not return a prior.
    """
    kind = find_kind(fn, registry)
    assert kind is not None
    prior = registry[kind](unwrapped(fn))
    if not isinstance(prior, Prior | StructuredPrior):
        raise TypeError(
            f"The function for {kind.__name__} in `priors` must return an object with the methods "
            f"of numpyro_rwpo.priors.protocol.Prior; got {type(prior).__name__}."
        )
    shape = fn.shape() if shape is None else shape
    return jax.tree.map(lambda field: jnp.broadcast_to(field, shape), prior)


def lay_out_prior(priors: Sequence[AnyPrior | None], leaves: Sequence[Any]) -> AnyPrior:
    """The prior of a flat position, from the priors of the arrays that are laid out in it.

    Coordinates of the same kind share one prior. The result is a composite only if there are
    several kinds.

    Args:
        priors: The prior of each array, with parameters in the shape of the array; ``None`` for an
            array without a prior.
        leaves: The arrays, in the order of the flat position.

    Returns:
        The prior, with parameters (dim,). Arrays without one get a flat Laplace prior, of rate 0.
    """
    fields: dict[Any, list[list[jax.Array]]] = {}
    slices: dict[Any, list[Slice]] = {}
    start = 0
    for prior, leaf in zip(priors, leaves, strict=True):
        if prior is None:
            zero = np.zeros(np.shape(leaf), np.result_type(leaf))
            prior = LaplacePrior(zero, zero, zero)  # type: ignore[arg-type]
        columns, kind = jax.tree.flatten(prior)
        flat = [jnp.reshape(x, -1).astype(np.result_type(leaf)) for x in columns]
        fields.setdefault(kind, []).append(flat)
        _append(slices.setdefault(kind, []), start, start + np.size(leaf))
        start += np.size(leaf)
    parts = [
        (kind.unflatten([jnp.concatenate(x) for x in zip(*fields[kind], strict=True)]), where)
        for kind, where in slices.items()
        if where
    ]
    return compose_prior(parts)


def _append(slices: list[Slice], start: int, stop: int) -> None:
    """Append a slice, or extend the last one if the two are adjacent."""
    if start == stop:
        return
    if slices and slices[-1][1] == start:
        start = slices.pop()[0]
    slices.append((start, stop))
