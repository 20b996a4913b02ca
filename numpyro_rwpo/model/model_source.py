"""A NumPyro model as a source of targets, with its Laplace sites split off."""

from collections.abc import Callable, Collection, Hashable
from functools import partial
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
from numpyro_rwpo.model.source import layout, values_like
from numpyro_rwpo.model.split_check import concrete_split_errors, refused_sites, split_errors
from numpyro_rwpo.model.target import Differentiation, Target
from numpyro_rwpo.model.tracing import default_key
from numpyro_rwpo.priors.protocol import Prior


class ModelSource:
    """A NumPyro model with its Laplace sites split off. Making one computes nothing.

    A model without any free coordinate, for example one that observes all its sites, gets an idle
    one, a standard normal that no draw shows.

    Args:
        model: NumPyro model.
        model_args: positional arguments of the model.
        model_kwargs: keyword arguments of the model.
        init_strategy: NumPyro's per-site initialization strategy.
        nonsmooth: ``"auto"``, ``None`` or names of Laplace sites, see
            :func:`numpyro_rwpo.model.laplace_sites.split_laplace_sites`.
        refused: names of Laplace sites that are not split off all the same, see
            :func:`numpyro_rwpo.model.split_check.refused_sites`.
        differentiation: temperature and differentiation mode.
        registry: the kinds of distributions with closed forms.

    Raises:
        ValueError: discrete latent sites that are not summed out, Delta sites, or a name in
            ``nonsmooth`` that is not a Laplace site; see also
            :func:`numpyro_rwpo.model.checks.check_model`.
        ImportError: discrete latent sites to sum out, without funsor.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
        *,
        init_strategy: Callable[..., Any],
        nonsmooth: Any,
        differentiation: Differentiation,
        refused: Collection[str] = (),
        registry: PriorRegistry = BUILT_IN_PRIORS,
    ) -> None:
        self._init_strategy = init_strategy
        self._differentiation = differentiation
        sites = check_model(model, model_args, model_kwargs)
        model = with_fixed_sites(model, sites)
        with explained(model, model_args, model_kwargs):
            split = split_laplace_sites(model, model_args, model_kwargs, nonsmooth, registry)
            shapes = split.unconstrained_shapes(model_args, model_kwargs)
        self._has_deterministic = sites.has_deterministic
        self._prototype = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        flat, self._unravel = ravel_pytree(self._prototype)
        self._is_idle = flat.size == 0
        self._split = split.without(split.names + split.rewritten if self._is_idle else refused)
        self.has_prior = bool(self._split.names)
        self.is_rewritten: np.ndarray | None = None
        if self._split.rewritten:
            self.is_rewritten = self._coordinates_of(self._split.rewritten)
        names = self._split.fixed, self._split.rewritten
        self.layout: Hashable = (layout(self._prototype), names)

    def _coordinates_of(self, names: Collection[str]) -> np.ndarray:
        """Which coordinates of a position belong to the named sites, (dim,)."""
        masks = [np.full(np.size(x), name in names) for name, x in sorted(self._prototype.items())]
        return np.concatenate(masks)

    def _values(self, position: jax.Array) -> dict[str, jax.Array]:
        """A flat position (dim,) as values of the rewritten model's sites."""
        return self._unravel(position[:0] if self._is_idle else position)

    def _position(self, values: dict[str, Any]) -> jax.Array:
        """Values of the rewritten model's sites as a flat position (dim,)."""
        return jnp.zeros(1) if self._is_idle else ravel_pytree(values)[0]

    def prepare(
        self,
        rng_keys: jax.Array,
        init_params: Any,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> Preparation:
        """Take the user's start or search a valid one, as NumPyro does for NUTS."""
        if init_params is None:
            found = initialize_model(
                rng_keys,
                default_key(self._split.smooth_model),
                init_strategy=self._init_strategy,
                dynamic_args=True,
                model_args=model_args,
                model_kwargs=model_kwargs,
                forward_mode_differentiation=self._differentiation.forward_mode,
            ).param_info
            start, gradient = (
                jax.vmap(lambda _, z: self._position(z))(rng_keys, z)
                for z in (found.z, found.z_grad)
            )
            potential = found.potential_energy
        else:
            ravel = partial(self.ravel, model_args=model_args, model_kwargs=model_kwargs)
            # Mapped over keys too: values without any array must reach the check of their layout.
            start = jax.vmap(lambda _, z: ravel(z))(rng_keys, init_params)
            potential, gradient = self.bind(model_args, model_kwargs).value_and_grad(start)
        emit = partial(self.emit, model_args=model_args, model_kwargs=model_kwargs)

        def emitted(x: jax.Array) -> Any:
            return emit(x, jnp.zeros(()))[0]

        # Emitting a rewritten site runs the model, which JAX may not be able to batch.
        is_batch = not self._split.rewritten
        values = jax.vmap(emitted)(start) if is_batch else lax.map(emitted, start)
        priors, errors = {}, {}
        if self.has_prior:
            priors = self._split.site_priors(model_args, model_kwargs)
        if self.has_prior or self._split.rewritten:
            errors = split_errors(self._split, model_args, model_kwargs)
        return Preparation(start, values, potential, gradient, priors, errors)

    def wrong_sites(
        self,
        prepared: Preparation,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> frozenset[str]:
        """Names of Laplace sites whose density split off is not that of the model."""
        errors = prepared.split_errors
        if any(isinstance(error, jax.core.Tracer) for error in errors.values()):
            errors = concrete_split_errors(self._split, model_args, model_kwargs)
        return refused_sites(errors)

    def bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> Target:
        """Make the target for these model arguments."""
        split = self._split

        def smooth(position: jax.Array, centering: jax.Array) -> jax.Array:
            potential = split.potential(
                self._values(position), centering, model_args, model_kwargs, is_smooth_part=True
            )
            return potential + _idle_potential(position) if self._is_idle else potential

        def recenter(position: jax.Array, centering: jax.Array) -> tuple[jax.Array, jax.Array]:
            there, log_scale = split.recentered(
                self._values(position), centering, model_args, model_kwargs
            )
            return self._position(there), log_scale

        prior = None
        if not split.rewritten:
            if self.has_prior:
                prior = flat_prior(split.site_priors(model_args, model_kwargs), self._prototype)
            return self._differentiation.target(smooth, prior)
        is_rewritten = jnp.asarray(self.is_rewritten)
        if self.has_prior:
            prior = flat_prior(split.site_priors(model_args, model_kwargs), self._prototype)
        if prior is None:
            return self._differentiation.target(smooth, prior, is_rewritten, recenter)
        # What g leaves out of minus the log density: the centerings must differ by nothing else.
        is_moved = jnp.asarray(self._coordinates_of(set(split.rewritten) - split.smooth))
        log_normalizer = jnp.where(is_moved, prior.log_mass(), 0.0).sum()

        def comparable(position: jax.Array, centering: jax.Array) -> jax.Array:
            return smooth(position, centering) + jnp.where(centering > 0, 0.0, log_normalizer)

        return self._differentiation.target(comparable, prior, is_rewritten, recenter)

    def emit(
        self,
        position: jax.Array,
        centering: jax.Array,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> tuple[Any, jax.Array]:
        """A flat position (dim,) as unconstrained values, and the log Jacobian of the map back."""
        values = self._values(position)
        if self._is_idle:
            return values, _idle_potential(position)
        if not self._split.rewritten:
            return values, jnp.zeros(())
        with batching_explained():
            return self._split.to_user_values(values, centering, model_args, model_kwargs)

    def ravel(
        self, values: Any, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> jax.Array:
        """A user's unconstrained values for one chain as a position (dim,) at centering 0."""
        values = values_like(values, self._prototype)
        if self._split.rewritten:
            values = self._split.from_user_values(values, model_args, model_kwargs)
        return self._position(values)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> Callable[[Any], Any]:
        """Map unconstrained values to the sites of the user's model."""
        model = default_key(self._split.user_model)
        dim = self._split.enumeration_dim

        def constrain(values: Any) -> Any:
            with batching_explained():
                if dim is None:
                    return constrain_fn(
                        model, model_args, model_kwargs, values, return_deterministic=True
                    )
                latent = constrain_fn(handlers.seed(model, 0), model_args, model_kwargs, values)
                if not self._has_deterministic:
                    return latent
                # As NUTS has them: for every value of the enumerated sites that they depend on.
                sites = constrain_fn(
                    enumerated(model, dim),
                    model_args,
                    model_kwargs,
                    values,
                    return_deterministic=True,
                )
                return {**sites, **latent}

        return constrain


def _idle_potential(position: jax.Array) -> jax.Array:
    """Of the coordinate that stands in where there are none, (1,): a standard normal's, ()."""
    return 0.5 * (position**2).sum()


def flat_prior(priors: dict[str, Prior], prototype: dict[str, Any]) -> Prior:
    """The prior of the flat position, from those of the sites that have one."""
    names = sorted(prototype)  # as `ravel_pytree` lays them out
    return lay_out_prior([priors.get(name) for name in names], [prototype[n] for n in names])
