"""Adaptation of the correction during warm-up: metric, step size, sweeps between two draws.

Everything is estimated from the ensemble, sweep after sweep, and never touched again once warm-up
is over: the draws come from a fixed Markov kernel. Adaptation also ends early, when what it
estimates has had time to settle: the rest of the warm-up then costs nothing.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from numpyro_rwpo.dynamics.ensemble import Ensemble, gradient, potential, thinned
from numpyro_rwpo.dynamics.factors import Factor, LowRank, diagonal_like
from numpyro_rwpo.dynamics.hamiltonian import (
    DIVERGENCE_THRESHOLD,
    MAX_STEPS,
    MAX_SWEEPS,
    STUCK,
    TRAJECTORY_LENGTH,
    Metric,
    Reference,
    Refresh,
    Tuning,
    make_metric,
)
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
from numpyro_rwpo.model.target import Target

TRIAL_UPDATES = 2  # of each Hamiltonian kind, which take turns
RETRIAL_EVERY = 4  # updates, after the trial, one tries any kind: the metric has changed since
_IN_THE_RUNNING = 0.4  # share of the best kind's efficiency below which a kind is not tried again
SETTLING_UPDATES = 4  # after the trial, before adaptation may end
INDEPENDENT_EVERY = 4  # updates, after the trial, one tries independent proposals
SHORT_EVERY = 4  # updates, after the trial, one takes short steps, if particles need them
HAMILTONIAN_PER_SHORT = 8  # sweeps of a refresh, one of which takes short steps then
MAX_INDEPENDENT = 3  # sweeps in a refresh with independent draws from the reference
MAX_PROPOSED = MAX_SWEEPS // 2  # the same from a proposal of the user's
_RESIDUAL_CORRELATION = 0.1  # between two draws of a particle, at most
REPLACEMENT_UPDATES = 12  # in which all particles that reject everything are moved onto others
_REJECTED = 0.02  # acceptance probability in a pair of sweeps of one that rejects everything
_NEED_SHORT = 0.5  # stuck particles in the running mean, above which short steps are taken
_IMPROBABLE = 4.0  # standard deviations of the potential from its median
_QUARTILES = 1.349  # their distance in a normal distribution, in standard deviations
_DIVERGENCE_COST = 10.0  # of acceptance probability, for the share of particles that diverge
_AFFORDABLE_STEPS = 32  # of a trajectory, beyond which divergences no longer shorten the steps
_STEADY = 0.1  # distance of the log step size from its mean at which it counts as settled
_CLIP = 3.0
# Step sizes at which each flow starts, times the fourth root of the dimension: about 0.8 of the
# steps are then accepted on posteriors of 10 to 50 dimensions.
_FIRST_STEP = {"free": 1.4, "harmonic": 2.5, "exact": 1.0}
_MEMORY = 0.08  # weight of the newest sweep in the running moments, once there are enough


class Candidates(NamedTuple):
    """Which flows and metrics warm-up may choose from (static).

    Attributes:
        dense: whether moments and the Fisher metric are dense.
        rank: directions in which the Fisher metric is more than diagonal, where it is not dense.
        fisher: whether the free and the harmonic flow, in the Fisher metric, are on trial.
        exact_flow: whether the prior's exact flow, in the diagonal metric, is.
    """

    dense: bool
    rank: int
    fisher: bool
    exact_flow: bool

    @property
    def flows(self) -> tuple[str, ...]:
        """The flows on trial, see :mod:`numpyro_rwpo.dynamics.hamiltonian`."""
        return ("free", "harmonic") * self.fisher + ("exact",) * self.exact_flow

    @property
    def number(self) -> int:
        """Number of flows on trial."""
        return len(self.flows)


class Sweeps(NamedTuple):
    """What the estimates say about a refresh.

    Attributes:
        num_independent: sweeps with independent proposals, scalar.
        num_hamiltonian: Hamiltonian sweeps, scalar.
        num_short: how many of these take short steps, scalar; none where all particles move.
        residual_correlation: expected between two draws of a particle, of its slowest statistic;
            above a tenth only where the number of sweeps is at its limit.
        is_settled: whether warm-up has run long enough for its estimates, and all particles move:
            those that hardly do may still be on their way from the start.
    """

    num_independent: jax.Array
    num_hamiltonian: jax.Array
    num_short: jax.Array
    residual_correlation: jax.Array
    is_settled: jax.Array


class Adaptation(NamedTuple):
    """Running estimates of one ensemble.

    Arrays over kinds of sweep have shape (kinds, ...): one Hamiltonian kind for each flow on
    trial, then independent proposals, then short steps.

    Attributes:
        chosen: the Hamiltonian kind that forgets most cheaply so far.
        uses: updates that each kind has had, (kinds,).
        moments: running moments of the ensemble.
        preconditioner: the Fisher metric of these moments.
        log_step: log step size of each Hamiltonian kind, (kinds,).
        log_step_mean: its running mean, what sampling will use, (kinds,).
        num_steps: running mean of gradient evaluations a sweep, (kinds,).
        lag_1: autocorrelation of the statistics after one sweep, across particles,
            (kinds, 2 dim + 1).
        lag_2: the same after two sweeps.
        num_stuck: running mean of the number of particles that are stuck, scalar.
        sweeps: what follows from these for a refresh.
    """

    chosen: jax.Array
    uses: jax.Array
    moments: Moments
    preconditioner: Preconditioner
    log_step: jax.Array
    log_step_mean: jax.Array
    num_steps: jax.Array
    lag_1: jax.Array
    lag_2: jax.Array
    num_stuck: jax.Array
    sweeps: Sweeps


class SweepPair(NamedTuple):
    """An ensemble before, between and after two sweeps, and what these did."""

    before: Ensemble
    between: Ensemble
    after: Ensemble
    refresh: Refresh


def initial_adaptation(particles: jax.Array, candidates: Candidates) -> Adaptation:
    """Before the first sweep: unit moments and a step size from the dimension alone."""
    dim, dtype = particles.shape[1], particles.dtype
    unit = jnp.eye(dim, dtype=dtype) if candidates.dense else jnp.ones(dim, dtype)
    factor: Factor = unit
    if candidates.rank:
        directions = initial_directions(dim, candidates.rank, dtype)
        factor = LowRank(unit, directions, jnp.eye(candidates.rank, dtype=dtype))
    num_kinds = candidates.number + 2
    first_steps = [_FIRST_STEP[flow] for flow in candidates.flows] + [1.0, 1.0]
    log_step = jnp.log(jnp.asarray(first_steps, dtype)) - 0.25 * math.log(dim)
    log_step = jnp.minimum(log_step, math.log(TRAJECTORY_LENGTH))
    correlation = jnp.ones((num_kinds, 2 * dim + 1), dtype)
    return Adaptation(
        chosen=jnp.zeros((), int),
        uses=jnp.zeros(num_kinds, int),
        moments=Moments(jnp.zeros(dim, dtype), unit, unit),
        preconditioner=Preconditioner(factor, factor, jnp.ones(dim, dtype)),
        log_step=log_step,
        log_step_mean=log_step,
        num_steps=jnp.ones(num_kinds, dtype),
        lag_1=correlation,
        lag_2=correlation,
        num_stuck=jnp.zeros((), dtype),
        sweeps=Sweeps(
            num_independent=jnp.zeros((), int),
            num_hamiltonian=jnp.ones((), int),
            num_short=jnp.zeros((), int),
            residual_correlation=jnp.ones((), dtype),
            is_settled=jnp.zeros((), bool),
        ),
    )


class Turn(NamedTuple):
    """Which kind of sweep an update takes a pair of.

    Attributes:
        hamiltonian: the Hamiltonian kind whose turn it is, scalar.
        is_independent: whether independent proposals come instead, scalar.
        is_short: whether its steps are short, scalar.
    """

    hamiltonian: jax.Array
    is_independent: jax.Array
    is_short: jax.Array


def whose_turn(adaptation: Adaptation, update: jax.Array, candidates: Candidates) -> Turn:
    """Each Hamiltonian kind in trial, then the chosen one, with trials of the others between."""
    on_trial = (update < TRIAL_UPDATES * candidates.number) & (candidates.number > 1)
    turn = lax.rem(update, candidates.number)
    later = lax.rem(update // RETRIAL_EVERY, candidates.number)
    efficiency = _efficiency(adaptation)
    is_retrial = lax.rem(update, RETRIAL_EVERY) == 0
    is_retrial &= efficiency[later] > _IN_THE_RUNNING * efficiency[adaptation.chosen]
    kind = jnp.where(is_retrial, later, adaptation.chosen)
    is_independent = lax.rem(update, INDEPENDENT_EVERY) == INDEPENDENT_EVERY - 1
    is_short = (adaptation.sweeps.num_short > 0) & (lax.rem(update, SHORT_EVERY) == 1)
    return Turn(jnp.where(on_trial, turn, kind), is_independent & ~on_trial, is_short & ~on_trial)


def _efficiency(adaptation: Adaptation) -> jax.Array:
    """Forgetting of the slowest statistic a gradient, of every Hamiltonian kind.

    By lag 1 alone: the ratio of two lags is too noisy to compare kinds that had few updates.
    """
    memory = jnp.clip(adaptation.lag_1[:-2].max(1), 1e-3, 0.999)
    return -jnp.log(memory) / adaptation.num_steps[:-2]


def _metric(
    adaptation: Adaptation, kind: jax.Array, target: Target, candidates: Candidates
) -> Metric:
    scale = jnp.sqrt(variances(adaptation.moments))
    fisher = adaptation.preconditioner.factor
    diagonal = diagonal_like(fisher, scale)
    is_exact, is_harmonic = (
        kind == (candidates.flows.index(flow) if flow in candidates.flows else -1)
        for flow in ("exact", "harmonic")
    )
    factor = jax.tree.map(lambda d, f: jnp.where(is_exact, d, f), diagonal, fisher)
    mean = adaptation.moments.mean
    return make_metric(factor, scale, mean, target, is_exact=is_exact, is_harmonic=is_harmonic)


def _memory(
    adaptation: Adaptation, kind: jax.Array, num_independent: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Weight w and rate r of each statistic's correlation w r^k after k Hamiltonian sweeps.

    Of one ``kind`` and after ``num_independent`` (...,) independent ones; (..., 2 dim + 1) and
    (2 dim + 1,). A statistic that mixes fast and slow directions decays so; r is the ratio of its
    lag-2 to its lag-1 correlation, which lag 1 alone would underestimate.
    """
    lag_1 = jnp.clip(adaptation.lag_1, 1e-3, 0.999)
    lag_2 = jnp.clip(adaptation.lag_2, 1e-3, 0.999)
    once, twice = lag_1[kind], lag_2[kind]
    rate = jnp.clip(jnp.maximum(twice / once, once), 1e-3, 0.999)
    return (once / rate) * lag_1[-2] ** jnp.asarray(num_independent)[..., None], rate


def max_independent(*, has_proposal: bool) -> int:
    """Sweeps with independent draws in a refresh, at most."""
    return MAX_PROPOSED if has_proposal else MAX_INDEPENDENT


def max_hamiltonian(*, has_proposal: bool) -> int:
    """Hamiltonian sweeps in a refresh, at most."""
    return MAX_SWEEPS - max_independent(has_proposal=has_proposal)


def _plan_sweeps(
    adaptation: Adaptation, num_updates: jax.Array, candidates: Candidates, *, has_proposal: bool
) -> Sweeps:
    """The cheapest numbers of sweeps after which a particle remembers no more than a tenth.

    A proposal of the user's is tried before adaptation ends. It may be all that brings particles
    from one mode to another, and take more sweeps to do so than a refresh has otherwise.
    """
    chosen = adaptation.chosen
    num_independent = jnp.arange(max_independent(has_proposal=has_proposal) + 1)
    weight, rate = _memory(adaptation, chosen, num_independent)
    needed = (jnp.log(_RESIDUAL_CORRELATION / weight) / jnp.log(rate)).max(-1)
    limit = max_hamiltonian(has_proposal=has_proposal)
    num_hamiltonian = jnp.ceil(jnp.clip(needed, 1, limit)).astype(int)
    cost = num_independent + num_hamiltonian * adaptation.num_steps[chosen]
    residual = (weight * rate ** num_hamiltonian[:, None]).max(-1)
    if has_proposal:  # where no numbers reach a tenth, those that come closest
        is_enough = residual <= 1.01 * _RESIDUAL_CORRELATION  # but for rounding
        cost = jnp.where(is_enough, cost, MAX_SWEEPS * MAX_STEPS * (1 + residual))
    best = jnp.argmin(cost)
    trial = TRIAL_UPDATES * candidates.number if candidates.number > 1 else 0
    # A step size that still moves has left its running mean behind.
    ahead = jnp.abs(adaptation.log_step - adaptation.log_step_mean)[chosen]
    settling = num_hamiltonian[best if has_proposal else 0]
    enough = num_updates >= trial + SETTLING_UPDATES + 2 * settling
    if has_proposal:
        enough &= adaptation.uses[-2] > 0
    is_any_stuck = adaptation.num_stuck > _NEED_SHORT
    num_short = -(-num_hamiltonian[best] // HAMILTONIAN_PER_SHORT)
    return Sweeps(
        num_independent=best,
        num_hamiltonian=num_hamiltonian[best],
        num_short=jnp.where(is_any_stuck, num_short, 0),
        residual_correlation=residual[best],
        is_settled=enough & (ahead < _STEADY) & ~is_any_stuck,
    )


def tuning(
    adaptation: Adaptation,
    turn: Turn,
    target: Target,
    candidates: Candidates,
    is_warmup: jax.Array,
) -> Tuning:
    """The tuning of the next refresh: the settled one, in warm-up a pair of one kind of sweep."""
    kind = jnp.where(is_warmup, turn.hamiltonian, adaptation.chosen)
    log_step = jnp.where(is_warmup, adaptation.log_step, adaptation.log_step_mean)[kind]
    sweeps = adaptation.sweeps
    independent = 2 * turn.is_independent
    preconditioner = adaptation.preconditioner
    return Tuning(
        metric=_metric(adaptation, kind, target, candidates),
        reference=Reference(adaptation.moments.mean, preconditioner.factor, preconditioner.inverse),
        step_size=jnp.exp(log_step),
        num_independent=jnp.where(is_warmup, independent, sweeps.num_independent),
        num_hamiltonian=jnp.where(is_warmup, 2 - independent, sweeps.num_hamiltonian),
        num_short=jnp.where(is_warmup, 2 * turn.is_short, sweeps.num_short),
    )


def _standardize(x: jax.Array) -> jax.Array:
    """Centre and scale over particles (axis -2); 0 where all are equal."""
    centred = x - x.mean(-2, keepdims=True)
    spread = jnp.sqrt((centred**2).mean(-2, keepdims=True))
    return jnp.where(spread > 0, centred / jnp.where(spread > 0, spread, 1.0), 0.0)


def _statistics(ensembles: Ensemble, target: Target) -> jax.Array:
    """Positions, squared deviations and potential of ensembles, (..., n, dim), over particles.

    Standardised, and clipped at three standard deviations, so that a single straggler does not
    speak for them all. The result has shape (..., n, 2 dim + 1).
    """
    raw = jnp.concatenate([ensembles.particles, potential(ensembles, target)[..., None]], axis=-1)
    clipped = jnp.clip(_standardize(raw), -_CLIP, _CLIP)
    return _standardize(jnp.concatenate([clipped, clipped[..., :-1] ** 2], axis=-1))


def replace_hopeless(
    update: jax.Array, ensemble: Ensemble, refresh: Refresh, target: Target
) -> Ensemble:
    """Move particles that reject everything onto others, in warm-up only.

    Transport can leave a particle where even short steps are unstable and nothing is ever accepted.
    After the first updates such a particle is moved only if its potential is one that draws do not
    have, too high or too low: others may be in a part of the posterior that is hard to leave, like
    the neck of a funnel. Particles more than 1000 units above the median are always moved.
    """
    accept_prob = refresh.accept_prob
    height = potential(ensemble, target)
    ordered = jnp.sort(thinned(height))
    lower, median, upper = ordered[jnp.array([1, 2, 3]) * ordered.size // 4]
    improbable = jnp.abs(height - median) > _IMPROBABLE * (upper - lower) / _QUARTILES
    hopeless = (accept_prob < _REJECTED) & (accept_prob.mean() > 0.5)
    hopeless &= improbable | (update < REPLACEMENT_UPDATES)
    hopeless |= height - median > DIVERGENCE_THRESHOLD

    def replaced(ensemble: Ensemble) -> Ensemble:
        order = jnp.argsort(hopeless, stable=True)
        index = jnp.arange(accept_prob.size)
        source = jnp.where(hopeless, order[index % jnp.maximum((~hopeless).sum(), 1)], index)
        return jax.tree.map(lambda x: x[source], ensemble)

    return target.placement.where_needed(hopeless, replaced, ensemble)


def _blend(old: jax.Array, new: jax.Array, weight: jax.Array) -> jax.Array:
    # Not old + weight * (new - old): at weight 1 that is new with the rounding of old, and
    # variances may be ten orders of magnitude smaller than the initial ones.
    return jnp.where(jnp.isfinite(new), (1 - weight) * old + weight * new, old)


def _adapt_step(
    log_step: jax.Array, accept_prob: jax.Array, aim: float, uses: jax.Array
) -> jax.Array:
    # The mean acceptance over many particles is hardly noisy: a proportional rule is enough.
    error = accept_prob - aim
    error = jnp.where(error < 0, error / aim, error / (1 - aim))
    log_step = log_step + jnp.maximum(0.7 / (1.0 + uses / 4.0), 0.25) * error
    # A longer rotation would turn back.
    return jnp.minimum(log_step, math.log(TRAJECTORY_LENGTH))


def learn_moments(
    adaptation: Adaptation,
    update: jax.Array,
    ensemble: Ensemble,
    target: Target,
    candidates: Candidates,
) -> Adaptation:
    """Blend the moments of an ensemble into the running ones.

    Up to update 0 (in transport, where they are negative) they replace them.
    """
    particles, gradients = without_outliers(ensemble.particles, gradient(ensemble, target))
    new = ensemble_moments(particles, gradients, candidates.dense)
    memory = jnp.maximum(1 / (1.0 + jnp.maximum(update, 0)), _MEMORY)
    moments = jax.tree.map(lambda o, n: _blend(o, n, memory), adaptation.moments, new)
    fisher = adaptation.preconditioner.factor
    if isinstance(fisher, LowRank):
        preconditioner = low_rank_preconditioner(
            moments, particles, gradients, fisher.directions, memory
        )
    else:
        preconditioner = fisher_preconditioner(moments)
    return adaptation._replace(moments=moments, preconditioner=preconditioner)


def learn_sweeps(
    adaptation: Adaptation,
    update: jax.Array,
    turn: Turn,
    pair: SweepPair,
    target: Target,
    candidates: Candidates,
    target_accept_prob: float,
) -> Adaptation:
    """Learn step size, memory of the statistics and the better metric from a pair of sweeps.

    Updates count from 0; each takes one pair.
    """
    is_usual = ~(turn.is_independent | turn.is_short)
    now = jnp.where(is_usual, turn.hamiltonian, candidates.number + turn.is_short)
    uses = adaptation.uses[now]
    weight = jnp.maximum(2 / (2.0 + uses), _MEMORY)

    # Divergences mark a region that the draws miss: shorter steps, as far as these are affordable.
    is_long = adaptation.log_step[now] > math.log(TRAJECTORY_LENGTH / _AFFORDABLE_STEPS)
    fine = jnp.where(is_long, _DIVERGENCE_COST * pair.refresh.diverging.mean(), 0.0)
    accept_prob = jnp.maximum(pair.refresh.accept_prob.mean() - fine, 0.0)
    log_step = _adapt_step(adaptation.log_step[now], accept_prob, target_accept_prob, uses)
    log_step_mean = _blend(adaptation.log_step_mean[now], log_step, jnp.maximum(weight, 0.15))
    ensembles = jax.tree.map(lambda *x: jnp.stack(x), pair.before, pair.between, pair.after)
    before, between, after = _statistics(ensembles, target)
    lag_1 = ((before * between).mean(0) + (between * after).mean(0)) / 2
    lag_2 = (before * after).mean(0)
    steps = _blend(adaptation.num_steps[now], pair.refresh.num_steps / 2, weight)
    num_stuck = jnp.sum(pair.refresh.accept_prob < STUCK)
    num_stuck = _blend(adaptation.num_stuck, num_stuck, jnp.where(is_usual, weight, 0.0))
    learnt = adaptation._replace(
        uses=adaptation.uses.at[now].set(uses + 1),
        log_step=adaptation.log_step.at[now].set(log_step),
        log_step_mean=adaptation.log_step_mean.at[now].set(log_step_mean),
        num_steps=adaptation.num_steps.at[now].set(steps),
        lag_1=adaptation.lag_1.at[now].set(_blend(adaptation.lag_1[now], lag_1, weight)),
        lag_2=adaptation.lag_2.at[now].set(_blend(adaptation.lag_2[now], lag_2, weight)),
        num_stuck=num_stuck,
    )
    learnt = learnt._replace(chosen=jnp.argmax(_efficiency(learnt)))
    sweeps = _plan_sweeps(learnt, update + 1, candidates, has_proposal=target.proposal is not None)
    return learnt._replace(sweeps=sweeps)
