"""The state of one ensemble as NumPyro carries it, and the one before the first iteration."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import random

from numpyro_rwpo.dynamics.adaptation import Adaptation, initial_adaptation
from numpyro_rwpo.dynamics.ensemble import Ensemble, unevaluated
from numpyro_rwpo.dynamics.hamiltonian import Refresh, no_refresh
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.transport import Flow, initial_flow
from numpyro_rwpo.support.sharding import Placement


class RWPOState(NamedTuple):
    """State of one ensemble (with a leading chain axis when chains are vectorized).

    Attributes:
        iteration: NumPyro iteration, negative during warm-up, 0 at the first draw; never batched.
        z: the emitted particle, unconstrained, in the user's structure.
        diverging: whether the emitted particle diverged since its last draw.
        potential_energy: minus the log density at ``z``, up to a constant.
        accept_prob: the emitted particle's mean acceptance probability in the Hamiltonian sweeps
            since its last draw.
        num_steps: gradient evaluations: of the emitted particle since its last draw when sampling,
            of the whole ensemble in this iteration during warm-up. Their sum is the run's total,
            but for particles refreshed last and not emitted before the run ended.
        num_gradients: gradient evaluations of the whole ensemble since the start, warm-up included.
        step_size: leapfrog step size, whitened units.
        rng_key: random key; each refresh folds its iteration into it.
        centring: parametrisation of Laplace sites with latent scales, see
            :mod:`numpyro_rwpo.model.laplace_sites`.
        ensemble: the particles, evaluated.
        flow: progress of the transport.
        adaptation: estimates of warm-up, frozen after it.
        refresh: what the last refresh did to each particle.
    """

    iteration: jax.Array
    z: Any
    diverging: jax.Array
    potential_energy: jax.Array
    accept_prob: jax.Array
    num_steps: jax.Array
    num_gradients: jax.Array
    step_size: jax.Array
    rng_key: jax.Array
    centring: jax.Array
    ensemble: Ensemble
    flow: Flow
    adaptation: Adaptation
    refresh: Refresh


def placed_state(state: RWPOState, placement: Placement) -> RWPOState:
    """The state with its particles shared out, and a copy of all else on every device."""
    if placement.mesh is None:
        return state
    refresh = state.refresh._replace(
        accept_prob=placement.rows(state.refresh.accept_prob),
        diverging=placement.rows(state.refresh.diverging),
        num_steps=placement.whole(state.refresh.num_steps),
    )
    ensemble = placement.rows(state.ensemble)
    return placement.whole(state)._replace(ensemble=ensemble, refresh=refresh)


_AXES: Any = [None if field == "iteration" else 0 for field in RWPOState._fields]
STATE_AXES = RWPOState(*_AXES)
BALL = 0.1  # standard deviation of the particles around a start that the user chose


def initial_state(
    rng_key: jax.Array,
    start: jax.Array,
    num_particles: int,
    radius: float | None,
    settings: Settings,
) -> RWPOState:
    """State before the first iteration: particle 0 at ``start`` (dim,), the others spread.

    Without a ``radius`` they are spread in a ball around it, else within +- radius of the origin,
    as NumPyro's ``init_to_uniform`` does.
    """
    dtype = start.dtype
    rng_key, key_spread = random.split(rng_key)
    # Flat random numbers: XLA takes several times as long to compile those of two axes.
    size = num_particles * start.size
    if radius is None:
        spread = BALL * random.normal(key_spread, (size,), dtype)
    else:
        spread = random.uniform(key_spread, (size,), dtype, -radius, radius)
    spread = spread.reshape(num_particles, start.size)
    particles = (spread if radius is not None else start + spread).at[0].set(start)
    adaptation = initial_adaptation(particles, settings.candidates)
    state = RWPOState(
        iteration=jnp.array(-settings.num_warmup),
        z=start,
        # Of the start's own batching: NumPyro's buffers are shaped by the first state.
        diverging=~jnp.isfinite(start).all(),
        potential_energy=jnp.full((), jnp.inf, dtype),
        accept_prob=jnp.ones((), dtype),
        num_steps=jnp.zeros((), int),
        num_gradients=jnp.zeros((), int),
        step_size=jnp.exp(adaptation.log_step_mean[0]),
        rng_key=rng_key,
        centring=jnp.zeros(()),
        ensemble=unevaluated(particles),
        flow=initial_flow(dtype),
        adaptation=adaptation,
        refresh=no_refresh(particles),
    )
    return placed_state(state, settings.placement)


@partial(jax.jit, static_argnums=(2, 3, 4), static_argnames="is_batch")
def initial_states(rng_key: jax.Array, start: jax.Array, *static: Any, is_batch: bool) -> RWPOState:
    """:func:`initial_state` of one ensemble or of a batch, as one compiled program."""

    def initial(rng_key: jax.Array, start: jax.Array) -> RWPOState:
        return initial_state(rng_key, start, *static)

    return (jax.vmap(initial, out_axes=STATE_AXES) if is_batch else initial)(rng_key, start)


@partial(jax.jit, static_argnames=("placement", "is_batch"))
def placed_states(state: RWPOState, placement: Placement, is_batch: bool) -> RWPOState:
    """:func:`placed_state` of one ensemble or of a batch, as one compiled program."""
    place = partial(placed_state, placement=placement)
    return (jax.vmap(place, (STATE_AXES,), STATE_AXES) if is_batch else place)(state)


@partial(jax.jit, static_argnames="is_batch")
def split_keys(rng_key: jax.Array, is_batch: bool) -> tuple[jax.Array, jax.Array]:
    """Two keys from one, or two batches of keys from one."""
    keys = jax.vmap(random.split)(rng_key) if is_batch else random.split(rng_key)
    return (keys[:, 0], keys[:, 1]) if is_batch else (keys[0], keys[1])
