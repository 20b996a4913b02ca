"""Products in full precision, whatever an accelerator would do by itself."""

from __future__ import annotations

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import light_kernel


def model(X: jax.Array, y: jax.Array) -> None:
    coefficients = numpyro.sample("coefficients", dist.Laplace(0.0, 0.5).expand([X.shape[1]]))
    numpyro.sample("y", dist.Normal(X @ coefficients, 1.0), obs=y)


@pytest.mark.parametrize("chosen", [None, "tensorfloat32"])
def test_every_product_of_a_step(chosen: str | None) -> None:
    """The model's and the sampler's own; unless the user chose a precision, which then counts."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 3)).astype(np.float32), rng.normal(size=20).astype(np.float32)
    with jax.default_matmul_precision(chosen):
        kernel = light_kernel(model, dense_mass=True)
        state = kernel.init(jax.random.key(0), 20, None, data, {})
        program = jax.jit(lambda state: kernel.sample(state, data, {})).lower(state).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) > 5
    exact = [line for line in products if "HIGHEST" in line]
    if chosen is None:
        assert exact == products
    else:
        assert len(exact) < len(products)
