"""Ten thousand parameters: memory linear in them, and never a matrix of their size squared."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from benchmarks.many_parameters import Case, network, network_case, wide_lasso, wide_lasso_case
from numpyro_rwpo import RWPO
from numpyro_rwpo.dynamics.flows import ExactFlow, HarmonicFlow

DIM = 10_000


def wide_normal(X: jax.Array, y: jax.Array) -> None:
    """A lasso's data without a Laplace prior: other flows are on trial."""
    coefficients = numpyro.sample("coefficients", dist.Normal(0.0, 0.1).expand([X.shape[1]]))
    numpyro.sample("y", dist.Normal(X @ coefficients, 1.0), obs=y)


@pytest.mark.parametrize(
    ("case", "activations", "flow"),
    [
        # A traced start makes no choice between flows: it takes the prior's exact one, if any.
        pytest.param(wide_lasso_case, 200, ExactFlow, marks=pytest.mark.slow),
        (lambda: wide_lasso_case()._replace(model=wide_normal), 200, HarmonicFlow),
        pytest.param(wide_lasso_case, 200, None, marks=pytest.mark.slow),
        pytest.param(network_case, 442 * 833, None, marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_step(
    case: Callable[[], Case], activations: int, flow: type[ExactFlow | HarmonicFlow] | None
) -> None:
    """Of any iteration of NumPyro's loop; compiled, not run.

    Args:
        case: about ten thousand parameters.
        activations: numbers that the model's own gradient keeps for a particle, at a time.
        flow: of the moves if the start is only traced, which is enough for the shapes of a state;
            ``None`` runs the start.
    """
    model, data = case()[:2]
    arguments = ((), data)
    kernel = RWPO(model)

    def start(key: jax.Array) -> Any:
        return kernel.init(key, 1, None, *arguments)

    key = jax.random.key(0)
    state = start(key) if flow is None else jax.eval_shape(start, key)
    assert flow is None or isinstance(state.move.flow, flow)
    num_particles, dim = state.ensemble.particles.shape
    assert dim == 9_997 if model is network else dim == DIM
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
    with pytest.raises(ValueError, match="got 10000 dimensions and 64 particles.* to 2500"):
        kernel.init(jax.random.key(0), 200, None, (), wide_lasso_case().arguments)
