r"""Warm-up of one ensemble: place it, then adapt the moves until they are steady.

It runs as a separate program before NumPyro's loop, for all chains at once. Two placements of the
whole ensemble are tried, transported, and compared by their evidence lower bound
:math:`-\mathrm{E}\,U + H`, where H is the entropy of a normal density with the ensemble's moments:

- *descent*: draws of the best normal approximations along quasi-Newton paths. They are close to
  badly scaled posteriors, on which transport from afar would stall.
- *plain*: NumPyro's own start, uniform around the origin. If the posterior has a funnel, a descent
  ends in its neck, out of which all particles would have to climb.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.adaptation import adapt, is_finished
from numpyro_rwpo.dynamics.centering import log_determinant, recentered
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate, potential
from numpyro_rwpo.dynamics.estimates import Adaptation, initial_adaptation, learn_moments, make_move
from numpyro_rwpo.dynamics.moves import HamiltonianMove
from numpyro_rwpo.dynamics.pathfinder import Cost, quasi_newton_start
from numpyro_rwpo.dynamics.settings import Numbers, Settings
from numpyro_rwpo.dynamics.transport import (
    MAX_TRANSPORT_STEPS,
    Progress,
    initial_progress,
    is_at_rest,
    transport_step,
)
from numpyro_rwpo.model.target import Target
from numpyro_rwpo.support.control_flow import batched_like

# The centering is chosen again after the placement, and after the first and the second segment of
# this number of updates, because ensembles that have not spread out yet say little about it.
SEGMENT, NUM_SEGMENTS = 12, 3


class Starts(NamedTuple):
    """Positions from which the transport of an ensemble may begin.

    Attributes:
        descent: draws of the best normal approximations of the descents, or of the user's proposal,
            (num_particles, dim).
        plain: NumPyro's own start, (num_particles, dim).
        centering: parameterization of sites with latent scales that the descents chose.
        cost: what the descents cost.
    """

    descent: jax.Array
    plain: jax.Array
    centering: jax.Array
    cost: Cost


class Placed(NamedTuple):
    """An ensemble after transport.

    Attributes:
        ensemble: evaluated particles.
        centering: parameterization of sites with latent scales.
        progress: progress of the transport.
        adaptation: estimates, of which only the moments are known.
    """

    ensemble: Ensemble
    centering: jax.Array
    progress: Progress
    adaptation: Adaptation


class Placement(NamedTuple):
    """The placement that was kept, and what it cost.

    Attributes:
        placed: the ensemble.
        evidence: evidence lower bounds of descent and plain start, (2,).
        is_descent: whether the descent was kept, scalar.
        num_gradients: number of gradient evaluations, of all particles together, scalar.
        num_rows: number of gradient evaluations one after another, scalar.
        first: draws of the descent before transport, or of the user's proposal, (num_particles,
            dim). Transport blurs separated groups, which here are still distinct.
    """

    placed: Placed
    evidence: jax.Array
    is_descent: jax.Array
    num_gradients: jax.Array
    num_rows: jax.Array
    first: jax.Array


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


def spread(rng_key: jax.Array, start: jax.Array, settings: Settings) -> jax.Array:
    """Particles (num_particles, dim), the first of them at ``start`` (dim,).

    With a radius, the others are uniform within that distance of the origin, as with NumPyro's
    ``init_to_uniform``. Without one, the user chose the start, and the others are normal around it
    with a standard deviation of 0.1 in unconstrained units: the ensemble needs some extent, but
    should stay close to the start.
    """
    # The random numbers have one axis, because XLA takes several times as long to compile two.
    shape, size = (settings.num_particles, start.size), settings.num_particles * start.size
    radius = settings.radius
    if radius is None:
        particles = start[None] + 0.1 * random.normal(rng_key, (size,), start.dtype).reshape(shape)
    else:
        particles = random.uniform(rng_key, (size,), start.dtype, -radius, radius).reshape(shape)
    return particles.at[0].set(start)


def evaluated_start(particles: jax.Array, target: Target, settings: Settings) -> Placed:
    """Evaluated particles before transport."""
    dim, dtype = particles.shape[1], particles.dtype
    ensemble = evaluate(particles, target)
    adaptation = learn_moments(initial_adaptation(dim, dtype, settings), ensemble, target)
    return Placed(ensemble, target.centering, initial_progress(dtype), adaptation)


def _transported(placed: Placed, target: Target, settings: Settings, numbers: Numbers) -> Placed:
    """The ensemble after one more step of transport."""
    ensemble, progress = transport_step(
        placed.ensemble,
        placed.progress,
        placed.adaptation.preconditioner,
        target,
        attention=settings.attention,
        relative_time=numbers.relative_prox_time,
    )
    # A particle whose new position overflowed stays where it was.
    moved, old = ensemble.particles, placed.ensemble.particles
    moved = jnp.where(jnp.isfinite(moved).all(1, keepdims=True), moved, old)
    ensemble = evaluate(moved, target)
    adaptation = learn_moments(placed.adaptation, ensemble, target)
    return Placed(ensemble, placed.centering, progress, adaptation)


def _transport(
    particles: jax.Array,
    centering: jax.Array,
    target: Target,
    settings: Settings,
    numbers: Numbers,
    most: int,
) -> Placed:
    """Evaluate particles and transport them until they are at rest, by at most ``most`` steps.

    They stay where they are if that is better. In directions much narrower than the ensemble, the
    flow overshoots, and can carry particles away to where the potential overflows.
    """
    target = target._replace(centering=centering)
    before = batched_like(particles, evaluated_start(particles, target, settings))
    after = lax.while_loop(
        lambda p: (p.progress.steps < most) & ~is_at_rest(p.progress, settings.corrected),
        lambda p: _transported(p, target, settings, numbers),
        before,
    )
    is_worse = settings.corrected & (_evidence(after, target) < _evidence(before, target))
    kept = jax.tree.map(lambda old, new: jnp.where(is_worse, old, new), before, after)
    return kept._replace(progress=after.progress)


def transport_path(
    rng_key: jax.Array,
    start: jax.Array,
    target: Target,
    settings: Settings,
    numbers: Numbers,
    num_steps: int,
) -> jax.Array:
    """The positions of an ensemble before each step of transport and after the last.

    Once the flow is at rest, the particles stay where they are. Warm-up changes over to exact moves
    before that.

    Returns:
        Positions, (num_steps + 1, num_particles, dim).
    """
    first = evaluated_start(spread(rng_key, start, settings), target, settings)

    def step(placed: Placed, _: None) -> tuple[Placed, jax.Array]:
        after = _transported(placed, target, settings, numbers)
        at_rest = is_at_rest(placed.progress, corrected=False)
        placed = jax.tree.map(lambda old, new: jnp.where(at_rest, old, new), placed, after)
        return placed, placed.ensemble.particles

    _, path = lax.scan(step, first, length=num_steps)
    return jnp.concatenate([first.ensemble.particles[None], path])


def _evidence(placed: Placed, target: Target) -> jax.Array:
    """The evidence lower bound of the normal density with the ensemble's moments, scalar."""
    covariance = placed.adaptation.moments.covariance
    log_det = log_determinant(covariance)
    # The median replaces the mean, because a single particle on a wall must not decide.
    height = jnp.median(potential(placed.ensemble, target._replace(centering=placed.centering)))
    bound = log_det / 2 - height
    return jnp.where(jnp.isfinite(bound), bound, -jnp.inf)


def find_starts(rng_key: jax.Array, start: jax.Array, target: Target, settings: Settings) -> Starts:
    """The positions from which transport may begin: of the descent, and of a plain start."""
    key_spread, key_start = random.split(random.split(rng_key)[0])
    plain = spread(key_spread, start, settings)
    if target.proposal is not None:
        draws = target.placement.rows(target.proposal.sample(key_start, settings.num_particles))
        return Starts(draws, plain, target.centering, Cost(jnp.zeros((), int), jnp.zeros((), int)))
    descent, centering, cost = quasi_newton_start(key_start, plain, target)
    return Starts(descent, plain, centering, cost)


def place(starts: Starts, target: Target, settings: Settings, numbers: Numbers) -> Placement:
    """The better of the two placements, or that by the user's proposal."""
    num_particles, descent, cost = settings.num_particles, starts.descent, starts.cost
    most = max(settings.num_warmup - 1, 0)  # The first update is the placement itself.
    if settings.corrected:
        most = min(most, MAX_TRANSPORT_STEPS)
    if target.proposal is not None:
        # If the particles are to be corrected, they are not transported: between separated modes,
        # attention would carry them from one mode to another.
        most = 0 if settings.corrected else most
        placed = _transport(descent, target.centering, target, settings, numbers, most)
        rows = 1 + placed.progress.steps
        none = jnp.full(2, jnp.nan, descent.dtype)
        return Placement(placed, none, jnp.zeros((), bool), num_particles * rows, rows, descent)

    def transported(start: tuple[jax.Array, jax.Array]) -> Placed:
        return _transport(start[0], start[1], target, settings, numbers, most)

    both = jnp.stack([descent, starts.plain]), jnp.stack([starts.centering, starts.centering])
    # They are transported one after the other, because together both would take as many steps as
    # the slower one.
    found = lax.map(transported, both)
    evidence = jax.vmap(lambda p: _evidence(p, target))(found)
    best = jnp.argmax(evidence)
    steps = found.progress.steps
    placed = jax.tree.map(lambda x: x[best], found)
    return Placement(
        placed=placed,
        evidence=evidence,
        is_descent=best == 0,
        num_gradients=cost.num_gradients + num_particles * (steps + 1).sum(),
        num_rows=cost.num_rows + (steps + 1).sum(),
        first=descent,
    )


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
        aim, preferred = numbers.target_accept_prob, numbers.preferred
        return adapt(key, *carry, target, settings, aim, preferred)

    def until(limit: jax.Array, carry: tuple[Ensemble, Adaptation], target: Target) -> Any:
        return lax.while_loop(
            lambda carry: ~is_finished(carry[1], settings) & (carry[1].updates < limit),
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
