"""What runs before NumPyro's loop, as programs compiled once for data of equal shapes."""

from collections.abc import Callable
from typing import Any

import jax
from jax import random

from numpyro_rwpo.dynamics.state import (
    STATE_AXES,
    Ready,
    RWPOState,
    initial_state,
    placed_state,
)
from numpyro_rwpo.dynamics.trees import TreeWarmUp, warm_up_trees
from numpyro_rwpo.dynamics.warmup import WarmUp, spread, warm_up
from numpyro_rwpo.model.preparation import CompiledOnce, Preparation
from numpyro_rwpo.model.target import Target, pool_chains
from numpyro_rwpo.support.compilation import quick_options

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Programs:
    """The programs of one kernel, freed with it.

    Their constants are the layout of the source and the settings; their inputs have a leading chain
    axis.

    Args:
        prepare: makes a :class:`Preparation` of random keys, starting values, and model arguments.
        bind: makes the target of model arguments and the type of positions.

    Attributes:
        prepare: finds a valid start for each chain.
        warm_up: warms an ensemble up for each start.
        warm_up_trees: warms a small ensemble up for each start.
        first_state: makes the state before NumPyro's first iteration.
    """

    def __init__(
        self,
        prepare: Callable[[jax.Array, Any, Args, Kwargs], Preparation],
        bind: Callable[[Args, Kwargs, Any], Target],
    ) -> None:
        self._prepare, self._bind = prepare, bind
        self.prepare = CompiledOnce(self._prepared, lambda constants, inputs: quick_options(0))
        self.warm_up = CompiledOnce(self._warmed_up, _quick_where_small)
        self.warm_up_trees = CompiledOnce(self._trees)
        self.first_state = CompiledOnce(_first_state, lambda constants, inputs: quick_options(0))

    def _prepared(self, _: Any, inputs: Any, args: Args, kwargs: Kwargs) -> Preparation:
        rng_keys, init_params = inputs
        return self._prepare(rng_keys, init_params, args, kwargs)

    def _warmed_up(self, constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> WarmUp:
        _, settings = constants
        rng_keys, starts, numbers = inputs
        target = pool_chains(self._bind(args, kwargs, starts.dtype), "chain")

        def one_chain(key: jax.Array, start: jax.Array) -> WarmUp:
            return warm_up(key, start, target, settings, numbers)

        return jax.vmap(one_chain, axis_name="chain")(rng_keys, starts)

    def _trees(self, constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> TreeWarmUp:
        _, settings = constants
        rng_keys, starts, numbers = inputs
        target = self._bind(args, kwargs, starts.dtype)

        def one_chain(key: jax.Array, start: jax.Array) -> TreeWarmUp:
            key_spread, key_trees = random.split(key)
            particles = spread(key_spread, start, settings)
            aim = numbers.target_accept_prob
            return warm_up_trees(key_trees, particles, target, settings.num_warmup, aim)

        return jax.vmap(one_chain)(rng_keys, starts)


def _first_state(constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> RWPOState:
    num_warmup, num_states, placement = constants
    rng_keys, ready = inputs

    def one_chain(key: jax.Array, ready: Ready) -> RWPOState:
        return initial_state(key, ready, num_warmup, num_states)

    return placed_state(jax.vmap(one_chain, out_axes=STATE_AXES)(rng_keys, ready), placement)


def _quick_where_small(constants: Any, inputs: Any) -> dict[str, Any] | None:
    return quick_options(constants[1].num_particles * inputs[1].size)
