"""The programs that run before NumPyro's loop, compiled once for all data of the same shapes."""

import math
from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import random

from numpyro_rwpo.arguments import Arguments
from numpyro_rwpo.dynamics.ensemble import Ensemble
from numpyro_rwpo.dynamics.exploration import Explored, descend_all, explore, settle
from numpyro_rwpo.dynamics.mode_moves import ModeMove
from numpyro_rwpo.dynamics.placement import (
    Placement,
    place_by_descents,
    place_by_transport,
    spread,
)
from numpyro_rwpo.dynamics.state import (
    STATE_AXES,
    Ready,
    RWPOState,
    initial_state,
    placed_state,
)
from numpyro_rwpo.dynamics.trees import TreeWarmUp, warm_up_trees
from numpyro_rwpo.dynamics.warmup import WarmUp, warm_up
from numpyro_rwpo.model.checks import batching_explained, explained
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.potential_source import PotentialSource
from numpyro_rwpo.model.preparation import CompiledOnce, Preparation, check_preparation
from numpyro_rwpo.model.proposal import with_proposal
from numpyro_rwpo.model.source import Bound, Source
from numpyro_rwpo.model.target import Target, pool_chains
from numpyro_rwpo.support.compilation import compiler_options

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class Keys(NamedTuple):
    """Random keys of each chain.

    Attributes:
        sampling: keys for the refreshes.
        warm_up: keys for everything before.
    """

    sampling: jax.Array
    warm_up: jax.Array


class Programs:
    """The source of one kernel, and the programs that use it.

    The constants of a program are the layout of the source and the settings; its inputs have a
    leading chain axis.

    Args:
        arguments: the arguments of the kernel.

    Attributes:
        source: the posterior without its data; ``None`` before the first :meth:`find_start`.
        prepare: a program that finds a valid start for each chain.
        warm_up_trees: a program that adapts a small ensemble with NUTS transitions for each start.
        heights: a program that computes the potential at positions in one centering.
        descend: a program that follows descents from given positions.
        explore: a program that adapts an ensemble around each of several positions.
        settle: a program that moves ensembles between and within modes.
        first_state: a program that makes the state before NumPyro's first iteration.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self.source: Source | None = None
        self.prepare = CompiledOnce(self._prepared, lambda constants, inputs: compiler_options(0))
        self._place = CompiledOnce(self._placed, _options_by_size)
        self._transport = CompiledOnce(self._transported, _options_by_size)
        self._adapt = CompiledOnce(self._adapted, _options_by_size)
        self.warm_up_trees = CompiledOnce(self._trees)
        self.heights = CompiledOnce(self._heights, lambda constants, inputs: compiler_options(0))
        self.descend = CompiledOnce(self._descended, lambda constants, inputs: compiler_options(0))
        self.explore = CompiledOnce(self._explored, _options_by_size)
        self.settle = CompiledOnce(self._settled)
        self._constrain = CompiledOnce(self._constrained)
        self.first_state = CompiledOnce(_first_state, lambda constants, inputs: compiler_options(0))

    @property
    def layout(self) -> Hashable:
        """The layout of the source, which is among the constants of the programs."""
        assert self.source is not None
        return self.source.layout

    def find_start(
        self, rng_keys: jax.Array, init_params: Any, args: Args, kwargs: Kwargs
    ) -> tuple[Bound, Preparation, Keys]:
        """Make the source, bind it, and find a valid start for each key.

        A site stays in the smooth part if splitting it off would change the density.
        """
        model = self._arguments.model
        refused: frozenset[str] = frozenset()
        while True:
            self.source = _make_source(self._arguments, init_params, args, kwargs, refused)
            bound = self.source.bind(args, kwargs)
            with explained(model, args, kwargs):
                prepared, keys = self.prepare(self.layout, (rng_keys, init_params), args, kwargs)
            wrong = bound.wrong_sites(prepared)
            if not wrong:
                break
            refused |= wrong
        check_preparation(prepared, model, init_params, args, kwargs)
        return bound, prepared, keys

    def bind(self, args: Args, kwargs: Kwargs, dtype: Any) -> tuple[Target, Bound]:
        """The target for positions of type ``dtype``, and the posterior with its data."""
        bound = self._bound(args, kwargs)
        target = bound.target()._replace(placement=self._arguments.placement)
        if self._arguments.proposal is not None:
            target = with_proposal(target, bound, self._arguments.proposal, dtype)
        return target, bound

    def warm_up(
        self, constants: Hashable, inputs: tuple[Any, ...], args: Args, kwargs: Kwargs
    ) -> WarmUp:
        """Place an ensemble for each start by descents and adapt its moves.

        These are two programs, of which one compiles while the other is traced. Without correction,
        transport between them is the whole sampler.

        Args:
            constants: layout and settings.
            inputs: random keys and starts with a leading chain axis, and numbers.
            args: positional arguments of the model.
            kwargs: keyword arguments of the model.
        """
        rng_keys, _, numbers = inputs
        if self._arguments.placement.mesh is None:  # Shapes do not say where particles are.
            shapes = self._place.begin(constants, inputs, args, kwargs)
            if shapes is not None:
                self._adapt.begin(constants, (rng_keys, shapes, numbers), args, kwargs)
        placement = self._place(constants, inputs, args, kwargs)
        if not self._arguments.corrected:
            placement = self._transport(constants, (rng_keys, placement, numbers), args, kwargs)
        return self._adapt(constants, (rng_keys, placement, numbers), args, kwargs)

    def transport(
        self,
        constants: Hashable,
        inputs: tuple[Any, ...],
        placement: Placement,
        args: Args,
        kwargs: Kwargs,
    ) -> WarmUp:
        """Transport the ensembles from where descents placed them, and adapt their moves again.

        Args:
            constants: see :meth:`warm_up`.
            inputs: see :meth:`warm_up`.
            placement: the ensembles before the first warm-up, with all costs so far.
            args: positional arguments of the model.
            kwargs: keyword arguments of the model.
        """
        rng_keys, _, numbers = inputs
        placement = self._transport(constants, (rng_keys, placement, numbers), args, kwargs)
        return self._adapt(constants, (rng_keys, placement, numbers), args, kwargs)

    def constrain(self, values: Any, args: Args, kwargs: Kwargs) -> Any:
        """Map unconstrained values to the sites of the user's model.

        NumPyro does so in its loop and, once, outside of it, where all operations of the model
        would compile by themselves.
        """
        with batching_explained():
            return self._constrain(self.layout, values, args, kwargs)

    def _bound(self, args: Args, kwargs: Kwargs) -> Bound:
        assert self.source is not None
        return self.source.bind(args, kwargs)

    def _prepared(
        self, _: Any, inputs: Any, args: Args, kwargs: Kwargs
    ) -> tuple[Preparation, Keys]:
        rng_keys, init_params = inputs
        pairs = jax.vmap(random.split)(rng_keys)
        keys = Keys(pairs[:, 0], pairs[:, 1])
        return self._bound(args, kwargs).prepare(keys.warm_up, init_params), keys

    def _constrained(self, _: Any, values: Any, args: Args, kwargs: Kwargs) -> Any:
        return self._bound(args, kwargs).constrain(values)

    def _placed(self, constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> Placement:
        _, settings = constants
        rng_keys, starts, _ = inputs
        target = pool_chains(self.bind(args, kwargs, starts.dtype)[0], "chain")

        def one_chain(key: jax.Array, start: jax.Array) -> Placement:
            return place_by_descents(key, start, target, settings)

        return jax.vmap(one_chain, axis_name="chain")(rng_keys, starts)

    def _transported(self, constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> Placement:
        _, settings = constants
        _, placement, numbers = inputs
        target = pool_chains(self.bind(args, kwargs, placement.first.dtype)[0], "chain")

        def one_chain(placement: Placement) -> Placement:
            return place_by_transport(placement, target, settings, numbers)

        return jax.vmap(one_chain, axis_name="chain")(placement)

    def _adapted(self, constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> WarmUp:
        _, settings = constants
        rng_keys, placement, numbers = inputs
        target = pool_chains(self.bind(args, kwargs, placement.first.dtype)[0], "chain")

        def one_chain(key: jax.Array, placement: Placement) -> WarmUp:
            return warm_up(key, placement, target, settings, numbers)

        return jax.vmap(one_chain, axis_name="chain")(rng_keys, placement)

    def _trees(self, constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> TreeWarmUp:
        _, settings = constants
        rng_keys, starts, numbers = inputs
        target, _ = self.bind(args, kwargs, starts.dtype)

        def one_chain(key: jax.Array, start: jax.Array) -> TreeWarmUp:
            key_spread, key_trees = random.split(key)
            particles = spread(key_spread, start, settings)
            aim = numbers.target_accept_prob
            return warm_up_trees(key_trees, particles, target, settings.num_warmup, aim)

        return jax.vmap(one_chain)(rng_keys, starts)

    def _heights(self, _: Any, inputs: Any, args: Args, kwargs: Kwargs) -> jax.Array:
        positions, centering = inputs
        target = self.bind(args, kwargs, positions.dtype)[0]._replace(centering=centering)
        smooth, _ = target.value_and_grad(positions)
        return smooth + target.prior_potential(positions)

    def _descended(self, _: Any, inputs: Any, args: Args, kwargs: Kwargs) -> jax.Array:
        starts, centering = inputs
        target = self.bind(args, kwargs, starts.dtype)[0]._replace(centering=centering)
        return descend_all(starts, target)

    def _explored(self, constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> Explored:
        _, settings = constants
        rng_keys, starts, is_placed, centering, numbers = inputs
        target = self.bind(args, kwargs, starts.dtype)[0]._replace(centering=centering)
        one_mode = partial(explore, target=target, settings=settings, numbers=numbers)
        return jax.vmap(one_mode)(rng_keys, starts, is_placed)

    def _settled(self, _: Any, inputs: Any, args: Args, kwargs: Kwargs) -> Any:
        rng_keys, ensemble, move, num_states, centering = inputs
        target = pool_chains(self.bind(args, kwargs, ensemble.particles.dtype)[0], "chain")

        def one_chain(
            key: jax.Array,
            ensemble: Ensemble,
            move: ModeMove,
            num_states: jax.Array,
            centering: jax.Array,
        ) -> Any:
            here = target._replace(centering=centering)
            return settle(key, ensemble, move, num_states, here)

        return jax.vmap(one_chain, axis_name="chain")(
            rng_keys, ensemble, move, num_states, centering
        )


def _make_source(
    arguments: Arguments, init_params: Any, args: Args, kwargs: Kwargs, refused: frozenset[str]
) -> Source:
    """The model or potential function as a source that leaves the sites in ``refused`` alone."""
    if arguments.model is not None:
        return ModelSource(
            arguments.model,
            args,
            kwargs,
            init_strategy=arguments.init_strategy,
            laplace_sites=arguments.laplace_sites,
            differentiation=arguments.differentiation,
            refused=refused,
            registry=arguments.priors,
        )
    if init_params is None:
        raise ValueError(
            "Valid value of `init_params` must be provided with `potential_fn`: a pytree "
            "of floating-point arrays, with a leading chain axis for several chains."
        )
    assert arguments.potential_fn is not None
    return PotentialSource(
        arguments.potential_fn,
        jax.tree.map(lambda x: x[0], init_params),
        laplace_sites=arguments.laplace_sites,
        differentiation=arguments.differentiation,
        registry=arguments.priors,
    )


def _first_state(constants: Any, inputs: Any, args: Args, kwargs: Kwargs) -> RWPOState:
    num_warmup, num_states, placement = constants
    rng_keys, ready = inputs

    def one_chain(key: jax.Array, ready: Ready) -> RWPOState:
        return initial_state(key, ready, num_warmup, num_states)

    return placed_state(jax.vmap(one_chain, out_axes=STATE_AXES)(rng_keys, ready), placement)


def _options_by_size(constants: Any, inputs: Any) -> dict[str, Any] | None:
    """Options for a program whose second input has the starts of ensembles, or is a placement."""
    settings, starts = constants[1], inputs[1]
    if isinstance(starts, Placement):
        shape = starts.first.shape
    elif starts.ndim == 3:  # One for each particle.
        shape = starts.shape
    else:
        shape = (settings.num_particles, *starts.shape)
    num_particles = math.prod(shape[:-1])
    return compiler_options(math.prod(shape), num_particles * settings.gradient_size)
