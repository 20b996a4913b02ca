"""A NumPyro model as a source of targets, with its Laplace sites split off."""

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.util import constrain_fn, initialize_model

from numpyro_rwpo.model.checks import (
    batching_explained,
    check_model,
    explained,
    with_fixed_sites,
)
from numpyro_rwpo.model.enumeration import enumerated
from numpyro_rwpo.model.laplace_sites import split_laplace_sites
from numpyro_rwpo.model.preparation import Preparation
from numpyro_rwpo.model.prior_registry import BUILT_IN_PRIORS, PriorRegistry, lay_out_prior
from numpyro_rwpo.model.site_bits import is_centered
from numpyro_rwpo.model.source import layout, start_radius, values_like
from numpyro_rwpo.model.split_check import concrete_split_errors, refused_sites, split_errors
from numpyro_rwpo.model.target import Differentiation, Target
from numpyro_rwpo.model.tracing import default_key
from numpyro_rwpo.priors.protocol import AnyPrior


class ModelSource:
    """A NumPyro model with its Laplace sites split off. Making one computes nothing.

    A model without any free coordinate, for example one in which all sites are observed, gets an
    idle coordinate with a standard normal density, which is not part of the draws.

    Args:
        model: NumPyro model.
        model_args: positional arguments of the model.
        model_kwargs: keyword arguments of the model.
        init_strategy: NumPyro's per-site initialization strategy.
        laplace_sites: ``"auto"``, ``None`` or names of Laplace sites, see
            :func:`numpyro_rwpo.model.laplace_sites.split_laplace_sites`.
        refused: names of sites that are not split off in any case, see
            :func:`numpyro_rwpo.model.split_check.refused_sites`.
        differentiation: temperature and differentiation mode.
        registry: the kinds of distributions with closed forms.

    Raises:
        ValueError: there are discrete latent sites that are not summed out, or Delta sites, or a
            name in ``laplace_sites`` is not that of a Laplace site; see also
            :func:`numpyro_rwpo.model.checks.check_model`.
        ImportError: discrete latent sites are to be summed out, and funsor is not installed.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
        *,
        init_strategy: Callable[..., Any],
        laplace_sites: Any,
        differentiation: Differentiation,
        refused: Collection[str] = (),
        registry: PriorRegistry = BUILT_IN_PRIORS,
    ) -> None:
        self.init_strategy = init_strategy
        self.differentiation = differentiation
        sites = check_model(model, model_args, model_kwargs)
        model = with_fixed_sites(model, sites)
        with explained(model, model_args, model_kwargs):
            split = split_laplace_sites(model, model_args, model_kwargs, laplace_sites, registry)
            shapes = split.unconstrained_shapes(model_args, model_kwargs)
        self.has_deterministic = sites.has_deterministic
        self.prototype = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        flat, self._unravel = ravel_pytree(self.prototype)
        self.is_idle = flat.size == 0
        self.split = split.without(split.names + split.rewritten if self.is_idle else refused)
        self.site_bits: np.ndarray | None = None
        if self.split.rewritten:
            self.site_bits = self.of_coordinates(self.split.bits)
        names = self.split.fixed, self.split.rewritten
        self.layout: Hashable = (layout(self.prototype), names)

    def of_coordinates(self, of_sites: Mapping[str, float]) -> np.ndarray:
        """The number of each coordinate's site, 0 for sites that have none, (dim,)."""
        sites = sorted(self.prototype.items())
        return np.concatenate([np.full(np.size(x), of_sites.get(name, 0)) for name, x in sites])

    def values(self, position: jax.Array) -> dict[str, jax.Array]:
        """A flat position (dim,) as values of the rewritten model's sites."""
        return self._unravel(position[:0] if self.is_idle else position)

    def position(self, values: dict[str, Any]) -> jax.Array:
        """Values of the rewritten model's sites as a flat position (dim,)."""
        return jnp.zeros(1) if self.is_idle else ravel_pytree(values)[0]

    def bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> "BoundModel":
        """The model with its arguments."""
        return BoundModel(self, model_args, model_kwargs)


@dataclass(frozen=True, eq=False)  # compared by identity: the arguments hold arrays
class BoundModel:
    """A NumPyro model with its arguments; see :class:`numpyro_rwpo.model.source.Bound`.

    Attributes:
        source: the model.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    source: ModelSource
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def has_prior(self) -> bool:
        """Whether any coordinate has a Laplace prior with closed forms."""
        return bool(self.source.split.names)

    def prepare(self, rng_keys: jax.Array, init_params: Any) -> Preparation:
        """Take the user's start, or search for a valid one as NumPyro does for NUTS."""
        split = self.source.split
        is_drawn = start_radius(self.source.init_strategy, init_params) is not None
        if init_params is None and split.rewritten and not is_drawn:
            # The values that a strategy gives are those of the user's sites.
            init_params = self._initialized(rng_keys, split.user_model).z
        if init_params is None:
            start, potential, gradient = self._found_start(rng_keys)
        else:
            # The keys are mapped, too, so that values without any array reach the check in `ravel`.
            start = jax.vmap(lambda _, z: self.ravel(z))(rng_keys, init_params)
            potential, gradient = self.target().value_and_grad(start)

        def emitted(x: jax.Array) -> Any:
            return self.emit(x, jnp.zeros(()))[0]

        # To emit a rewritten site, the model is run, which JAX may not be able to batch.
        values = jax.vmap(emitted)(start) if not split.rewritten else lax.map(emitted, start)
        priors, errors = {}, {}
        if self.has_prior:
            priors = split.site_priors(self.args, self.kwargs)
        if self.has_prior or split.rewritten:
            errors = split_errors(split, self.args, self.kwargs)
        return Preparation(start, values, potential, gradient, priors, errors)

    def _found_start(self, rng_keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A valid start for each key, with the smooth potential and its gradient there."""
        found = self._initialized(rng_keys, self.source.split.smooth_model)
        start, gradient = (
            jax.vmap(lambda _, z: self.source.position(z))(rng_keys, z)
            for z in (found.z, found.z_grad)
        )
        return start, found.potential_energy, gradient

    def _initialized(self, rng_keys: jax.Array, model: Callable[..., Any]) -> Any:
        """NumPyro's search for a start of a model, for each key."""
        source = self.source
        return initialize_model(
            rng_keys,
            default_key(model),
            init_strategy=source.init_strategy,
            dynamic_args=True,
            model_args=self.args,
            model_kwargs=self.kwargs,
            forward_mode_differentiation=source.differentiation.forward_mode,
        ).param_info

    def wrong_sites(self, prepared: Preparation) -> frozenset[str]:
        """Names of Laplace sites whose densities would not be those of the model if split off."""
        errors = prepared.split_errors
        if any(isinstance(error, jax.core.Tracer) for error in errors.values()):
            errors = concrete_split_errors(self.source.split, self.args, self.kwargs)
        return refused_sites(errors)

    def target(self) -> Target:
        """The target for these model arguments."""
        source, split = self.source, self.source.split

        def smooth(position: jax.Array, centering: jax.Array) -> jax.Array:
            values = source.values(position)
            potential = split.potential(
                values, centering, self.args, self.kwargs, is_smooth_part=True
            )
            return potential + _idle_potential(position) if source.is_idle else potential

        prior = None
        if self.has_prior:
            prior = flat_prior(split.site_priors(self.args, self.kwargs), source.prototype)
        if not split.rewritten:
            return source.differentiation.target(smooth, prior)
        bits = jnp.asarray(source.site_bits)
        if prior is None:
            return source.differentiation.target(smooth, None, bits, self._recenter)
        # The potentials of two centerings must not differ by a constant, so that f contains the
        # normalizing constants that g leaves out.
        moved = {name: bit for name, bit in split.bits.items() if name not in split.smooth}
        moved_bits = jnp.asarray(source.of_coordinates(moved))
        log_normalizer = jnp.where(moved_bits > 0, prior.log_mass(), 0.0)

        def comparable(position: jax.Array, centering: jax.Array) -> jax.Array:
            is_left_out = ~is_centered(centering, moved_bits)
            return smooth(position, centering) + jnp.where(is_left_out, log_normalizer, 0.0).sum()

        return source.differentiation.target(comparable, prior, bits, self._recenter)

    def _recenter(self, position: jax.Array, centering: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See :meth:`numpyro_rwpo.model.laplace_sites.LaplaceSplit.recentered`; (dim,)."""
        values, split = self.source.values(position), self.source.split
        there, log_scale = split.recentered(values, centering, self.args, self.kwargs)
        return self.source.position(there), log_scale

    def emit(self, position: jax.Array, centering: jax.Array) -> tuple[Any, jax.Array]:
        """A flat position (dim,) as unconstrained values, and the log Jacobian of the map back."""
        values, split = self.source.values(position), self.source.split
        if self.source.is_idle:
            return values, _idle_potential(position)
        if not split.rewritten:
            return values, jnp.zeros(())
        with batching_explained():
            return split.to_user_values(values, centering, self.args, self.kwargs)

    def ravel(self, values: Any) -> jax.Array:
        """A user's unconstrained values for one chain as a position (dim,) at centering 0."""
        values = values_like(values, self.source.prototype)
        if self.source.split.rewritten:
            values = self.source.split.from_user_values(values, self.args, self.kwargs)
        return self.source.position(values)

    def constrain(self, values: Any) -> Any:
        """Map unconstrained values to the sites of the user's model."""
        split = self.source.split
        model, dim = default_key(split.user_model), split.enumeration_dim
        if dim is None:
            return constrain_fn(model, self.args, self.kwargs, values, return_deterministic=True)
        latent = constrain_fn(handlers.seed(model, 0), self.args, self.kwargs, values)
        if not self.source.has_deterministic:
            return latent
        # As with NUTS, deterministic sites have a value for every value of the enumerated sites on
        # which they depend.
        whole = enumerated(model, dim)
        sites = constrain_fn(whole, self.args, self.kwargs, values, return_deterministic=True)
        return {**sites, **latent}


def _idle_potential(position: jax.Array) -> jax.Array:
    """The potential of the idle coordinate (1,), a standard normal, scalar."""
    return 0.5 * (position**2).sum()


def flat_prior(priors: dict[str, AnyPrior], prototype: dict[str, Any]) -> AnyPrior:
    """The prior of the flat position, from the priors of the sites that have one."""
    names = sorted(prototype)  # the order of `ravel_pytree`
    return lay_out_prior([priors.get(name) for name in names], [prototype[n] for n in names])
