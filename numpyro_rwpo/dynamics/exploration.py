"""Descents from far away, ensembles that explore one mode each, and the settling of the chains.

These programs run in ``init``, and only if warm-up left particles in several modes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.bfgs import descend, first_descent
from numpyro_rwpo.dynamics.ensemble import Ensemble, gradient, potential
from numpyro_rwpo.dynamics.estimates import Adaptation, make_move
from numpyro_rwpo.dynamics.mode_moves import ModeMove, Tally
from numpyro_rwpo.dynamics.moves import HamiltonianMove
from numpyro_rwpo.dynamics.pathfinder import quasi_newton_start, smoothed_potential
from numpyro_rwpo.dynamics.placement import evaluated_start
from numpyro_rwpo.dynamics.settings import Numbers, Settings
from numpyro_rwpo.dynamics.warmup import adapted
from numpyro_rwpo.model.target import Target

# Points that a descent tries. In a narrow mode far away, some ten of them only find the scale.
NUM_TRIED = 40
# Nats that a quasi-Newton step promises at most where a descent has arrived.
ARRIVED = 0.1


class Explored(NamedTuple):
    """An ensemble at rest in a mode.

    Attributes:
        particles: positions, (num_particles, dim).
        potential: prior included, (num_particles,).
        gradient: of the potential, prior included, (num_particles, dim).
        adaptation: the estimates from which the moves are made.
        moves: one move for each flow on trial.
        num_gradients: number of gradient evaluations, of all particles together, scalar.
        num_rows: number of gradient evaluations one after another, scalar.
    """

    particles: jax.Array
    potential: jax.Array
    gradient: jax.Array
    adaptation: Adaptation
    moves: tuple[HamiltonianMove, ...]
    num_gradients: jax.Array
    num_rows: jax.Array


def descend_all(starts: jax.Array, target: Target) -> jax.Array:
    """Where quasi-Newton descents from positions (n, dim) arrive, nan where they are on their way.

    Ends on the way, along a curved valley for example, would look like modes of their own.

    Args:
        starts: positions, (n, dim).
        target: the posterior, in the centering that the chains have chosen.
    """
    smoothed = smoothed_potential(target)
    descent = first_descent(starts, NUM_TRIED)
    descent = lax.fori_loop(0, NUM_TRIED, lambda _, d: descend(d, smoothed), descent)
    promised = -(descent.gradient * descent.direction).sum(1) / 2
    return jnp.where((promised < ARRIVED)[:, None], descent.position, jnp.nan)


def explore(
    rng_key: jax.Array,
    start: jax.Array,
    is_placed: jax.Array,
    target: Target,
    settings: Settings,
    numbers: Numbers,
) -> Explored:
    """Adapt the moves of an ensemble in one mode.

    Args:
        rng_key: one key.
        start: positions in the mode, (num_particles, dim).
        is_placed: whether these are at rest, scalar; if not, descents from them place the ensemble.
        target: the posterior, in the centering that the chains have chosen.
        settings: settings of the run.
        numbers: target acceptance probability and bandwidth.
    """
    key_start, key_adapt = random.split(rng_key)
    # The ensembles explore in one centering, in which the modes can be compared, and without jumps
    # to draws of the user's density, which would lead out of the mode.
    target = target._replace(full_prior=target.prior, site_bits=None, recenter=None, proposal=None)
    found = quasi_newton_start(key_start, start, target)
    particles, cost = found.draws, found.cost
    placed = evaluated_start(jnp.where(is_placed, start, particles), target, settings)
    ensemble, adaptation, _ = adapted(key_adapt, placed, target, settings, numbers)
    return Explored(
        particles=ensemble.particles,
        potential=potential(ensemble, target),
        gradient=gradient(ensemble, target),
        adaptation=adaptation,
        moves=tuple(
            make_move(name, number, adaptation, target)
            for number, name in enumerate(settings.flows)
        ),
        num_gradients=cost.num_gradients + settings.num_particles * (adaptation.num_steps + 1),
        num_rows=cost.num_rows + adaptation.num_steps + 1,
    )


def settle(
    rng_key: jax.Array, ensemble: Ensemble, move: ModeMove, num_states: jax.Array, target: Target
) -> tuple[Ensemble, jax.Array, Tally]:
    """The ensemble after ``num_states`` states of the move, its potential, and the jumps taken."""

    def one_state(i: jax.Array, carry: tuple[Ensemble, Tally]) -> tuple[Ensemble, Tally]:
        ensemble, total = carry
        ensemble, _, tally = move.advance_and_count(random.fold_in(rng_key, i), ensemble, target)
        return ensemble, jax.tree.map(jnp.add, total, tally)

    nothing = jnp.zeros((2, move.modes.log_det.size), ensemble.smooth.dtype)
    start = ensemble, Tally(nothing, nothing)
    ensemble, tally = lax.fori_loop(0, num_states, one_state, start)
    return ensemble, potential(ensemble, target), tally
