"""A NumPyro model as a source of targets, with its Laplace sites split off."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy

from numpyro_rwpo.model.checks import check_model, explained, with_fixed_sites
from numpyro_rwpo.model.laplace_sites import (
    SiteParameters,
    default_key,
    split_laplace_sites,
)
from numpyro_rwpo.model.preparation import Preparation
from numpyro_rwpo.model.source import layout, ravel_like
from numpyro_rwpo.model.target import Differentiation, Target
from numpyro_rwpo.priors.laplace import LaplacePrior


class ModelSource:
    """A NumPyro model with its Laplace sites split off. Making one computes nothing.

    Args:
        model: NumPyro model.
        model_args: positional arguments of the model.
        model_kwargs: keyword arguments of the model.
        init_strategy: NumPyro's per-site initialisation strategy.
        nonsmooth: ``"auto"``, ``None`` or names of Laplace sites, see
            :func:`numpyro_rwpo.model.laplace_sites.split_laplace_sites`.
        differentiation: temperature and differentiation mode.

    Raises:
        ValueError: discrete latent sites, Delta sites, no latent sites, or a name in
            ``nonsmooth`` that is not a Laplace site; see also
            :func:`numpyro_rwpo.model.checks.check_model`.
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
    ) -> None:
        self._init_strategy = init_strategy
        self._differentiation = differentiation
        model = with_fixed_sites(model, check_model(model, model_args, model_kwargs))
        with explained(model, model_args, model_kwargs):
            self._split = split_laplace_sites(model, model_args, model_kwargs, nonsmooth)
            shapes = self._split.unconstrained_shapes(model_args, model_kwargs)
        self.has_prior = bool(self._split.fixed or self._split.rewritten)
        self._prototype = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        self._unravel = ravel_pytree(self._prototype)[1]
        self.is_rewritten: np.ndarray | None = None
        if self._split.rewritten:
            masks = [
                np.full(np.size(x), name in self._split.base_sites)
                for name, x in sorted(self._prototype.items())
            ]
            self.is_rewritten = np.concatenate(masks)
        sites = self._split.fixed, tuple(self._split.rewritten)
        self.layout: Hashable = (layout(self._prototype), sites)

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
                self._split.smooth_model,
                init_strategy=self._init_strategy,
                dynamic_args=True,
                model_args=model_args,
                model_kwargs=model_kwargs,
                forward_mode_differentiation=self._differentiation.forward_mode,
            ).param_info
            flatten = jax.vmap(lambda z: ravel_pytree(z)[0])
            start, gradient = flatten(found.z), flatten(found.z_grad)
            potential = found.potential_energy
        else:
            ravel = partial(self.ravel, model_args=model_args, model_kwargs=model_kwargs)
            # Mapped over keys too: values without any array must reach the check of their layout.
            start = jax.vmap(lambda _, z: ravel(z))(rng_keys, init_params)
            potential, gradient = self.bind(model_args, model_kwargs).value_and_grad(start)
        emit = partial(self.emit, model_args=model_args, model_kwargs=model_kwargs)
        values, _ = jax.vmap(emit)(start, jnp.zeros(len(start)))
        prior = self._split.prior_parameters(model_args, model_kwargs) if self.has_prior else {}
        return Preparation(start, values, potential, gradient, prior)

    def bind(self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> Target:
        """Make the target for these model arguments."""
        split = self._split

        def smooth(position: jax.Array, centring: jax.Array) -> jax.Array:
            kwargs = {**model_kwargs, "_centring": centring} if split.rewritten else model_kwargs
            model = default_key(self._split.smooth_model)
            return potential_energy(model, model_args, kwargs, self._unravel(position))

        if not self.has_prior:
            return self._differentiation.target(smooth, None)
        prior = ravel_prior(split.prior_parameters(model_args, model_kwargs), self._prototype)
        if not split.rewritten:
            return self._differentiation.target(smooth, prior)
        is_rewritten = jnp.asarray(self.is_rewritten)
        # What g leaves out of minus the log density: the centrings must differ by nothing else.
        width = jnp.where(is_rewritten, 1 / prior.rate_left + 1 / prior.rate_right, 1.0)
        log_normalizer = jnp.log(width).sum()

        def comparable(position: jax.Array, centring: jax.Array) -> jax.Array:
            return smooth(position, centring) + jnp.where(centring > 0, 0.0, log_normalizer)

        return self._differentiation.target(comparable, prior, is_rewritten)

    def emit(
        self,
        position: jax.Array,
        centring: jax.Array,
        model_args: tuple[Any, ...],
        model_kwargs: dict[str, Any],
    ) -> tuple[Any, jax.Array]:
        """A flat position (dim,) as unconstrained values, and the log Jacobian of the map back."""
        values = self._unravel(position)
        if not self._split.rewritten:
            return values, jnp.zeros(())
        return self._split.to_user_values(values, centring, model_args, model_kwargs)

    def ravel(
        self, values: Any, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> jax.Array:
        """A user's unconstrained values for one chain as a position (dim,) at centring 0."""
        if self._split.rewritten:
            values = self._split.from_user_values(values, model_args, model_kwargs)
        return ravel_like(values, self._prototype)

    def postprocess_fn(
        self, model_args: tuple[Any, ...], model_kwargs: dict[str, Any]
    ) -> Callable[[Any], Any]:
        """Map unconstrained values to the sites of the user's model."""
        return partial(
            constrain_fn,
            default_key(self._split.user_model),
            model_args,
            model_kwargs,
            return_deterministic=True,
        )


def ravel_prior(parameters: dict[str, SiteParameters], prototype: Any) -> LaplacePrior:
    """Lay the parameters of Laplace sites out over the flat position; rate 0 elsewhere."""

    def field(k: int) -> jax.Array:
        leaves = {
            name: parameters[name][k].astype(x.dtype).reshape(x.shape) if name in parameters else x
            for name, x in prototype.items()
        }
        return ravel_pytree(leaves)[0]

    return LaplacePrior(field(0), field(1), field(2))
