"""Base points of the flows: standard normal, spread evenly, different for every key."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.stats import kstest, qmc

from numpyro_rwpo.flow.base_points import base_points, fresh_points


def test_points_are_even_and_uncorrelated() -> None:
    """Errors of counts and correlations well below those of as many random points."""
    points = np.asarray(base_points(jax.random.key(0), 1024, 8))
    share = (points > 0).mean(0)
    assert np.abs(share - 0.5).max() < 0.2 * np.sqrt(0.25 / 1024)
    correlation = np.corrcoef(points.T) - np.eye(8)
    assert np.sqrt((correlation**2).mean()) < 0.5 / np.sqrt(1024)


def test_every_point_is_standard_normal() -> None:
    """One point under many keys; a p-value below 1e-4 is a false alarm once in 10,000 seeds."""
    keys = jax.random.split(jax.random.key(1), 2000)
    one = np.asarray(jax.vmap(lambda key: base_points(key, 5, 3))(keys))[:, 3]
    start = base_points(jax.random.key(2), 5, 3)
    fresh = np.asarray(jax.vmap(lambda key: fresh_points(key, start))(keys))[:, 3]
    for sample in (one, fresh):
        for column in sample.T:
            assert kstest(column, "norm").pvalue > 1e-4


def test_fresh_points_stay_even() -> None:
    points = base_points(jax.random.key(0), 1024, 4)
    fresh = np.asarray(fresh_points(jax.random.key(1), points))
    assert np.abs(np.corrcoef(np.asarray(points).T, fresh.T)[:4, 4:].diagonal()).max() < 0.999
    share = (fresh > 0).mean(0)
    assert np.abs(share - 0.5).max() < 0.3 * np.sqrt(0.25 / 1024)


@pytest.mark.parametrize(("number", "dim"), [(1, 1), (5, 3), (3, 7)])
def test_any_number_of_finite_points(
    number: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmc.Sobol, "MAXDIM", 6)  # of 21,201, which take seconds to make
    points = base_points(jax.random.key(0), number, dim)
    assert points.shape == (number, dim)
    assert np.isfinite(points).all()
