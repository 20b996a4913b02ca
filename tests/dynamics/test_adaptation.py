"""What warm-up learns from an ensemble, when it ends, and what it hands to sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from numpyro_rwpo.dynamics.adaptation import (
    CAUTION,
    MAX_AFFORDABLE,
    MAX_TRAJECTORIES,
    MIN_LIMIT,
    MIN_UPDATES,
    TRIAL_UPDATES,
    _is_spent,
    adapt,
    whose_turn,
)
from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate, potential
from numpyro_rwpo.dynamics.estimates import (
    MAX_JUMPS,
    MAX_STEPS,
    MOST_STEPS,
    Adaptation,
    initial_adaptation,
    learn_moments,
    make_move,
    trajectory_steps,
)
from numpyro_rwpo.dynamics.metric import ensemble_moments, without_outliers
from numpyro_rwpo.dynamics.moves import TRAJECTORY_LENGTH, hamiltonian_sweep
from numpyro_rwpo.dynamics.settings import Numbers, Settings
from numpyro_rwpo.dynamics.stationarity import Past
from numpyro_rwpo.heads.registry import find_head
from numpyro_rwpo.model.target import Differentiation, Target, pool_chains
from numpyro_rwpo.priors.laplace import LaplacePrior
from numpyro_rwpo.support.sharding import ONE_PLACE

NUM_PARTICLES, DIM = 64, 20
NORMAL = Differentiation(1.0, False).target(lambda x, centering: 0.5 * x @ x, None)


def make_settings(*flows: str, dense: bool = False, rank: int = 0) -> Settings:
    return Settings(
        num_warmup=1000,
        num_particles=NUM_PARTICLES,
        num_states=4,
        radius=2.0,
        attention=find_head("copula"),
        corrected=True,
        dense=dense,
        rank=rank,
        flows=flows,
        inverse_temperature=1.0,
        placement=ONE_PLACE,
    )


def normal_ensemble(target: Target = NORMAL, dim: int = DIM) -> Ensemble:
    return evaluate(random.normal(random.key(0), (NUM_PARTICLES, dim)), target)


def correlated(condition: float) -> tuple[Target, jax.Array]:
    """A normal density in a rotated basis, a Laplace prior that hardly matters, and draws."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    spectrum = np.geomspace(1, condition, DIM)
    precision = jnp.asarray((basis * spectrum) @ basis.T, jnp.float32)
    rate = jnp.full(DIM, 1e-3)
    prior = LaplacePrior(jnp.zeros(DIM), rate, rate)
    target = Differentiation(1.0, False).target(lambda x, c: 0.5 * x @ precision @ x, prior)
    draws = rng.normal(size=(4096, DIM)) / np.sqrt(spectrum) @ basis.T
    return target, jnp.asarray(draws, jnp.float32)


def adapting(target: Target, settings: Settings) -> Callable[..., tuple[Ensemble, Adaptation]]:
    """A program that updates an ensemble a number of times from its first moments."""

    def run(ensemble: Ensemble, num_updates: int, aim: float) -> tuple[Ensemble, Adaptation]:
        dim, dtype = ensemble.particles.shape[1], ensemble.particles.dtype
        start = learn_moments(initial_adaptation(dim, dtype, settings), ensemble, target)

        def update(k: jax.Array, carry: tuple[Ensemble, Adaptation]) -> tuple[Ensemble, Adaptation]:
            ensemble, learned = carry
            learned = learned._replace(finished_at=jnp.zeros((), int))  # It goes on in any case.
            key, numbers = random.fold_in(random.key(1), k), Numbers(aim, 0.1)
            return adapt(key, ensemble, learned, target, settings, numbers)

        return jax.lax.fori_loop(0, num_updates, update, (ensemble, start))

    return jax.jit(run)


def adapted(
    target: Target, settings: Settings, ensemble: Ensemble, num_updates: int
) -> tuple[Ensemble, Adaptation]:
    """After that many updates from the first moments of an ensemble."""
    return adapting(target, settings)(ensemble, num_updates, 0.8)


def one_update(target: Target, settings: Settings) -> Callable[..., tuple[Ensemble, Adaptation]]:
    """A program that updates an ensemble once, with a key and from given estimates."""
    return jax.jit(lambda *carry: adapt(*carry, target, settings, Numbers(0.8, 0.1)))


UPDATE_NORMAL = one_update(NORMAL, make_settings("exact"))


@pytest.mark.parametrize("dense", [True, False])
def test_first_moments_are_the_ensembles_own(dense: bool) -> None:
    """Nothing is left of the initial unit moments, not in rounding either.

    Variances of 1e-12 are lost in the roundings of a one.
    """
    scales = 10.0 ** -np.arange(7)
    whitened = np.random.default_rng(0).normal(size=(NUM_PARTICLES, 7))
    target = Differentiation(1.0, False).target(
        lambda x, centering: 0.5 * ((x / scales) ** 2).sum(), None
    )
    ensemble = evaluate(jnp.asarray(whitened * scales, jnp.float32), target)
    settings = make_settings("harmonic", dense=dense)
    before = initial_adaptation(7, jnp.float32, settings)
    after = learn_moments(before, ensemble, target)
    inner = without_outliers(ensemble.particles, ensemble.gradient)
    expected = ensemble_moments(*inner, dense)
    for found, right in zip(after.moments, expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-6)


# ---------------------------------------------------------------------------- the step size


@pytest.mark.slow
def test_acceptance_steers_the_step_size() -> None:
    """From its guess the step size comes to where as much is accepted as was asked for.

    In so many dimensions a quarter turn takes many steps: a step size of which one or two make a
    quarter turn could only be a little too long or too short.
    """
    dim, settings = 4096, make_settings("exact")
    run = adapting(NORMAL, settings)
    many = evaluate(random.normal(random.key(3), (200, dim)), NORMAL)
    for aim in (0.6, 0.95):
        _, learned = run(normal_ensemble(dim=dim), 40, aim)
        move = make_move("exact", 0, learned, NORMAL)
        assert move.num_steps > 5
        _, sweep = hamiltonian_sweep(
            random.key(4), many, move.flow, move.step_size, move.num_steps, NORMAL
        )
        assert abs(float(sweep.accept_prob.mean()) - aim) < 0.08, aim


@pytest.mark.parametrize(("wall", "grows"), [(False, True), (True, False)])
def test_the_step_size_follows_every_update(wall: bool, grows: bool) -> None:
    """All accepted, a longer step; all rejected, a shorter one."""

    def smooth(x: jax.Array, centering: jax.Array) -> jax.Array:
        flat = 1e-6 * x @ x
        return jnp.where(jnp.all(x == 0), 0.0, jnp.inf) + flat if wall else flat

    target = Differentiation(1.0, False).target(smooth, None)
    start = jnp.zeros((NUM_PARTICLES, DIM)) if wall else normal_ensemble().particles
    ensemble = evaluate(start, target)
    settings = make_settings("exact")
    before = initial_adaptation(DIM, jnp.float32, settings)
    steps, update = [before.log_step[0]], one_update(target, settings)
    for k in range(3):
        ensemble, before = update(random.key(k), ensemble, before)
        steps.append(before.log_step[0])
    changes, longest = np.diff(steps), math.log(TRAJECTORY_LENGTH)
    if grows:
        assert changes[0] > 0.5
        assert np.all((changes > 0) | (np.asarray(steps[1:]) > longest - 1e-6))
    else:
        assert np.all(changes < 0)
    assert max(steps) <= longest + 1e-6


def test_a_step_size_that_diverged_is_not_used_again() -> None:
    """A wall that one particle in a hundred meets lowers the ceiling, not the acceptance."""

    def smooth(x: jax.Array, centering: jax.Array) -> jax.Array:
        return 0.5 * x @ x + jnp.where(x[0] > 2.5, 1e6 * (x[0] - 2.5), 0.0)

    def learned(target: Target, updates: int) -> Adaptation:
        ensemble = evaluate(jnp.minimum(normal_ensemble().particles, 2.0), target)
        return adapted(target, make_settings("exact"), ensemble, updates)[1]

    wall = learned(Differentiation(1.0, False).target(smooth, None), 12)
    assert wall.log_ceiling[0] < math.log(TRAJECTORY_LENGTH) - CAUTION / 2
    assert wall.log_step[0] <= wall.log_ceiling[0]
    assert wall.log_step_mean[0] <= wall.log_ceiling[0]
    # Negative control: without the wall nothing is lowered.
    free = learned(NORMAL, 12)
    np.testing.assert_allclose(free.log_ceiling[0], math.log(TRAJECTORY_LENGTH))


def test_a_lost_particle_is_moved_before_the_others_are_judged_by_it() -> None:
    """Its potential is out of reach for all others, and it rarely moves."""
    ensemble = normal_ensemble()
    start = initial_adaptation(DIM, jnp.float32, make_settings("exact"))

    def smooth(x: jax.Array, centering: jax.Array) -> jax.Array:
        return 0.5 * x @ x + jnp.where(x[0] > 100, 1e4 * (1 + jnp.sin(1e4 * x[0])), 0.0)

    target = Differentiation(1.0, False).target(smooth, None)
    far = evaluate(ensemble.particles.at[5, 0].set(200.0), target)
    assert potential(far, target)[5] > 1e3
    after, _ = adapted(target, make_settings("exact"), far, 4)
    assert jnp.all(jnp.abs(after.particles) < 10)
    # A particle that is as far, but moves, is in a mode of its own and stays.
    accept = start._replace(accept_prob=jnp.ones(NUM_PARTICLES), updates=jnp.asarray(9))
    lonely = evaluate(ensemble.particles.at[5, 0].set(30.0), NORMAL)
    kept, _ = UPDATE_NORMAL(random.key(0), lonely, accept)
    assert jnp.abs(kept.particles[5]).max() > 10


@pytest.mark.parametrize(("updates", "moves"), [(7, True), (8, False), (15, True), (4, False)])
def test_particles_that_are_stuck_are_moved_at_every_look(updates: int, moves: bool) -> None:
    """In a place that is too narrow for the step size, but no less likely than others.

    The looks are at powers of two, from the eighth update on.
    """

    def smooth(x: jax.Array, centering: jax.Array) -> jax.Array:
        return 0.5 * x @ x + jnp.where(x[0] > 5, 1e5 * x[1] ** 2 - 20.0, 0.0)

    target = Differentiation(1.0, False).target(smooth, None)
    settings = make_settings("exact")
    placed = evaluate(normal_ensemble().particles.at[5, :2].set(jnp.array([8.0, 0.0])), target)
    learned = learn_moments(initial_adaptation(DIM, jnp.float32, settings), placed, target)
    state = learned._replace(
        updates=jnp.asarray(updates), accept_prob=jnp.ones(NUM_PARTICLES).at[5].set(0.2)
    )
    after, _ = one_update(target, settings)(random.key(0), placed, state)
    assert bool(after.particles[5, 0] < 5) == moves


@pytest.mark.parametrize(("number", "moves"), [(2, True), (3, False)])
def test_few_particles_left_behind_are_moved_when_the_estimates_are_steady(
    steady: tuple[Ensemble, Adaptation], number: int, moves: bool
) -> None:
    """They accept all trajectories. More of them may be in a wide mode of their own."""
    ensemble, learned = steady
    far = evaluate(ensemble.particles.at[:number, 0].set(400.0), NORMAL)
    state = learned._replace(
        accept_prob=jnp.ones(NUM_PARTICLES),
        updates=jnp.asarray(99),
        num_steps=jnp.asarray(10**6),
        finished_at=jnp.zeros((), int),
    )
    after, last = UPDATE_NORMAL(random.key(3), far, state)
    assert last.finished_at > 0
    assert bool(jnp.abs(after.particles).max() < 10) == moves


# -------------------------------------------------------------------------- when it is enough


@pytest.mark.parametrize(("flows", "trial"), [(("exact",), 0), (("harmonic", "exact"), 2)])
def test_a_steady_ensemble_settles(flows: tuple[str, ...], trial: int) -> None:
    """On a normal density from exact draws: not before the least number, and soon after it."""
    rate = jnp.full(DIM, 0.1)
    target = Differentiation(1.0, False).target(
        lambda x, centering: 0.5 * x @ x, LaplacePrior(jnp.zeros(DIM), rate, rate)
    )
    settings = make_settings(*flows)
    least = TRIAL_UPDATES * trial + MIN_UPDATES
    ensemble, run = normal_ensemble(target), adapting(target, settings)
    assert not run(ensemble, least - 1, 0.8)[1].is_settled
    assert any(run(ensemble, n, 0.8)[1].is_settled for n in range(least, least + 8))


@pytest.fixture(scope="module")
def steady() -> tuple[Ensemble, Adaptation]:
    """An ensemble of a normal density and what forty updates have learned from it."""
    return adapted(NORMAL, make_settings("exact"), normal_ensemble(), 40)


def one_more(
    steady: tuple[Ensemble, Adaptation],
    updates: int,
    *,
    ahead: float = 0.0,
    below: float = 0.0,
    shorter: float = 0.0,
    num_steps: int = 0,
) -> tuple[bool, bool]:
    """Whether an adaptation is settled or spent, after one more update from another state.

    Args:
        steady: what is changed.
        updates: before the one that is made.
        ahead: log step size less its running mean.
        below: how much lower the coordinates of all particles were in the past.
        shorter: by how much the log step size is lowered, and its running mean with it.
        num_steps: leapfrog steps made so far.
    """
    ensemble, learned = steady
    earlier = evaluate(random.normal(random.key(8), ensemble.particles.shape) - below, NORMAL)
    past = Past(earlier.particles, potential(earlier, NORMAL), jnp.asarray(8))
    mean = learned.log_step_mean - shorter
    changed = learned._replace(
        updates=jnp.asarray(updates),
        log_step=mean + ahead,
        log_step_mean=mean,
        past=past,
        num_steps=jnp.asarray(num_steps),
        uses=jnp.asarray([40]),
        finished_at=jnp.zeros((), int),
        is_settled=jnp.zeros((), bool),
    )
    after = UPDATE_NORMAL(random.key(7), ensemble, changed)[1]
    is_finished = bool(after.finished_at > 0)
    return bool(after.is_settled), is_finished and not after.is_settled


def test_all_chains_end_together(steady: tuple[Ensemble, Adaptation]) -> None:
    """One whose step size is not steady keeps the others going, which are measured with it."""
    _, learned = steady
    target, settings = pool_chains(NORMAL, "chain"), make_settings("exact")

    def update(key: jax.Array, log_step: jax.Array) -> jax.Array:
        draws = random.normal(key, (2, NUM_PARTICLES, DIM))
        ensemble, earlier = (evaluate(x, NORMAL) for x in draws)
        before = learned._replace(
            log_step=log_step,
            updates=jnp.asarray(MIN_LIMIT + 20),
            num_steps=jnp.zeros((), int),
            past=Past(earlier.particles, potential(earlier, NORMAL), jnp.asarray(8)),
            finished_at=jnp.zeros((), int),
            is_settled=jnp.zeros((), bool),
        )
        return adapt(key, ensemble, before, target, settings, Numbers(0.8, 0.1))[1].is_settled

    update_all = jax.jit(jax.vmap(update, axis_name="chain"))
    for ahead, is_settled in ((0.0, True), (0.8, False)):
        log_step = jnp.stack([learned.log_step_mean, learned.log_step_mean + ahead])
        found = update_all(random.split(random.key(7), 2), log_step)
        assert found.tolist() == [is_settled, is_settled]


def test_what_is_not_steady_goes_on(steady: tuple[Ensemble, Adaptation]) -> None:
    late = MIN_LIMIT + 20
    assert one_more(steady, late) == (True, False)  # negative control: nothing is changed
    assert one_more(steady, late, ahead=0.8) == (False, False)
    assert one_more(steady, late, below=1.0) == (False, False)


def test_it_goes_on_until_the_placement_is_forgotten(steady: tuple[Ensemble, Adaptation]) -> None:
    """All is steady, but of a correlation of 0.99 too much is left after 20 updates."""
    ensemble, learned = steady
    earlier = evaluate(random.normal(random.key(8), ensemble.particles.shape), NORMAL)
    past = Past(earlier.particles, potential(earlier, NORMAL), jnp.asarray(8))
    for correlation, is_over in ((0.99, False), (0.5, True)):
        before = learned._replace(
            correlation=jnp.full_like(learned.correlation, correlation),
            updates=jnp.asarray(20),
            uses=jnp.asarray([40]),
            log_step=learned.log_step_mean,
            past=past,
            finished_at=jnp.zeros((), int),
            is_settled=jnp.zeros((), bool),
        )
        after = UPDATE_NORMAL(random.key(7), ensemble, before)[1]
        assert after.is_settled
        assert bool(after.finished_at > 0) == is_over


def test_the_budget_of_gradients_ends_it(steady: tuple[Ensemble, Adaptation]) -> None:
    """Two thousand trajectories of the ensemble, but some updates in any case."""
    spent = MAX_TRAJECTORIES * 10
    assert one_more(steady, MIN_LIMIT, below=1.0, num_steps=spent) == (False, True)
    assert one_more(steady, MIN_LIMIT - 2, below=1.0, num_steps=spent) == (False, False)
    # What is steady by then has not been given up.
    assert one_more(steady, MIN_LIMIT, num_steps=spent) == (True, False)


def test_ensembles_whose_gradients_are_spent_stay_where_they_are() -> None:
    """Under `vmap` they are updated as long as any other is, but take no steps."""
    target, settings = NORMAL, make_settings("exact")
    ensemble = normal_ensemble()
    start = learn_moments(initial_adaptation(DIM, jnp.float32, settings), ensemble, target)
    for max_rows, moves in ((0, False), (1, True)):
        numbers = Numbers(0.8, 0.1, max_rows=max_rows)
        after, _ = adapt(random.key(1), ensemble, start, target, settings, numbers)
        assert np.any(after.particles != ensemble.particles) == moves


def test_the_budget_follows_trajectories_in_a_diagonal_metric() -> None:
    """An ensemble that turns in 8 steps goes on if those of the diagonal metric take 79."""
    settings = make_settings("harmonic", "exact", dense=True)
    state = initial_adaptation(DIM, jnp.float32, settings)._replace(
        updates=jnp.asarray(MIN_LIMIT),
        num_steps=jnp.asarray(MAX_TRAJECTORIES * 10),
    )
    for of_exact, is_spent in ((0.02, False), (0.2, True)):
        log_step = jnp.log(jnp.array([0.2, of_exact]))
        changed = state._replace(log_step=log_step)
        assert bool(_is_spent(changed, NORMAL, settings)) == is_spent


def test_trajectories_that_grow_too_long_end_it(steady: tuple[Ensemble, Adaptation]) -> None:
    shorter = math.log(8 * MAX_AFFORDABLE)
    early = MIN_LIMIT // 2
    assert one_more(steady, early, below=1.0, shorter=shorter) == (False, True)
    assert one_more(steady, early - 2, below=1.0, shorter=shorter) == (False, False)


# --------------------------------------------------------------------------- choice of the flow


def steep_target() -> Target:
    """Laplace priors and little else: kinks at the mode, nothing for a rotation to know."""
    rate = jnp.full(DIM, 3.0)
    prior = LaplacePrior(jnp.zeros(DIM), rate, rate)
    return Differentiation(1.0, False).target(lambda x, c: 1e-4 * x @ x, prior)


@pytest.mark.parametrize(
    ("target", "chosen"),
    [(correlated(1000.0)[0], "harmonic"), (steep_target(), "exact")],
    ids=["correlated", "steep"],
)
def test_the_trial_finds_the_cheaper_flow(target: Target, chosen: str) -> None:
    settings = make_settings("harmonic", "exact", dense=True)
    ensemble = evaluate(0.3 * random.normal(random.key(0), (NUM_PARTICLES, DIM)), target)
    _, learned = adapted(target, settings, ensemble, 25)
    assert settings.flows[int(learned.chosen)] == chosen
    # From the trial's end on, all sweeps are the chosen flow's.
    uses = dict(zip(settings.flows, np.asarray(learned.uses), strict=True))
    assert uses[chosen] > uses[({*settings.flows} - {chosen}).pop()] >= TRIAL_UPDATES
    assert sum(uses.values()) == 25


def test_flows_on_trial_take_turns() -> None:
    settings = make_settings("harmonic", "exact")
    start = initial_adaptation(DIM, jnp.float32, settings)._replace(chosen=jnp.asarray(1))
    turns = [
        int(whose_turn(start._replace(updates=jnp.asarray(k)), 2))
        for k in range(2 * TRIAL_UPDATES + 3)
    ]
    assert turns == [0, 1] * TRIAL_UPDATES + [1, 1, 1]


def test_only_the_flow_whose_turn_it_is_moves_particles() -> None:
    """For several chains, too, where a branch that is not taken would be computed all the same."""
    target, rows = correlated(1.0)[0], []

    def counted(particles: jax.Array, centering: jax.Array) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda _: rows.append(1), particles[0, 0])
        return target.smooth(particles, centering)

    settings = make_settings("harmonic", "exact", dense=True)
    single = initial_adaptation(DIM, jnp.float32, settings)
    chains = jax.tree.map(lambda x: jnp.stack([x, x]), single)
    starts = random.normal(random.key(0), (2, NUM_PARTICLES, DIM))
    ensembles = jax.vmap(partial(evaluate, target=target))(starts)
    update = one_update(pool_chains(target._replace(smooth=counted), "chain"), settings)
    learned = jax.vmap(update, axis_name="chain")(random.split(random.key(1)), ensembles, chains)[1]
    jax.effects_barrier()
    taken = np.asarray(learned.num_steps)
    assert taken[0] == taken[1] > 1
    assert len(rows) == taken[0]  # The gradient of the particles of both chains is one.


def test_chains_choose_one_flow_together_and_share_nothing_else() -> None:
    """One chain's steps are better with one flow, the other's with the other, and by more."""
    target = correlated(1.0)[0]
    settings = make_settings("harmonic", "exact", dense=True)
    single = initial_adaptation(DIM, jnp.float32, settings)
    chains = jax.tree.map(lambda x: jnp.stack([x, x]), single)
    slow, fast = jnp.full(2 * DIM + 1, 0.97), jnp.full(2 * DIM + 1, 0.05)
    chains = chains._replace(
        correlation=jnp.stack([jnp.stack([0.7 * slow, slow]), jnp.stack([slow, fast])]),
        updates=jnp.full(2, 50),
        uses=jnp.full((2, 2), 50),
        log_step=jnp.full((2, 2), 0.0),
        log_step_mean=jnp.full((2, 2), 0.0),
    )
    starts = random.normal(random.key(0), (2, NUM_PARTICLES, DIM))
    ensembles = jax.vmap(partial(evaluate, target=target))(starts)
    keys = random.split(random.key(1))

    update = one_update(target, settings)
    alone = [
        update(*jax.tree.map(lambda x, k=k: x[k], (keys, ensembles, chains))) for k in range(2)
    ]
    pooled = one_update(pool_chains(target, "chain"), settings)
    together = jax.vmap(pooled, axis_name="chain")(keys, ensembles, chains)
    assert [int(learned.chosen) for _, learned in alone] == [0, 1]
    np.testing.assert_array_equal(together[1].chosen, [1, 1])
    for k, expected in enumerate(alone):
        found = jax.tree.map(lambda x, k=k: x[k], together)
        # They also compare where they are, which decides when warm-up ends.
        of_both = {name: getattr(expected[1], name) for name in ("chosen", "disagreement", "drift")}
        found = found[0], found[1]._replace(**of_both)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), found, expected)


# -------------------------------------------------------------------- what sampling is handed


@pytest.mark.parametrize(
    ("slowest", "step_size", "num_sweeps"),
    [
        (0.1, 1.0, 1),
        (0.49, 1.0, 1),
        (0.9, 1.0, 7),  # 0.9^7 = 0.48
        (0.99, 1.0, 23),  # of two steps each; 0.99^23 = 0.79
        (0.9, TRAJECTORY_LENGTH / 10.1, 3),  # 0.9^3 = 0.73; all seven would take 70 steps
        (0.999, TRAJECTORY_LENGTH / 10.1, MOST_STEPS // 10),
        (0.99, 2e-3, 1),  # longer than all that is affordable
    ],
)
def test_slow_statistics_get_more_trajectories_between_draws(
    slowest: float, step_size: float, num_sweeps: int
) -> None:
    settings = make_settings("exact")
    start = initial_adaptation(DIM, jnp.float32, settings)
    learned = start._replace(
        correlation=jnp.full((1, 2 * DIM + 1), 0.05).at[0, 3].set(slowest),
        log_step_mean=jnp.log(jnp.asarray([step_size])),
    )
    move = make_move("exact", 0, learned, NORMAL)
    assert int(move.num_sweeps) == num_sweeps
    np.testing.assert_allclose(move.step_size * move.num_steps, TRAJECTORY_LENGTH, rtol=1e-5)


def test_chains_take_equally_many_trajectories_between_draws() -> None:
    """From the mean over chains of each statistic: 0.7 for each of two, and 0.7^2 = 0.49."""
    start = initial_adaptation(DIM, jnp.float32, make_settings("exact"))
    chains = jnp.full((2, 1, 2 * DIM + 1), 0.05)
    chains = chains.at[0, 0, 3].set(0.95).at[1, 0, 3].set(0.45).at[:, 0, 5].set(0.6)
    one_step = jnp.log(jnp.ones(1))

    def num_sweeps(correlation: jax.Array) -> jax.Array:
        learned = start._replace(correlation=correlation, log_step_mean=one_step)
        return make_move("exact", 0, learned, pool_chains(NORMAL, "chain")).num_sweeps

    found = jax.vmap(num_sweeps, axis_name="chain")(chains)
    np.testing.assert_array_equal(found, [2, 2])


@pytest.mark.parametrize(("rate", "jumps"), [(1.0, 1), (0.3, 7), (0.1, 22), (0.0, MAX_JUMPS)])
def test_rarely_accepted_jumps_are_tried_more_often(rate: float, jumps: int) -> None:
    """Until nine of ten particles have jumped: (1 - rate)^jumps below a tenth."""
    start = initial_adaptation(DIM, jnp.float32, make_settings("exact"))
    move = make_move("exact", 0, start._replace(jump_rate=jnp.asarray(rate)), NORMAL)
    assert int(move.num_jumps) == jumps


def test_a_tiny_step_size_is_kept_and_its_trajectory_cut() -> None:
    start = initial_adaptation(DIM, jnp.float32, make_settings("exact"))
    learned = start._replace(log_step_mean=jnp.log(jnp.asarray([1e-5])))
    move = make_move("exact", 0, learned, NORMAL)
    assert int(move.num_steps) == MAX_STEPS
    np.testing.assert_allclose(move.step_size, 1e-5, rtol=1e-5)


def test_fewer_steps_are_taken_only_where_they_are_accepted() -> None:
    """The number wavers between one step and two at a step size of 1.26.

    It does between two and three at 0.70, and between three and four at 0.48. One step more than
    five, where that number wavers, would hardly be accepted more often.
    """
    step_sizes = jnp.array([math.pi / 2, 1.47, 1.4, 1.26, 1.2, 0.9, 0.75, 0.6, 0.5, 0.45, 0.3])
    steps = [int(trajectory_steps(jnp.log(x))) for x in step_sizes]
    assert steps == [1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 5]
