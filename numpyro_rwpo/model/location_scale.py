"""Sites that are location + scale * a standard site, and the handler that rewrites them.

A structured site may be a linear map of that.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from numpyro_rwpo.distributions.fused import FusedLaplace
from numpyro_rwpo.distributions.structured import StructuredDistribution
from numpyro_rwpo.model.prior_registry import BUILT_IN_PRIORS, find_kind, unwrapped
from numpyro_rwpo.model.tracing import Model

# Smooth families on the whole real line, which are rewritten but not split off. In a hierarchical
# model with little data, standard sites have fewer funnels than the user's sites.
SMOOTH_FAMILIES = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Logistic, dist.Gumbel)


class LocationScale(NamedTuple):
    """A site of the user's model, which is location + scale * base, or a linear map of this.

    Attributes:
        value: value of the user's site.
        location: location in the site's shape.
        scale: scale in the site's shape; for an asymmetric site, that without the asymmetry.
        family: distribution of a structured site, which knows the map; ``None`` for others.
    """

    value: jax.Array
    location: jax.Array
    scale: jax.Array
    family: StructuredDistribution | None = None

    @property
    def coordinates(self) -> jax.Array:
        """Location plus scale times base, which is what moves at centering 1."""
        return self.value if self.family is None else self.family.to_coordinates(self.value)

    @property
    def base(self) -> jax.Array:
        """The value of the standard site."""
        return (self.coordinates - self.location) / self.scale


class standardize(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Rewrite the named sites as location + scale * a standard site at centering 0.

    NumPyro's ``LocScaleReparam`` samples another site for this purpose. The name of that site can
    be the same as that of one of the user's sites, and it passes inner handlers such as ``scope``
    twice. Here the site keeps its name: handlers outside of the model see the base site, whereas
    the model and the handlers inside it see the user's site.

    Attributes:
        sites: the named sites in the last call of the model.
    """

    def __init__(self, fn: Model, names: Collection[str], centering: Any) -> None:
        self.names = frozenset(names)
        self.is_centered = jnp.asarray(centering) > 0
        self.sites: dict[str, LocationScale] = {}
        self._originals: dict[str, Any] = {}
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Replace the distribution of a named site, which has no value yet, by its base."""
        if msg["type"] == "sample" and msg["name"] in self.names and msg["value"] is None:
            self._originals[msg["name"]] = msg["fn"]
            msg["fn"] = self._base(msg["fn"])

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Replace the value of the base site by the value of the user's site."""
        if msg["type"] != "sample" or msg["name"] not in self._originals:
            return
        msg["fn"] = self._originals.pop(msg["name"])
        family, base = unwrapped(msg["fn"]), msg["value"]
        is_structured = isinstance(family, StructuredDistribution)
        parameters = (
            (0.0, family.coordinate_scale()) if is_structured else (family.loc, family.scale)
        )
        location, scale = (jnp.broadcast_to(x, base.shape) for x in parameters)
        shift = jnp.where(self.is_centered, 0, location)
        factor = jnp.where(self.is_centered, 1, scale)
        value = shift + factor * base
        msg["value"] = family.to_vector(value) if is_structured else value
        self.sites[msg["name"]] = LocationScale(
            msg["value"], location, scale, family if is_structured else None
        )

    def _base(self, fn: Any) -> Any:
        family = unwrapped(fn)
        if isinstance(family, StructuredDistribution):
            base = family.standard(jnp.where(self.is_centered, family.scale, 1.0))
            event_dim = base.event_dim
            return base.expand(fn.shape()[:-event_dim]).to_event(fn.event_dim - event_dim)
        location = jnp.where(self.is_centered, family.loc, 0)
        scale = jnp.where(self.is_centered, family.scale, 1)
        base = _family_class(family)(**shape_parameters(family), loc=location, scale=scale)
        return base.expand(fn.shape()).to_event(fn.event_dim)


def _family_class(family: Any) -> Any:
    """The class of a distribution, or the parent class from which it inherits its density."""
    return find_kind(family, BUILT_IN_PRIORS) or type(family)


def shape_parameters(family: Any) -> dict[str, Any]:
    """Parameters other than location and scale, by name."""
    names = set(_family_class(family).arg_constraints) - {"loc", "scale"}
    # An asymmetric Laplace site computes two scales from its scale and asymmetry.
    names -= {"left_scale", "right_scale"}
    return {name: getattr(family, name) for name in names}


def parameters(family: Any) -> tuple[Any, Any, Any]:
    """Location, scale, and all other parameters of a location-scale family."""
    if isinstance(family, StructuredDistribution):
        other = {**vars(family), "scale": None}
        return [], family.scale, [x for x in other.values() if isinstance(x, jax.Array)]
    return family.loc, family.scale, shape_parameters(family)


def is_location_scale(fn: Any) -> bool:
    """Whether a distribution, expanded or not, is location + scale * a standard distribution.

    That includes those that are a linear map of this.
    """
    family = unwrapped(fn)
    is_structured = isinstance(family, StructuredDistribution)
    return is_laplace(fn) or is_structured or type(family) in SMOOTH_FAMILIES


def is_laplace(fn: Any) -> bool:
    """Whether a distribution, expanded or not, has closed forms in its standard coordinates."""
    return is_mapped(fn) or find_kind(fn, BUILT_IN_PRIORS) is not None


def is_mapped(fn: Any) -> bool:
    """Whether a distribution, expanded or not, has closed forms in other coordinates only."""
    return type(unwrapped(fn)) is FusedLaplace
