"""Which latent sites of a NumPyro model are Laplace priors with known parameters.

A site is split off into the nonsmooth part of the target when its distribution is ``Laplace`` or
``AsymmetricLaplace`` (through ``expand``, ``to_event``, plates) and its location and scale depend
on no other latent site. Where they do depend on one, as in a hierarchical lasso, the site is first
rewritten as location + scale * standard Laplace with NumPyro's ``LocScaleReparam(centered=0)``.

Informative data make that parametrisation a funnel, and the user's own one nearly normal. So the
*centring* c stays an argument of the rewritten model: at 0 the base site is a standard Laplace and
its density is split off; at 1 it is the user's own site and its density stays with the rest. Which
of the two an ensemble uses is decided by evidence when it starts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import constrain_fn
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

Model = Callable[..., Any]
T = TypeVar("T")
_DIRECT = "_rwpo_direct"
BASE_SUFFIX = "_decentered"  # NumPyro's own name for the base site of LocScaleReparam


class SiteParameters(NamedTuple):
    """Parameters of one Laplace site, each broadcast to the site's shape."""

    location: jax.Array
    rate_left: jax.Array
    rate_right: jax.Array


class keep_density(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Keep the densities of the named sites in the joint density where the mask says so."""

    def __init__(self, fn: Model, masks: dict[str, Any]) -> None:
        self.masks = masks
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Replace the distribution of a named site by its masked self."""
        if msg["type"] == "sample" and msg["name"] in self.masks:
            msg["fn"] = msg["fn"].mask(self.masks[msg["name"]])


class default_key(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Give a fixed key to whatever in the model asks for one (``numpyro.prng_key``)."""

    def process_message(self, msg: dict[str, Any]) -> None:
        """Set the key."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            msg["value"] = jax.random.key(0)


class mark_direct(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Mark the sites that the model itself samples.

    NumPyro's ``scan`` and ``cond`` send the sites inside them once more, with their values:
    these cannot be rewritten.
    """

    def process_message(self, msg: dict[str, Any]) -> None:
        """Mark a site that comes without a value."""
        if msg["type"] == "sample" and msg["value"] is None:
            msg["infer"] = {**msg["infer"], _DIRECT: True}


def trace_model(model: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The trace of a model whose latent sites have some valid values."""
    # init_to_uniform gives values to improper sites too, which cannot be sampled.
    started = handlers.substitute(
        handlers.seed(mark_direct(model), 0), substitute_fn=init_to_uniform()
    )
    return handlers.trace(started).get_trace(*args, **kwargs)


def inspect_trace(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], read: Callable[[Any], T]
) -> T:
    """What ``read`` says of the model's trace, which is made abstractly: nothing is computed."""
    found: list[T] = []
    jax.eval_shape(lambda: found.append(read(trace_model(model, args, kwargs))))
    return found[0]


def is_latent(site: dict[str, Any]) -> bool:
    """Whether a site of a trace is sampled and not observed."""
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
        names = [
            name
            for name, site in latent.items()
            if is_laplace(site["fn"]) and site["scale"] is None and _DIRECT in site["infer"]
        ]
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
        user_model: the model as it came.
        fixed: names of its Laplace sites with fixed parameters.
        rewritten: LocScaleReparam's ``shape_params`` of the Laplace sites with latent parameters.
    """

    user_model: Model
    fixed: tuple[str, ...]
    rewritten: dict[str, tuple[str, ...]]

    @property
    def base_sites(self) -> tuple[str, ...]:
        """Names of the rewritten sites' base sites."""
        return tuple(name + BASE_SUFFIX for name in self.rewritten)

    def model(self, centring: Any = 0) -> Model:
        """The model with its latent-scale Laplace sites rewritten."""
        if not self.rewritten:
            return self.user_model
        config = {
            name: LocScaleReparam(centered=centring, shape_params=shape_params)
            for name, shape_params in self.rewritten.items()
        }
        return handlers.reparam(self.user_model, config=config)

    def smooth_model(self, *args: Any, _centring: Any = 0, **kwargs: Any) -> Any:
        """Run the rewritten model without the densities that the prior's closed forms cover."""
        masks: dict[str, Any] = dict.fromkeys(self.fixed, False)
        masks.update(dict.fromkeys(self.base_sites, jnp.asarray(_centring) > 0))
        return keep_density(self.model(_centring), masks)(*args, **kwargs)

    def prior_parameters(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, SiteParameters]:
        """Parameters of all split sites for these model arguments, base sites at centring 0."""
        trace = trace_model(self.model(), args, kwargs)
        names = (*self.fixed, *self.base_sites)
        return {name: distribution_parameters(trace[name]["fn"]) for name in names}

    def unconstrained_shapes(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the rewritten model's latent sites, on the whole real line."""

        def values() -> dict[str, jax.Array]:
            trace = trace_model(self.smooth_model, args, kwargs)
            return {
                name: biject_to(site["fn"].support).inv(site["value"])
                for name, site in trace.items()
                if is_latent(site)
            }

        shapes: dict[str, jax.ShapeDtypeStruct] = jax.eval_shape(values)
        return shapes

    def to_user_values(
        self, values: dict[str, Any], centring: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], jax.Array]:
        """Unconstrained values of the user's sites, and the log Jacobian of the map back."""
        constrained = constrain_fn(self.model(centring), args, kwargs, values)
        rewritten = handlers.substitute(handlers.seed(self.model(centring), 0), data=constrained)
        sites = handlers.trace(rewritten).get_trace(*args, **kwargs)
        values = self.to_user_sites(values)
        # Laplace sites are real: their constrained values are the unconstrained ones.
        values.update({name: sites[name]["value"] for name in self.rewritten})
        constrained = {name: sites[name]["value"] for name in values}
        original = handlers.substitute(handlers.seed(self.user_model, 0), data=constrained)
        trace = handlers.trace(original).get_trace(*args, **kwargs)
        log_jacobian = jnp.zeros(())
        for name in self.rewritten:
            scale = _base_distribution(trace[name]["fn"]).scale
            log_scale = jnp.log(jnp.broadcast_to(scale, jnp.shape(values[name])))
            log_jacobian -= (1 - centring) * log_scale.sum()
        return values, log_jacobian

    def from_user_values(
        self, values: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Unconstrained values of the user's sites as those of the rewritten ones."""
        constrained = constrain_fn(self.user_model, args, kwargs, values)
        substituted = handlers.substitute(handlers.seed(self.user_model, 0), data=constrained)
        trace = handlers.trace(substituted).get_trace(*args, **kwargs)
        values = dict(values)
        for name in self.rewritten:
            base = _base_distribution(trace[name]["fn"])
            values[name + BASE_SUFFIX] = (values.pop(name) - base.loc) / base.scale
        return values

    def to_user_sites(self, values: dict[str, Any]) -> dict[str, Any]:
        """Drop the base sites, which the user's model does not have."""
        return {name: value for name, value in values.items() if name not in self.base_sites}


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
        return LaplaceSplit(model, (), {})
    fixed, latent = _classify(model, args, kwargs)
    if nonsmooth != "auto":
        unknown = sorted(set(nonsmooth) - set(fixed) - set(latent))
        if unknown:
            raise ValueError(
                f"`nonsmooth` names {unknown}, which are not latent Laplace or AsymmetricLaplace "
                f"sites of the model; those that can be split are {sorted(fixed + latent)}."
            )
        fixed = [name for name in fixed if name in nonsmooth]
        latent = [name for name in latent if name in nonsmooth]

    def shape_params(trace: dict[str, Any]) -> dict[str, tuple[str, ...]]:
        bases = {name: _base_distribution(trace[name]["fn"]) for name in latent}
        asymmetric = {name for name in latent if isinstance(bases[name], dist.AsymmetricLaplace)}
        return {name: ("asymmetry",) if name in asymmetric else () for name in latent}

    rewritten = inspect_trace(model, args, kwargs, shape_params) if latent else {}
    split = LaplaceSplit(model, tuple(fixed), rewritten)
    # A latent asymmetry stays latent in the base site: such sites are left as the user wrote them.
    standard, _ = _classify(split.model(), args, kwargs) if latent else ([], [])
    kept = {name: rewritten[name] for name in latent if name + BASE_SUFFIX in standard}
    return split._replace(rewritten=kept)


def describe_laplace_sites(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], nonsmooth: Any, centring: Any
) -> dict[str, str]:
    """How each latent Laplace site of ``model`` was treated, in words.

    Args:
        model: NumPyro model.
        args: its positional arguments.
        kwargs: its keyword arguments.
        nonsmooth: as for :func:`split_laplace_sites`.
        centring: parametrisation that each chain chose, (chains,).
    """
    split = split_laplace_sites(model, args, kwargs, nonsmooth)
    able = split_laplace_sites(model, args, kwargs)
    names = inspect_trace(
        model,
        args,
        kwargs,
        lambda trace: [
            n for n, site in trace.items() if is_latent(site) and is_laplace(site["fn"])
        ],
    )
    as_written = sum(int(c > 0) for c in centring)
    standardised = len(centring) - as_written

    def describe(name: str) -> str:
        if name in split.fixed:
            return "known location and scale: split off, closed forms"
        if name in split.rewritten:
            return (
                f"latent location or scale: standardised and split off in {standardised} of "
                f"{len(centring)} chains, left as written in {as_written}"
            )
        if name in able.fixed or name in able.rewritten:
            return "left in the smooth part, as `nonsmooth` says"
        return (
            "left in the smooth part: cannot be split (masked by weights, or inside scan or cond)"
        )

    return {name: describe(name) for name in names}
