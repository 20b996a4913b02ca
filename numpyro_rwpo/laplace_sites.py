"""Which latent sites of a NumPyro model are Laplace priors with known parameters.

A site is split off into the nonsmooth part of the target when its distribution is ``Laplace`` or
``AsymmetricLaplace`` (through ``expand``, ``to_event``, plates) and its location and scale depend
on no other latent site. Where they do depend on one, as in a hierarchical lasso, the site is first
rewritten as location + scale * standard Laplace with NumPyro's ``LocScaleReparam(centered=0)``.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.reparam import LocScaleReparam
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

Model = Callable[..., Any]
T = TypeVar("T")
DECENTRED_SUFFIX = "_decentered"  # NumPyro's own name for the base site of LocScaleReparam


class SiteParameters(NamedTuple):
    """Parameters of one Laplace site, each broadcast to the site's shape."""

    location: jax.Array
    rate_left: jax.Array
    rate_right: jax.Array


class hide_sites(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Leave the density of the named sites out of the joint density; their values stay."""

    def __init__(self, fn: Model, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Replace the distribution of a hidden site by its masked self."""
        if msg["type"] == "sample" and msg["name"] in self.names:
            msg["fn"] = msg["fn"].mask(False)


def _trace(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    # init_to_uniform gives values to improper sites too, which cannot be sampled.
    started = handlers.substitute(handlers.seed(model, 0), substitute_fn=init_to_uniform())
    return handlers.trace(started).get_trace(*args, **kwargs)


def inspect_trace(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], read: Callable[[Any], T]
) -> T:
    """What ``read`` says of the model's trace, which is made abstractly: nothing is computed."""
    found: list[T] = []
    jax.eval_shape(lambda: found.append(read(_trace(model, args, kwargs))))
    return found[0]


def is_latent(site: dict[str, Any]) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _base_distribution(fn: Any) -> Any:
    while isinstance(fn, (dist.ExpandedDistribution, dist.Independent)):
        fn = fn.base_dist
    return fn


def is_laplace(fn: Any) -> bool:
    """Whether a distribution is Laplace or AsymmetricLaplace, expanded or not."""
    return isinstance(_base_distribution(fn), (dist.Laplace, dist.AsymmetricLaplace))


def distribution_parameters(fn: Any) -> SiteParameters:
    """Location and rates of a Laplace distribution, broadcast to its shape."""
    base = _base_distribution(fn)
    if isinstance(base, dist.AsymmetricLaplace):
        rates = 1 / base.left_scale, 1 / base.right_scale
    else:
        rates = 1 / base.scale, 1 / base.scale
    return SiteParameters(*(jnp.broadcast_to(x, fn.shape()) for x in (base.loc, *rates)))


def laplace_parameters(
    model: Model, names: Iterable[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, SiteParameters]:
    """Parameters of the named Laplace sites for these model arguments."""
    trace = _trace(model, args, kwargs)
    return {name: distribution_parameters(trace[name]["fn"]) for name in names}


def _latent_parents(
    model: Model, names: list[str], values: dict[str, Any], args: Any, kwargs: Any
) -> dict[str, frozenset[str]]:
    """The latent sites on which the parameters of each named site depend."""

    def parameters(**values: Any) -> dict[str, SiteParameters]:
        substituted = handlers.substitute(handlers.seed(model, 0), data=values)
        trace = handlers.trace(substituted).get_trace(*args, **kwargs)
        return {name: distribution_parameters(trace[name]["fn"]) for name in names}

    provenance = eval_provenance(parameters, **values)
    return {name: frozenset().union(*provenance[name]) for name in names}


def _classify(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Names of the Laplace sites with fixed parameters, and of those with latent ones."""

    def read(trace: dict[str, Any]) -> tuple[list[str], dict[str, jax.ShapeDtypeStruct]]:
        latent = {name: site for name, site in trace.items() if is_latent(site)}
        values = {
            name: jax.ShapeDtypeStruct(jnp.shape(site["value"]), jnp.result_type(site["value"]))
            for name, site in latent.items()
        }
        names = [n for n, s in latent.items() if is_laplace(s["fn"]) and s["scale"] is None]
        return names, values

    names, values = inspect_trace(model, args, kwargs, read)
    if not names:
        return [], []
    parents = _latent_parents(model, names, values, args, kwargs)
    fixed = [name for name in names if not parents[name]]
    return fixed, [name for name in names if parents[name]]


class LaplaceSplit(NamedTuple):
    """A model with its Laplace sites found.

    Attributes:
        model: the model, latent-scale Laplace sites rewritten around standard ones.
        sites: names of the Laplace sites with fixed parameters in ``model``.
        decentred: the user's names of the rewritten sites.
    """

    model: Model
    sites: tuple[str, ...]
    decentred: tuple[str, ...]

    def smooth_model(self) -> Model:
        """The model without the densities of its split Laplace sites."""
        return hide_sites(self.model, self.sites) if self.sites else self.model

    def to_user_sites(self, values: dict[str, Any]) -> dict[str, Any]:
        """Drop the standardised base sites, which the user's model does not have."""
        ours = {name + DECENTRED_SUFFIX for name in self.decentred}
        return {name: value for name, value in values.items() if name not in ours}


def split_laplace_sites(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], nonsmooth: Any = "auto"
) -> LaplaceSplit:
    """Find the Laplace sites of ``model``; standardise those with latent parameters.

    Args:
        model: NumPyro model.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        nonsmooth: ``"auto"`` for every site that can be split, ``None`` for none, or site names.

    Raises:
        ValueError: a name in ``nonsmooth`` is not a Laplace site that can be split.
    """
    if nonsmooth is None:
        return LaplaceSplit(model, (), ())
    fixed, latent = _classify(model, args, kwargs)
    if nonsmooth != "auto":
        wanted = set(nonsmooth)
        unknown = sorted(wanted - set(fixed) - set(latent))
        if unknown:
            raise ValueError(
                f"`nonsmooth` names {unknown}, which are not latent Laplace or AsymmetricLaplace "
                f"sites of the model; those that can be split are {sorted(fixed + latent)}."
            )
        fixed = [name for name in fixed if name in wanted]
        latent = [name for name in latent if name in wanted]
    if not latent:
        return LaplaceSplit(model, tuple(fixed), ())

    def shape_params(trace: dict[str, Any]) -> dict[str, tuple[str, ...]]:
        bases = {name: _base_distribution(trace[name]["fn"]) for name in latent}
        asymmetric = {name for name in latent if isinstance(bases[name], dist.AsymmetricLaplace)}
        return {name: ("asymmetry",) if name in asymmetric else () for name in latent}

    config = {
        name: LocScaleReparam(centered=0, shape_params=params)
        for name, params in inspect_trace(model, args, kwargs, shape_params).items()
    }
    model = handlers.reparam(model, config=config)
    # An asymmetry that is itself latent keeps its standardised site out of the fixed ones.
    fixed_now, _ = _classify(model, args, kwargs)
    base = [name + DECENTRED_SUFFIX for name in latent]
    sites = [name for name in fixed_now if name in fixed or name in base]
    return LaplaceSplit(model, tuple(sites), tuple(latent))


def decentre_values(
    split: LaplaceSplit,
    user_model: Model,
    constrained: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Replace values of the user's Laplace sites by those of their standardised base sites."""
    substituted = handlers.substitute(handlers.seed(user_model, 0), data=constrained)
    trace = handlers.trace(substituted).get_trace(*args, **kwargs)
    values = dict(constrained)
    for name in split.decentred:
        base = _base_distribution(trace[name]["fn"])
        value = values.pop(name)
        values[name + DECENTRED_SUFFIX] = jnp.broadcast_to(
            (value - base.loc) / base.scale, np.shape(value)
        )
    return values
