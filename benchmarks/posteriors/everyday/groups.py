"""Hierarchical models: groups that share what is known of them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import expit

from benchmarks.posteriors.everyday.registry import Everyday, everyday, noncentered, single


@everyday
def crossed_effects() -> Everyday:
    """600 binary responses with crossed random effects of 40 and 25 levels, both centered."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.0, 1.0, 40), rng.normal(0.0, 0.8, 25)
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

    data = (row.astype(np.int32), column.astype(np.int32), y)
    return Everyday(model, data, reparam=noncentered("a", "b"))


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

    return Everyday(model, (AT_BATS, HITS), reparam=noncentered("alpha"))


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

    return Everyday(model, (STANDARD_ERRORS, EFFECTS), reparam=noncentered("theta"))


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


@everyday
def hierarchical_linear() -> Everyday:
    """Shape of ``bayesian_hierarchical_linear_regression``: lung capacity of 100 patients."""
    rng = np.random.default_rng(0)
    num_patients, visits = 100, 8
    patient = np.repeat(np.arange(num_patients, dtype=np.int32), visits)
    week = rng.normal(size=num_patients * visits)
    intercept, slope = rng.normal(0.0, 1.0, num_patients), rng.normal(-0.2, 0.1, num_patients)
    y = intercept[patient] + slope[patient] * week + 0.2 * rng.normal(size=len(week))

    def model(patient: Any, week: Any, y: Any) -> None:
        mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 1.0))
        sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(1.0))
        mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 1.0))
        sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(1.0))
        with numpyro.plate("patients", num_patients):
            a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
            b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(a[patient] + b[patient] * week, sigma), obs=y)

    return Everyday(model, (patient, single(week), single(y)))


@everyday
def radon() -> Everyday:
    """Shape of ``bad_posterior_geometry``'s hierarchy: 400 houses in 85 counties, many tiny."""
    rng = np.random.default_rng(0)
    size = rng.geometric(0.2, 85)
    county = np.repeat(np.arange(85), size)[:400].astype(np.int32)
    county = np.concatenate([county, rng.integers(0, 85, 400 - len(county))]).astype(np.int32)
    basement = rng.integers(0, 2, 400)
    level = 1.5 + 0.15 * rng.normal(size=85)
    y = level[county] - 0.6 * basement + 0.75 * rng.normal(size=400)

    def model(county: Any, basement: Any, y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
        floor = numpyro.sample("floor", dist.Normal(0.0, 5.0))
        with numpyro.plate("counties", 85):
            alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(1.0))
        numpyro.sample("y", dist.Normal(alpha[county] + floor * basement, sigma), obs=y)

    data = (county, single(basement), single(y))
    return Everyday(model, data, reparam=noncentered("alpha"))


@everyday
def rugby() -> Everyday:
    """Scores of 60 matches of six teams.

    A constant added to all attacks and to all defenses changes nothing but the prior: a ridge.
    """
    rng = np.random.default_rng(0)
    pairs = np.array([(i, j) for i in range(6) for j in range(6) if i != j] * 2, np.int32)
    attack, defense = 0.3 * rng.normal(size=6), 0.3 * rng.normal(size=6)
    home_rate = np.exp(3.0 + 0.2 + attack[pairs[:, 0]] - defense[pairs[:, 1]])
    away_rate = np.exp(3.0 + attack[pairs[:, 1]] - defense[pairs[:, 0]])
    scores = rng.poisson(np.stack([home_rate, away_rate], 1)).astype(np.int32)

    def model(pairs: Any, scores: Any) -> None:
        intercept = numpyro.sample("intercept", dist.Normal(3.0, 1.0))
        home = numpyro.sample("home", dist.Normal(0.0, 0.5))
        scale = numpyro.sample("scale", dist.HalfNormal(jnp.ones(2)))
        with numpyro.plate("teams", 6):
            attack = numpyro.sample("attack", dist.Normal(0.0, scale[0]))
            defense = numpyro.sample("defense", dist.Normal(0.0, scale[1]))
        first, second = pairs[:, 0], pairs[:, 1]
        log_home = intercept + home + attack[first] - defense[second]
        log_away = intercept + attack[second] - defense[first]
        rates = jnp.exp(jnp.stack([log_home, log_away], 1))
        numpyro.sample("scores", dist.Poisson(rates).to_event(2), obs=scores)

    return Everyday(model, (pairs, scores))
