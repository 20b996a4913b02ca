"""The metric is the inverse precision of a Gaussian, whatever the ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rwpo.dynamics.factors import (
    LowRank,
    diagonal_like,
    squared,
    times_squared,
    to_position,
    to_whitened,
    to_whitened_gradient,
)
from numpyro_rwpo.dynamics.metric import (
    ensemble_moments,
    fisher_preconditioner,
    initial_directions,
    low_rank_preconditioner,
)

DIM = 5


def random_covariance(rng, condition):
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    return (basis * np.geomspace(1, condition, DIM)) @ basis.T


@pytest.mark.parametrize("units", [np.ones(DIM), np.geomspace(1e-4, 1e4, DIM)])
def test_gaussian_target(units):
    rng = np.random.default_rng(0)
    precision = random_covariance(rng, 100.0) / np.outer(units, units)
    spread = np.linalg.cholesky(random_covariance(rng, 10.0))
    particles = (rng.normal(size=(64, DIM)) @ spread.T * units).astype(np.float32)
    gradients = (particles @ precision).astype(np.float32)
    moments = ensemble_moments(jnp.asarray(particles), jnp.asarray(gradients), True)
    preconditioner = fisher_preconditioner(moments)
    factor = np.asarray(preconditioner.factor, np.float64) / units[:, None]
    inverse = np.asarray(preconditioner.inverse, np.float64) * units
    np.testing.assert_allclose(inverse @ factor, np.eye(DIM), atol=1e-3)
    # Single precision through a condition number of 100.
    whitened = factor @ factor.T @ (precision * np.outer(units, units))
    np.testing.assert_allclose(whitened, np.eye(DIM), atol=2e-2)


def test_spectrum_says_how_wide_the_ensemble_is():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(4000, DIM)) * 3.0, jnp.float32)
    for dense in (True, False):
        spectrum = fisher_preconditioner(ensemble_moments(x, x, dense)).spectrum
        # sqrt(m) is the variance ratio, 9, within sampling error of a variance: sqrt(2/4000) = 2 %
        np.testing.assert_allclose(np.sqrt(spectrum), 9.0, rtol=0.12)


def test_degenerate_ensembles_give_finite_metrics():
    x = jnp.zeros((8, DIM), jnp.float32)
    for dense in (True, False):
        factor = fisher_preconditioner(ensemble_moments(x, x, dense)).factor
        assert np.all(np.isfinite(factor))


def low_rank(rng, dim=12, rank=3):
    directions = np.linalg.qr(rng.normal(size=(dim, rank)))[0]
    core = np.eye(rank) + 0.3 * rng.normal(size=(rank, rank))
    scale = np.geomspace(0.1, 10, dim)
    factor, inverse = (
        LowRank(*(jnp.asarray(x, jnp.float32) for x in (s, directions, c)))
        for s, c in ((scale, core), (1 / scale, np.linalg.inv(core)))
    )
    return (
        factor,
        inverse,
        np.diag(scale) @ (np.eye(dim) + directions @ (core - np.eye(rank)) @ directions.T),
    )


def test_low_rank_factor_is_the_matrix_it_stands_for():
    rng = np.random.default_rng(0)
    factor, inverse, dense = low_rank(rng)
    x = rng.normal(size=(5, len(dense))).astype(np.float32)
    for found, expected in (
        (to_position(factor, x), x @ dense.T),
        (to_whitened(inverse, x), x @ np.linalg.inv(dense).T),
        (to_whitened_gradient(factor, x), x @ dense),
        (times_squared(squared(factor), x), x @ dense @ dense.T),
        (to_position(diagonal_like(factor, factor.scale), x), x * factor.scale[None]),
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


def spiked_precision(rng, dim):
    """Units over four decades; three directions a hundred times too wide, three too narrow."""
    directions = np.linalg.qr(rng.normal(size=(dim, 6)))[0]
    spectrum = np.repeat([1e-2, 1e2], 3)
    units = np.geomspace(1e-2, 1e2, dim)
    return units, np.eye(dim) + (directions * (spectrum - 1)) @ directions.T


@pytest.mark.parametrize("num_particles", [64, 256])
def test_low_rank_metric_of_a_gaussian_target(num_particles):
    """From ensembles of the target: five times fewer particles than dimensions, or as many.

    The condition number, 10,000, is what the diagonal form leaves of it, to within rounding.
    """
    rng, dim = np.random.default_rng(0), 320
    units, precision = spiked_precision(rng, dim)
    spread = np.linalg.cholesky(np.linalg.inv(precision))
    update = jax.jit(low_rank_preconditioner)
    directions = initial_directions(dim, 8, jnp.float32)
    for step in range(25):
        standard = rng.normal(size=(num_particles, dim)) @ spread.T
        x, gradients = standard * units, standard @ precision / units
        moments = ensemble_moments(jnp.asarray(x, jnp.float32), jnp.asarray(gradients), False)
        weight = max(1 / (step + 1), 0.1)
        preconditioner = update(moments, x, gradients, directions, weight)
        directions = preconditioner.factor.directions
    np.testing.assert_allclose(directions.T @ directions, np.eye(8), atol=1e-4)
    factor = np.asarray(to_position(preconditioner.factor, np.eye(dim, dtype=np.float32))).T
    inverse = np.asarray(to_whitened(preconditioner.inverse, np.eye(dim, dtype=np.float32))).T
    np.testing.assert_allclose(inverse @ factor, np.eye(dim), atol=1e-2)

    def condition(factor):
        whitened = factor.T @ (precision / np.outer(units, units)) @ factor
        return np.linalg.cond(whitened)

    diagonal = fisher_preconditioner(moments).factor
    assert condition(np.diag(np.asarray(diagonal, float))) > 1000
    assert condition(np.asarray(factor, float)) < 30


def test_low_rank_metric_of_degenerate_ensembles_is_finite():
    directions = initial_directions(40, 4, jnp.float32)
    np.testing.assert_allclose(directions.T @ directions, np.eye(4), atol=1e-5)
    bad = jnp.full((8, 40), jnp.nan)
    for x in (jnp.zeros((8, 40)), jnp.ones((8, 40)), bad):
        moments = ensemble_moments(jnp.zeros((8, 40)), jnp.zeros((8, 40)), False)
        preconditioner = low_rank_preconditioner(moments, x, x, directions, jnp.asarray(1.0))
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(preconditioner))
