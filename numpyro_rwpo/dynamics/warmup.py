"""Warm-up of one ensemble that has been placed: adapt the moves until they are steady.

It runs in a separate program before NumPyro's loop, for all chains at once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.adaptation import adapt, is_finished
from numpyro_rwpo.dynamics.centering import recentered
from numpyro_rwpo.dynamics.ensemble import Ensemble, potential
from numpyro_rwpo.dynamics.estimates import Adaptation, make_move
from numpyro_rwpo.dynamics.moves import HamiltonianMove
from numpyro_rwpo.dynamics.placement import Placed, Placement, evaluated_start
from numpyro_rwpo.dynamics.settings import Numbers, Settings
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.support.control_flow import batched_like

# The centering is chosen again after the placement, and after the first and the second segment of
# this number of updates, because ensembles that have not spread out yet say little about it.
SEGMENT, NUM_SEGMENTS = 12, 3


class WarmUp(NamedTuple):
    """An ensemble after warm-up.

    Attributes:
        ensemble: evaluated particles.
        potential: potential at the particles, prior included, (num_particles,).
        centering: parameterization of sites with latent scales.
        adaptation: the estimates from which the moves are made.
        moves: one move for each flow on trial.
        correlation: for each flow on trial, that of the slowest statistic from one sweep to the
            next.
        placement: the placement of the ensemble, with the costs of the whole warm-up.
    """

    ensemble: Ensemble
    potential: jax.Array
    centering: jax.Array
    adaptation: Adaptation
    moves: tuple[HamiltonianMove, ...]
    correlation: tuple[jax.Array, ...]
    placement: Placement


def warm_up(
    rng_key: jax.Array, placement: Placement, target: Target, settings: Settings, numbers: Numbers
) -> WarmUp:
    """Adapt the moves of an ensemble that has been placed.

    Args:
        rng_key: the key with which it was placed.
        placement: the ensemble.
        target: the posterior.
        settings: settings of the run.
        numbers: target acceptance probability and bandwidth.
    """
    placed, key_adapt = placement.placed, random.split(rng_key)[1]
    ensemble, adaptation, centering = placed.ensemble, placed.adaptation, placed.centering
    if settings.corrected:
        ensemble, adaptation, centering = adapted(key_adapt, placed, target, settings, numbers)
    target = target._replace(centering=centering)
    num_steps = adaptation.num_steps
    return WarmUp(
        ensemble=ensemble,
        potential=potential(ensemble, target),
        centering=centering,
        adaptation=adaptation,
        moves=tuple(
            make_move(name, number, adaptation, target)
            for number, name in enumerate(settings.flows)
        ),
        correlation=tuple(one.max() for one in adaptation.correlation),
        placement=placement._replace(
            num_gradients=placement.num_gradients + settings.num_particles * num_steps,
            num_rows=placement.num_rows + num_steps,
        ),
    )


def adapted(
    rng_key: jax.Array, placed: Placed, target: Target, settings: Settings, numbers: Numbers
) -> tuple[Ensemble, Adaptation, jax.Array]:
    """The ensemble after adaptation, the estimates, and the centering."""

    def update(carry: tuple[Ensemble, Adaptation], target: Target) -> tuple[Ensemble, Adaptation]:
        key = random.fold_in(rng_key, carry[1].total_updates)
        return adapt(key, *carry, target, settings, numbers)

    def until(limit: jax.Array, carry: tuple[Ensemble, Adaptation], target: Target) -> Any:
        return lax.while_loop(
            lambda carry: ~is_finished(carry[1], settings, numbers) & (carry[1].updates < limit),
            lambda carry: update(carry, target),
            carry,
        )

    Carry = tuple[Ensemble, Adaptation, jax.Array]

    def segment(number: jax.Array, carry: Carry) -> Carry:
        ensemble, adaptation, centering = carry
        here = target._replace(centering=centering)
        particles, centering, is_new = recentered(ensemble.particles, here, settings.dense)
        here = target._replace(centering=centering)
        anew = evaluated_start(particles, here, settings)
        # Estimates in other coordinates are of no use, but the costs remain.
        again = anew.adaptation._replace(
            total_updates=adaptation.total_updates, num_steps=adaptation.num_steps + 1
        )
        ensemble, adaptation = jax.tree.map(
            lambda new, old: jnp.where(is_new, new, old),
            (anew.ensemble, again),
            (ensemble, adaptation),
        )
        is_last = number == NUM_SEGMENTS - 1
        limit = jnp.where(is_last, settings.num_warmup, SEGMENT)
        return *until(limit, (ensemble, adaptation), here), centering

    start = placed.ensemble, placed.adaptation, placed.centering
    start = batched_like(placed.ensemble.particles, start)
    if target.recenter is None or target.proposal is not None:
        limit = jnp.asarray(settings.num_warmup)
        return *until(
            limit, start[:2], target._replace(centering=placed.centering)
        ), placed.centering
    return lax.fori_loop(0, NUM_SEGMENTS, segment, start)
