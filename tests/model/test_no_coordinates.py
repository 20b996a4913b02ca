"""Models without a free coordinate: their draws are the constants that NUTS gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import light_kernel, run_mcmc
from numpyro.infer import init_to_uniform, init_to_value
from numpyro.infer.util import initialize_model

from numpyro_rwpo import RWPO, diagnose
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.target import Differentiation


def empty() -> None:
    pass


def observed() -> None:
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=1.0)
    numpyro.deterministic("twice", jnp.full(2, 2.0))


def only_parameters() -> None:
    numpyro.deterministic("copy", numpyro.param("p", 1.0))


def share_of_one() -> None:
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(1)))
    numpyro.sample("y", dist.Normal(share[0], 1.0), obs=1.5)


def sum_of_one() -> None:
    numpyro.sample("x", dist.ZeroSumNormal(1.0, (1,)))


def no_columns() -> None:
    numpyro.sample("beta", dist.Laplace(0.0, 1.0).expand([0]).to_event(1))


@pytest.mark.parametrize(
    "model", [empty, observed, only_parameters, share_of_one, sum_of_one, no_columns]
)
def test_density_and_draws_are_those_of_nuts(model: Callable[..., None]) -> None:
    source = ModelSource(
        model,
        (),
        {},
        init_strategy=init_to_uniform,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    key, bound = jax.random.key(0), source.bind((), {})
    prepared = bound.prepare(key[None], None)
    assert prepared.start.shape == (1, 1)
    nuts = initialize_model(key, model, dynamic_args=True)
    assert jax.tree.map(lambda x: x[0].shape, prepared.values) == jax.tree.map(
        jnp.shape, nuts.param_info.z
    )
    position = jnp.array([0.7])
    values, log_jacobian = bound.emit(position, jnp.zeros(()))
    potential = bound.target().value_and_grad(position[None])[0][0] - log_jacobian
    np.testing.assert_allclose(potential, nuts.potential_fn()(values), rtol=1e-6, atol=1e-7)
    ours, theirs = bound.constrain(values), nuts.postprocess_fn()(values)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def small(model: Any, **options: Any) -> RWPO:
    return light_kernel(model, num_particles=8, **options)


@pytest.mark.slow
def test_runs() -> None:
    sizes = {"num_warmup": 4, "num_samples": 6, "extra_fields": ("potential_energy",)}
    mcmc = run_mcmc(small(observed), num_chains=2, **sizes)
    samples = mcmc.get_samples(group_by_chain=True)
    np.testing.assert_array_equal(samples["twice"], np.full((2, 6, 2), 2.0))
    expected = -dist.Normal(0.0, 1.0).log_prob(1.0)
    np.testing.assert_allclose(mcmc.get_extra_fields()["potential_energy"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="no free coordinates.*observed or conditioned"):
        diagnose(mcmc)
    kernel = small(share_of_one, init_strategy=init_to_value(values={"share": jnp.ones(1)}))
    mcmc = run_mcmc(kernel, init_params={"share": np.zeros(0, np.float32)}, **sizes)
    np.testing.assert_array_equal(mcmc.get_samples()["share"], np.ones((6, 1)))
