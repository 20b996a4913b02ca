"""The factor model of a copula with more coordinates than particles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rwpo.heads.correlation import FactorCorrelation, fit_correlation

DIM = 400


def normal_scores(seed: int, loadings: np.ndarray, num_particles: int = 100) -> np.ndarray:
    """Draws with the correlation of a factor model, (num_particles, dim)."""
    rng = np.random.default_rng(seed)
    noise = np.sqrt(1 - (loadings**2).sum(1)) * rng.normal(size=(num_particles, len(loadings)))
    return noise + rng.normal(size=(num_particles, loadings.shape[1])) @ loadings.T


def three_factors(dim: int = DIM) -> np.ndarray:
    signs = np.random.default_rng(9).choice([-1.0, 1.0], size=(dim, 3))
    return signs * np.array([0.7, 0.5, 0.3])


def dense(correlation: FactorCorrelation) -> np.ndarray:
    loadings = np.asarray(correlation.loadings, float)
    return loadings @ loadings.T + np.diag(np.asarray(correlation.noise, float))


def fit(normal: np.ndarray) -> FactorCorrelation:
    fitted = jax.jit(fit_correlation)(jnp.asarray(normal, jnp.float32))
    assert isinstance(fitted, FactorCorrelation)
    return fitted


def test_is_the_matrix_it_stands_for() -> None:
    fitted = fit(normal_scores(0, three_factors()))
    matrix = dense(fitted)
    np.testing.assert_allclose(np.diagonal(matrix), 1, atol=1e-5)
    x = np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float32)
    np.testing.assert_allclose(fitted.times(x), x @ matrix, atol=1e-4)
    pull = x @ (np.linalg.inv(matrix) - np.eye(DIM))
    np.testing.assert_allclose(fitted.pull(x), pull, atol=1e-4 * np.abs(pull).max())
    assert fitted.half_log_det == pytest.approx(np.linalg.slogdet(matrix)[1] / 2, rel=1e-4)


def test_draws_have_this_correlation() -> None:
    """Means of u_j u_k over 20,000 draws: standard error at most sqrt(2/20000) = 0.01.

    Five of them for the largest of 80,000; independent draws are 0.5 off.
    """
    fitted = fit(normal_scores(0, three_factors()))
    draws = np.asarray(fitted.sample(jax.random.key(0), 20_000), float)
    np.testing.assert_allclose(draws.T @ draws / len(draws), dense(fitted), atol=0.05)
    assert np.abs(dense(fitted) - np.eye(DIM)).max() > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_factors_are_told_from_noise(seed: int) -> None:
    """By the KL divergence from the true normal density to the fitted one.

    Four parameters a coordinate, each known from 100 particles, cost 400 * 4 / (2 * 100) = 8 where
    they are the maximum likelihood's; twice that is allowed. Without factors it is 350.
    """
    loadings = three_factors()
    truth = loadings @ loadings.T + np.diag(1 - (loadings**2).sum(1))
    fitted = dense(fit(normal_scores(seed, loadings)))

    def divergence(matrix: np.ndarray) -> float:
        ratio = np.linalg.solve(matrix, truth)
        return (np.trace(ratio) - DIM - np.linalg.slogdet(ratio)[1]) / 2

    assert divergence(fitted) < 16
    assert divergence(np.eye(DIM)) > 300


@pytest.mark.parametrize("seed", range(3))
def test_independent_coordinates_have_no_factors(seed: int) -> None:
    normal = normal_scores(seed, np.zeros((DIM, 1)))
    found, raw = (
        np.sqrt(np.mean(x[np.triu_indices(DIM, 1)] ** 2))
        for x in (dense(fit(normal)), np.corrcoef(normal.T))
    )
    assert found < 0.05 * raw


@pytest.mark.parametrize(
    "normal",
    [
        pytest.param(np.zeros((10, 20)), id="zeros"),
        pytest.param(np.resize([1.0, 2.0, 300.0], (10, 20)), id="few-particles"),
        pytest.param(np.repeat(np.arange(10.0)[:, None], 20, 1), id="one-column"),
        pytest.param(np.random.default_rng(0).normal(size=(2, 20)), id="two-particles"),
    ],
)
def test_degenerate_ensembles_give_finite_models_and_derivatives(normal: np.ndarray) -> None:
    def total(normal: jax.Array) -> jax.Array:
        fitted = fit_correlation(normal)
        return fitted.half_log_det + jnp.sum(jnp.sin(fitted.pull(normal)))

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(normal, jnp.float32))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.usefixtures("x64")
def test_derivatives_are_those_of_finite_differences() -> None:
    normal = normal_scores(0, three_factors(30), 20)
    direction = np.random.default_rng(1).normal(size=normal.shape)

    @jax.jit
    def total(normal: jax.Array) -> jax.Array:
        fitted = fit_correlation(normal)
        x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 30)))
        return fitted.half_log_det + jnp.sum(jnp.sin(fitted.pull(x))) + jnp.sum(fitted.times(x))

    found = np.sum(jax.grad(total)(normal) * direction)
    difference = total(normal + 1e-6 * direction) - total(normal - 1e-6 * direction)
    assert abs(found) > 1e-2
    np.testing.assert_allclose(found, difference / 2e-6, rtol=1e-6)
