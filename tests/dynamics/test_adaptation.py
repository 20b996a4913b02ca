"""What warm-up learns from an ensemble, and what it does for particles that hardly move."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rwpo.dynamics.adaptation import (
    HAMILTONIAN_PER_SHORT,
    REPLACEMENT_UPDATES,
    SHORT_EVERY,
    Adaptation,
    SweepPair,
    Turn,
    initial_adaptation,
    learn_moments,
    learn_sweeps,
    replace_hopeless,
    whose_turn,
)
from numpyro_rwpo.dynamics.ensemble import evaluate
from numpyro_rwpo.dynamics.hamiltonian import Refresh
from numpyro_rwpo.dynamics.metric import ensemble_moments, without_outliers
from numpyro_rwpo.dynamics.settings import make_candidates
from numpyro_rwpo.model.target import Differentiation

NUM_PARTICLES, DIM = 64, 64
TARGET = Differentiation(1.0, False).target(lambda x, centring: 0.5 * x @ x, None)


def moved(last: float, accept_prob: float, update: int, others: float = 0.8) -> bool:
    """Whether the last particle, with all coordinates ``last``, is put onto another one.

    The others are standard normal: their potential has mean 32 and standard deviation 5.7.
    """
    particles = np.random.default_rng(0).normal(size=(NUM_PARTICLES, DIM)).astype(np.float32)
    particles[-1] = last
    ensemble = evaluate(jnp.asarray(particles), TARGET)
    accepted = jnp.full(NUM_PARTICLES, others).at[-1].set(accept_prob)
    refresh = Refresh(accepted, jnp.zeros(NUM_PARTICLES, bool), jnp.ones((), int))
    after = np.asarray(replace_hopeless(jnp.asarray(update), ensemble, refresh, TARGET).particles)
    np.testing.assert_array_equal(after[:-1], particles[:-1])
    return not np.array_equal(after[-1], particles[-1])


EARLY, LATE = REPLACEMENT_UPDATES - 1, REPLACEMENT_UPDATES


@pytest.mark.parametrize(
    ("last", "accept_prob", "update", "is_moved"),
    [
        (1.0, 0.0, EARLY, True),  # rejects everything
        (1.0, 0.0, LATE, False),  # the same later: its potential is that of any draw
        (0.0, 0.0, LATE, True),  # potential 0, where no draw is although the density is highest
        (3.0, 0.0, LATE, True),  # potential 288, far out
        (3.0, 0.5, LATE, False),  # as far out, but on its way
        (20.0, 0.5, LATE, True),  # potential 12800: no run would ever be there
    ],
)
def test_hopeless_particles(last: float, accept_prob: float, update: int, is_moved: bool) -> None:
    assert moved(last, accept_prob, update) == is_moved


def test_nothing_moves_while_hardly_anything_is_accepted() -> None:
    """Then it is the step size that is wrong, not the particle."""
    assert not moved(3.0, 0.0, EARLY, others=0.1)


@pytest.mark.parametrize("dense", [True, False])
def test_first_moments_are_the_ensembles_own(dense: bool) -> None:
    """Nothing is left of the initial unit moments, not in rounding either.

    Variances of 1e-12 are lost in the roundings of a one.
    """
    scales = 10.0 ** -np.arange(7)
    whitened = np.random.default_rng(0).normal(size=(NUM_PARTICLES, 7))
    target = Differentiation(1.0, False).target(
        lambda x, centring: 0.5 * ((x / scales) ** 2).sum(), None
    )
    ensemble = evaluate(jnp.asarray(whitened * scales, jnp.float32), target)
    candidates = make_candidates(NUM_PARTICLES, 7, has_prior=False, dense_mass=dense)
    before = initial_adaptation(ensemble.particles, candidates)
    for update in (-5, 0):
        after = learn_moments(before, jnp.asarray(update), ensemble, target, candidates)
        inner = without_outliers(ensemble.particles, ensemble.gradient)
        expected = ensemble_moments(*inner, dense)
        for found, right in zip(after.moments, expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-6)


CANDIDATES = make_candidates(NUM_PARTICLES, DIM, has_prior=False, dense_mass=False)


def learnt_from(num_stuck: int, num_updates: int) -> Adaptation:
    """After updates by pairs of sweeps in which some particles accepted nothing, others 80 %."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(num_updates, 3, NUM_PARTICLES, DIM)).astype(np.float32)
    accepted = jnp.full(NUM_PARTICLES, 0.8).at[:num_stuck].set(0.0)
    refresh = Refresh(accepted, jnp.zeros(NUM_PARTICLES, bool), jnp.full((), 4))
    adaptation = initial_adaptation(jnp.asarray(normal[0, 0]), CANDIDATES)
    turn = Turn(jnp.zeros((), int), *jnp.zeros((2,), bool))

    @jax.jit
    def learnt(adaptation: Adaptation, update: jax.Array, ensembles: jax.Array) -> Adaptation:
        pair = SweepPair(*(evaluate(x, TARGET) for x in ensembles), refresh)
        return learn_sweeps(adaptation, update, turn, pair, TARGET, CANDIDATES, 0.8)

    for update, ensembles in enumerate(normal):
        adaptation = learnt(adaptation, jnp.asarray(update), ensembles)
    return adaptation


@pytest.mark.parametrize("num_stuck", [0, 1])
def test_short_steps_are_for_particles_that_hardly_move(num_stuck: int) -> None:
    """One sweep in a few of a refresh and one update in a few; and warm-up goes on."""
    adaptation = learnt_from(num_stuck, num_updates=12)
    sweeps = adaptation.sweeps
    np.testing.assert_allclose(adaptation.num_stuck, num_stuck, rtol=1e-6)
    expected = -(-int(sweeps.num_hamiltonian) // HAMILTONIAN_PER_SHORT) if num_stuck else 0
    assert sweeps.num_short == expected <= sweeps.num_hamiltonian
    assert sweeps.is_settled == (num_stuck == 0)
    later = range(SHORT_EVERY, 5 * SHORT_EVERY)  # after the trial of the flows
    turns = [whose_turn(adaptation, jnp.asarray(k), CANDIDATES) for k in later]
    assert sum(bool(turn.is_short) for turn in turns) == 4 * num_stuck
    assert not any(turn.is_short & turn.is_independent for turn in turns)
