"""The inverse problems that the learned flows are trained on."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density

from benchmarks.flow_inverse import SETTINGS, new_flow, starting_normal
from benchmarks.flow_samples import KINDS
from benchmarks.inverse_problems import (
    PROBLEMS,
    blur_matrix,
    cosines,
    solve_elliptic,
)


def test_elliptic_solver_agrees_with_a_constant_coefficient() -> None:
    """-(c u')' = 1 has the solution x (1 - x) / (2 c); the midpoint rule has it at the ends."""
    x = np.linspace(0, 1, 101)
    u = solve_elliptic(jnp.full(100, np.log(3.0)))
    np.testing.assert_allclose(u, x * (1 - x) / 6, atol=1e-6)


def test_elliptic_solver_converges_to_a_varying_coefficient() -> None:
    """With a = log(1 + x): (1 + x) u' = C - x, so u = (C + 1) log(1 + x) - x, C + 1 = 1 / log 2."""

    def error(n: int) -> float:
        midpoint = (np.arange(n) + 0.5) / n
        x = np.arange(n + 1) / n
        exact = np.log1p(x) / np.log(2) - x
        return float(np.abs(np.asarray(solve_elliptic(jnp.log1p(midpoint))) - exact).max())

    assert error(40) == pytest.approx(error(10) / 16, rel=0.1)  # second order
    assert error(40) < 1e-4


def test_cosines_are_orthonormal() -> None:
    basis = cosines((np.arange(64) + 0.5) / 64, 8)
    np.testing.assert_allclose(basis.T @ basis / 64, np.eye(8), atol=1e-12)


def test_blur_keeps_mass_away_from_the_ends() -> None:
    matrix = blur_matrix(40, 1.5)
    np.testing.assert_allclose(matrix[:, 15:25].sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(matrix, matrix.T)


@pytest.mark.parametrize("name", PROBLEMS)
def test_log_density_is_the_models_and_has_gradients(name: str) -> None:
    problem = PROBLEMS[name]()
    rng = np.random.default_rng(0)
    theta = (problem.scale * rng.laplace(size=(3, problem.dim))).astype(np.float32)
    ours = problem.log_density(jnp.asarray(theta))
    expected = [log_density(problem.model, (), {}, {"theta": x})[0] for x in theta]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    gradient = jax.grad(lambda x: problem.log_density(x).sum())(jnp.asarray(theta))
    assert np.isfinite(gradient).all()
    assert set(SETTINGS) == set(PROBLEMS)


@pytest.mark.parametrize("name", PROBLEMS)
def test_measurements_are_the_truths_with_noise(name: str) -> None:
    problem = PROBLEMS[name]()
    clean = np.asarray(problem.forward(jnp.asarray(problem.truth, jnp.float32)))
    chi_square = (((problem.y - clean) / problem.noise) ** 2).sum()
    size = problem.y.size
    assert abs(chi_square - size) < 4 * np.sqrt(2 * size)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_flows_start_where_the_data_are_explained(name: str) -> None:
    problem = PROBLEMS[name]()
    location, covariance = starting_normal(problem)
    residual = (np.asarray(problem.forward(jnp.asarray(location))) - problem.y) / problem.noise
    assert np.mean(residual**2) < 2
    assert (np.diag(covariance) < 2 * problem.scale**2).all()  # the prior's


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_flows_start_from_that_normal(kind: str) -> None:
    """Covariances in units of its scales, up to the layers' shrinkage and the number of points."""
    mean, covariance = starting_normal(PROBLEMS["elliptic"]())
    flow = new_flow(kind, "elliptic", 0)
    noise = jax.random.normal(jax.random.key(1), (4000, mean.size))
    x = np.asarray(eqx.filter_jit(lambda flow, z: flow.transport(z))(flow, noise))
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((x.mean(0) - mean) / sd, 0, atol=0.1)
    found = np.cov((x - mean).T / sd[:, None])
    np.testing.assert_allclose(found, covariance / np.outer(sd, sd), atol=0.2)
