"""One NumPyro iteration of one ensemble: refresh it when all is drawn, then emit the next draw."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.ensemble import Ensemble, potential
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.state import STATE_AXES, Buffer, RWPOState, placed_state
from numpyro_rwpo.dynamics.trees import TreeMove
from numpyro_rwpo.model.target import Target, pool_chains
from numpyro_rwpo.support.control_flow import run_if

# Maps a flat position and a centering to unconstrained values and the log Jacobian of the way back.
Emit = Callable[[jax.Array, jax.Array], tuple[Any, jax.Array]]


def iterate(state: RWPOState, target: Target, settings: Settings, emit: Emit) -> RWPOState:
    """One NumPyro iteration. During warm-up, which is over by then, it only emits particles."""
    target = target._replace(centering=state.centering)
    num_particles, num_states = state.buffer.potential.shape
    draw = jnp.mod(state.iteration, num_particles * num_states)
    # The same for all chains, so that it stays a branch where chains are vectorized.
    is_refresh = (state.iteration >= 0) & (draw == 0) & settings.corrected

    def refreshed(carry: tuple[Ensemble, Buffer]) -> tuple[Ensemble, Buffer]:
        return refresh(random.fold_in(state.rng_key, state.iteration), *carry, state, target)

    ensemble, buffer = run_if(is_refresh, refreshed, (state.ensemble, state.buffer))
    return emitted(state, ensemble, buffer, is_refresh, draw, target, settings, emit)


def iterate_chains(state: RWPOState, target: Target, settings: Settings, emit: Emit) -> RWPOState:
    """One NumPyro iteration of one chain, or of several where the state has a chain axis."""
    step = partial(iterate, settings=settings, emit=emit)
    if jnp.ndim(state.step_size) == 0:
        return step(state, target)
    if not isinstance(state.move, TreeMove):  # particles of a tree go on at their own pace
        target = pool_chains(target, "chain")
    # `iteration` stays unbatched: what depends on it alone stays a branch for all chains.
    return jax.vmap(
        partial(step, target=target),
        in_axes=(STATE_AXES,),
        out_axes=STATE_AXES,
        axis_name="chain",
    )(state)


def refresh(
    rng_key: jax.Array, ensemble: Ensemble, buffer: Buffer, state: RWPOState, target: Target
) -> tuple[Ensemble, Buffer]:
    """Fill the buffer with the next states of all particles; its last is the ensemble's own."""

    def one_state(k: jax.Array, carry: tuple[Ensemble, Buffer]) -> tuple[Ensemble, Buffer]:
        ensemble, buffer = carry
        key = random.fold_in(rng_key, k)
        ensemble, sweep = state.move.advance(key, ensemble, target)
        new = Buffer(
            ensemble.particles,
            potential(ensemble, target),
            sweep.accept_prob,
            sweep.diverging,
            sweep.energy,
            sweep.num_steps,
        )
        return ensemble, jax.tree.map(lambda old, x: old.at[:, k].set(x), buffer, new)

    return lax.fori_loop(0, buffer.potential.shape[1], one_state, (ensemble, buffer))


def emitted(
    state: RWPOState,
    ensemble: Ensemble,
    buffer: Buffer,
    is_refresh: jax.Array,
    draw: jax.Array,
    target: Target,
    settings: Settings,
    emit: Emit,
) -> RWPOState:
    """The state with draw number ``draw`` of the refresh, scalar, in its fields for NumPyro."""
    num_states = buffer.potential.shape[1]
    particle, number = draw // num_states, lax.rem(draw, num_states)

    def entry(x: jax.Array) -> jax.Array:
        row = target.placement.row(x, particle)
        return lax.dynamic_index_in_dim(row, number, 0, keepdims=False)

    drawn = jax.tree.map(entry, buffer)
    z, log_jacobian = emit(drawn.particles, state.centering)
    height = drawn.potential / settings.inverse_temperature - log_jacobian
    spent = jnp.where(is_refresh, buffer.num_steps.sum(), 0)
    state = state._replace(
        iteration=state.iteration + 1,
        z=z,
        diverging=drawn.diverging,
        potential_energy=height,
        accept_prob=drawn.accept_prob,
        num_steps=drawn.num_steps,
        energy=height + drawn.energy - drawn.potential,
        num_gradients=state.num_gradients + spent,
        ensemble=ensemble,
        buffer=buffer,
    )
    return placed_state(state, target.placement)
