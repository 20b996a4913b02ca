"""Discrete sites that are summed out: density and sites are those that NUTS has.

NumPyro's ``initialize_model`` gives the potential that NUTS samples from and the function that
makes its draws; both are compared at one point, so that no run is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import Moments, assert_moments, light_kernel, run_mcmc
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import config_enumerate, markov
from numpyro.distributions.util import clamp_probs
from numpyro.infer import init_to_uniform
from numpyro.infer.util import initialize_model

from numpyro_rwpo import RWPO
from numpyro_rwpo.diagnostics.posterior import model_posterior
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.split_check import refused_sites, split_errors
from numpyro_rwpo.model.target import Differentiation

Y = np.array([0.3, 1.0, 2.0, -1.0, -1.4, -0.5], np.float32)
# NumPyro and funsor broadcast the values of enumerated sites, each on an axis of its own, silently.
pytestmark = pytest.mark.usefixtures("silent_broadcasting")

CAPTURES = (np.random.default_rng(0).random((8, 5)) < 0.5).astype(np.int32)


def parallel() -> dict[str, str]:
    """A new dictionary for every site: NumPyro writes into it."""
    return {"enumerate": "parallel"}


def mixture(y: Any) -> None:
    mean = numpyro.sample("mean", dist.Normal(jnp.array([-1.0, 1.0]), 1.0).to_event(1))
    share = numpyro.sample("share", dist.Beta(2.0, 2.0))
    numpyro.deterministic("doubled", 2 * mean)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(share), infer=parallel())
        numpyro.deterministic("of_each_value", mean[z])
        numpyro.sample("y", dist.Normal(mean[z], 1.0), obs=y)


@config_enumerate
def two_plates(y: Any) -> None:
    """Enumerated by a handler of the user's, with plates that the new dimensions must avoid."""
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("columns", 2, dim=-2):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(y), dim=-1):
            z = numpyro.sample("z", dist.Categorical(shares))
            numpyro.sample("y", dist.Normal(mean + z, 1.0), obs=jnp.asarray(y))


def laplace_sites_beside(y: Any) -> None:
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    mean = numpyro.sample("mean", dist.Laplace(0.0, scale).expand([2]).to_event(1))
    shift = numpyro.sample("shift", dist.Laplace(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.3), infer=parallel())
        noise = numpyro.sample("noise", dist.Laplace(0.0, 1.0 + z))
        numpyro.sample("y", dist.Normal(mean[z] + shift + noise, 1.0), obs=y)


def hidden_markov(y: Any) -> None:
    mean = numpyro.sample("mean", dist.Normal(jnp.array([-1.0, 1.0]), 1.0).to_event(1))
    rows = numpyro.sample("rows", dist.Dirichlet(jnp.ones(2)).expand([2]).to_event(1))

    def step(z: Any, y: Any) -> tuple[Any, None]:
        z = numpyro.sample("z", dist.Categorical(rows[z]), infer=parallel())
        numpyro.sample("y", dist.Normal(mean[z], 1.0), obs=y)
        return z, None

    scan(step, 0, jnp.asarray(y))


def hidden_markov_loop(y: Any) -> None:
    """The same in a Python loop, inside a scope."""
    with handlers.scope(prefix="chain"):
        stay = numpyro.sample("stay", dist.Beta(1.0, 1.0))
        z = 0
        for t in markov(range(len(y))):
            move = jnp.where(jnp.asarray(z) == 1, stay, 1 - stay)
            z = numpyro.sample(f"z_{t}", dist.Bernoulli(move), infer=parallel())
            numpyro.sample(f"y_{t}", dist.Normal(1.0 * z, 1.0), obs=y[t])


def noise_in_every_state(y: Any) -> None:
    """Continuous sites of which the hidden states' scan draws one at every step."""
    mean = numpyro.sample("mean", dist.Normal(jnp.array([-1.0, 1.0]), 1.0).to_event(1))

    def step(z: Any, y: Any) -> tuple[Any, None]:
        z = numpyro.sample("z", dist.Bernoulli(0.2 + 0.6 * z), infer=parallel())
        noise = numpyro.sample("noise", dist.Laplace(0.0, 0.5))
        numpyro.sample("y", dist.Normal(mean[z] + noise, 1.0), obs=y)
        return z, None

    scan(step, 0, jnp.asarray(y))


def capture_recapture(captures: Any) -> None:
    """Cormack, Jolly and Seber, as in NumPyro's examples: survival is seen through captures."""
    survival = numpyro.sample("survival", dist.Uniform(0.0, 1.0))
    recapture = numpyro.sample("recapture", dist.Uniform(0.0, 1.0))

    def step(carry: Any, y: Any) -> tuple[Any, None]:
        is_known, alive = carry
        with numpyro.plate("animals", len(captures), dim=-1), handlers.mask(mask=is_known):
            survives = dist.Bernoulli(clamp_probs(survival * alive))
            alive = numpyro.sample("alive", survives, infer=parallel())
            numpyro.sample("y", dist.Bernoulli(clamp_probs(recapture * alive)), obs=y)
        return (is_known | (y > 0), alive), None

    start = jnp.asarray(captures[:, 0] > 0), jnp.ones(len(captures), int)
    scan(step, start, jnp.asarray(captures[:, 1:].T))


def only_discrete(y: Any) -> None:
    z = numpyro.sample("z", dist.Bernoulli(0.3), infer=parallel())
    numpyro.sample("y", dist.Normal(z, 1.0), obs=y[0])


MODELS = [
    (mixture, Y, "", ""),
    (two_plates, Y, "", ""),
    (laplace_sites_beside, Y, "shift", "mean"),
    (hidden_markov, Y, "", ""),
    (hidden_markov_loop, Y, "", ""),
    (noise_in_every_state, Y, "", ""),
    (capture_recapture, CAPTURES, "", ""),
    (only_discrete, Y, "", ""),
]


@pytest.mark.parametrize(
    ("model", "data", "fixed", "rewritten"), MODELS, ids=lambda x: getattr(x, "__name__", "")
)
def test_density_and_draws_are_those_of_nuts(
    model: Callable[..., None], data: np.ndarray, fixed: str, rewritten: str
) -> None:
    source = ModelSource(
        model,
        (data,),
        {},
        init_strategy=init_to_uniform,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    split, bound = source.split, source.bind((data,), {})
    assert (set(split.fixed), set(split.rewritten)) == (set(fixed.split()), set(rewritten.split()))

    @jax.jit
    def evaluate(x: jax.Array, centering: jax.Array) -> tuple[Any, ...]:
        nuts = initialize_model(jax.random.key(0), model, model_args=(data,), dynamic_args=True)
        at = bound.target()._replace(centering=centering)
        potential = at.value_and_grad(x[None])[0][0] + at.prior_potential(x)
        for name, prior in split.site_priors((data,), {}).items():
            if name in split.fixed:
                potential += jnp.log(1 / prior.rate_left + 1 / prior.rate_right).sum()
        values, log_jacobian = bound.emit(x, centering)
        return (
            (potential - log_jacobian, bound.constrain(values)),
            (nuts.potential_fn(data)(values), nuts.postprocess_fn(data)(values)),
            split_errors(split, (data,), {}),
        )

    x = jax.random.normal(jax.random.key(1), (source.position(source.prototype).size,))
    for centering in (0.0, 1.0):
        ours, theirs, errors = evaluate(x, jnp.asarray(centering))
        assert not refused_sites(errors)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, theirs)


def test_density_of_a_mixture_by_hand() -> None:
    """NumPyro's sum is the one that is meant; `diagnose` evaluates the same density."""
    x = {"mean": np.array([-0.7, 1.2], np.float32), "share": np.float32(0.4)}
    samples = {name: np.asarray(value)[None, None] for name, value in x.items()}
    posterior = model_posterior(mixture, (Y,), {}, samples)
    density = dist.Normal(x["mean"], 1.0).log_prob(Y[:, None])
    density = jax.nn.logsumexp(density + np.log([0.6, 0.4]), axis=1).sum()
    prior = dist.Normal(np.array([-1.0, 1.0]), 1.0).log_prob(x["mean"]).sum()
    prior += dist.Beta(2.0, 2.0).log_prob(0.4) + np.log(0.4 * 0.6)  # and the logit's Jacobian
    np.testing.assert_allclose(
        posterior.evaluate(posterior.draws[0])[0], density + prior, rtol=1e-5
    )
    assert posterior.names == ["mean[0]", "mean[1]", "share"]


def test_moments_of_a_share() -> None:
    """Exact: a polynomial in the share, one factor for every row."""

    def model(y: Any) -> None:
        share = numpyro.sample("share", dist.Beta(2.0, 2.0))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(share), infer=parallel())
            numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)

    share = np.linspace(0, 1, 20_001)
    density = share * (1 - share)
    for y in np.float64(Y):
        density *= (1 - share) * np.exp(-0.5 * y**2) + share * np.exp(-0.5 * (y - 2) ** 2)
    density /= np.trapezoid(density, share)
    mean = np.trapezoid(density * share, share)
    variance = np.trapezoid(density * (share - mean) ** 2, share)
    kernel = light_kernel(model, num_particles=64)
    mcmc = run_mcmc(kernel, Y, num_warmup=100, num_samples=500, num_chains=4)
    assert_moments(mcmc.get_samples(group_by_chain=True), {"share": Moments(mean, variance)})


def test_without_funsor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpyro.contrib.funsor", None)
    with pytest.raises(ImportError, match="'z'.*summed out.*pip install funsor"):
        RWPO(mixture).init(jax.random.key(0), 4, None, (Y,), {})
