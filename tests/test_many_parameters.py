"""Ten thousand parameters: memory linear in them, and never a matrix of their size squared."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from sklearn.datasets import load_diabetes

from numpyro_rwpo import RWPO

DIM = 10_000


def wide_lasso(X: jax.Array, y: jax.Array) -> None:
    """50 times more coefficients than observations."""
    coefficients = numpyro.sample("coefficients", dist.Laplace(0.0, 0.1).expand([X.shape[1]]))
    numpyro.sample("y", dist.Normal(X @ coefficients, 1.0), obs=y)


def wide_normal(X: jax.Array, y: jax.Array) -> None:
    """The same without a Laplace prior: other flows are on trial."""
    coefficients = numpyro.sample("coefficients", dist.Normal(0.0, 0.1).expand([X.shape[1]]))
    numpyro.sample("y", dist.Normal(X @ coefficients, 1.0), obs=y)


def sparse_network(X: jax.Array, y: jax.Array) -> None:
    """One hidden layer with Laplace weights, on the diabetes data: 10 x 833 + 2 x 833 + 1."""
    hidden = 833

    def weights(name: str, *shape: int) -> jax.Array:
        scale = 1 / np.sqrt(shape[0])
        return numpyro.sample(name, dist.Laplace(0.0, scale).expand(shape).to_event(len(shape)))

    layer = jnp.tanh(X @ weights("inner", X.shape[1], hidden) + weights("bias", hidden))
    mean = layer @ weights("outer", hidden)
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(mean, noise), obs=y)


def regression() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, DIM)).astype(np.float32)
    return X, (X[:, :5].sum(1) + rng.normal(size=200)).astype(np.float32)


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_diabetes(return_X_y=True)
    X, y = (X - X.mean(0)) / X.std(0), (y - y.mean()) / y.std()
    return X.astype(np.float32), y.astype(np.float32)


@pytest.mark.parametrize(
    ("model", "data", "activations"),
    [
        (wide_lasso, regression, 200),
        pytest.param(wide_normal, regression, 200, marks=pytest.mark.slow),
        pytest.param(sparse_network, diabetes, 442 * 833, marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_step(
    model: Callable[..., None], data: Callable[..., Any], activations: int
) -> None:
    """Of any iteration, start included; compiled, not run.

    Args:
        model: with about ten thousand parameters.
        data: its arguments.
        activations: numbers that the model's own gradient keeps for a particle, at a time.
    """
    arguments = (data(), {})
    kernel = RWPO(model)
    state = kernel.init(jax.random.key(0), 200, None, *arguments)
    num_particles, dim = state.ensemble.particles.shape
    assert dim == DIM if model is not sparse_network else dim == 9_997
    lowered = jax.jit(lambda state: kernel.sample(state, *arguments)).lower(state)
    shapes = re.findall(r"tensor<([\dx]+)x[a-z]", lowered.as_text())
    sizes = [np.array(shape.split("x"), int) for shape in shapes]
    assert any(np.any(size >= dim) for size in sizes)
    assert not any(np.count_nonzero(size >= dim) > 1 for size in sizes)
    memory = lowered.compile().memory_analysis().temp_size_in_bytes
    print(f"{model.__name__}: {num_particles} particles, {memory / 1e6:.0f} MB beside the state")
    # 30 arrays of the ensemble's size, 10 MB each; a matrix of dim squared would be 400 MB.
    assert memory < 4 * num_particles * (30 * dim + 8 * activations)


def test_dense_metric_of_too_many_parameters() -> None:
    kernel = RWPO(wide_lasso, dense_mass=True)
    with pytest.raises(ValueError, match="got 10000 dimensions and 256 particles.* to 2500"):
        kernel.init(jax.random.key(0), 200, None, regression(), {})
