"""Which latent sites of a NumPyro model have priors with closed forms and known parameters.

A site is split off into the nonsmooth part of the target if its distribution is ``Laplace`` or
``AsymmetricLaplace`` (through ``expand``, ``to_event``, plates, ``sample_shape``) and its location
and scale depend on no other latent site. If they do depend on one, as in a hierarchical lasso, the
site is first rewritten as location + scale * standard Laplace. Normal sites and those of other
location-scale families are also rewritten if their scale is latent, as in a hierarchical model, but
their density is not split off.

Informative data turn that parameterization into a funnel, whereas the user's own parameterization
is then nearly normal. The *centering* is therefore an argument of the rewritten model. A site whose
bit in it is 0 (:mod:`numpyro_rwpo.model.site_bits`) is a standard one, and the density of a Laplace
site is split off; with bit 1 it is the user's own site, and its density stays in the smooth part.
Warm-up decides between the two (:mod:`numpyro_rwpo.dynamics.centering`).

Structured sites (:mod:`numpyro_rwpo.distributions`) are treated like Laplace sites. A FusedLaplace
site is always rewritten, as a linear map of its start and differences, whose density is split off.

Sites of other kinds (:mod:`numpyro_rwpo.model.prior_registry`) are split off if all their
parameters are fixed, and left alone otherwise.

Before sampling, the density of the rewritten model is compared with that of the user's model, see
:mod:`numpyro_rwpo.model.split_check`.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.ops.provenance import eval_provenance
from numpyro.primitives import Messenger

from numpyro_rwpo.model.enumeration import enumeration_dim, marginal_potential
from numpyro_rwpo.model.location_scale import (
    LocationScale,
    is_laplace,
    is_location_scale,
    is_mapped,
    parameters,
    standardize,
)
from numpyro_rwpo.model.prior_registry import (
    BUILT_IN_PRIORS,
    PriorRegistry,
    find_kind,
    kind_names,
    site_prior,
)
from numpyro_rwpo.model.site_bits import all_centered, is_centered, number_of_bits, site_bit
from numpyro_rwpo.model.tracing import (
    Model,
    default_key,
    inspect_trace,
    is_direct,
    is_discrete,
    is_latent,
    site_shape,
    trace_at,
    trace_model,
)
from numpyro_rwpo.priors.protocol import AnyPrior


class keep_density(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Keep the densities of the named sites in the joint density where their masks are true."""

    def __init__(self, fn: Model, masks: dict[str, Any]) -> None:
        self.masks = masks
        self._originals: dict[str, Any] = {}
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Mask the distribution of a named site."""
        if msg["type"] == "sample" and msg["name"] in self.masks:
            self._originals[msg["name"]] = msg["fn"]
            msg["fn"] = msg["fn"].mask(self.masks[msg["name"]])

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Give the handlers inside the model the unmasked distribution."""
        if msg["type"] == "sample" and msg["name"] in self._originals:
            msg["fn"] = self._originals.pop(msg["name"])


class _Parents(NamedTuple):
    """The latent sites, including discrete ones, on which the parameters of a site's prior depend.

    Attributes:
        location: those on which the location depends, if the site is of a location-scale family.
        scale: those on which the scale depends, likewise.
        other: those on which all other parameters depend.
    """

    location: frozenset[str]
    scale: frozenset[str]
    other: frozenset[str]


def _latent_parents(
    model: Model,
    names: list[str],
    values: dict[str, Any],
    registry: PriorRegistry,
    args: Any,
    kwargs: Any,
) -> dict[str, _Parents]:
    def of_sites(**values: Any) -> dict[str, tuple[Any, Any, Any]]:
        substituted = handlers.substitute(handlers.seed(default_key(model), 0), data=values)
        trace = handlers.trace(substituted).get_trace(*args, **kwargs)
        return {name: split_parameters(trace[name]["fn"]) for name in names}

    def split_parameters(fn: Any) -> tuple[Any, Any, Any]:
        if not is_location_scale(fn):
            return [], [], jax.tree.leaves(site_prior(fn, registry))
        return parameters(fn)

    provenance = eval_provenance(of_sites, **values)

    def union(parents: Any) -> frozenset[str]:
        is_set = lambda x: isinstance(x, frozenset)  # noqa: E731
        return frozenset().union(*jax.tree.leaves(parents, is_leaf=is_set))

    return {name: _Parents(*(union(x) for x in provenance[name])) for name in names}


class LaplaceSplit(NamedTuple):
    """A model, and the treatment of its sites.

    Attributes:
        user_model: the user's model.
        fixed: names of the sites with fixed parameters that are split off.
        rewritten: names of the Laplace sites with latent location or scale, and of sites of other
            location-scale families with a latent scale.
        enumeration_dim: the first dimension of discrete sites, ``None`` if there are none, see
            :mod:`numpyro_rwpo.model.enumeration`.
        registry: the kinds of distributions with closed forms.
        smooth: names of the rewritten sites that are not split off.
    """

    user_model: Model
    fixed: tuple[str, ...]
    rewritten: tuple[str, ...]
    enumeration_dim: int | None
    registry: PriorRegistry
    smooth: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all sites that are split off unless they are centered."""
        return self.fixed + tuple(name for name in self.rewritten if name not in self.smooth)

    @property
    def bits(self) -> dict[str, int]:
        """The bit in the centering of each rewritten site."""
        return {name: site_bit(index) for index, name in enumerate(self.rewritten)}

    def without(self, names: Collection[str]) -> "LaplaceSplit":
        """The split that leaves the named sites alone."""
        return self._replace(
            fixed=tuple(name for name in self.fixed if name not in names),
            rewritten=tuple(name for name in self.rewritten if name not in names),
        )

    def model(self, centering: Any = 0) -> Model:
        """The model, in which the sites with a latent scale are rewritten."""
        if not self.rewritten:
            return self.user_model
        return standardize(self.user_model, self.rewritten, centering)

    def smooth_model(self, *args: Any, _centering: Any = 0, **kwargs: Any) -> Any:
        """Run the rewritten model without the densities that the prior's closed forms cover."""
        masks: dict[str, Any] = dict.fromkeys(self.fixed, False)
        for name, bit in self.bits.items():
            if name not in self.smooth:
                masks[name] = is_centered(_centering, bit)
        return keep_density(self.model(_centering), masks)(*args, **kwargs)

    def potential(
        self,
        values: dict[str, Any],
        centering: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        is_smooth_part: bool = False,
    ) -> jax.Array:
        """Minus the log density of unconstrained values of the rewritten model's sites, scalar."""
        model = default_key(self.model(centering))
        if is_smooth_part:
            model = default_key(self.smooth_model)
            kwargs = {**kwargs, "_centering": centering}
        return marginal_potential(model, values, args, kwargs, self.enumeration_dim)

    def site_priors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, AnyPrior]:
        """Priors of all split sites for these model arguments, if they are standardized.

        Their parameters have the shapes of the sites. A site whose distribution is not of a
        registered kind has no prior.
        """
        trace = trace_model(self.model(), args, kwargs)
        sites = {name: trace[name] for name in self.names}
        return {
            name: site_prior(site["fn"], self.registry, site_shape(site))
            for name, site in sites.items()
            if find_kind(site["fn"], self.registry) is not None
        }

    def unconstrained_shapes(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of the latent sites, on the whole real line."""

        def values() -> dict[str, jax.Array]:
            trace = trace_model(self.smooth_model, args, kwargs)
            return {
                name: biject_to(site["fn"].support).inv(site["value"])
                for name, site in trace.items()
                if is_latent(site)
            }

        shapes: dict[str, jax.ShapeDtypeStruct] = jax.eval_shape(values)
        return shapes

    def rewritten_sites(
        self, values: dict[str, Any], centering: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, LocationScale]:
        """The user's sites that are rewritten, for unconstrained values of the rewritten model."""
        model = standardize(self.user_model, self.rewritten, centering)
        trace_at(model, values, args, kwargs)
        return model.sites

    def to_user_values(
        self, values: dict[str, Any], centering: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], jax.Array]:
        """Unconstrained values of the user's sites, and the log Jacobian of the map back."""
        sites = self.rewritten_sites(values, centering, args, kwargs)
        log_jacobian = jnp.zeros(())
        for name, site in sites.items():
            standardized = ~is_centered(centering, self.bits[name])
            log_jacobian -= jnp.where(standardized, site.log_scale.sum(), 0.0)
        return {**values, **{name: x.unconstrained for name, x in sites.items()}}, log_jacobian

    def recentered(
        self, values: dict[str, Any], centering: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], jax.Array]:
        """The values with every site in its other centering, and the sum of log scales of each bit.

        The sums have shape (number of bits,). What the value of a site is in its other centering
        does not depend on the centerings of other sites.
        """
        sites = self.rewritten_sites(values, centering, args, kwargs)
        log_scale = jnp.zeros(number_of_bits(len(self.rewritten)))
        there = dict(values)
        for name, site in sites.items():
            bit = self.bits[name]
            log_scale = log_scale.at[bit.bit_length() - 1].add(site.log_scale.sum())
            there[name] = jnp.where(is_centered(centering, bit), site.base, site.coordinates)
        return there, log_scale

    def from_user_values(
        self, values: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Unconstrained values of the user's sites as values of the rewritten sites."""
        centering = all_centered(len(self.rewritten))
        sites = self.rewritten_sites(values, centering, args, kwargs)
        if any(site.family is not None for site in sites.values()):
            # The model took the values of mapped sites for their coordinates. How it maps does not
            # depend on values, but scales may.
            mapped = {
                name: site.family.to_coordinates(values[name])
                for name, site in sites.items()
                if site.family is not None
            }
            sites = self.rewritten_sites({**values, **mapped}, centering, args, kwargs)
        return {**values, **{name: site.base for name, site in sites.items()}}


def split_laplace_sites(
    model: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    laplace_sites: Any = "auto",
    registry: PriorRegistry = BUILT_IN_PRIORS,
) -> LaplaceSplit:
    """Find the sites of ``model`` whose priors have closed forms.

    Laplace sites with latent location or scale are standardized; sites of other kinds only count
    with fixed parameters.

    Args:
        model: NumPyro model.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        laplace_sites: ``"auto"`` for every site that can be split, ``None`` for none, or names.
        registry: the kinds of distributions with closed forms.

    Raises:
        ValueError: a name in ``laplace_sites`` is not a site that can be split.
    """
    sites = _find_sites(model, args, kwargs, registry)
    laplace, smooth = sites.split_off, sites.standardized
    if laplace_sites is None:
        laplace = {}
    elif laplace_sites != "auto":
        unknown = sorted(set(laplace_sites) - set(laplace))
        if unknown:
            raise ValueError(
                f"`laplace_sites` names {unknown}, which are not latent {kind_names(registry)} "
                f"sites of the model; those that can be split are {sorted(laplace)}."
            )
        laplace = {name: is_latent for name, is_latent in laplace.items() if name in laplace_sites}
    return LaplaceSplit(
        user_model=model,
        fixed=tuple(name for name, is_latent in laplace.items() if not is_latent),
        rewritten=tuple(name for name, is_latent in laplace.items() if is_latent) + smooth,
        enumeration_dim=sites.enumeration_dim,
        registry=registry,
        smooth=frozenset(smooth),
    )


class _Sites(NamedTuple):
    """The possible treatment of the sites of a model.

    Attributes:
        split_off: names of sites that can be split off, and whether they are rewritten for that,
            because their location or scale is latent, or they have closed forms in other
            coordinates.
        standardized: names of other sites that are better standardized.
        enumeration_dim: see :class:`LaplaceSplit`.
    """

    split_off: dict[str, bool]
    standardized: tuple[str, ...]
    enumeration_dim: int | None


def _find_sites(
    model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], registry: PriorRegistry
) -> _Sites:
    def read(trace: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], set[str], int | None]:
        sampled = {name: x for name, x in trace.items() if is_latent(x) or is_discrete(x)}
        values = {
            name: jax.ShapeDtypeStruct(jnp.shape(site["value"]), jnp.result_type(site["value"]))
            for name, site in sampled.items()
        }
        kinds = {
            name: (
                is_laplace(site["fn"]),
                find_kind(site["fn"], registry) is not None,
                is_mapped(site["fn"]),
            )
            for name, site in sampled.items()
            if site["scale"] is None and is_direct(name, site)
        }
        kinds = {
            name: kind
            for name, kind in kinds.items()
            if any(kind) or is_location_scale(sampled[name]["fn"])
        }
        discrete = {name for name, site in sampled.items() if is_discrete(site)}
        return kinds, values, discrete, enumeration_dim(trace)

    kinds, values, discrete, dim = inspect_trace(model, args, kwargs, read)
    parents = _latent_parents(model, list(kinds), values, registry, args, kwargs) if kinds else {}
    split_off, standardized = {}, []
    for name, (is_laplace_site, is_registered, is_mapped_site) in kinds.items():
        movable = parents[name].location | parents[name].scale
        # A latent asymmetry would remain latent in the base site. The density of a site whose
        # parameters depend on a discrete site is a mixture once that site is summed out.
        if parents[name].other or movable & discrete:
            continue
        if is_laplace_site or (is_registered and not movable):
            split_off[name] = bool(movable) or is_mapped_site
        elif parents[name].scale:
            standardized.append(name)
    return _Sites(split_off, tuple(standardized), dim)
