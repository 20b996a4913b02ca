"""Ten thousand parameters: memory linear in them, and never a matrix of their size squared."""

from __future__ import annotations

import re

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

from numpyro_rwpo import RWPO

DIM = 10_000


def wide_lasso(X: jax.Array, y: jax.Array) -> None:
    """50 times more coefficients than observations."""
    coefficients = numpyro.sample("coefficients", dist.Laplace(0.0, 0.1).expand([X.shape[1]]))
    numpyro.sample("y", dist.Normal(X @ coefficients, 1.0), obs=y)


def test_memory_of_a_step() -> None:
    """Of any iteration, start included; compiled, not run."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, DIM)).astype(np.float32)
    y = (X[:, :5].sum(1) + rng.normal(size=200)).astype(np.float32)
    kernel = RWPO(wide_lasso)
    state = kernel.init(jax.random.key(0), 200, None, (X, y), {})
    num_particles, dim = state.ensemble.particles.shape
    assert (num_particles, dim) == (256, DIM)
    lowered = jax.jit(lambda state: kernel.sample(state, (X, y), {})).lower(state)
    shapes = re.findall(r"tensor<([\dx]+)x[a-z]", lowered.as_text())
    sizes = [np.array(shape.split("x"), int) for shape in shapes]
    assert any(np.any(size >= dim) for size in sizes)
    assert not any(np.count_nonzero(size >= dim) > 1 for size in sizes)
    memory = lowered.compile().memory_analysis().temp_size_in_bytes
    print(f"{num_particles} particles, {memory / 1e6:.0f} MB beside the state")
    # 30 arrays of the ensemble's size, 10 MB each; a matrix of dim squared would be 400 MB.
    assert memory < 30 * 4 * num_particles * dim
