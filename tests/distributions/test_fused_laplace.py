"""FusedLaplace as a NumPyro distribution: density, coordinates, draws, shapes, errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from numpyro_rwpo.distributions import FusedLaplace


@pytest.mark.parametrize("order", [1, 2, 3])
def test_density_and_coordinates(order: int) -> None:
    """The map to coordinates is linear with determinant 1, and the density that of differences."""
    x = np.random.default_rng(order).normal(size=(3, 8)).astype(np.float32)
    site = FusedLaplace(0.3, 8, order, start_scale=2.0)
    coordinates = site.to_coordinates(jnp.asarray(x))
    np.testing.assert_allclose(coordinates[:, order:], np.diff(x, order), atol=1e-5)
    np.testing.assert_allclose(site.to_vector(coordinates), x, atol=1e-4)
    matrix = np.asarray(jax.jacobian(site.to_coordinates)(jnp.asarray(x[0])))
    assert abs(np.linalg.det(matrix) - 1) < 1e-5
    start = [np.diff(x, k)[:, 0] for k in range(order)]
    laplace = scipy.stats.laplace
    expected = laplace(scale=0.3).logpdf(np.diff(x, order)).sum(1)
    improper = FusedLaplace(0.3, 8, order)
    gap = np.asarray(improper.log_prob(x)) - expected
    np.testing.assert_allclose(gap, gap[0], rtol=1e-5)
    expected = expected + sum(laplace(scale=2.0).logpdf(v) for v in start)
    np.testing.assert_allclose(site.log_prob(x), expected, rtol=1e-5)
    # The normalizer depends on the scale through the differences alone.
    ratio = FusedLaplace(1.3, 8, order).log_prob(x) - improper.log_prob(x)
    total = np.abs(np.diff(x, order)).sum(1)
    np.testing.assert_allclose(
        ratio, total * (1 / 0.3 - 1 / 1.3) - (8 - order) * np.log(1.3 / 0.3), rtol=1e-4
    )


def test_a_line_costs_nothing() -> None:
    line = 3.0 + 0.5 * jnp.arange(10.0)
    top = FusedLaplace(0.1, 10, 2).log_prob(line)
    assert top > FusedLaplace(0.1, 10, 2).log_prob(line + 0.1 * jnp.sin(jnp.arange(10.0)))
    np.testing.assert_allclose(top, FusedLaplace(0.1, 10, 2).log_prob(7 + 2 * line), rtol=1e-5)


def test_draws() -> None:
    """Differences and start are Laplace variables (Kolmogorov-Smirnov, level 1e-4)."""
    site = FusedLaplace(0.5, 6, 2, start_scale=np.array([3.0, 0.1], np.float32))
    assert site.is_proper
    draws = np.asarray(site.sample(jax.random.key(0), (5000,)))
    coordinates = np.asarray(site.to_coordinates(jnp.asarray(draws)))
    for k, scale in enumerate([3.0, 0.1, 0.5, 0.5, 0.5, 0.5]):
        reference = scipy.stats.laplace(scale=scale).cdf
        assert scipy.stats.kstest(coordinates[:, k], reference).pvalue > 1e-4


def test_shapes() -> None:
    site = FusedLaplace(np.ones(3, np.float32), 5, start_scale=1.0)
    assert site.shape() == (3, 5)
    assert site.expand([2, 3]).to_event(1).log_prob(np.zeros((2, 3, 5))).shape == (2,)
    again = jax.tree.map(lambda leaf: leaf, site)
    assert again.is_proper and again.log_prob(np.ones((3, 5), np.float32)).shape == (3,)
    slope = jax.grad(lambda s: FusedLaplace(s, 5).log_prob(jnp.arange(5.0)))(0.5)
    np.testing.assert_allclose(slope, 4 / 0.25 - 4 / 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FusedLaplace(-1.0, 5), ValueError, "`scale` must be positive and finite"),
        (lambda: FusedLaplace(1.0, 2, 2), ValueError, "`size` must be at least 3; got 2"),
        (lambda: FusedLaplace(1.0, 5, 0), ValueError, "`order` must be at least 1; got 0"),
        (lambda: FusedLaplace(1.0, 5.5), TypeError, "`size` must be an integer"),
        (lambda: FusedLaplace(1.0, 5, start_scale=0.0), ValueError, "`start_scale` must be pos"),
        (
            lambda: FusedLaplace(1.0, 5, start_scale=np.ones(2)),
            ValueError,
            "one number or 1, one for the first value",
        ),
        (lambda: FusedLaplace(1.0, 5).log_prob(np.zeros(4)), ValueError, "must have shape"),
        (
            lambda: FusedLaplace(1.0, 5).sample(jax.random.key(0)),
            NotImplementedError,
            "improper: the level of the line has no prior",
        ),
    ],
)
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
