"""Sites that are location + scale * a standard site, and the handler that rewrites them.

A structured site may be a linear map of that, and a lognormal site is its exponential.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from numpyro.distributions.transforms import Transform, biject_to
from numpyro.primitives import Messenger

from numpyro_rwpo.distributions.fused import FusedLaplace
from numpyro_rwpo.distributions.structured import StructuredDistribution
from numpyro_rwpo.model.prior_registry import BUILT_IN_PRIORS, find_kind, unwrapped
from numpyro_rwpo.model.site_bits import is_centered, site_bit
from numpyro_rwpo.model.tracing import Model

# Smooth families of real numbers or vectors, which are rewritten but not split off. In a
# hierarchical model with little data, standard sites have fewer funnels than the user's sites.
SMOOTH_FAMILIES = (
    dist.Normal,
    dist.StudentT,
    dist.Cauchy,
    dist.Logistic,
    dist.Gumbel,
    dist.GaussianRandomWalk,
    dist.MultivariateNormal,
)


class LocationScale(NamedTuple):
    """A site of the user's model, which is location + scale * base, or a map of this.

    Attributes:
        coordinates: location plus scale times base, which is what moves at centering 1.
        location: location in the site's shape.
        scale: scale in the site's shape; for an asymmetric site, that without the asymmetry. For a
            multivariate normal site the factor L of its covariance, with one more axis.
        family: distribution of a structured site, which knows the map; ``None`` for others.
        transform: the map of a site that is not real, which is that from unconstrained values;
            ``None`` for others.
    """

    coordinates: jax.Array
    location: jax.Array
    scale: jax.Array
    family: StructuredDistribution | None = None
    transform: Transform | None = None

    @property
    def unconstrained(self) -> jax.Array:
        """Unconstrained value of the user's site."""
        if self.family is None:
            return self.coordinates
        return self.family.to_vector(self.coordinates)

    @property
    def value(self) -> jax.Array:
        """Value of the user's site."""
        return self.unconstrained if self.transform is None else self.transform(self.unconstrained)

    @property
    def log_slope(self) -> jax.Array:
        """Log derivative of the value by the unconstrained value, in the site's shape."""
        if self.transform is None:
            return jnp.zeros_like(self.unconstrained)
        return self.transform.log_abs_det_jacobian(self.unconstrained, self.value)

    @property
    def is_factor(self) -> bool:
        """Whether the scale is a triangular matrix."""
        return self.scale.ndim > self.coordinates.ndim

    @property
    def log_scale(self) -> jax.Array:
        """Logarithms, in the site's shape, whose sum is the log determinant of the scale."""
        scale = jnp.diagonal(self.scale, axis1=-2, axis2=-1) if self.is_factor else self.scale
        return jnp.log(scale)

    @property
    def base(self) -> jax.Array:
        """The value of the standard site."""
        centered = self.coordinates - self.location
        if not self.is_factor:
            return centered / self.scale
        return solve_triangular(self.scale, centered[..., None], lower=True)[..., 0]


class standardize(Messenger):  # noqa: N801 - handlers are lower case in NumPyro
    """Rewrite the named sites as location + scale * a standard site, unless they are centered.

    NumPyro's ``LocScaleReparam`` samples another site for this purpose. The name of that site can
    be the same as that of one of the user's sites, and it passes inner handlers such as ``scope``
    twice. Here the site keeps its name: handlers outside of the model see the base site, whereas
    the model and the handlers inside it see the user's site.

    Attributes:
        sites: the named sites in the last call of the model.
    """

    def __init__(self, fn: Model, names: Sequence[str], centering: Any) -> None:
        self.is_centered = {
            name: is_centered(centering, site_bit(index)) for index, name in enumerate(names)
        }
        self.sites: dict[str, LocationScale] = {}
        self._originals: dict[str, Any] = {}
        super().__init__(fn)

    def process_message(self, msg: dict[str, Any]) -> None:
        """Replace the distribution of a named site, which has no value yet, by its base."""
        if msg["type"] == "sample" and msg["name"] in self.is_centered and msg["value"] is None:
            self._originals[msg["name"]] = msg["fn"]
            msg["fn"] = self._base(msg["name"], msg["fn"])

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """Replace the value of the base site by the value of the user's site."""
        if msg["type"] != "sample" or msg["name"] not in self._originals:
            return
        msg["fn"] = self._originals.pop(msg["name"])
        family, transform, base = *_real_family(msg["fn"]), msg["value"]
        location, scale = location_and_scale(family)
        location = jnp.broadcast_to(location, base.shape)
        if isinstance(family, dist.MultivariateNormal):
            scale = jnp.broadcast_to(scale, (*base.shape, base.shape[-1]))
            scaled = (scale @ base[..., None])[..., 0]
        else:
            scale = jnp.broadcast_to(scale, base.shape)
            scaled = scale * base
        coordinates = jnp.where(self.is_centered[msg["name"]], base, location + scaled)
        structured = family if isinstance(family, StructuredDistribution) else None
        site = LocationScale(coordinates, location, scale, structured, transform)
        msg["value"], self.sites[msg["name"]] = site.value, site

    def _base(self, name: str, fn: Any) -> Any:
        base = _with_scale(_real_family(fn)[0], self.is_centered[name])
        batch_shape = fn.shape()[: len(fn.shape()) - base.event_dim]
        return base.expand(batch_shape).to_event(fn.event_dim - base.event_dim)


def _real_family(fn: Any) -> tuple[Any, Transform | None]:
    """The family of a site's unconstrained values, and the map from there if it is not real.

    NumPyro writes a lognormal site as the exponential of a normal one, which is at the same time
    how it makes unconstrained values positive.
    """
    family = unwrapped(fn)
    if type(family) in (dist.LogNormal, dist.TransformedDistribution):
        transform = biject_to(family.support)
        if family.transforms == [transform]:
            return unwrapped(family.base_dist), transform
    return family, None


def _with_scale(family: Any, is_centered: jax.Array) -> Any:
    """The distribution of coordinates: as written if centered, else the standard one."""
    if isinstance(family, StructuredDistribution):
        return family.standard(jnp.where(is_centered, family.scale, 1.0))
    location, scale = location_and_scale(family)
    location = jnp.where(is_centered, location, 0)
    if isinstance(family, dist.MultivariateNormal):
        factor = jnp.where(is_centered, scale, jnp.eye(scale.shape[-1], dtype=scale.dtype))
        return dist.MultivariateNormal(location, scale_tril=factor)
    if isinstance(family, dist.GaussianRandomWalk):
        return dist.GaussianRandomWalk(jnp.where(is_centered, family.scale, 1), family.num_steps)
    scale = jnp.where(is_centered, scale, 1)
    return _family_class(family)(**shape_parameters(family), loc=location, scale=scale)


def location_and_scale(family: Any) -> tuple[Any, Any]:
    """Location and scale, which broadcast to the site; the factor L of a multivariate normal."""
    if isinstance(family, StructuredDistribution):
        return 0.0, family.coordinate_scale()
    if isinstance(family, dist.MultivariateNormal):
        return family.loc, family.scale_tril
    if isinstance(family, dist.GaussianRandomWalk):  # one scale for all steps of a walk
        return 0.0, jnp.asarray(family.scale)[..., None]
    return family.loc, family.scale


def _family_class(family: Any) -> Any:
    """The class of a distribution, or the parent class from which it inherits its density."""
    return find_kind(family, BUILT_IN_PRIORS) or type(family)


def shape_parameters(family: Any) -> dict[str, Any]:
    """Parameters other than location and scale, by name."""
    if isinstance(family, dist.MultivariateNormal | dist.GaussianRandomWalk):
        return {}
    names = set(_family_class(family).arg_constraints) - {"loc", "scale"}
    # An asymmetric Laplace site computes two scales from its scale and asymmetry.
    names -= {"left_scale", "right_scale"}
    return {name: getattr(family, name) for name in names}


def parameters(fn: Any) -> tuple[Any, Any, Any]:
    """Location, scale, and all other parameters of a location-scale distribution."""
    family, _ = _real_family(fn)
    if isinstance(family, StructuredDistribution):
        other = {**vars(family), "scale": None}
        return [], family.scale, [x for x in other.values() if isinstance(x, jax.Array)]
    return *location_and_scale(family), shape_parameters(family)


def is_location_scale(fn: Any) -> bool:
    """Whether a distribution, expanded or not, is location + scale * a standard distribution.

    That includes those that are a linear map of this, and lognormal ones.
    """
    family, _ = _real_family(fn)
    is_structured = isinstance(family, StructuredDistribution)
    return is_laplace(fn) or is_structured or type(family) in SMOOTH_FAMILIES


def is_laplace(fn: Any) -> bool:
    """Whether a distribution, expanded or not, has closed forms in its standard coordinates."""
    return is_mapped(fn) or find_kind(fn, BUILT_IN_PRIORS) is not None


def is_mapped(fn: Any) -> bool:
    """Whether a distribution, expanded or not, has closed forms in other coordinates only."""
    return type(unwrapped(fn)) is FusedLaplace
