"""The move of chains whose particles have ended in several modes, chosen when warm-up is over.

The particles of all chains are searched together for separated groups. If there are any, descents
from the particles, and from farther away, end in the modes. One ensemble explores each of these,
those that turn out to be in the same mode are merged, and if several modes are left, the chains
share the list of them: mean, covariance, and weight of each. Particles stay with their own chain,
so that chains that found different shares still differ until jumps have evened them out.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

from numpyro_rwpo.dynamics.ensemble import Ensemble
from numpyro_rwpo.dynamics.estimates import JUMP_CORRELATION, MAX_JUMPS, trajectory_steps
from numpyro_rwpo.dynamics.exploration import NUM_TRIED, Explored
from numpyro_rwpo.dynamics.mode_fit import Fitted, fit_modes
from numpyro_rwpo.dynamics.mode_moves import ModeMove, Tally
from numpyro_rwpo.dynamics.mode_search import (
    MAX_GROUPS,
    MAX_ROUNDS,
    NEIGHBOR,
    Array,
    Evaluate,
    Group,
    Separated,
    as_groups,
    find_groups,
    find_separated,
    wide_starts,
)
from numpyro_rwpo.dynamics.modes import mode_of
from numpyro_rwpo.dynamics.programs import Programs
from numpyro_rwpo.dynamics.settings import Settings
from numpyro_rwpo.dynamics.state import Ready
from numpyro_rwpo.dynamics.warmup import WarmUp

# Jumps and states with which the acceptance of jumps is measured.
TRIAL_JUMPS, TRIAL_STATES = 2, 6
# Share of a mode that jumps must have exchanged when the chains have settled, and the states that
# this takes at least and at most.
SETTLED, MIN_STATES, MAX_STATES = 0.99, 5, 50
# States beyond which even the draws of a long run would not see the shares evened out.
HOPELESS_STATES = 1000
# More places at which descents end than this share of the particles are no list of modes: nearly
# every particle has one of its own.
MAX_PLACES = 0.5
# An ensemble starts from the particles at rest if there is at least one for so many of its own.
MIN_MEMBERS = 4
# Proposed jumps out of a mode that are needed to say how many are accepted.
MIN_PROPOSED = 5
# The less successful kind of jump is still tried with this probability.
MIN_KIND = 0.1


class Call(NamedTuple):
    """What the programs need to run.

    Attributes:
        programs: programs of the kernel.
        settings: settings of the run.
        inputs: random keys, starts and numbers with which the ensembles were warmed up.
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        show: shows the user what takes long.
    """

    programs: Programs
    settings: Settings
    inputs: tuple[Any, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    show: Callable[[str], None]


class Cost:
    """Gradient evaluations of all chains together, and one after another."""

    def __init__(self) -> None:
        self.num_gradients, self.num_rows = 0, 0

    def add(self, num_gradients: Any, num_rows: Any) -> None:
        """Add evaluations."""
        self.num_gradients += int(num_gradients)
        self.num_rows += int(num_rows)


def share_modes(warm: WarmUp, ready: Ready, call: Call) -> tuple[Ready, bool]:
    """The chains with a move that jumps between modes, and whether there are several modes.

    Args:
        warm: the ensembles after warm-up, with a leading chain axis, not traced.
        ready: the same ensembles with the move of the chosen flow.
        call: what the programs need.
    """
    cost = Cost()
    evaluate = _evaluator(ready, call, cost)
    groups = _groups(warm)
    if not groups:
        return ready, False
    separated = find_separated(groups, evaluate)
    if len(separated) < 2:
        return _charged(ready, cost), False
    call.show("adapting jumps between several modes")
    groups = _by_descents(groups, warm, evaluate, ready, call, cost)
    separated = find_separated(groups, evaluate)
    if not 2 <= len(separated) <= ready.potential.size * MAX_PLACES:
        return _charged(ready, cost), False
    separated = _searched_widely(separated, groups, evaluate, ready, call, cost)
    explored = _explored(separated, ready, call, cost)
    fitted = fit_modes(random.fold_in(call.inputs[0][0], 3), explored, evaluate)
    if len(fitted.kept) < 2:
        return _charged(ready, cost), False
    move = _first_move(fitted, explored, warm)
    settled = _settled(ready, move, explored, fitted, call, cost)
    return (_charged(ready, cost), False) if settled is None else (settled, True)


def _by_descents(
    groups: list[Group], warm: WarmUp, evaluate: Evaluate, ready: Ready, call: Call, cost: Cost
) -> list[Group]:
    """The groups, those of particles at rest replaced by the ends of descents from the particles.

    A gap may be where there is no barrier, and a few particles may bridge one. A descent ends in
    the mode of its particle. Particles whose descents are still on their way stay in groups.
    """
    positions, heights, gradients = _at_rest(warm)
    ends = _ends(positions, ready, call, cost)
    found = as_groups(ends, positions, evaluate, are_at_rest=True)
    is_under_way = ~np.isfinite(ends).all(1)
    if is_under_way.sum() > NEIGHBOR:
        positions, heights = positions[is_under_way], heights[is_under_way]
        index = find_groups(positions, gradients, heights)
        found += [Group(positions[i], heights[i], positions[i]) for i in index]
    return found + [group for group in groups if not len(group.members)]


def _ends(starts: Array, ready: Ready, call: Call, cost: Cost) -> Array:
    """Where descents from positions (n, dim) end, not finite where they have not arrived."""
    constants, number = (call.programs.layout, None), ready.potential.size
    padded = jnp.asarray(np.resize(starts, (number, starts.shape[1])), ready.potential.dtype)
    ends = call.programs.descend(constants, (padded, ready.centering[0]), call.args, call.kwargs)
    cost.add(NUM_TRIED * number, NUM_TRIED)
    return np.asarray(ends, np.float64)[: len(starts)]


def _searched_widely(
    separated: list[Separated],
    groups: list[Group],
    evaluate: Evaluate,
    ready: Ready,
    call: Call,
    cost: Cost,
) -> list[Separated]:
    """The separated sets, with those that descents from farther away find.

    Where particles are in several modes already, there may be more outside the small region in
    which chains start. The region of the search grows as long as it finds any.
    """
    key = random.fold_in(call.inputs[0][0], 4)
    rng = np.random.default_rng(np.asarray(random.bits(key, (2,))))
    for _ in range(MAX_ROUNDS):
        num_occupied = sum(len(one.members) >= NEIGHBOR for one in separated)
        if num_occupied < 2 or len(separated) > MAX_GROUPS // 2:
            break
        starts = wide_starts(separated, ready.potential.size, rng)
        ends = _ends(starts, ready, call, cost)
        groups = groups + as_groups(ends, starts, evaluate, are_at_rest=False)
        found = find_separated(groups, evaluate)
        if len(found) <= len(separated):
            break
        separated = found
    return separated


def _explored(separated: list[Separated], ready: Ready, call: Call, cost: Cost) -> Explored:
    """An ensemble in each separated set: its particles at rest, or those around its position."""
    key, number = random.fold_in(call.inputs[0][0], 1), call.settings.num_particles
    keys = random.split(key, len(separated))
    is_placed = np.array([len(one.members) >= number // MIN_MEMBERS for one in separated])
    random_numbers = np.random.default_rng(np.asarray(random.bits(key, (2,))))
    starts = []
    for one, placed in zip(separated, is_placed, strict=True):
        if placed:
            chosen = random_numbers.permutation(len(one.members))
            starts.append(one.members[np.resize(chosen, number)])
        else:
            noise = random_numbers.normal(size=(number, len(one.position)))
            starts.append(one.position + 0.1 * noise)
    positions = jnp.asarray(np.stack(starts), ready.potential.dtype)
    # Around a place that is no mode, trajectories may become so long that they would never end. All
    # sets together may cost twice what warm-up has cost.
    num_gradients = int(np.asarray(ready.warm_up.num_gradients, np.int64).sum())
    numbers = call.inputs[2]._replace(max_rows=2 * num_gradients / (number * len(separated)))
    inputs = keys, positions, jnp.asarray(is_placed), ready.centering[0], numbers
    constants = call.programs.layout, call.settings
    explored = call.programs.explore(constants, inputs, call.args, call.kwargs)
    cost.add(explored.num_gradients.sum(), explored.num_rows.max())
    return explored


def _rows(x: jax.Array) -> Array:
    """The particles of all chains in one array."""
    return np.asarray(x, np.float64).reshape(-1, x.shape[-1])


def _descents(warm: WarmUp) -> jax.Array:
    """Draws of each chain's descents, or of the user's density; none if in other coordinates."""
    first = warm.placement.first
    is_same = np.array_equal(warm.centering, warm.placement.placed.centering)
    return first if is_same else first[:, :0]


def _at_rest(warm: WarmUp) -> tuple[Array, Array, Array]:
    """Finite positions, potential and gradients of the particles of all chains."""
    positions, gradients = _rows(warm.ensemble.particles), _rows(warm.ensemble.gradient)
    heights = np.asarray(warm.potential, np.float64).ravel()
    is_finite = np.isfinite(np.column_stack([positions, gradients, heights])).all(1)
    return positions[is_finite], heights[is_finite], gradients[is_finite]


def _groups(warm: WarmUp) -> list[Group]:
    """Groups among the particles at rest, and among the draws they were placed by, of all chains.

    No groups if there is only one of either kind.
    """
    positions, heights, gradients = _at_rest(warm)
    draws = _rows(_descents(warm))
    draws = draws[np.isfinite(draws).all(1)]
    if len(positions) < 2:
        return []
    found = find_groups(positions, gradients, heights)
    groups = [Group(positions[index], heights[index], positions[index]) for index in found]
    found_first = find_groups(draws, gradients) if len(draws) > 1 else []
    unknown = np.full(len(draws), np.inf)
    first = [Group(draws[index], unknown[index], draws[:0]) for index in found_first]
    return groups + first if max(len(groups), len(first)) > 1 else []


def _evaluator(ready: Ready, call: Call, cost: Cost) -> Callable[[Array], Array]:
    """A function that computes the potential of positions (n, dim), in blocks of equal size."""
    size, dtype = call.settings.num_particles, ready.potential.dtype
    constants = call.programs.layout, None

    def evaluate(positions: Array) -> Array:
        number = len(positions)
        padded = np.resize(positions, (-(-number // size) * size, positions.shape[1]))
        values = [
            call.programs.heights(
                constants, (jnp.asarray(block, dtype), ready.centering[0]), call.args, call.kwargs
            )
            for block in padded.reshape(-1, size, positions.shape[1])
        ]
        cost.add(number, len(values))
        found = np.concatenate([np.asarray(x, np.float64) for x in values])[:number]
        return np.where(np.isnan(found), np.inf, found)

    return evaluate


def _charged(ready: Ready, cost: Cost) -> Ready:
    """The same with its costs, which the chains share."""
    report = ready.warm_up
    share = -(-cost.num_gradients // len(ready.potential))
    report = report._replace(
        num_gradients=report.num_gradients + share, num_rows=report.num_rows + cost.num_rows
    )
    return ready._replace(warm_up=report)


def _first_move(fitted: Fitted, explored: Explored, warm: WarmUp) -> ModeMove:
    """The move of each chain, before the jumps have been measured."""
    adaptation = jax.tree.map(lambda x: x[fitted.kept], explored.adaptation)
    # All modes have the same kind of flow, the one that decorrelates most per gradient.
    slowest = jnp.clip(adaptation.correlation.max(2), 1e-3, 0.999)
    num_steps = trajectory_steps(adaptation.log_step_mean)
    number = int(jnp.argmax(jnp.log(-jnp.log(slowest) / num_steps).mean(0)))
    of_modes = jax.tree.map(lambda x: x[fitted.kept], explored.moves[number])
    num_chains = len(warm.potential)
    found = [_is_found(fitted, warm, chain) for chain in range(num_chains)]

    def shared(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, (num_chains, *jnp.shape(x)))

    move = ModeMove(
        modes=fitted.modes,
        flow=of_modes.flow,
        # Trajectories in all modes have the same number of steps, and so the same step size.
        step_size=of_modes.step_size.min(),
        num_steps=of_modes.num_steps.max(),
        num_sweeps=of_modes.num_sweeps.max(),
        num_jumps=jnp.asarray(TRIAL_JUMPS),
        hop_share=jnp.asarray(0.5, fitted.modes.mean.dtype),
        jump_rate=jnp.zeros_like(fitted.modes.log_det),
        is_found=jnp.zeros(len(fitted.kept), bool),
    )
    return jax.tree.map(shared, move)._replace(is_found=jnp.stack(found))


def _is_found(fitted: Fitted, warm: WarmUp, chain: int) -> jax.Array:
    """Which modes a chain's own particles are in, (num_modes,)."""
    own = jnp.concatenate([warm.ensemble.particles[chain], _descents(warm)[chain]])
    number = mode_of(fitted.modes, own)
    return jnp.zeros(len(fitted.kept), bool).at[number].set(True)


def with_measured_jumps(move: ModeMove, tally: Tally) -> ModeMove:
    """The move with as many jumps of either kind as their acceptance asks for.

    Args:
        move: with a leading chain axis.
        tally: jumps of all chains together.
    """
    proposed, accepted = np.asarray(tally.proposed), np.asarray(tally.accepted)
    rates = accepted / np.maximum(proposed, 1)
    is_measured = proposed >= MIN_PROPOSED
    # The mode that is left most rarely counts.
    worst = np.where(is_measured, rates, np.inf).min(1)
    worst = np.where(np.isfinite(worst), worst, 0.0)
    share = worst[1] / max(worst.sum(), 1e-12) if worst.sum() > 0 else 0.5
    share = float(np.clip(share, MIN_KIND, 1 - MIN_KIND))
    kinds = np.array([1 - share, share])[:, None]
    rate = (kinds * rates).sum(0)
    missed = np.clip(1 - rate[is_measured.any(0)].min(initial=1.0), 1e-3, 0.999)
    num_jumps = int(np.clip(np.ceil(np.log(JUMP_CORRELATION) / np.log(missed)), 1, MAX_JUMPS))
    return move._replace(
        num_jumps=jnp.full_like(move.num_jumps, num_jumps),
        hop_share=jnp.full_like(move.hop_share, share),
        jump_rate=jnp.broadcast_to(jnp.asarray(rate, move.jump_rate.dtype), move.jump_rate.shape),
    )


def _in_listed_modes(ensemble: Ensemble, fitted: Fitted) -> Ensemble:
    """The ensembles, with an axis of chains, without particles in modes that are not in the list.

    They move onto others of their chain. Out of a mode that is not in the list, hardly any jump is
    accepted, because its proposal density is even smaller there than the posterior.
    """
    if fitted.is_kept.all():
        return ensemble
    number = jax.vmap(lambda x: mode_of(fitted.distinct, x))(ensemble.particles)
    is_kept = fitted.is_kept[np.asarray(number)]
    index = np.tile(np.arange(is_kept.shape[1]), (len(is_kept), 1))
    for chain, kept in enumerate(is_kept):
        if kept.any():
            index[chain, ~kept] = np.resize(np.flatnonzero(kept), (~kept).sum())
    return jax.vmap(lambda one, source: jax.tree.map(lambda x: x[source], one))(
        ensemble, jnp.asarray(index)
    )


def _settled(
    ready: Ready, move: ModeMove, explored: Explored, fitted: Fitted, call: Call, cost: Cost
) -> Ready | None:
    """The chains after their jumps have been measured and have evened out the shares.

    ``None`` if jumps are accepted so rarely that they never would, and no other mode than one has
    particles: the others are hardly worth a draw, and their normal densities do not fit.
    """
    keys = jax.vmap(lambda key: random.fold_in(key, 2))(call.inputs[0])
    ensemble, num_chains = _in_listed_modes(ready.ensemble, fitted), len(ready.potential)

    def moved(keys: jax.Array, move: ModeMove, num_states: int) -> Any:
        per_state = move.num_jumps[0] + move.num_sweeps[0] * move.num_steps[0]
        cost.add(num_states * per_state * ready.potential.size, num_states * per_state)
        states = jnp.full(num_chains, num_states)
        inputs = keys, ensemble, move, states, ready.centering
        constants = call.programs.layout, call.settings
        return call.programs.settle(constants, inputs, call.args, call.kwargs)

    ensemble, _, tally = moved(keys, move, TRIAL_STATES)
    move = with_measured_jumps(move, jax.tree.map(lambda x: x.sum(0), tally))
    missed = (1 - float(move.jump_rate.min())) ** int(move.num_jumps[0])
    wanted = np.ceil(np.log(1 - SETTLED) / np.log(np.clip(missed, 1e-6, 1 - 1e-6)))
    if wanted > HOPELESS_STATES:
        at_rest = ready.ensemble.particles.reshape(-1, ready.ensemble.particles.shape[-1])
        if len(np.unique(mode_of(fitted.modes, at_rest))) == 1:
            return None
        wanted = MIN_STATES
    num_states = int(np.clip(wanted, MIN_STATES, MAX_STATES))
    keys = jax.vmap(lambda key: random.fold_in(key, 1))(keys)
    ensemble, height, _ = moved(keys, move, num_states)
    is_settled = bool(np.asarray(explored.adaptation.is_settled)[fitted.kept].all())
    updates = int(np.asarray(explored.adaptation.total_updates).max())
    report = ready.warm_up._replace(
        is_settled=jnp.full_like(ready.warm_up.is_settled, is_settled),
        num_updates=ready.warm_up.num_updates + updates,
    )
    return _charged(Ready(ensemble, height, ready.centering, move, report), cost)
