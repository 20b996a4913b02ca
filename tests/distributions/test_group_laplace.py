"""GroupLaplace and SparseGroupLaplace as NumPyro distributions: density, draws, shapes, errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import scipy.stats
from numpyro.infer.util import log_density

from numpyro_rwpo.distributions import GroupLaplace, SparseGroupLaplace
from numpyro_rwpo.distributions.group import log_normalizer

GROUPS = [[0, 3], [2], [1, 4, 5]]


@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.3, 0.95])
def test_normalizer_of_a_pair_against_quadrature(ratio: float) -> None:
    """Integrals over the angle alone: that over the radius is 1/rate(angle)^2."""
    angle = (np.arange(20_000) + 0.5) * (np.pi / 2) / 20_000
    rate = (1 - ratio) + ratio * (np.cos(angle) + np.sin(angle))
    expected = np.log(4 * np.mean(1 / rate**2) * np.pi / 2)
    assert abs(log_normalizer(2, ratio) - expected) < 1e-8
    assert abs(log_normalizer(1, ratio) - np.log(2)) < 1e-9


def test_normalizer_of_many_against_importance_sampling() -> None:
    """Five coordinates from 200,000 Laplace draws, whose mean weight is known to 0.3 %."""
    draws = np.random.default_rng(0).laplace(size=(200_000, 5))
    length, l1 = np.linalg.norm(draws, axis=1), np.abs(draws).sum(1)
    for ratio in (0.0, 0.4, 0.8):
        weight = np.exp(l1 - (1 - ratio) * length - ratio * l1)
        weight = weight[np.isfinite(weight)]
        if ratio == 0.0:
            continue  # these weights have no variance; the closed form is tested by its draws
        estimate = np.log(weight.mean()) + 5 * np.log(2)
        error = weight.std() / weight.mean() / len(weight) ** 0.5
        assert abs(estimate - log_normalizer(5, ratio)) < 5 * error + 1e-6


def test_density_and_its_dependence_on_the_scale() -> None:
    x = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    scale = np.array([0.5, 2.0, 1.0], np.float32)
    site = GroupLaplace(scale, groups=GROUPS)
    expected = np.zeros(4)
    for s, group in zip(scale, GROUPS, strict=True):
        size = len(group)
        sphere = 2 * np.pi ** (size / 2) / scipy.special.gamma(size / 2)
        expected -= np.linalg.norm(x[:, group], axis=1) / s + size * np.log(s)
        expected -= np.log(sphere * scipy.special.gamma(size))
    np.testing.assert_allclose(site.log_prob(x), expected, rtol=1e-5)
    one = GroupLaplace(1.0, 6).log_prob(x / 0.3) - 6 * np.log(0.3)
    np.testing.assert_allclose(GroupLaplace(0.3, 6).log_prob(x), one, rtol=1e-5)
    sparse = SparseGroupLaplace(0.3, groups=GROUPS).log_prob(x)
    one = SparseGroupLaplace(1.0, groups=GROUPS).log_prob(x / 0.3) - 6 * np.log(0.3)
    np.testing.assert_allclose(sparse, one, rtol=1e-5)


def test_draws() -> None:
    """Radii are Gamma variables (Kolmogorov-Smirnov, level 1e-4), directions have mean 0."""
    scale = np.array([0.5, 2.0, 1.0], np.float32)
    site = GroupLaplace(scale, groups=GROUPS)
    draws = np.asarray(site.sample(jax.random.key(0), (10_000,)))
    for s, group in zip(scale, GROUPS, strict=True):
        radius = np.linalg.norm(draws[:, group], axis=1)
        assert scipy.stats.kstest(radius / s, scipy.stats.gamma(len(group)).cdf).pvalue > 1e-4
    error = draws.std(0) / 100
    assert np.all(np.abs(draws.mean(0)) < 5 * error)
    kurtosis_bound = 5 * (draws**2).std(0) / 100
    assert np.all(np.abs((draws**2).mean(0) - site.variance) < kurtosis_bound)


def test_draws_of_the_sparse_distribution() -> None:
    """A pair: means of |x|_1 and |x|_2 against the density on a grid, within 5 standard errors."""
    site = SparseGroupLaplace(1.0, 2, l1_ratio=0.4)
    draws = np.asarray(jax.jit(lambda k: site.sample(k, (10_000,)))(jax.random.key(1)))
    axis = np.linspace(-25, 25, 1001)
    x = np.stack(np.meshgrid(axis, axis), -1)
    density = np.exp(-0.6 * np.linalg.norm(x, axis=-1) - 0.4 * np.abs(x).sum(-1))
    density /= density.sum()
    for norm in (lambda v: np.abs(v).sum(-1), lambda v: np.linalg.norm(v, axis=-1)):
        found = norm(draws)
        assert abs(found.mean() - (density * norm(x)).sum()) < 5 * found.std() / 100 + 0.002


def test_shapes_plates_and_transformations() -> None:
    assert GroupLaplace(np.ones((2, 3)), 4).shape() == (2, 3, 4)
    assert GroupLaplace(np.ones((2, 3)), groups=GROUPS).shape() == (2, 6)
    expanded = GroupLaplace(0.5, groups=GROUPS).expand([5]).to_event(1)
    assert expanded.event_shape == (5, 6) and expanded.log_prob(np.zeros((5, 6))).shape == ()
    assert expanded.sample(jax.random.key(0), (2,)).shape == (2, 5, 6)

    def model(tau: Any) -> None:
        with numpyro.plate("groups", 3):
            numpyro.sample("x", GroupLaplace(tau, 2))

    value = np.ones((3, 2), np.float32)
    total, _ = log_density(model, (0.7,), {}, {"x": value})
    one = GroupLaplace(0.7, 2).log_prob(value[0])
    np.testing.assert_allclose(total, 3 * one, rtol=1e-6)

    site = GroupLaplace(np.full(3, 0.7, np.float32), groups=GROUPS)
    again = jax.tree.map(lambda leaf: leaf, site)
    x = np.ones(6, np.float32)
    np.testing.assert_allclose(jax.jit(lambda s: s.log_prob(x))(again), site.log_prob(x), rtol=1e-6)
    slopes = jax.vmap(jax.grad(lambda s: GroupLaplace(s, 6).log_prob(x)))(jnp.array([0.5, 2.0]))
    expected = np.sqrt(6) / np.array([0.5, 2.0]) ** 2 - 6 / np.array([0.5, 2.0])
    np.testing.assert_allclose(slopes, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GroupLaplace(0.0, 3), ValueError, "`scale` must be positive and finite; got 0.0"),
        (lambda: GroupLaplace("a", 3), TypeError, "`scale` must be a real number"),
        (lambda: GroupLaplace(1.0), ValueError, "needs either `dim` or `groups`"),
        (lambda: GroupLaplace(1.0, 2, groups=GROUPS), ValueError, "needs either"),
        (lambda: GroupLaplace(1.0, 0), ValueError, "`dim` must be at least 1; got 0"),
        (lambda: GroupLaplace(1.0, 2.0), TypeError, "`dim` must be an integer"),
        (lambda: GroupLaplace(1.0, groups=[[0], [2]]), ValueError, r"\[1\] are missing"),
        (lambda: GroupLaplace(1.0, groups=[[0, 0]]), ValueError, r"\[1\] are missing"),
        (lambda: GroupLaplace(1.0, groups=[[0], []]), ValueError, "no empty group"),
        (lambda: GroupLaplace(1.0, groups=[0, 1]), TypeError, "`groups` must be lists"),
        (lambda: GroupLaplace(np.ones(2), groups=GROUPS), ValueError, "of the 3 groups; got shape"),
        (lambda: SparseGroupLaplace(1.0, 2, l1_ratio=1.5), ValueError, "`l1_ratio` must be"),
        (
            lambda: GroupLaplace(1.0, 3).log_prob(np.zeros(2)),
            ValueError,
            r"must have shape \('...', 3\); got \(2,\)",
        ),
    ],
)
def test_errors(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
