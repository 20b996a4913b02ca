"""Adaptation of the moves: metric, step size, number of trajectories between two draws.

Everything is estimated from the ensemble, sweep after sweep, and frozen before the first draw, so
that the draws come from a fixed Markov kernel.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.typing import ArrayLike

from numpyro_rwpo.dynamics.ensemble import Ensemble, is_far, potential, replace
from numpyro_rwpo.dynamics.estimates import (
    MAX_STEPS,
    STEADY_STEP,
    Adaptation,
    blend,
    learn_moments,
    make_flow,
    trajectory_steps,
)
from numpyro_rwpo.dynamics.moves import (
    TRAJECTORY_LENGTH,
    Sweep,
    hamiltonian_sweep,
    num_leapfrog_steps,
    proposal_sweep,
)
from numpyro_rwpo.dynamics.settings import Numbers, Settings
from numpyro_rwpo.dynamics.stationarity import (
    AGE,
    CLIP,
    disagreement,
    drift,
    is_renewed,
    largest_allowed_disagreement,
    largest_allowed_drift,
    remember,
)
from numpyro_rwpo.model.target import Target

# Mean acceptance below which the step size is so wrong that it shrinks by a factor of ten.
HOPELESS = 0.02
# How much better than the preferred flow another has to be. A loop that is compiled anew takes
# seconds, in which most runs on new data of the same shape are over.
PREFERENCE = 8.0
# Updates that each flow on trial has before the first comparison; the first of them still meets
# the step size that was guessed.
TRIAL_UPDATES = 3
# Least updates after the trial: a running mean of the step size over fewer is noise.
MIN_UPDATES = 6
# Weight of the newest sweep in running means, once there are enough of them.
MEMORY = 0.1
# Where a particle that usually moves diverges, the posterior has a region that needs shorter steps
# than most of it, and that the draws would miss. Steps are from then on shorter by this factor (a
# log), which is enough for one more step in a quarter turn, unless acceptance is already so high
# that steps are not the reason.
CAUTION, CAUTIOUS_ACCEPTANCE = 0.25, 0.95
# The part of the placement's error that may be left in the slowest statistic when warm-up ends.
MEMORY_OF_PLACEMENT = 0.01
# Gradients one after another that warm-up may spend, in trajectories of the length it has come to,
# or of that in the diagonal metric of NUTS transitions. For ensembles of 64 particles, these are
# four times the thousand trajectories with which NUTS warms up by default.
MAX_TRAJECTORIES = 62
# Leapfrog steps of a trajectory beyond which an ensemble that moves in step wastes too many.
MAX_AFFORDABLE = 128
# Updates that these limits leave in any case; half of them where trajectories are too long.
MIN_LIMIT = 24
# Acceptance probability, averaged over the last few sweeps with this weight for the newest, below
# which a particle is stuck.
STUCK, RECENT = 0.1, 0.2
# The same below which a particle hardly leaves where it was placed, which may be as far out in a
# tail as no draw in thousands would be. After this number of updates, after twice, four times, and
# so on as many, and when the estimates are steady, such particles are moved onto others. They part
# from them in the last updates. Those whose potential is out of the others' reach are moved at
# once: they slow down what is learned from all.
LOST, FIRST_LOOK, LAST_UPDATES = 0.3, 8, 3
# Particles out of the others' reach may move and still be on their way from where they were placed
# when the estimates are steady. They are moved as well if no more than this share of the ensemble
# is out of reach. More may be in a wide mode of their own. Ensembles of fewer than 32 particles
# know too little of their tails for this.
FEW = 1 / 32


def whose_turn(adaptation: Adaptation, num_flows: int) -> jax.Array:
    """Number of the flow of the next sweep: during the trial each in turn, then the chosen one."""
    on_trial = adaptation.updates < TRIAL_UPDATES * num_flows
    return jnp.where(on_trial, lax.rem(adaptation.updates, num_flows), adaptation.chosen)


def _standardize(x: jax.Array) -> jax.Array:
    """Center and scale over particles (axis 0); 0 if all are equal."""
    centered = x - x.mean(0, keepdims=True)
    spread = jnp.sqrt((centered**2).mean(0, keepdims=True))
    return jnp.where(spread > 0, centered / jnp.where(spread > 0, spread, 1.0), 0.0)


def _statistics(ensemble: Ensemble, target: Target) -> jax.Array:
    """Positions, their squared deviations and the potential, standardized and clipped.

    The result has shape (num_particles, 2 dim + 1).
    """
    raw = jnp.concatenate([ensemble.particles, potential(ensemble, target)[:, None]], axis=1)
    clipped = jnp.clip(_standardize(raw), -CLIP, CLIP)
    return _standardize(jnp.concatenate([clipped, clipped[:, :-1] ** 2], axis=1))


def _adapt_step(
    log_step: jax.Array, accept_prob: jax.Array, aim: float, uses: jax.Array
) -> jax.Array:
    # The mean acceptance over many particles has so little noise that a proportional rule suffices.
    error = accept_prob - aim
    error = jnp.where(error < 0, error / aim, error / (1 - aim))
    change = jnp.maximum(0.7 / (1.0 + uses / 4.0), 0.25) * error
    return log_step + jnp.where(accept_prob < HOPELESS, -math.log(10), change)


def _has_diverged(sweep: Sweep, adaptation: Adaptation) -> jax.Array:
    """Particles that diverge although they usually move, (num_particles,).

    Those that placement left far outside diverge at any step size that suits the others.
    """
    return sweep.diverging & (adaptation.accept_prob > STUCK)


def _learn_sweep(
    adaptation: Adaptation,
    number: jax.Array,
    step_size: jax.Array,
    before: Ensemble,
    after: Ensemble,
    sweep: Sweep,
    target: Target,
    target_accept_prob: float,
) -> Adaptation:
    """Learn step size and correlation of the flow that moved ``before`` to ``after``."""
    uses = adaptation.uses[number]
    weight = jnp.maximum(1 / (1.0 + uses), MEMORY)
    accept_prob = sweep.accept_prob.mean()
    diverged = _has_diverged(sweep, adaptation).any()
    is_cautious = diverged & (accept_prob < CAUTIOUS_ACCEPTANCE)
    ceiling = adaptation.log_ceiling[number]
    lower = jnp.minimum(ceiling, jnp.log(step_size) - CAUTION)
    ceiling = jnp.where(is_cautious, lower, ceiling)
    log_step = _adapt_step(adaptation.log_step[number], accept_prob, target_accept_prob, uses)
    log_step = jnp.minimum(log_step, ceiling)
    # Sampling uses the mean over the later sweeps, because the first ones only find the range.
    late = jnp.maximum(2 / (2.0 + uses), 2 * MEMORY)
    log_step_mean = blend(adaptation.log_step_mean[number], log_step, late)
    log_step_mean = jnp.minimum(log_step_mean, ceiling)
    correlation = (_statistics(before, target) * _statistics(after, target)).mean(0)
    correlation = blend(
        adaptation.correlation[number], correlation, jnp.maximum(2 * weight, MEMORY).clip(max=1.0)
    )
    return adaptation._replace(
        log_step=adaptation.log_step.at[number].set(log_step),
        log_step_mean=adaptation.log_step_mean.at[number].set(log_step_mean),
        log_ceiling=adaptation.log_ceiling.at[number].set(ceiling),
        correlation=adaptation.correlation.at[number].set(correlation),
        uses=adaptation.uses.at[number].set(uses + 1),
    )


def _cheapest(adaptation: Adaptation, target: Target, preferred: ArrayLike) -> jax.Array:
    """Number of the flow whose slowest statistic decorrelates most per gradient.

    All chains decide together, so that one compiled program serves them all.
    """
    slowest = jnp.clip(adaptation.correlation.max(1), 1e-3, 0.999)
    num_steps = trajectory_steps(adaptation.log_step_mean)
    efficiency = -jnp.log(slowest) / num_steps
    is_preferred = jnp.arange(efficiency.size) == preferred
    efficiency = efficiency * jnp.where(is_preferred, PREFERENCE, 1.0)
    return jnp.argmax(target.placement.chain_mean(jnp.log(efficiency)))


def _is_steady(adaptation: Adaptation, settings: Settings) -> jax.Array:
    """Whether this chain's step size is steady, and all chains agree and are at rest, scalar."""
    trial = TRIAL_UPDATES * len(settings.flows) if len(settings.flows) > 1 else 0
    ahead = (adaptation.log_step - adaptation.log_step_mean)[adaptation.chosen]
    num_statistics = adaptation.correlation.shape[1]
    allowed = largest_allowed_disagreement(num_statistics, settings.num_particles)
    steady = jnp.abs(ahead) < STEADY_STEP
    steady &= adaptation.disagreement < allowed
    steady &= adaptation.drift < largest_allowed_drift(num_statistics)
    steady &= adaptation.updates >= AGE * adaptation.past.updates
    return steady & (adaptation.updates >= trial + MIN_UPDATES)


def _has_forgotten(adaptation: Adaptation, target: Target) -> jax.Array:
    """Whether little is left of where the slowest statistic was after placement, scalar.

    All ensembles are placed in the same way. Where they have the same error, they agree, and what
    changes slowly looks as if it were at rest.
    """
    slowest = jnp.clip(adaptation.correlation[adaptation.chosen].max(), 1e-3, 0.999)
    log_slowest = target.placement.chain_mean(jnp.log(slowest))
    return adaptation.updates * log_slowest < math.log(MEMORY_OF_PLACEMENT)


def _is_spent(adaptation: Adaptation, target: Target, settings: Settings) -> jax.Array:
    """Whether warm-up costs more than these moves can be worth, scalar.

    Either it has spent as many gradients as the warm-up of NUTS would, or its trajectories are so
    long that NUTS transitions are cheaper.
    """
    of_flows = num_leapfrog_steps(jnp.exp(adaptation.log_step), MAX_STEPS)
    num_steps = longest = of_flows[adaptation.chosen]
    if "exact" in settings.flows:
        # This flow has the diagonal metric of NUTS transitions. Where, by its trial, it needs far
        # more steps, they do as well, and the ensemble is cheaper even if it takes its time.
        longest = jnp.maximum(num_steps, of_flows[settings.flows.index("exact")])
    left = MAX_TRAJECTORIES * longest - adaptation.num_steps
    spent = target.placement.chain_mean(left) < 0
    too_long = num_steps > MAX_AFFORDABLE
    return (too_long & (adaptation.updates >= MIN_LIMIT // 2)) | (
        spent & (adaptation.updates >= MIN_LIMIT)
    )


def _in_all_chains(condition: jax.Array, target: Target) -> jax.Array:
    """Whether a condition holds in all chains, scalar."""
    return target.placement.chain_mean(jnp.where(condition, 0.0, 1.0)) == 0


def adapt(
    rng_key: jax.Array,
    ensemble: Ensemble,
    adaptation: Adaptation,
    target: Target,
    settings: Settings,
    numbers: Numbers,
) -> tuple[Ensemble, Adaptation]:
    """One update: a sweep with the flow whose turn it is, from which the estimates are updated.

    Args:
        rng_key: one key.
        ensemble: evaluated particles.
        adaptation: estimates so far.
        target: the posterior.
        settings: settings of the run.
        numbers: target acceptance probability, preferred flow, and budget.
    """
    number = whose_turn(adaptation, len(settings.flows))
    after, sweep, step_size, num_steps = _swept(
        rng_key, ensemble, adaptation, number, target, settings, numbers
    )
    aim = numbers.target_accept_prob
    learned = _learn_sweep(adaptation, number, step_size, ensemble, after, sweep, target, aim)
    if target.proposal is not None:
        after, accept_prob = proposal_sweep(random.fold_in(rng_key, 1), after, target)
        rate = blend(learned.jump_rate, accept_prob.mean(), 1 / (1.0 + adaptation.updates))
        learned = learned._replace(jump_rate=rate)
    weight = jnp.maximum(1 / (1.0 + adaptation.updates), MEMORY)
    learned = learn_moments(learned, after, target, weight)
    recent = jnp.maximum(1 / (1.0 + adaptation.updates), RECENT)
    height = potential(after, target)
    center = learned.moments.mean
    learned = learned._replace(
        updates=adaptation.updates + 1,
        total_updates=adaptation.total_updates + 1,
        num_steps=adaptation.num_steps + num_steps,
        chosen=_cheapest(learned, target, numbers.preferred),
        disagreement=disagreement(after, height, center, target),
        drift=drift(after, height, adaptation.past, center, target),
    )
    # All chains end together: one that has ended stays where it is, and would be taken into account
    # by the others as if it had moved on.
    is_steady = _in_all_chains(_is_steady(learned, settings), target)
    is_spent = ~_in_all_chains(~_is_spent(learned, target, settings), target)
    is_over = (is_steady & _has_forgotten(learned, target)) | is_spent
    is_first = is_over & (adaptation.finished_at == 0)
    accept_prob = blend(adaptation.accept_prob, sweep.accept_prob, recent)
    learned = learned._replace(
        accept_prob=accept_prob,
        finished_at=jnp.where(is_first, learned.updates, adaptation.finished_at),
        is_settled=adaptation.is_settled | is_steady,
    )
    # Placement can leave particles in places where the step size of all others is far too long.
    is_out = is_far(height)
    is_lost = is_out & (accept_prob < LOST) & (learned.updates >= TRIAL_UPDATES)
    is_left_behind = is_out & (is_out.mean() <= FEW)
    is_look = is_first | (is_renewed(learned.updates) & (learned.updates >= FIRST_LOOK))
    is_held = (is_first & is_left_behind) | (is_look & (accept_prob < LOST))
    after, height = replace((after, height), is_lost | is_held, target)
    # The past holds particles that were moved just now where they are, so that this is no drift.
    past = remember(adaptation.past, after, height, learned.updates)
    return after, learned._replace(past=past)


def _swept(
    rng_key: jax.Array,
    ensemble: Ensemble,
    adaptation: Adaptation,
    number: jax.Array,
    target: Target,
    settings: Settings,
    numbers: Numbers,
) -> tuple[Ensemble, Sweep, jax.Array, jax.Array]:
    """The ensemble after a sweep with a flow, its statistics, its step size and number of steps."""
    log_step = adaptation.log_step[number]
    # As long as the step size is far too small, a quarter turn would take hundreds of steps.
    most = jnp.minimum(4 * 2 ** jnp.minimum(adaptation.uses[number], 8), MAX_STEPS)
    num_steps = num_leapfrog_steps(jnp.exp(log_step), most)
    step_size = jnp.where(num_steps < most, TRAJECTORY_LENGTH / num_steps, jnp.exp(log_step))
    # Under `vmap`, all branches of a `lax.switch` run, and so do ensembles that are finished before
    # others; without steps, they cost nothing.
    is_moved = ~is_finished(adaptation, settings, numbers)

    def with_flow(k: int) -> tuple[Ensemble, Sweep]:
        flow = make_flow(settings.flows[k], adaptation, target)
        taken = jnp.where(is_moved & (number == k), num_steps, 0)
        return hamiltonian_sweep(rng_key, ensemble, flow, step_size, taken, target)

    after, sweep = with_flow(0)
    for k in range(1, len(settings.flows)):
        after, sweep = jax.tree.map(partial(jnp.where, number == k), with_flow(k), (after, sweep))
    return after, sweep, step_size, num_steps


def is_finished(adaptation: Adaptation, settings: Settings, numbers: Numbers) -> jax.Array:
    """Whether warm-up is over, or its budget spent, scalar.

    A few updates follow after the estimates are steady, in which particles that were moved onto
    others part from them.
    """
    is_over = (adaptation.finished_at > 0) & (
        ~adaptation.is_settled | (adaptation.updates >= adaptation.finished_at + LAST_UPDATES)
    )
    is_over |= adaptation.num_steps >= numbers.max_rows
    return is_over | (adaptation.total_updates >= settings.num_warmup)
