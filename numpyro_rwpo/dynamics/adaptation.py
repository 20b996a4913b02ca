"""Adaptation of the moves: metric, step size, number of trajectories between two draws.

Everything is estimated from the ensemble, sweep after sweep, and frozen before the first draw, so
that the draws come from a fixed Markov kernel.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.typing import ArrayLike

from numpyro_rwpo.dynamics.ensemble import Ensemble, gradient, is_far, potential, replace
from numpyro_rwpo.dynamics.factors import Factor, LowRank
from numpyro_rwpo.dynamics.flows import ExactFlow, Flow, HarmonicFlow
from numpyro_rwpo.dynamics.metric import (
    Moments,
    Preconditioner,
    ensemble_moments,
    fisher_preconditioner,
    initial_directions,
    low_rank_preconditioner,
    variances,
    without_outliers,
)
from numpyro_rwpo.dynamics.moves import (
    TRAJECTORY_LENGTH,
    HamiltonianMove,
    Sweep,
    hamiltonian_sweep,
    jump_sweep,
    num_leapfrog_steps,
)
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.model.target import Target

# Longest trajectory, in leapfrog steps: that of NUTS with its default tree depth of 10.
MAX_STEPS = 1024
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
# The correlation of a particle's slowest statistic between two of its draws that are kept, above
# which further trajectories come between them, as long as these together take no more than
# AFFORDABLE_STEPS gradients: beyond, ArviZ sees what is left.
KEPT_CORRELATION, AFFORDABLE_STEPS = 0.5, 24
# Share of the particles that have not jumped between two draws, at most: a jump costs one gradient,
# and may be all that brings particles from one mode to another. So many jumps at most.
JUMP_CORRELATION, MAX_JUMPS = 0.1, 64
# Where a particle that usually moves diverges, the posterior has a region that needs shorter steps
# than most of it, and that the draws would miss. Steps are from then on shorter by this factor (a
# log), which is enough for one more step in a quarter turn, unless acceptance is already so high
# that steps are not the reason.
CAUTION, CAUTIOUS_ACCEPTANCE = 0.25, 0.95
# Distance of the log step size from its running mean, and change of the mean potential in its
# standard deviations, below which they count as steady.
STEADY_STEP, STEADY_POTENTIAL = 0.15, 0.3
# Largest disagreement of the ensembles of all chains. Of 64 independent draws each it is 1/64 on
# average, and below 0.1 for all of a thousand statistics of four chains; 0.2 makes R-hat 1.1.
MAX_DISAGREEMENT = 0.2
# Largest share of divergent trajectories, a running mean over some five sweeps: one particle of 64
# that diverges adds 0.003. Where more do, the particles avoid a part of the posterior.
MAX_DIVERGING = 0.005
# Gradients that warm-up may spend, in trajectories of the length it has come to: twice the
# thousand with which NUTS warms up by default.
MAX_TRAJECTORIES = 4000
# Leapfrog steps of a trajectory beyond which an ensemble that moves in step wastes too many.
MAX_AFFORDABLE = 128
# Updates that these limits leave in any case; half of them where trajectories are too long.
MIN_LIMIT = 24
# Acceptance probability, averaged over the last few sweeps with this weight for the newest, below
# which a particle is stuck. Those that are when the estimates are steady are moved onto others,
# and part from them in the last updates.
STUCK, RECENT, LAST_UPDATES = 0.1, 0.2, 3
# The same for particles whose potential is out of the others' reach. These are moved at once: they
# slow down what is learned from all.
LOST = 0.3
# Standard deviations at which statistics are clipped: one straggler must not decide for all.
CLIP = 3.0
# Step sizes at which each flow starts, times the fourth root of the dimension: about 0.8 of the
# trajectories are then accepted on posteriors of 10 to 50 dimensions.
FIRST_STEP = {"harmonic": 2.0, "exact": 1.0}


class Adaptation(NamedTuple):
    """Running estimates of one ensemble. Arrays over flows have one row for each flow on trial.

    Attributes:
        updates: number of sweeps so far in this centering, scalar.
        total_updates: number of sweeps so far, scalar.
        chosen: number of the flow that decorrelates most cheaply so far; the same for all chains.
        moments: running moments of the ensemble.
        preconditioner: the Fisher metric of these moments.
        log_step: log step size of each flow.
        log_step_mean: running mean of the log step size, which sampling will use.
        log_ceiling: log step size that is not exceeded since trajectories diverged, of each flow.
        correlation: correlation of the statistics before and after a sweep, across particles,
            (flows, 2 dim + 1).
        uses: number of sweeps with each flow.
        num_steps: number of leapfrog steps of all sweeps, scalar.
        potential: running mean of the particles' mean potential, scalar.
        jump_rate: running mean of the acceptance of jumps to the user's proposal, scalar.
        accept_prob: running mean of each particle's acceptance probability, (num_particles,).
        diverging: running mean of the share of divergent trajectories, scalar.
        disagreement: disagreement of the present ensembles, see :func:`disagreement`.
        finished_at: number of updates after which the estimates were steady or the budget was
            spent; 0 until then.
        is_settled: whether the estimates were steady, scalar.
    """

    updates: jax.Array
    total_updates: jax.Array
    chosen: jax.Array
    moments: Moments
    preconditioner: Preconditioner
    log_step: jax.Array
    log_step_mean: jax.Array
    log_ceiling: jax.Array
    correlation: jax.Array
    uses: jax.Array
    num_steps: jax.Array
    potential: jax.Array
    jump_rate: jax.Array
    accept_prob: jax.Array
    diverging: jax.Array
    disagreement: jax.Array
    finished_at: jax.Array
    is_settled: jax.Array


def initial_adaptation(dim: int, dtype: jnp.dtype, settings: Settings) -> Adaptation:
    """The estimates before the first sweep: unit moments, and step sizes from the dimension."""
    unit = jnp.eye(dim, dtype=dtype) if settings.dense else jnp.ones(dim, dtype)
    factor: Factor = unit
    if settings.rank:
        directions = initial_directions(dim, settings.rank, dtype)
        factor = LowRank(unit, directions, jnp.eye(settings.rank, dtype=dtype))
    first = jnp.asarray([FIRST_STEP[flow] for flow in settings.flows], dtype)
    log_step = jnp.minimum(jnp.log(first) - 0.25 * math.log(dim), math.log(TRAJECTORY_LENGTH))
    zero = jnp.zeros((), dtype)
    return Adaptation(
        updates=jnp.zeros((), int),
        total_updates=jnp.zeros((), int),
        chosen=jnp.zeros((), int),
        moments=Moments(jnp.zeros(dim, dtype), unit, unit),
        preconditioner=Preconditioner(factor, factor, jnp.ones(dim, dtype)),
        log_step=log_step,
        log_step_mean=log_step,
        # A rotation by more than a quarter turn would turn back.
        log_ceiling=jnp.full_like(log_step, math.log(TRAJECTORY_LENGTH)),
        correlation=jnp.ones((len(settings.flows), 2 * dim + 1), dtype),
        uses=jnp.zeros(len(settings.flows), int),
        num_steps=jnp.zeros((), int),
        potential=zero,
        jump_rate=zero,
        accept_prob=jnp.ones(settings.num_particles, dtype),
        diverging=zero,
        disagreement=jnp.full((), jnp.inf, dtype),
        finished_at=jnp.zeros((), int),
        is_settled=jnp.zeros((), bool),
    )


def _blend(old: jax.Array, new: jax.Array, weight: jax.Array | float) -> jax.Array:
    # With old + weight * (new - old), the result at weight 1 would have the rounding errors of old,
    # and variances may be ten orders of magnitude smaller than the initial ones.
    return jnp.where(jnp.isfinite(new), (1 - weight) * old + weight * new, old)


def learn_moments(
    adaptation: Adaptation, ensemble: Ensemble, target: Target, weight: jax.Array | float = 1.0
) -> Adaptation:
    """Blend the moments of an ensemble into the running moments."""
    moments = adaptation.moments
    particles, gradients = without_outliers(ensemble.particles, gradient(ensemble, target))
    new = ensemble_moments(particles, gradients, moments.covariance.ndim == 2)
    moments = jax.tree.map(lambda o, n: _blend(o, n, weight), moments, new)
    fisher = adaptation.preconditioner.factor
    if isinstance(fisher, LowRank):
        preconditioner = low_rank_preconditioner(
            moments, particles, gradients, fisher.directions, jnp.asarray(weight)
        )
    else:
        preconditioner = fisher_preconditioner(moments)
    return adaptation._replace(moments=moments, preconditioner=preconditioner)


def make_flow(name: str, adaptation: Adaptation, target: Target) -> Flow:
    """The flow of that name in the metric that follows from the moments."""
    mean, preconditioner = adaptation.moments.mean, adaptation.preconditioner
    scale = jnp.sqrt(variances(adaptation.moments))
    if name == "exact":
        return ExactFlow(scale)
    slope, curvature = jnp.zeros_like(mean), jnp.zeros_like(mean)
    if target.prior is not None:
        slope, curvature = target.prior.normal_fit(mean, scale)
    return HarmonicFlow(mean, preconditioner.factor, preconditioner.inverse, slope, curvature)


def make_move(name: str, number: int, adaptation: Adaptation, target: Target) -> HamiltonianMove:
    """The move that sampling takes with the flow of that name, the ``number``-th on trial."""
    step_size = jnp.exp(adaptation.log_step_mean[number])
    num_steps = num_leapfrog_steps(step_size, MAX_STEPS)
    # The steps together make exactly a quarter turn, unless that takes too many of them.
    step_size = jnp.where(num_steps < MAX_STEPS, TRAJECTORY_LENGTH / num_steps, step_size)
    slowest = jnp.clip(adaptation.correlation[number].max(), 1e-3, 0.999)
    wanted = jnp.ceil(math.log(KEPT_CORRELATION) / jnp.log(slowest))
    most = jnp.maximum(AFFORDABLE_STEPS // num_steps, 1)
    missed = jnp.clip(1 - adaptation.jump_rate, 1e-3, 0.999)
    jumps = jnp.ceil(math.log(JUMP_CORRELATION) / jnp.log(missed))
    return HamiltonianMove(
        flow=make_flow(name, adaptation, target),
        step_size=step_size,
        num_steps=num_steps,
        num_sweeps=jnp.clip(wanted, 1, most).astype(int),
        num_jumps=jnp.clip(jumps, 1, MAX_JUMPS).astype(int),
    )


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
    log_step_mean = _blend(adaptation.log_step_mean[number], log_step, late)
    log_step_mean = jnp.minimum(log_step_mean, ceiling)
    correlation = (_statistics(before, target) * _statistics(after, target)).mean(0)
    correlation = _blend(
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
    num_steps = num_leapfrog_steps(jnp.exp(adaptation.log_step_mean), MAX_STEPS)
    efficiency = -jnp.log(slowest) / num_steps
    is_preferred = jnp.arange(efficiency.size) == preferred
    efficiency = efficiency * jnp.where(is_preferred, PREFERENCE, 1.0)
    return jnp.argmax(target.placement.chain_mean(jnp.log(efficiency)))


def _is_steady(
    adaptation: Adaptation, mean: jax.Array, spread: jax.Array, settings: Settings
) -> jax.Array:
    """Whether all chains agree, few diverge, and step size and potential stay the same, scalar."""
    trial = TRIAL_UPDATES * len(settings.flows) if len(settings.flows) > 1 else 0
    ahead = (adaptation.log_step - adaptation.log_step_mean)[adaptation.chosen]
    steady = jnp.abs(ahead) < STEADY_STEP
    steady &= jnp.abs(mean - adaptation.potential) < STEADY_POTENTIAL * spread
    # The means of few particles scatter more.
    limit = MAX_DISAGREEMENT * max(1.0, 64 / settings.num_particles)
    steady &= adaptation.disagreement < limit
    steady &= adaptation.diverging < MAX_DIVERGING
    return steady & (adaptation.updates >= trial + MIN_UPDATES)


def disagreement(ensemble: Ensemble, center: jax.Array, target: Target) -> jax.Array:
    """The largest ratio of the variance of the chains' means to the variance within chains, scalar.

    This is about the square of R-hat, minus one. It is computed for the positions, their absolute
    deviations, and the potential, and every particle counts as a draw. For a single chain it is 0.

    Args:
        ensemble: evaluated particles of one chain.
        center: approximate mean of the positions, (dim,).
        target: the posterior, whose placement has the name of the axis of chains.
    """
    placement = target.placement
    deviation = ensemble.particles - placement.chain_mean(center)[None]
    height = potential(ensemble, target)[:, None]
    height = height - placement.chain_mean(height.mean())
    values = jnp.concatenate([deviation, jnp.abs(deviation), height], axis=1)
    mean = values.mean(0)
    within = placement.chain_mean(values.var(0, ddof=1))
    between = placement.chain_mean((mean - placement.chain_mean(mean)) ** 2)
    number = placement.num_chains
    between = between * number / max(number - 1, 1)
    ratio = between / jnp.maximum(within, jnp.finfo(within.dtype).tiny)
    return jnp.max(jnp.where(jnp.isnan(ratio), jnp.inf, ratio))


def _is_spent(adaptation: Adaptation, settings: Settings) -> jax.Array:
    """Whether warm-up costs more than these moves can be worth, scalar.

    Either it has spent as many gradients as the warm-up of NUTS would, or its trajectories are so
    long that NUTS transitions are cheaper.
    """
    num_steps = num_leapfrog_steps(jnp.exp(adaptation.log_step[adaptation.chosen]), MAX_STEPS)
    spent = settings.num_particles * adaptation.num_steps > MAX_TRAJECTORIES * num_steps
    too_long = num_steps > MAX_AFFORDABLE
    return (too_long & (adaptation.updates >= MIN_LIMIT // 2)) | (
        spent & (adaptation.updates >= MIN_LIMIT)
    )


def adapt(
    rng_key: jax.Array,
    ensemble: Ensemble,
    adaptation: Adaptation,
    target: Target,
    settings: Settings,
    target_accept_prob: float,
    preferred: ArrayLike = -1,
) -> tuple[Ensemble, Adaptation]:
    """One update: a sweep with the flow whose turn it is, from which the estimates are updated.

    Args:
        rng_key: one key.
        ensemble: evaluated particles.
        adaptation: estimates so far.
        target: the posterior.
        settings: settings of the run.
        target_accept_prob: acceptance probability at which the step size aims.
        preferred: number of the flow that is kept unless another one is eight times as good, -1 for
            none.
    """
    number = whose_turn(adaptation, len(settings.flows))
    log_step = adaptation.log_step[number]
    # As long as the step size is far too small, a quarter turn would take hundreds of steps.
    most = jnp.minimum(4 * 2 ** jnp.minimum(adaptation.uses[number], 8), MAX_STEPS)
    num_steps = num_leapfrog_steps(jnp.exp(log_step), most)
    step_size = jnp.where(num_steps < most, TRAJECTORY_LENGTH / num_steps, jnp.exp(log_step))

    def with_flow(name: str) -> tuple[Ensemble, Sweep]:
        flow = make_flow(name, adaptation, target)
        return hamiltonian_sweep(rng_key, ensemble, flow, step_size, num_steps, target)

    after, sweep = lax.switch(number, [lambda n=name: with_flow(n) for name in settings.flows])
    learned = _learn_sweep(
        adaptation, number, step_size, ensemble, after, sweep, target, target_accept_prob
    )
    if target.proposal is not None:
        after, accept_prob = jump_sweep(random.fold_in(rng_key, 1), after, target)
        rate = _blend(learned.jump_rate, accept_prob.mean(), 1 / (1.0 + adaptation.updates))
        learned = learned._replace(jump_rate=rate)
    weight = jnp.maximum(1 / (1.0 + adaptation.updates), MEMORY)
    learned = learn_moments(learned, after, target, weight)
    recent = jnp.maximum(1 / (1.0 + adaptation.updates), RECENT)
    diverging = _has_diverged(sweep, adaptation).mean(dtype=learned.log_step.dtype)
    height = potential(after, target)
    mean, spread = jnp.mean(height), jnp.std(height)
    learned = learned._replace(
        updates=adaptation.updates + 1,
        total_updates=adaptation.total_updates + 1,
        num_steps=adaptation.num_steps + num_steps,
        chosen=_cheapest(learned, target, preferred),
        diverging=_blend(adaptation.diverging, diverging, recent),
        disagreement=disagreement(after, learned.moments.mean, target),
    )
    is_steady = _is_steady(learned, mean, spread, settings)
    is_first = (is_steady | _is_spent(learned, settings)) & (adaptation.finished_at == 0)
    accept_prob = _blend(adaptation.accept_prob, sweep.accept_prob, recent)
    running = _blend(adaptation.potential, mean, jnp.where(adaptation.updates == 0, 1.0, 0.3))
    learned = learned._replace(
        accept_prob=accept_prob,
        finished_at=jnp.where(is_first, learned.updates, adaptation.finished_at),
        is_settled=adaptation.is_settled | (is_first & is_steady),
        potential=running,
    )
    # Placement can leave particles in places where the step size of all others is far too long.
    is_lost = is_far(height) & (accept_prob < LOST) & (learned.updates >= TRIAL_UPDATES)
    is_stuck = is_first & (accept_prob < STUCK)
    return replace(after, is_lost | is_stuck, target), learned


def is_finished(adaptation: Adaptation, settings: Settings) -> jax.Array:
    """Whether warm-up is over, scalar.

    A few updates follow after the estimates are steady, in which particles that were moved onto
    others part from them.
    """
    is_over = (adaptation.finished_at > 0) & (
        ~adaptation.is_settled | (adaptation.updates >= adaptation.finished_at + LAST_UPDATES)
    )
    return is_over | (adaptation.total_updates >= settings.num_warmup)
