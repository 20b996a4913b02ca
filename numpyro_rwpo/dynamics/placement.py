r"""Where the particles of an ensemble are before the exact moves begin.

Quasi-Newton descents place them, from where the exact moves of warm-up reach most posteriors. If
the chains do not come to rest, two placements of the whole ensemble are transported, and compared
by their evidence lower bound :math:`-\mathrm{E}\,U + H`, where H is the entropy of a normal density
with the ensemble's moments:

- *descent*: draws of the best normal approximations along quasi-Newton paths. They are close to
  badly scaled posteriors, on which transport from afar would stall.
- *plain*: NumPyro's own start, uniform around the origin. If the posterior has a funnel, a descent
  ends in its neck, out of which all particles would have to climb.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_rwpo.dynamics.centering import log_determinant
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate, potential
from numpyro_rwpo.dynamics.estimates import Adaptation, initial_adaptation, learn_moments
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
        evidence: evidence lower bounds of descent and plain start, -inf if not compared, (2,).
        is_descent: whether the descent was kept, scalar.
        num_gradients: number of gradient evaluations, of all particles together, scalar.
        num_rows: number of gradient evaluations one after another, scalar.
        first: draws of the descents' normal densities, or of the user's proposal, (num_particles,
            dim). Wider tails and transport blur separated groups, which here are still distinct.
        plain: NumPyro's own start, (num_particles, dim).
    """

    placed: Placed
    evidence: jax.Array
    is_descent: jax.Array
    num_gradients: jax.Array
    num_rows: jax.Array
    first: jax.Array
    plain: jax.Array


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
    """Particles before transport, which are evaluated first."""
    return _unmoved(evaluate(particles, target), target, settings)


def _unmoved(ensemble: Ensemble, target: Target, settings: Settings) -> Placed:
    """Evaluated particles before transport."""
    dim, dtype = ensemble.particles.shape[1], ensemble.particles.dtype
    adaptation = learn_moments(initial_adaptation(dim, dtype, settings), ensemble, target)
    return Placed(ensemble, target.centering, initial_progress(dtype), adaptation)


def place_by_descents(
    rng_key: jax.Array, start: jax.Array, target: Target, settings: Settings
) -> Placement:
    """Draws of the best normal approximations of descents, or of the user's proposal."""
    key_spread, key_start = random.split(random.split(rng_key)[0])
    plain = spread(key_spread, start, settings)
    number = settings.num_particles
    if target.proposal is not None:
        draws = target.placement.rows(target.proposal.sample(key_start, number))
        cost = Cost(jnp.full((), number), jnp.ones((), int))
        ensemble, centering = evaluate(draws, target), target.centering
    else:
        ensemble, draws, centering, cost = quasi_newton_start(key_start, plain, target)
    return Placement(
        placed=_unmoved(ensemble, target._replace(centering=centering), settings),
        evidence=jnp.full(2, -jnp.inf, plain.dtype),
        is_descent=jnp.asarray(target.proposal is None),
        num_gradients=cost.num_gradients,
        num_rows=cost.num_rows,
        first=draws,
        plain=plain,
    )


def place_by_transport(
    placement: Placement, target: Target, settings: Settings, numbers: Numbers
) -> Placement:
    """The better of the two placements after transport, or that by the user's proposal."""
    num_particles = settings.num_particles
    most = max(settings.num_warmup - 1, 0)  # The first update is the placement itself.
    if settings.corrected:
        most = min(most, MAX_TRANSPORT_STEPS)
    first, centering = placement.first, placement.placed.centering

    def transported(start: tuple[jax.Array, jax.Array]) -> Placed:
        return _transport(start[0], start[1], target, settings, numbers, most)

    both = jnp.stack([first, placement.plain]), jnp.stack([centering, centering])
    if target.proposal is not None:
        both = jax.tree.map(lambda x: x[:1], both)
    # They are transported one after the other, because together both would take as many steps as
    # the slower one.
    found = lax.map(transported, both)
    evidence = jax.vmap(lambda p: _evidence(p, target))(found)
    best = jnp.argmax(evidence)
    rows = (found.progress.steps + 1).sum()
    placement = placement._replace(
        placed=jax.tree.map(lambda x: x[best], found),
        num_gradients=placement.num_gradients + num_particles * rows,
        num_rows=placement.num_rows + rows,
    )
    if target.proposal is not None:
        return placement
    return placement._replace(evidence=evidence, is_descent=best == 0)


def _transport(
    particles: jax.Array,
    centering: jax.Array,
    target: Target,
    settings: Settings,
    numbers: Numbers,
    most: jax.Array | int,
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


def _evidence(placed: Placed, target: Target) -> jax.Array:
    """The evidence lower bound of the normal density with the ensemble's moments, scalar."""
    covariance = placed.adaptation.moments.covariance
    log_det = log_determinant(covariance)
    # The median replaces the mean, because a single particle on a wall must not decide.
    height = jnp.median(potential(placed.ensemble, target._replace(centering=placed.centering)))
    bound = log_det / 2 - height
    return jnp.where(jnp.isfinite(bound), bound, -jnp.inf)


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
