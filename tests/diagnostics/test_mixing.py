"""Particles that forget and particles that do not, from pass to pass."""

from __future__ import annotations

import numpy as np

from numpyro_rwpo.diagnostics.mixing import compare_passes, statistics

NUM_CHAINS, NUM_PARTICLES, NUM_PASSES, DIM = 4, 50, 8, 3


def particle_paths(correlation: float, start_scale: float = 1.0) -> np.ndarray:
    """Autoregressive particles, (chains, draws, dim), pass after pass; stationary variance 1."""
    rng = np.random.default_rng(0)
    x = start_scale * rng.normal(size=(NUM_CHAINS, NUM_PARTICLES, DIM))
    passes = []
    for _ in range(NUM_PASSES):
        x = correlation * x + np.sqrt(1 - correlation**2) * rng.normal(size=x.shape)
        passes.append(x)
    return np.concatenate(passes, axis=1)


def passes_of(draws: np.ndarray):
    values = statistics(draws, -0.5 * (draws**2).sum(2))
    assert values.shape == (*draws.shape[:2], 2 * DIM + 1)
    return compare_passes(values, NUM_PARTICLES)


def test_correlation_is_measured():
    for correlation in (0.0, 0.3, 0.8):
        passes = passes_of(particle_paths(correlation))
        assert passes.num_passes == NUM_PASSES
        # Correlated paths have a larger error than independent ones: twice is ample here.
        error = 5 * passes.correlation_error * (2 if correlation else 1)
        np.testing.assert_allclose(passes.correlation[:DIM], correlation, atol=error)
        # A square of a normal is correlated by the square.
        np.testing.assert_allclose(passes.correlation[DIM + 1 :], correlation**2, atol=2 * error)
        assert np.abs(passes.drift_z).max() < 4.5


def test_drift_shows_ensembles_still_on_their_way():
    drifting = passes_of(particle_paths(0.9, start_scale=0.2))
    assert np.abs(drifting.drift_z).max() > 6


def test_one_pass_cannot_tell():
    draws = particle_paths(0.0)[:, : NUM_PARTICLES + 10]
    assert compare_passes(statistics(draws, draws[..., 0]), NUM_PARTICLES) is None
