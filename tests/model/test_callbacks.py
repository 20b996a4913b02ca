"""Likelihoods that JAX cannot batch: functions of the host, called for one particle at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import light_kernel, run_mcmc

from numpyro_rwpo import RWPO

Y = np.array([0.3, 1.2, -0.5], np.float32)
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


def on_host(mean: Any, slope: bool) -> Any:
    """Log likelihood of unit normal data, or its derivative, for a single mean."""
    assert np.ndim(mean) == 0
    residual = Y - np.asarray(mean)
    return np.float32(residual.sum() if slope else -0.5 * (residual**2).sum())


@jax.custom_jvp
def log_likelihood(mean: Any) -> Any:
    return jax.pure_callback(lambda x: on_host(x, False), SCALAR, mean)


@log_likelihood.defjvp
def derivative(values: Any, tangents: Any) -> Any:
    slope = jax.pure_callback(lambda x: on_host(x, True), SCALAR, values[0])
    return log_likelihood(values[0]), slope * tangents[0]


def make_model(log_likelihood: Any) -> Any:
    def model() -> None:
        # A latent scale: then the model runs once more whenever a particle is emitted.
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        mean = numpyro.sample("mean", dist.Laplace(0.0, scale))
        numpyro.factor("likelihood", log_likelihood(mean))

    return model


def small(model: Any) -> RWPO:
    return light_kernel(model, num_particles=8)


@pytest.mark.slow
def test_draws_are_those_of_the_same_likelihood_in_jax() -> None:
    """With chains one after the other, as NUTS can."""
    sizes = {"num_warmup": 8, "num_samples": 16, "num_chains": 2, "chain_method": "sequential"}
    mcmc = run_mcmc(small(make_model(log_likelihood)), **sizes)
    batched = make_model(lambda mean: -0.5 * ((jnp.asarray(Y) - mean) ** 2).sum())
    expected = run_mcmc(small(batched), **sizes).get_samples()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        mcmc.get_samples(),
        expected,
    )


def test_chains_side_by_side_need_vmap_method() -> None:
    with pytest.raises(NotImplementedError, match="`vmap_method='sequential'`.*chain_method"):
        run_mcmc(small(make_model(log_likelihood)), num_chains=2, num_warmup=4)
