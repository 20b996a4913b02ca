"""Sites that are location + scale * a standard site, and the handler that rewrites them so."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from numpyro_rwpo.model.prior_registry import BUILT_IN_PRIORS, find_kind, unwrapped
from numpyro_rwpo.model.tracing import Model

# Families that are rewritten without being split off: smooth, on the whole real line. As a standard
# site they have fewer funnels, as sites with little data do in any hierarchical model.
SMOOTH_FAMILIES = (dist.Normal, dist.StudentT, dist.Cauchy, dist.Logistic, dist.Gumbel)


class LocationScale(NamedTuple):
    """A site of the user's model, which is location + scale * base.

    Attributes:
        value: of the user's site.
        location: in the site's shape.
        scale: in the site's shape; of an asymmetric site, the one without the asymmetry.
    """

    value: jax.Array
    location: jax.Array
    scale: jax.Array


class standardize(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Rewrite the named sites as location + scale * a standard site at centering 0.

    NumPyro's ``LocScaleReparam`` samples another site for that, under another name, which can
    collide with one of the user's and passes inner handlers such as ``scope`` twice. Here the site
    keeps its name: handlers outside see the base site, the model and the handlers inside it see
    the user's.

    Attributes:
        sites: what the last call of the model made of each named site.
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
        """Replace the base site's value, as sampled or substituted outside, by the user's."""
        if msg["type"] != "sample" or msg["name"] not in self._originals:
            return
        msg["fn"] = self._originals.pop(msg["name"])
        family, base = unwrapped(msg["fn"]), msg["value"]
        location, scale = (jnp.broadcast_to(x, base.shape) for x in (family.loc, family.scale))
        shift = jnp.where(self.is_centered, 0, location)
        factor = jnp.where(self.is_centered, 1, scale)
        msg["value"] = shift + factor * base
        self.sites[msg["name"]] = LocationScale(msg["value"], location, scale)

    def _base(self, fn: Any) -> Any:
        family = unwrapped(fn)
        location = jnp.where(self.is_centered, family.loc, 0)
        scale = jnp.where(self.is_centered, family.scale, 1)
        base = _family_class(family)(**shape_parameters(family), loc=location, scale=scale)
        return base.expand(fn.shape()).to_event(fn.event_dim)


def _family_class(family: Any) -> Any:
    """The class of a distribution or, where it only inherits its density, its parent's."""
    return find_kind(family, BUILT_IN_PRIORS) or type(family)


def shape_parameters(family: Any) -> dict[str, Any]:
    """Parameters other than location and scale, by name."""
    names = set(_family_class(family).arg_constraints) - {"loc", "scale"}
    # An asymmetric Laplace site has two scales, which its asymmetry makes of one.
    names -= {"left_scale", "right_scale"}
    return {name: getattr(family, name) for name in names}


def is_location_scale(fn: Any) -> bool:
    """Whether a distribution is location + scale * a standard one, expanded or not."""
    return is_laplace(fn) or type(unwrapped(fn)) in SMOOTH_FAMILIES


def is_laplace(fn: Any) -> bool:
    """Whether a distribution has the density of Laplace or AsymmetricLaplace, expanded or not."""
    return find_kind(fn, BUILT_IN_PRIORS) is not None
