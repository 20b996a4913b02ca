"""One NumPyro iteration: refresh an ensemble whose states have all been drawn, then emit a draw."""

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

# A function that maps a flat position and a centering to unconstrained values and the log Jacobian
# of the inverse map.
Emit = Callable[[jax.Array, jax.Array], tuple[Any, jax.Array]]


def iterate(state: RWPOState, target: Target, settings: Settings, emit: Emit) -> RWPOState:
    """One NumPyro iteration of one chain.

    NumPyro's warm-up iterations, which have negative numbers, only emit particles, because warm-up
    is already over.
    """
    target = target._replace(centering=state.centering)
    num_particles, num_states = state.buffer.potential.shape
    draw = jnp.mod(state.iteration, num_particles * num_states)
    # This is the same for all chains, so that it remains a branch if chains are vectorized.
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
    if not isinstance(state.move, TreeMove):  # Particles in NUTS trees do not move in step.
        target = pool_chains(target, "chain")
    # `iteration` is not batched, so that a condition on it remains a branch.
    return jax.vmap(
        partial(step, target=target),
        in_axes=(STATE_AXES,),
        out_axes=STATE_AXES,
        axis_name="chain",
    )(state)


def refresh(
    rng_key: jax.Array, ensemble: Ensemble, buffer: Buffer, state: RWPOState, target: Target
) -> tuple[Ensemble, Buffer]:
    """Fill the buffer with the next states of all particles; the last one is also the ensemble."""

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
    """The state whose fields for NumPyro hold draw number ``draw`` of the refresh."""
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
