"""The nuclear norm: value, derivatives where the decomposition has none, and proximal map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rwpo.priors.nuclear import nuclear_norm, nuclear_norm_prox, polar_factor

SHAPES = [(4, 3), (3, 4), (3, 3), (1, 3)]


def matrix(shape: tuple[int, int], values: Any, seed: int = 0) -> np.ndarray:
    """A matrix with given singular values and arbitrary directions."""
    rng = np.random.default_rng(seed)
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return np.asarray((u * np.asarray(values)) @ vt)


def special(dtype: Any) -> dict[str, np.ndarray]:
    """Matrices at which the derivatives of a singular value decomposition are infinite."""
    found = {
        "zero": np.zeros((4, 3)),
        "rank one": np.outer([1.0, 2.0, 0.0, -1.0], [1.0, 0.0, 3.0]),
        "repeated": matrix((4, 3), [2.0, 2.0, 0.5]),
        "identity": np.eye(3),
        "repeated zeros": matrix((3, 4), [1.0, 0.0, 0.0]),
    }
    return {name: x.astype(dtype) for name, x in found.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("x64")
def test_value_and_gradient(shape: tuple[int, int]) -> None:
    """Central differences, whose error is the square of 1e-5."""
    x = np.random.default_rng(1).normal(size=(2, *shape))
    norms = np.linalg.svd(x, compute_uv=False).sum(-1)
    np.testing.assert_allclose(nuclear_norm(x), norms, rtol=1e-13)
    found = np.asarray(jax.grad(lambda v: nuclear_norm(v).sum())(jnp.asarray(x)))
    np.testing.assert_allclose(found, polar_factor(x), atol=1e-13)
    direction = np.random.default_rng(2).normal(size=x.shape)
    h = 1e-5
    above, below = (np.asarray(nuclear_norm(x + sign * h * direction)) for sign in (1, -1))
    slope = (found * direction).sum((-2, -1))
    np.testing.assert_allclose((above - below) / (2 * h), slope, rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("x64")
def test_second_derivative(shape: tuple[int, int]) -> None:
    """Forward and reverse, against central differences of the gradient."""
    rng = np.random.default_rng(3)
    x, direction = jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))
    _, found = jax.jvp(polar_factor, (x,), (direction,))
    h = 1e-5
    expected = (polar_factor(x + h * direction) - polar_factor(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    gradient = jax.grad(nuclear_norm)
    again = jax.grad(lambda v: (gradient(v) * direction).sum())(x)
    np.testing.assert_allclose(again, expected, atol=1e-7)


@pytest.mark.parametrize("name", list(special(float)))
def test_subgradients_where_the_norm_has_a_kink(name: str) -> None:
    """Single precision: finite, no singular value above 1, and below the norm at other points."""
    x = special(np.float32)[name]
    value, slope = jax.value_and_grad(nuclear_norm)(jnp.asarray(x))
    slope = np.asarray(slope)
    assert np.isfinite(slope).all() and slope.dtype == np.float32
    assert np.linalg.svd(slope, compute_uv=False).max() < 1 + 1e-5
    assert abs((slope * x).sum() - value) < 1e-5 * (1 + value)
    if name == "zero":
        np.testing.assert_array_equal(slope, 0.0)
    others = np.random.default_rng(4).normal(size=(200, *x.shape))
    norms = np.linalg.svd(others, compute_uv=False).sum(-1)
    assert np.all(norms >= value + ((others - x) * slope).sum((-2, -1)) - 1e-5)
    # Second derivatives are finite there, too: along directions that keep the rank they are right.
    _, turn = jax.jvp(polar_factor, (jnp.asarray(x),), (jnp.ones_like(x),))
    assert np.isfinite(turn).all()


def test_the_derivative_of_a_plain_decomposition_is_not_finite() -> None:
    """Negative control, and the reason for the formulas of this module."""
    plain: Callable[[jax.Array], jax.Array] = lambda v: (  # noqa: E731
        jnp.linalg.svd(v, full_matrices=False)[0] * jnp.arange(9.0).reshape(3, 3)
    ).sum()
    assert not np.isfinite(jax.grad(plain)(jnp.eye(3))).all()


def test_single_precision_agrees_with_double() -> None:
    x = np.random.default_rng(5).normal(size=(50, 6, 4)).astype(np.float32)
    single = [np.asarray(f(x)) for f in (nuclear_norm, polar_factor)]
    with jax.enable_x64(True):
        wide = jnp.asarray(x.astype(np.float64))
        double = [np.asarray(f(wide)) for f in (nuclear_norm, polar_factor)]
    np.testing.assert_allclose(single[0], double[0], rtol=2e-6)
    # The error of the polar factor is the rounding over the sum of the smallest singular values.
    smallest = np.linalg.svd(x.astype(np.float64), compute_uv=False)[:, -2:].sum(-1)
    error = np.abs(single[1] - double[1]).max((-2, -1))
    assert np.all(error < 1e-5 / smallest)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("x64")
def test_prox(shape: tuple[int, int]) -> None:
    """The objective exceeds its minimum by half the squared distance: at 500 points around it."""
    rng = np.random.default_rng(6)
    x, step = rng.normal(size=shape), 0.6
    found = np.asarray(nuclear_norm_prox(jnp.asarray(x), step))

    def objective(z: np.ndarray) -> np.ndarray:
        norms = np.linalg.svd(z, compute_uv=False).sum(-1)
        return np.asarray(step * norms + ((z - x) ** 2).sum((-2, -1)) / 2)

    for size in (1e-3, 0.3, 3.0):
        z = found + size * rng.normal(size=(500, *shape))
        square = ((z - found) ** 2).sum((-2, -1))
        assert np.all(objective(z) - objective(found) >= square / 2 - 1e-12)
    # Negative control: beside the minimizer this does not hold.
    wrong = found + 0.05
    square = ((found - wrong) ** 2).sum()
    assert objective(found) - objective(wrong) < square / 2 - 1e-6
    np.testing.assert_array_equal(nuclear_norm_prox(jnp.asarray(x), 100.0), 0.0)
    np.testing.assert_allclose(nuclear_norm_prox(jnp.asarray(x), 0.0), x, atol=1e-12)


def test_prox_of_a_batch_lowers_singular_values() -> None:
    x = np.random.default_rng(7).normal(size=(3, 4, 3)).astype(np.float32)
    step = np.array([0.2, 1.0, 5.0], np.float32)
    found = np.linalg.svd(nuclear_norm_prox(x, step), compute_uv=False)
    expected = np.maximum(np.linalg.svd(x, compute_uv=False) - step[:, None], 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
