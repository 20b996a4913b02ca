"""The coordinates in which an ensemble is closest to normal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import light_kernel, run_mcmc
from jax import random

from numpyro_rwpo.dynamics.centering import log_determinant, recentered
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.target import Differentiation, Target


def hierarchy(noise: float | None) -> None:
    """Eight groups with a latent scale, whose values are observed with some noise or not at all."""
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.5, scale).expand([8]).to_event(1))
    if noise is not None:
        numpyro.sample("y", dist.Normal(b, noise).to_event(1), obs=jnp.linspace(-1.0, 2.0, 8))


def bound(noise: float | None) -> Target:
    source = ModelSource(
        hierarchy,
        (noise,),
        {},
        init_strategy=numpyro.infer.init_to_uniform,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    return source.bind((noise,), {}).target()


def prior_draws(number: int) -> jax.Array:
    """Draws of the model without data at centering 0: all coordinates are normal; b first."""
    return random.normal(random.key(0), (number, 9))


@pytest.mark.parametrize("dense", [True, False])
def test_a_funnel_is_left_and_a_normal_ensemble_stays(dense: bool) -> None:
    target = bound(None)
    normal = prior_draws(64)
    funnel, log_scale = target.recenter(normal, jnp.zeros(64))
    np.testing.assert_allclose(log_scale[:, 0], 8 * normal[:, 8], rtol=1e-5)
    np.testing.assert_allclose(
        funnel[:, :8], 0.5 + jnp.exp(normal[:, 8:]) * normal[:, :8], rtol=1e-5
    )

    stays, centering, is_new = recentered(normal, target, dense)
    assert (centering, bool(is_new)) == (0, False)
    np.testing.assert_array_equal(stays, normal)
    back, centering, is_new = recentered(funnel, target._replace(centering=jnp.ones(())), dense)
    assert (centering, bool(is_new)) == (0, True)
    np.testing.assert_allclose(back, normal, rtol=1e-4, atol=1e-5)


def test_what_the_data_know_is_moved_as_written() -> None:
    """With little noise b is normal, and what stands for it at centering 0 a funnel."""
    target = bound(0.01)
    scale = jnp.exp(random.normal(random.key(1), (64,)))
    b = jnp.linspace(-1.0, 2.0, 8)[None] + 0.01 * random.normal(random.key(2), (64, 8))
    standard = jnp.concatenate([(b - 0.5) / scale[:, None], jnp.log(scale)[:, None]], axis=1)
    _, centering, is_new = recentered(standard, target, True)
    assert (centering, bool(is_new)) == (1, True)


def two_groups() -> None:
    """The data inform `known` well, and `unknown` not at all."""
    for name in ("known", "unknown"):
        scale = numpyro.sample(f"scale_{name}", dist.LogNormal(0.0, 1.0))
        b = numpyro.sample(name, dist.LogNormal(0.5, scale).expand([8]).to_event(1))
        if name == "known":
            log = dist.Normal(jnp.log(b), 0.1).to_event(1)
            numpyro.sample("y", log, obs=jnp.linspace(-1.0, 2.0, 8))


def test_every_site_is_asked_on_its_own() -> None:
    """Lognormal sites, whose logarithms are location + scale * a standard normal."""
    kernel = light_kernel(two_groups, num_particles=64, dense_mass=True)
    mcmc = run_mcmc(kernel, num_samples=1000, num_chains=2)
    np.testing.assert_array_equal(mcmc.last_state.centering, 1)  # bit 0 is that of `known`
    draws = mcmc.get_samples()
    # Of the prior, and of the data: z-scores with 200 effective draws, at least.
    log_scale = np.log(np.asarray(draws["scale_unknown"], np.float64))
    assert abs(log_scale.mean()) < 4 / np.sqrt(200)
    assert abs(log_scale.std() - 1) < 4 / np.sqrt(2 * 200)
    error = np.log(np.asarray(draws["known"], np.float64)) - np.linspace(-1.0, 2.0, 8)
    assert np.abs(error.mean(0)).max() < 4 * 0.1 / np.sqrt(200)


def test_log_determinant() -> None:
    matrix = np.diag([2.0, 3.0]) + 0.5
    expected = np.linalg.slogdet(matrix)[1]
    np.testing.assert_allclose(log_determinant(jnp.asarray(matrix)), expected, rtol=1e-6)
    np.testing.assert_allclose(log_determinant(jnp.array([2.0, 3.0])), np.log(6.0), rtol=1e-6)
    assert log_determinant(jnp.ones((2, 2))) == -jnp.inf


@pytest.mark.parametrize(("noise", "centering"), [(None, 0), (0.01, 1)])
def test_chains_of_a_run_choose_it_together(noise: float | None, centering: int) -> None:
    kernel = light_kernel(hierarchy, num_particles=64)
    mcmc = run_mcmc(kernel, noise, num_samples=1000, num_chains=2)
    np.testing.assert_array_equal(mcmc.last_state.centering, centering)
    log_scale = np.log(np.asarray(mcmc.get_samples()["scale"], np.float64))
    if noise is None:  # the prior; z-scores with 200 effective draws, at least
        assert abs(log_scale.mean()) < 4 / np.sqrt(200)
        assert abs(log_scale.std() - 1) < 4 / np.sqrt(2 * 200)
