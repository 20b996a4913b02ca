"""Hierarchical models: groups that share what is known of them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import expit

from benchmarks.posteriors.everyday.registry import Everyday, everyday, single


@everyday
def crossed_effects() -> Everyday:
    """600 binary responses with crossed random effects of 40 and 25 levels, both centered."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.0, 1.0, 40), rng.normal(0.0, 0.5, 25)
    row, column = rng.integers(0, 40, 600), rng.integers(0, 25, 600)
    y = rng.binomial(1, expit(-0.3 + a[row] + b[column])).astype(np.int32)

    def model(row: Any, column: Any, y: Any) -> None:
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
        sa = numpyro.sample("sa", dist.HalfNormal(1.0))
        sb = numpyro.sample("sb", dist.HalfNormal(1.0))
        with numpyro.plate("rows", 40):
            a = numpyro.sample("a", dist.Normal(0.0, sa))
        with numpyro.plate("columns", 25):
            b = numpyro.sample("b", dist.Normal(0.0, sb))
        logits = intercept + a[row] + b[column]
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return Everyday(model, (row.astype(np.int32), column.astype(np.int32), y))


@everyday
def ucb_admissions() -> Everyday:
    """Varying slopes on twelve rows, as in ``ucbadmit.py``: admissions to six departments.

    Source of the data: Bickel, Hammel and O'Connell (1975), *Sex bias in graduate admissions*.
    """
    applications = np.array([825, 108, 560, 25, 325, 593, 417, 375, 191, 393, 373, 341], np.int32)
    admitted = np.array([512, 89, 353, 17, 120, 202, 138, 131, 53, 94, 22, 24], np.int32)
    department = np.repeat(np.arange(6, dtype=np.int32), 2)
    is_male = np.tile(np.array([1, 0], np.int32), 6)

    def model(department: Any, is_male: Any, applications: Any, admitted: Any) -> None:
        v_mu = numpyro.sample("v_mu", dist.Normal(0.0, jnp.array([4.0, 1.0])))
        sigma = numpyro.sample("sigma", dist.HalfNormal(jnp.ones(2)))
        factor = numpyro.sample("L_Rho", dist.LKJCholesky(2, concentration=2.0))
        z = numpyro.sample("z", dist.Normal(jnp.zeros((2, 6)), 1.0))
        v = numpyro.deterministic("v", (sigma[:, None] * factor @ z).T)
        logits = v_mu[0] + v[department, 0] + (v_mu[1] + v[department, 1]) * is_male
        numpyro.sample("admitted", dist.Binomial(applications, logits=logits), obs=admitted)

    return Everyday(model, (department, is_male, applications, admitted))


@everyday
def varying_slopes() -> Everyday:
    """Waiting times at 20 cafes, mornings and afternoons: correlated intercepts and slopes."""
    rng = np.random.default_rng(0)
    num_cafes, visits = 20, 10
    covariance = np.array([[1.0, -0.35], [-0.35, 0.25]])
    effects = rng.multivariate_normal([3.5, -1.0], covariance, num_cafes)
    cafe = np.repeat(np.arange(num_cafes, dtype=np.int32), visits)
    afternoon = np.tile(np.array([0.0, 1.0], np.float32), num_cafes * visits // 2)
    wait = effects[cafe, 0] + effects[cafe, 1] * afternoon + 0.5 * rng.normal(size=len(cafe))

    def model(cafe: Any, afternoon: Any, wait: Any) -> None:
        mean = numpyro.sample("mean", dist.Normal(jnp.array([5.0, -1.0]), jnp.array([2.0, 0.5])))
        sigma_cafe = numpyro.sample("sigma_cafe", dist.Exponential(jnp.ones(2)))
        sigma = numpyro.sample("sigma", dist.Exponential(1.0))
        factor = numpyro.sample("factor", dist.LKJCholesky(2, concentration=2.0))
        with numpyro.plate("cafes", num_cafes):
            scale = sigma_cafe[:, None] * factor
            effect = numpyro.sample("effect", dist.MultivariateNormal(mean, scale_tril=scale))
        location = effect[cafe, 0] + effect[cafe, 1] * afternoon
        numpyro.sample("wait", dist.Normal(location, sigma), obs=wait)

    return Everyday(model, (cafe, afternoon, single(wait)))


AT_BATS = np.full(18, 45, np.int32)
HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7], np.int32)


@everyday
def pooled_binomial() -> Everyday:
    """Batting averages of ``baseball.py``, partially pooled: Beta with a Pareto concentration.

    Source of the data: Efron and Morris (1975), *Data analysis using Stein's estimator and its
    generalizations*, table 1.
    """

    def model(at_bats: Any, hits: Any) -> None:
        m = numpyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = numpyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with numpyro.plate("players", 18):
            phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            numpyro.sample("hits", dist.Binomial(at_bats, probs=phi), obs=hits)

    return Everyday(model, (AT_BATS, HITS))


@everyday
def baseball_logit() -> Everyday:
    """Batting averages of ``baseball.py``, partially pooled on the scale of the logits."""

    def model(at_bats: Any, hits: Any) -> None:
        loc = numpyro.sample("loc", dist.Normal(-1.0, 1.0))
        scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
        with numpyro.plate("players", 18):
            alpha = numpyro.sample("alpha", dist.Normal(loc, scale))
            numpyro.sample("hits", dist.Binomial(at_bats, logits=alpha), obs=hits)

    return Everyday(model, (AT_BATS, HITS), noncentered=("alpha",))


EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)
STANDARD_ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], np.float32)


@everyday
def eight_schools_centered() -> Everyday:
    """Eight schools, centered: a funnel. Source of the data: Rubin (1981)."""

    def model(sigma: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return Everyday(model, (STANDARD_ERRORS, EFFECTS), noncentered=("theta",))


@everyday
def eight_schools_noncentered() -> Everyday:
    """Eight schools, non-centered."""

    def model(sigma: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            theta = numpyro.deterministic("theta", mu + tau * z)
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    return Everyday(model, (STANDARD_ERRORS, EFFECTS))
