"""The developer guide: its map of modules, and the new prior and the new attention head that it
shows, which are held to the package's own standards."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import run_mcmc
from numpy.typing import NDArray

from numpyro_rwpo import RWPO, fit_joint, laplace_prior

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "developer"
MAX_LINES = 60  # what the guide promises


def test_the_map_is_that_of_the_code() -> None:
    """Every module is in the guide, with the first line of its docstring."""
    program = runpy.run_path(str(ROOT / "docs" / "module_map.py"))
    guide = program["GUIDE"].read_text()
    listed = set(re.findall(r"^\| `([\w.]+)` \|", guide, flags=re.MULTILINE))
    for path in (ROOT / "numpyro_rwpo").rglob("*.py"):
        folder, *inner = path.relative_to(ROOT / "numpyro_rwpo").with_suffix("").parts
        if inner and inner[-1] != "__init__":
            assert ".".join(inner) in listed, f"{path} is missing in docs/developer-guide.md"
    assert program["with_map"](guide) == guide, (
        "run `python docs/module_map.py` and commit the guide"
    )


@pytest.fixture
def example(request: pytest.FixtureRequest) -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / request.param))


prior_example = pytest.mark.parametrize("example", ["normal_prior.py"], indirect=True)
head_example = pytest.mark.parametrize("example", ["gaussian_head.py"], indirect=True)


@pytest.mark.parametrize("name", ["normal_prior.py", "gaussian_head.py"])
def test_short(name: str) -> None:
    assert len((FOLDER / name).read_text().splitlines()) <= MAX_LINES


def grid(y: float) -> NDArray[np.float64]:
    return np.linspace(y - 30, y + 30, 60_001)


@prior_example
@pytest.mark.parametrize("y", [-2.0, 0.4, 3.0])
def test_prior_against_quadrature(example: dict[str, Any], y: float) -> None:
    location, precision, time, beta = 0.5, 3.0, 0.2, 1.7
    prior = example["NormalPrior"](jnp.array(location), jnp.array(precision))
    x = grid(y)
    potential = 0.5 * precision * (x - location) ** 2
    density = np.exp(-beta / 2 * (potential + (x - y) ** 2 / (2 * time)))
    total = np.trapezoid(density, x)
    assert prior.log_normalizer(jnp.array(y), time, beta) == pytest.approx(np.log(total), abs=1e-4)

    draws = prior.sample(jax.random.key(0), jnp.full(100_000, y), time, beta)
    mean = np.trapezoid(x * density, x) / total
    sd = np.sqrt(np.trapezoid((x - mean) ** 2 * density, x) / total)
    # Four standard errors of the mean and of the standard deviation of normal draws.
    assert draws.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(len(draws)))
    assert draws.std() == pytest.approx(sd, abs=4 * sd / np.sqrt(2 * len(draws)))

    objective = potential + (x - y) ** 2 / (2 * time)
    assert prior.prox(y, time) == pytest.approx(x[objective.argmin()], abs=2e-3)
    envelope = (y - prior.prox(y, time)) / time
    assert prior.moreau_gradient(y, time) == pytest.approx(float(envelope), rel=1e-4)
    assert prior.subgradient(y) == pytest.approx(float(jax.grad(prior.potential)(y)), rel=1e-5)


@prior_example
def test_prior_flow(example: dict[str, Any]) -> None:
    prior = example["NormalPrior"](jnp.array(0.5), jnp.array(3.0))
    x, p = prior.hamiltonian_flow(jnp.array(2.0), jnp.array(-1.0), 1.3)
    before = 0.5 + prior.potential(jnp.array(2.0))
    assert 0.5 * p**2 + prior.potential(x) == pytest.approx(float(before), rel=1e-5)
    rate = jax.jvp(lambda t: prior.hamiltonian_flow(2.0, -1.0, t), (1.3,), (1.0,))[1]
    assert rate[0] == pytest.approx(float(p), rel=1e-4)
    assert rate[1] == pytest.approx(-float(prior.subgradient(x)), rel=1e-4)


@prior_example
def test_prior_in_the_joint_head(example: dict[str, Any]) -> None:
    particles = jax.random.normal(jax.random.key(1), (50, 2))
    prior = example["NormalPrior"](jnp.zeros(2), jnp.array([1.0, 4.0]))
    density = fit_joint(particles, prior, 0.2)
    gradient = jax.vmap(jax.grad(lambda x: density.log_prob(x)))(particles)
    np.testing.assert_allclose(density.score(particles), gradient, atol=1e-4)


@head_example
def test_head_is_a_density(example: dict[str, Any]) -> None:
    particles = jax.random.normal(jax.random.key(2), (40, 1)) + 1.0
    density = example["fit_gaussian"](particles, laplace_prior(1.0), 0.2)
    x = jnp.linspace(-20, 20, 4001)[:, None]
    assert jnp.trapezoid(jnp.exp(density.log_prob(x)), x[:, 0]) == pytest.approx(1, abs=1e-4)
    gradient = jax.vmap(jax.grad(lambda x: density.log_prob(x)))(particles)
    np.testing.assert_allclose(density.score(particles), gradient, rtol=1e-4, atol=1e-5)
    draws = density.sample(jax.random.key(3), 100_000)
    sd = float(density.factor[0, 0])
    assert draws.mean() == pytest.approx(float(density.mean[0]), abs=4 * sd / np.sqrt(len(draws)))


def normal_pair() -> None:
    covariance = jnp.array([[1.0, 0.7], [0.7, 2.0]])
    numpyro.sample("x", dist.MultivariateNormal(jnp.array([1.0, -2.0]), covariance))


@head_example
def test_head_in_the_sampler(example: dict[str, Any]) -> None:
    """On a normal target the flow rests where smoothing with T = 0.1 variances says: at sd /1.2.

    Smoothed, the particles fit the target: S + 0.2 diag(S) is its covariance, exactly but for the
    residual at which the flow stops.
    """
    mcmc = run_mcmc(
        RWPO(normal_pair, attention=example["fit_gaussian"], correction=None, num_particles=100),
        num_warmup=150,
        num_samples=100,
    )
    draws = np.asarray(mcmc.get_samples()["x"])
    covariance = np.cov(draws.T)
    smoothed = covariance + 0.2 * np.diag(np.diag(covariance)) * 99 / 100
    np.testing.assert_allclose(draws.mean(0), [1.0, -2.0], atol=0.02)
    np.testing.assert_allclose(smoothed, [[1.0, 0.7], [0.7, 2.0]], atol=0.05)
