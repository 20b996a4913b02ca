"""The user's proposal: start and independence sampler, in the sampler's own coordinates."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import init_to_uniform

from numpyro_rwpo import RWPO
from numpyro_rwpo.dynamics.mode_moves import ModeMove
from numpyro_rwpo.dynamics.modes import Modes, mixture
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.proposal import change_coordinates
from numpyro_rwpo.model.target import Differentiation, Proposal
from tests.helpers import (
    assert_moments,
    gaussian_moments,
    gaussian_potential,
    light_kernel,
    mcse_z,
    normal_mean,
    run_mcmc,
    scalar_moments,
    two_islands,
)

Y = np.array([0.5, 1.5, 1.0], np.float32)


def islands(probability: float, sd: float) -> dist.Distribution:
    """A mixture near `two_islands`, as a distribution of vectors of one number."""
    components = dist.Normal(jnp.array([[-20.0], [20.0]]), sd).to_event(1)
    weights = jnp.array([1 - probability, probability])
    return dist.MixtureSameFamily(dist.Categorical(weights), components)


@pytest.mark.slow
def test_jumps_bring_islands_into_balance() -> None:
    """Shares of two modes that no trajectory connects, from a proposal that has them wrong."""
    kernel = light_kernel(two_islands, proposal=islands(0.8, 1.5), num_particles=64)
    mcmc = run_mcmc(kernel, num_warmup=200, num_samples=500, num_chains=4)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    assert effective_sample_size(np.where(x > 0, 1.0, 0.0)) > 1000  # of 2000
    assert abs(mcse_z(x > 0, 0.5)) < 4.5
    assert_moments({"distance": np.abs(x) - 20}, {"distance": scalar_moments(0.0, 1.0)})
    assert mcmc.last_state.move.num_jumps.min() >= 1


def test_modes_make_up_for_a_poor_proposal() -> None:
    """Draws of a density that is far too narrow are hardly ever accepted; those of modes are."""
    kernel = light_kernel(two_islands, proposal=islands(0.8, 0.1), num_particles=64)
    mcmc = run_mcmc(kernel, num_warmup=200, num_samples=500, num_chains=4)
    assert isinstance(mcmc.last_state.move, ModeMove)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    assert effective_sample_size(np.where(x > 0, 1.0, 0.0)) > 1000  # of 2000
    assert abs(mcse_z(x > 0, 0.5)) < 4.5
    assert_moments({"distance": np.abs(x) - 20}, {"distance": scalar_moments(0.0, 1.0)})


def test_mixture_with_a_proposal() -> None:
    """Half of the draws are the proposal's, and the log density is that of the mixture."""
    wide, narrow = dist.Normal(3.0, 2.0), dist.Normal(-4.0, 1.0)
    proposal = Proposal(lambda key, n: wide.sample(key, (n, 1)), lambda x: wide.log_prob(x[:, 0]))
    one = jnp.ones((1, 1))
    modes = Modes(-4 * one, one, one, jnp.zeros(1), jnp.zeros(1))
    both = mixture(modes, proposal)
    drawn = both.sample(jax.random.key(0), 4000)
    expected = np.logaddexp(*(each.log_prob(drawn[:, 0]) for each in (narrow, wide))) - np.log(2)
    np.testing.assert_allclose(both.log_prob(drawn), expected, rtol=1e-5, atol=1e-5)
    # The mean is -.5; the standard deviation of a draw is 3.84.
    assert abs(float(drawn.mean()) + 0.5) < 4 * 3.84 / np.sqrt(4000)


def test_particles_start_as_draws() -> None:
    """With a warm-up of one iteration the first ensemble is what was proposed."""
    options = {"num_particles": 64, "corrected": False}
    kernel = light_kernel(two_islands, proposal=islands(0.5, 0.1), **options)
    x = np.asarray(run_mcmc(kernel, num_warmup=1, num_samples=64).get_samples()["x"])
    assert np.abs(np.abs(x) - 20).max() < 0.5
    assert 10 < (x > 0).sum() < 54


@pytest.mark.slow
def test_a_potential_function_takes_a_proposal() -> None:
    proposal = dist.Normal(0.0, 2.0).expand([2]).to_event(1)
    kernel = RWPO(potential_fn=gaussian_potential, proposal=proposal)
    mcmc = run_mcmc(kernel, num_warmup=200, num_samples=500, init_params=jnp.zeros(2))
    draws = mcmc.get_samples(group_by_chain=True)
    assert_moments({"x": draws}, {"x": gaussian_moments()})


def lasso_with_latent_scale() -> None:
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    weights = numpyro.sample("weights", dist.Laplace(0.0, scale).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(weights, 0.5).to_event(1), obs=jnp.array([1.0, -0.3]))


def test_density_in_standardized_coordinates() -> None:
    """Against the determinant of the change of coordinates, by automatic differentiation."""
    source = ModelSource(
        lasso_with_latent_scale,
        (),
        {},
        init_strategy=init_to_uniform,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    bound = source.bind((), {})
    to_values = partial(bound.emit, centering=jnp.zeros(()))
    users = dist.Normal(jnp.array([-0.5, 0.8, -0.2]), 0.4).to_event(1)
    proposal = change_coordinates(users, jnp.float32, bound.ravel, to_values)
    positions = proposal.sample(jax.random.key(0), 20)

    def flat(position: Any) -> Any:
        return ravel_pytree(to_values(position)[0])[0]

    expected = jax.vmap(users.log_prob)(jax.vmap(flat)(positions))
    expected += jnp.linalg.slogdet(jax.vmap(jax.jacfwd(flat))(positions))[1]
    np.testing.assert_allclose(proposal.log_prob(positions), expected, rtol=1e-5, atol=1e-5)
    with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions need it for batches.
        drawn = users.sample(jax.random.key(0), (20,))
    np.testing.assert_allclose(jax.vmap(flat)(positions), drawn, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_posterior_with_standardized_sites() -> None:
    """A wide proposal, that is only accepted now and then, against the run without one."""
    proposal = dist.Normal(jnp.array([-0.5, 0.5, -0.2]), 0.8).to_event(1)
    options: dict[str, Any] = {"num_warmup": 500, "num_samples": 4000, "num_chains": 4}
    runs = [
        run_mcmc(RWPO(lasso_with_latent_scale, proposal=p), **options) for p in (proposal, None)
    ]
    assert runs[0].last_state.move.num_jumps.max() >= 1
    draws, others = (run.get_samples(group_by_chain=True) for run in runs)
    for name, site in draws.items():
        # Twice the variance, as both means have errors.
        z = mcse_z(site, np.asarray(others[name], np.float64).mean((0, 1)))
        assert np.abs(z).max() < 4.5 * np.sqrt(2), (name, z)


@pytest.mark.parametrize(
    ("proposal", "error", "message"),
    [
        ("guide", TypeError, "`proposal` must be a numpyro.distributions.Distribution"),
        (dist.Normal(0.0, 1.0), ValueError, r"event shape \(dim,\); got Normal"),
        (dist.Normal(jnp.zeros(2), 1.0), ValueError, r"batch shape \(2,\).*to_event\(1\)"),
        (dist.Bernoulli(jnp.full(2, 0.5)).to_event(1), ValueError, "must be a continuous"),
    ],
)
def test_wrong_proposals(proposal: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RWPO(normal_mean, proposal=proposal)


def test_proposals_that_do_not_fit_the_model() -> None:
    two = RWPO(normal_mean, proposal=dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"of all 1 unconstrained parameters; got event shape \(2"):
        run_mcmc(two, Y)
    one = RWPO(normal_mean, proposal=dist.Normal(jnp.zeros(1), 1.0).to_event(1))
    with pytest.raises(ValueError, match="`init_params` would have no effect"):
        run_mcmc(one, Y, init_params={"mu": np.float32(0)})


def test_a_run_goes_on_with_its_own_proposal_only() -> None:
    """What a checkpoint compares (`tests/runs/test_checkpoint.py`) tells proposals apart."""

    def arguments(scale: float) -> dict[str, Any]:
        return RWPO(
            normal_mean, proposal=dist.Normal(0.0, scale).expand([1]).to_event(1)
        )._arguments.record()

    assert arguments(1.0) == arguments(1.0)
    assert arguments(1.0)["proposal"] != arguments(2.0)["proposal"]
    assert RWPO(normal_mean)._arguments.record()["proposal"] is None
