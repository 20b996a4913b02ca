"""Densities that jump are told from smooth ones, from kinks and from rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rwpo.diagnostics.jumps import find_jumps

NUMBER = 1000
NAMES = ["a", "b", "c"]


def normal(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2)


def draws(kind: str, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    values = getattr(np.random.default_rng(0), kind)(size=(NUMBER, 3))
    return (shift + scale * values).astype(np.float32)


def evaluated(log_density: Callable[[jax.Array], jax.Array]) -> Any:
    """Values and gradients in double precision of a density computed in single."""
    both = jax.jit(jax.vmap(jax.value_and_grad(log_density)))
    return lambda x: tuple(np.asarray(y, np.float64) for y in both(x))


def funnel(x: jax.Array) -> jax.Array:
    return -(x[0] ** 2) / 18 - 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - x[0]


def funnel_draws() -> np.ndarray:
    white = draws("standard_normal")
    return np.c_[3 * white[:, 0], white[:, 1:] * np.exp(1.5 * white[:, :1])]


SMOOTH: dict[str, tuple[Callable[[jax.Array], jax.Array], np.ndarray]] = {
    "normal": (normal, draws("standard_normal")),
    "funnel": (funnel, funnel_draws()),
    "kinks of a Laplace prior": (lambda x: -jnp.sum(jnp.abs(x)), draws("laplace")),
    "steep kinks": (lambda x: normal(x) - 100 * jnp.sum(jnp.abs(x)), draws("laplace", 0.01)),
    "steep sigmoid": (lambda x: normal(x) - jax.nn.sigmoid(500 * x[1]), draws("standard_normal")),
    # The log density has six digits before the point and two or none behind it.
    "rounded values": (lambda x: normal(x) - 3e5, draws("standard_normal")),
    # Coordinates lose a thousandth of a standard deviation by rounding.
    "rounded positions": (lambda x: 1e8 * normal(x - 1), draws("standard_normal", 1e-4, 1.0)),
}
JUMPS: dict[str, tuple[Callable[[jax.Array], jax.Array], np.ndarray, float, str]] = {
    "one step": (lambda x: normal(x) - (x[1] > 0), draws("standard_normal"), 1.0, "b"),
    "stairs": (lambda x: normal(x) - jnp.floor(2 * x[2]), draws("standard_normal"), 1.0, "c"),
    "far out": (lambda x: normal(x) - 3.0 * (x[0] > 2), draws("standard_normal"), 3.0, "a"),
    "border": (
        lambda x: jnp.where(x[0] > 0, -jnp.sum(x), -jnp.inf),
        draws("exponential"),
        np.inf,
        "a",
    ),
    "undefined": (
        lambda x: jnp.where(x[1] > 0, -jnp.sum(x), jnp.nan),
        draws("exponential"),
        np.inf,
        "b",
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_continuous_densities_have_no_jumps(name: str) -> None:
    log_density, positions = SMOOTH[name]
    assert find_jumps(jax.random.key(0), positions, NAMES, evaluated(log_density)) == (0, 0, "")


@pytest.mark.parametrize("name", JUMPS)
def test_jumps_are_found_measured_and_named(name: str) -> None:
    log_density, positions, size, where = JUMPS[name]
    jumps = find_jumps(jax.random.key(0), positions, NAMES, evaluated(log_density))
    assert jumps.share > 0.005
    assert jumps.largest == pytest.approx(size, abs=0.01)
    assert jumps.name == where
