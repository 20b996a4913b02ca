"""The running estimates of one ensemble, and the moves that follow from them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numpyro_rwpo.dynamics.ensemble import Ensemble, gradient
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
from numpyro_rwpo.dynamics.moves import TRAJECTORY_LENGTH, HamiltonianMove, num_leapfrog_steps
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.stationarity import Past, no_past
from numpyro_rwpo.model.target import Target

# Longest trajectory, in leapfrog steps: that of NUTS with its default tree depth of 10.
MAX_STEPS = 1024
# The correlation of a particle's slowest statistic between two of its draws that are kept, above
# which further trajectories come between them, as long as these together take no more than
# AFFORDABLE_STEPS gradients. Beyond that, ArviZ sees what is left, up to a correlation of 0.8: a
# thousand draws of each of four chains are then worth 400, the least that ArviZ does not warn of.
KEPT_CORRELATION, AFFORDABLE_STEPS, MAX_KEPT_CORRELATION = 0.5, 24, 0.8
# Gradients that a draw may take for that: those of a trajectory of NUTS with a tree of depth six.
MOST_STEPS = 64
# Share of the particles that have not jumped between two draws, at most: a jump costs one gradient,
# and may be all that brings particles from one mode to another. So many jumps at most.
JUMP_CORRELATION, MAX_JUMPS = 0.1, 64
# Distance of the log step size from its running mean below which it counts as steady.
STEADY_STEP = 0.15
# Of so few leapfrog steps in a trajectory, one more or less changes the acceptance much.
MAX_FEW = 3
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
        jump_rate: running mean of the acceptance of jumps to the user's proposal, scalar.
        accept_prob: running mean of each particle's acceptance probability, (num_particles,).
        disagreement: disagreement of the present ensembles of all chains, scalar.
        past: the ensemble after an earlier update.
        drift: how far all chains have moved in one direction since then, scalar.
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
    jump_rate: jax.Array
    accept_prob: jax.Array
    disagreement: jax.Array
    past: Past
    drift: jax.Array
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
        jump_rate=zero,
        accept_prob=jnp.ones(settings.num_particles, dtype),
        disagreement=jnp.full((), jnp.inf, dtype),
        past=no_past(settings.num_particles, dim, dtype),
        drift=jnp.full((), jnp.inf, dtype),
        finished_at=jnp.zeros((), int),
        is_settled=jnp.zeros((), bool),
    )


def blend(old: jax.Array, new: jax.Array, weight: jax.Array | float) -> jax.Array:
    """A running mean with a new value of this weight; the old mean if the value is not finite."""
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
    moments = jax.tree.map(lambda o, n: blend(o, n, weight), moments, new)
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


def trajectory_steps(log_step_mean: jax.Array) -> jax.Array:
    """The number of leapfrog steps in a trajectory, from the mean log step size of warm-up.

    Where one step in a quarter turn is accepted less often than was asked for, and two are accepted
    more often, the step size settles where the two meet. It is two then: a trajectory of one step
    that is too long is rejected above all in the tails, which the draws would lack. The same holds
    for two and three steps, and for three and four.
    """
    likely, least = (
        num_leapfrog_steps(jnp.exp(x), MAX_STEPS)
        for x in (log_step_mean, log_step_mean - STEADY_STEP)
    )
    return jnp.where(likely <= MAX_FEW, jnp.minimum(least, likely + 1), likely)


def make_move(name: str, number: int, adaptation: Adaptation, target: Target) -> HamiltonianMove:
    """The move that sampling takes with the flow of that name, the ``number``-th on trial."""
    step_size = jnp.exp(adaptation.log_step_mean[number])
    num_steps = trajectory_steps(adaptation.log_step_mean[number])
    # The steps together make exactly a quarter turn, unless that takes too many of them.
    step_size = jnp.where(num_steps < MAX_STEPS, TRAJECTORY_LENGTH / num_steps, step_size)
    # The slowest of many statistics is mostly the one with the largest error of estimation, which
    # is half as large for four chains together. They wait for each other in any case.
    correlation = target.placement.chain_mean(adaptation.correlation[number])
    slowest = jnp.clip(correlation.max(), 1e-3, 0.999)

    def sweeps(correlation: float, most_steps: int) -> jax.Array:
        wanted = jnp.ceil(math.log(correlation) / jnp.log(slowest))
        return jnp.clip(wanted, 1, jnp.maximum(most_steps // num_steps, 1))

    num_sweeps = jnp.maximum(
        sweeps(KEPT_CORRELATION, AFFORDABLE_STEPS), sweeps(MAX_KEPT_CORRELATION, MOST_STEPS)
    )
    missed = jnp.clip(1 - adaptation.jump_rate, 1e-3, 0.999)
    jumps = jnp.ceil(math.log(JUMP_CORRELATION) / jnp.log(missed))
    return HamiltonianMove(
        flow=make_flow(name, adaptation, target),
        step_size=step_size,
        num_steps=num_steps,
        num_sweeps=num_sweeps.astype(int),
        num_jumps=jnp.clip(jumps, 1, MAX_JUMPS).astype(int),
    )
