"""The samplers that the benchmark of structured priors compares with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size

from benchmarks import structured
from benchmarks.posteriors.lasso import sparse_group_gibbs
from benchmarks.proximal_langevin import DAMPING, NUM_STAGES, STEP_SHARE, STEPS, sk_rock_step


@pytest.mark.parametrize("curvature", [0.01, 0.3, 1.0])
def test_sk_rock_contracts_by_its_chebyshev_polynomial(curvature: float) -> None:
    """On a quadratic potential, the noise cancels in the difference of two chains."""
    x = jnp.array([[1.0], [3.0]])
    after = sk_rock_step(jax.random.key(0), x, lambda x: curvature * x, jnp.ones(()))
    again = sk_rock_step(jax.random.key(0), 0 * x, lambda x: curvature * x, jnp.ones(()))
    s, w0 = NUM_STAGES, 1 + DAMPING / NUM_STAGES**2
    polynomial = np.polynomial.Chebyshev.basis(s)
    w1 = polynomial(w0) / polynomial.deriv()(w0)
    step = STEP_SHARE * ((s - 0.5) ** 2 * (2 - 4 * DAMPING / 3) - 1.5) / 2
    factor = polynomial(w0 - w1 * step * curvature) / polynomial(w0)
    np.testing.assert_allclose(after - again, factor * x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", STEPS)
def test_steps_draw_a_normal_density_nearly(sampler: str) -> None:
    """With a curvature far below L, the bias of a step is small; 400 chains, 4 standard errors."""
    step, number = STEPS[sampler][0], 400
    lipschitz = 20.0 if sampler == "myula" else 2000.0

    def once(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return step(key, x, lambda x: x, jnp.asarray(lipschitz)), None

    x, _ = jax.lax.scan(once, jnp.zeros((number, 1)), jax.random.split(jax.random.key(1), 400))
    assert abs(x.std() - 1) < 4 / np.sqrt(2 * number)


def test_gibbs_without_data_draws_the_scale_from_its_prior() -> None:
    draws = [
        sparse_group_gibbs.sample(
            seed,
            np.zeros((5, 2, 2)),
            np.array([1.0, -1.0, 0.5, 0.0, 0.2]),
            scale_sd=1.0,
            noise_sd=2.0,
            num_warmup=100,
            number=2000,
        )
        for seed in range(2)
    ]
    scale = np.stack([chain["scale"] for chain in draws])
    error = scale.std() / np.sqrt(effective_sample_size(scale))
    assert abs(scale.mean() - np.sqrt(2 / np.pi)) < 4 * error
    square = scale**2
    assert abs(square.mean() - 1) < 4 * square.std() / np.sqrt(effective_sample_size(square))


def test_gibbs_agrees_with_quadrature() -> None:
    """One coefficient, with a Laplace density of scale b as its prior; 4 standard errors."""
    X, y = np.array([1.0, -1.0, 0.5, 2.0])[:, None, None], np.array([0.8, -0.3, 0.6, 1.1])
    draws = [
        sparse_group_gibbs.sample(
            seed, X, y, scale_sd=1.0, noise_sd=2.0, num_warmup=200, number=4000
        )
        for seed in range(2)
    ]
    beta, log_b, log_s = np.meshgrid(
        np.linspace(-4, 5, 200), np.linspace(-9, 1.5, 160), np.linspace(-6, 2.5, 120), indexing="ij"
    )
    b, s = np.exp(log_b), np.exp(log_s)
    square = sum((y[i] - X[i, 0, 0] * beta) ** 2 for i in range(4))
    log_density = -np.abs(beta) / b - b**2 / 2 - 3 * log_s - square / (2 * s**2) - (s / 2) ** 2 / 2
    weight = np.exp(log_density - log_density.max())
    for name, value in (("effect", beta), ("scale", b), ("noise", s)):
        chains = np.stack([chain[name].reshape(-1) for chain in draws])
        error = chains.std() / np.sqrt(effective_sample_size(chains))
        assert abs(chains.mean() - (weight * value).sum() / weight.sum()) < 4 * error, name


def test_errors_are_relative_to_an_exact_sampler() -> None:
    """Also of a run whose effective size is larger than that of the exact one."""
    record = {
        "problem": "nile",
        "status": "complete",
        "dim": 1,
        "num_gradients": 2000,
        "num_sampling_gradients": 1000,
        "max_r_hat": 1.0,
        "sd": [2.0],
    }
    records = [
        record | {"sampler": "rwpo", "mean": [1.0], "min_bulk_ess": 2000.0},
        record | {"sampler": "nuts", "mean": [0.0], "min_bulk_ess": 1000.0},
    ]
    row = next(line for line in structured.table(records).splitlines() if "rwpo" in line)
    assert row.split("|")[-3].strip() == "0.500"
