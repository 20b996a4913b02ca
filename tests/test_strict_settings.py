"""The strictest settings of JAX that users have: no silent ranks, no mixed dtypes, no nan.

Silent rank promotion is refused in all tests, see `conftest.py`. Here are those that are too strict
for NumPyro's own code, and a whole run of every kind of move under `jax_debug_nans`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import run_mcmc

from numpyro_rwpo import RWPO, laplace_prior, splitting_step
from numpyro_rwpo.heads.registry import BUILT_IN_HEADS

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
Y = (X[:, 0] + np.random.default_rng(1).normal(size=20)).astype(np.float32)


def lasso(X: Any, y: Any) -> None:
    beta = numpyro.sample("beta", dist.Laplace(0.0, 1.0).expand([3]).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(X @ beta, noise).to_event(1), obs=y)


def ridge(X: Any, y: Any) -> None:
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, scale).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 1.0).to_event(1), obs=y)


@pytest.mark.usefixtures("no_nans")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        (lasso, {}),
        # The default has every part of a run but these heads and the diagonal metric.
        pytest.param(ridge, {"attention": "joint", "dense_mass": False}, marks=pytest.mark.slow),
        pytest.param(lasso, {"attention": "marginal"}, marks=pytest.mark.slow),
    ],
    ids=["lasso", "ridge-joint-diagonal", "lasso-marginal"],
)
def test_no_program_of_a_run_computes_a_nan(model: Any, options: dict[str, Any]) -> None:
    """JAX looks at the results of every program: preparation, warm-up, each draw."""
    kernel = RWPO(model, num_particles=16, **options)
    mcmc = run_mcmc(kernel, X, Y, num_chains=2, extra_fields=("potential_energy", "accept_prob"))
    assert np.isfinite(mcmc.get_samples()["beta"]).all()


@pytest.mark.usefixtures("strict_dtypes", "no_nans")
@pytest.mark.parametrize(
    ("head", "dim"),
    [
        *((head, 3) for head in BUILT_IN_HEADS),
        ("copula", 1),  # its correlation is a special case
        *(pytest.param(head, 1, marks=pytest.mark.slow) for head in ("marginal", "joint")),
    ],
)
def test_heads_under_strict_dtypes(head: str, dim: int) -> None:
    """Fit, evaluate and sample every head, within a program and its derivative."""
    particles = jax.random.normal(jax.random.key(0), (12, dim))
    prior = laplace_prior(jnp.ones(dim), jnp.zeros(dim))

    @jax.jit
    def every_method(particles: jax.Array) -> tuple[jax.Array, ...]:
        density = BUILT_IN_HEADS[head].fit(particles, prior, jnp.full(dim, 0.1))
        x = 2 * particles
        drawn = density.sample(jax.random.key(1), 5)
        return density.log_prob(x), density.score(x), density.heat_score(x), drawn

    for value in every_method(particles):
        assert value.dtype == jnp.float32
        assert np.isfinite(value).all()
    slope = jax.jit(jax.grad(lambda x: every_method(x)[0].sum()))(particles)
    assert np.isfinite(slope).all()


@pytest.mark.usefixtures("strict_dtypes", "no_nans")
def test_prior_and_published_update_under_strict_dtypes() -> None:
    prior = laplace_prior(np.float32(2.0), np.zeros(3, np.float32), rate_left=np.float32(1.0))
    x = jnp.linspace(-2.0, 2.0, 12).reshape(4, 3)

    @jax.jit
    def every_function(prior: Any, x: jax.Array) -> list[jax.Array]:
        return [
            prior.potential(x),
            prior.subgradient(x),
            prior.prox(x, 0.1),
            prior.moreau_gradient(x, 0.1),
            prior.log_normalizer(x, 0.1),
            prior.log_prob(x, x + 0.1, 0.1),
            prior.log_cdf(x, x, 0.1),
            prior.sample(jax.random.key(0), x, 0.1),
            *prior.hamiltonian_flow(x, jnp.ones_like(x), 0.7),
            splitting_step(x, lambda x: x, 1.0, 0.1),
        ]

    for value in every_function(prior, x):
        assert value.dtype == jnp.float32
        assert np.isfinite(value).all()
