"""Particles that decorrelate and particles that do not, in any order of the draws."""

from __future__ import annotations

import numpy as np
import pytest

from numpyro_rwpo.diagnostics.mixing import Mixing, particle_mixing, statistics

NUM_CHAINS, NUM_PARTICLES, NUM_STATES, DIM = 4, 50, 8, 3
# Which particle each draw is: all particles in turn, or all states of a particle in a row.
IN_TURN = np.tile(np.arange(NUM_PARTICLES), NUM_STATES)
IN_BLOCKS = np.repeat(np.arange(NUM_PARTICLES), NUM_STATES)


def particle_paths(correlation: float, particles: np.ndarray, start: float = 1.0) -> np.ndarray:
    """Draws of autoregressive particles, (chains, draws, dim), of stationary variance 1."""
    rng = np.random.default_rng(0)
    x = start * rng.normal(size=(NUM_CHAINS, NUM_PARTICLES, DIM))
    states = []
    for _ in range(NUM_STATES):
        x = correlation * x + np.sqrt(1 - correlation**2) * rng.normal(size=x.shape)
        states.append(x)
    draws = np.empty((NUM_CHAINS, NUM_PARTICLES * NUM_STATES, DIM))
    for particle in range(NUM_PARTICLES):
        draws[:, particles == particle] = np.stack([x[:, particle] for x in states], axis=1)
    return draws


def mixing_of(draws: np.ndarray, particles: np.ndarray) -> Mixing | None:
    values = statistics(draws, -0.5 * (draws**2).sum(2))
    assert values.shape == (*draws.shape[:2], 2 * DIM + 1)
    return particle_mixing(values, particles)


@pytest.mark.parametrize("particles", [IN_TURN, IN_BLOCKS])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
def test_correlation_is_measured(correlation: float, particles: np.ndarray) -> None:
    mixing = mixing_of(particle_paths(correlation, particles), particles)
    assert mixing is not None
    assert mixing.draws_per_particle == NUM_STATES
    # Correlated paths have a larger error than independent ones: twice is ample here.
    error = 5 * mixing.correlation_error * (2 if correlation else 1)
    np.testing.assert_allclose(mixing.correlation[:DIM], correlation, atol=error)
    # A square of a normal is correlated by the square.
    np.testing.assert_allclose(mixing.correlation[DIM + 1 :], correlation**2, atol=2 * error)
    assert np.abs(mixing.drift_z).max() < 4.5


def test_the_order_of_the_draws_does_not_matter() -> None:
    """The same particles give the same figures, also without some of the last draws."""
    turns = particle_paths(0.5, IN_TURN)
    order = np.argsort(IN_TURN, kind="stable")
    first = mixing_of(turns, IN_TURN)
    second = mixing_of(turns[:, order], IN_TURN[order])
    assert first is not None and second is not None
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b)
    number = NUM_PARTICLES * 7 + 10
    cut = mixing_of(turns[:, :number], IN_TURN[:number])
    assert cut is not None and cut.draws_per_particle == 7
    np.testing.assert_allclose(cut.correlation, first.correlation, atol=0.1)


def test_drift_shows_ensembles_that_have_not_converged() -> None:
    drifting = mixing_of(particle_paths(0.9, IN_TURN, start=0.2), IN_TURN)
    assert drifting is not None
    assert np.abs(drifting.drift_z).max() > 6


def test_one_draw_of_each_particle_cannot_tell() -> None:
    number = NUM_PARTICLES + 10
    draws = particle_paths(0.0, IN_TURN)[:, :number]
    assert mixing_of(draws, IN_TURN[:number]) is None
