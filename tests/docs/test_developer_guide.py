"""What the developer guide shows: a new prior and a new attention head, held to the package's own
standards. Those of a prior are in tests/priors/test_contract_of_priors.py, which runs it, too."""

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

from numpyro_rwpo import RWPO, fit_joint, laplace_prior

# The examples are written as users write, without a thought for rank promotion.
pytestmark = pytest.mark.usefixtures("silent_broadcasting")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "developer"
MAX_LINES = {"normal_prior.py": 120, "gaussian_head.py": 60}


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


@pytest.mark.parametrize("name", list(MAX_LINES))
def test_short(name: str) -> None:
    assert len((FOLDER / name).read_text().splitlines()) <= MAX_LINES[name]


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
        RWPO(normal_pair, attention=example["fit_gaussian"], corrected=False, num_particles=100),
        num_warmup=150,
        num_samples=100,
    )
    draws = np.asarray(mcmc.get_samples()["x"])
    covariance = np.cov(draws.T)
    smoothed = covariance + 0.2 * np.diag(np.diag(covariance)) * 99 / 100
    np.testing.assert_allclose(draws.mean(0), [1.0, -2.0], atol=0.02)
    np.testing.assert_allclose(smoothed, [[1.0, 0.7], [0.7, 2.0]], atol=0.05)
