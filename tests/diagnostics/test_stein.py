"""The Stein kernel against its definition; discrepancy and identities of right and wrong draws."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.diagnostics.importance import affordable
from numpyro_rwpo.diagnostics.stein import (
    stein_discrepancy,
    stein_identities,
    stein_kernel,
    whitened,
)

DIM = 3


def score(x: jax.Array) -> jax.Array:
    """Score of a density that is not normal, to tell the terms apart."""
    return -(x**3) - x[::-1]


def test_kernel_is_what_automatic_differentiation_makes_of_its_definition():
    points = jax.random.normal(jax.random.key(0), (5, DIM))

    def base(x: jax.Array, y: jax.Array) -> jax.Array:
        return (DIM + jnp.sum((x - y) ** 2)) ** -0.5

    def by_definition(x: jax.Array, y: jax.Array) -> jax.Array:
        trace = jnp.trace(jax.jacfwd(jax.grad(base, 1), 0)(x, y))
        mixed = score(x) @ jax.grad(base, 1)(x, y) + score(y) @ jax.grad(base, 0)(x, y)
        return trace + mixed + base(x, y) * (score(x) @ score(y))

    expected = jax.vmap(lambda x: jax.vmap(lambda y: by_definition(x, y))(points))(points)
    actual = stein_kernel(points, jax.vmap(score)(points))
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-4)


def normal_case(scale: float, shift: float, number: int = 150, seed: int = 0):
    """Draws that claim to be from a correlated normal, and the gradient of its log density."""
    rng = np.random.default_rng(seed)
    factor = np.array([[1.0, 0.0], [0.8, 0.6]]) * np.array([[1.0], [50.0]])  # badly scaled
    draws = shift + scale * rng.normal(size=(number, 2)) @ factor.T
    precision = np.linalg.inv(factor @ factor.T)
    return draws, -draws @ precision


def p_value(scale: float, shift: float, seed: int) -> float:
    draws, gradients = normal_case(scale, shift, seed=seed)
    return stein_discrepancy(jax.random.key(seed), draws, gradients).p_value


def test_discrepancy_accepts_right_draws_at_its_level_and_rejects_wrong_ones():
    p_values = np.array([p_value(1.0, 0.0, seed) for seed in range(50)])
    # Binomial: 5 of 50 at 10 %, standard deviation 2.1; 25 of 50 at 50 %, standard deviation 3.5.
    assert (p_values < 0.1).sum() < 5 + 4 * 2.1
    assert (p_values > 0.5).sum() > 25 - 4 * 3.5
    # 150 draws: standard deviations off by half, means by half a standard deviation.
    assert p_value(0.6, 0.0, 0) < 0.01
    assert p_value(1.5, 0.0, 0) < 0.01
    assert p_value(1.0, 0.5, 0) < 0.01


def test_identities_say_what_is_wrong():
    draws, gradients = normal_case(1.0, 0.0, 2000)
    right = stein_identities(draws, -gradients)
    assert np.abs(right.virial_z).max() < 4
    assert np.abs(right.force_z).max() < 4
    # Of a normal the virial is the variance over the right one.
    for scale in (0.8, 1.2):
        draws, gradients = normal_case(scale, 0.0, 2000)
        wrong = stein_identities(draws, -gradients)
        error = scale**2 * np.sqrt(2 / 2000)
        np.testing.assert_allclose(wrong.virial, scale**2, atol=5 * error)
        assert np.abs(wrong.virial_z).min() > 4
    draws, gradients = normal_case(1.0, 3.0, 2000)
    assert np.abs(stein_identities(draws, -gradients).force_z).max() > 10


def test_fewer_effective_draws_make_z_smaller():
    draws, gradients = normal_case(1.0, 3.0, 2000)
    every = stein_identities(draws, -gradients)
    quarter = stein_identities(draws, -gradients, np.full(2, 500.0))
    np.testing.assert_allclose(quarter.force_z, every.force_z / 2)


def test_whitened_draws_have_unit_covariance_and_scores_follow_them():
    """With few draws, only variances are one; log density and its slope do not change."""
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(3, 3)) * np.array([1.0, 10.0, 0.1])
    for number in (200, 6):
        draws = rng.normal(size=(number, 3)) @ mixing + 5.0
        scores = rng.normal(size=draws.shape)
        positions, turned = whitened(draws, scores)
        covariance = np.cov(positions, rowvar=False, bias=True)
        # The jitter keeps some directions from exactly unit variance.
        np.testing.assert_allclose(np.diag(covariance), 1.0, rtol=1e-3)
        if number > 6:
            np.testing.assert_allclose(covariance, np.eye(3), atol=1e-3)
        # A step has the same effect to first order in both coordinates.
        step, other = draws[1] - draws[0], positions[1] - positions[0]
        np.testing.assert_allclose(turned @ other, scores @ step, rtol=1e-6)


def test_no_more_proposals_than_many_dimensions_allow():
    assert [affordable(8000, dim) for dim in (1, 500, 4096, 10**7)] == [8000, 8000, 1024, 100]
