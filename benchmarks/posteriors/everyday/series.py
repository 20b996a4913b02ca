"""Time series."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax.experimental.ode import odeint
from jax.scipy.special import logsumexp
from numpyro.contrib.control_flow import scan

from benchmarks.posteriors.everyday.registry import (
    Draws,
    Everyday,
    IndependentSteps,
    everyday,
    single,
)


@everyday
def stochastic_volatility() -> Everyday:
    """Shape of ``stochastic_volatility.py``: 500 returns, in percent, of random-walk volatility."""
    rng = np.random.default_rng(0)
    log_volatility = np.cumsum(0.05 * rng.normal(size=500))
    returns = single(np.exp(log_volatility) * rng.standard_t(10, size=500))

    def model(returns: Any) -> None:
        sigma = numpyro.sample("sigma", dist.Exponential(50.0))
        walk = dist.GaussianRandomWalk(scale=sigma, num_steps=len(returns))
        s = numpyro.sample("s", walk)
        nu = numpyro.sample("nu", dist.Exponential(0.1))
        numpyro.sample("r", dist.StudentT(nu, 0.0, jnp.exp(s)), obs=returns)

    return Everyday(model, (returns,), reparam={"s": IndependentSteps()})


@everyday
def holt_winters() -> Everyday:
    """Shape of ``holt_winters.py``: exponential smoothing of 60 points, ten seasons."""
    rng = np.random.default_rng(0)
    t = np.linspace(0.0, 6.0, 60)
    y = single(np.sin(2 * np.pi * t) + 0.3 * t + 0.1 * rng.normal(size=60))

    def model(y: Any, num_seasons: int) -> None:
        level_smoothing = numpyro.sample("level_smoothing", dist.Beta(1.0, 1.0))
        trend_smoothing = numpyro.sample("trend_smoothing", dist.Beta(1.0, 1.0))
        seasonality_smoothing = numpyro.sample("seasonality_smoothing", dist.Beta(1.0, 1.0))
        season_weight = seasonality_smoothing * (1 - level_smoothing)
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        level_init = numpyro.sample("level_init", dist.Normal(0.0, 1.0))
        trend_init = numpyro.sample("trend_init", dist.Normal(0.0, 1.0))
        with numpyro.plate("seasons", num_seasons):
            seasonality_init = numpyro.sample("seasonality_init", dist.Normal(0.0, 1.0))

        def step(carry: Any, y: Any) -> Any:
            level, trend, seasons = carry
            expected, season = level + trend, seasons[0]
            numpyro.sample("y", dist.Normal(expected + season, noise), obs=y)
            new_level = level_smoothing * (y - season) + (1 - level_smoothing) * expected
            new_trend = trend_smoothing * (new_level - level) + (1 - trend_smoothing) * trend
            new_season = season_weight * (y - expected) + (1 - season_weight) * season
            return (new_level, new_trend, jnp.append(seasons[1:], new_season)), None

        scan(step, (level_init, trend_init, seasonality_init), y)

    return Everyday(model, (y, 10))


@everyday
def change_point() -> Everyday:
    """Counts of 74 days whose rate changes once, at a time of which only the day matters.

    Given the day, the rates have gamma posteriors, so that the posterior can be sampled exactly.
    """
    rng = np.random.default_rng(0)
    num_days = 74
    counts = np.r_[rng.poisson(18.0, 45), rng.poisson(22.5, num_days - 45)].astype(np.int32)
    alpha = float(1 / counts.mean())

    def model(counts: Any) -> None:
        first = numpyro.sample("lambda1", dist.Exponential(alpha))
        second = numpyro.sample("lambda2", dist.Exponential(alpha))
        tau = numpyro.sample("tau", dist.Uniform(0.0, 1.0))
        day = jnp.arange(len(counts))
        rate = jnp.where(day < tau * len(counts), first, second)
        with numpyro.plate("days", len(counts)):
            numpyro.sample("counts", dist.Poisson(rate), obs=counts)

    def exact(rng: np.random.Generator, number: int) -> Draws:
        from scipy.special import gammaln

        # With tau * num_days in (k - 1, k], the first k days have the first rate.
        before = np.arange(1, num_days + 1)
        sums = np.cumsum(counts)
        totals = np.stack([sums, sums[-1] - sums])
        lengths = np.stack([before, num_days - before])
        log_weight = (gammaln(totals + 1) - (totals + 1) * np.log(lengths + alpha)).sum(0)
        weight = np.exp(log_weight - log_weight.max())
        k = rng.choice(num_days, number, p=weight / weight.sum())
        rates = rng.gamma(totals[:, k] + 1, 1 / (lengths[:, k] + alpha))
        tau = (k + 1 - rng.random(number)) / num_days
        return {"lambda1": rates[0], "lambda2": rates[1], "tau": tau}

    return Everyday(model, (counts,), exact=exact)


@everyday
def autoregression() -> Everyday:
    """Shape of ``ar2.py``: an autoregression of order two, 142 points, by ``scan``."""
    rng = np.random.default_rng(0)
    y = single(np.sin(np.arange(142)) + 0.1 * rng.normal(size=142))

    def model(y: Any) -> None:
        alpha_1 = numpyro.sample("alpha_1", dist.Normal(0.0, 1.0))
        alpha_2 = numpyro.sample("alpha_2", dist.Normal(0.0, 1.0))
        const = numpyro.sample("const", dist.Normal(0.0, 1.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))

        def step(carry: Any, y: Any) -> Any:
            last, before = carry
            mean = const + alpha_1 * last + alpha_2 * before
            numpyro.sample("y", dist.Normal(mean, sigma), obs=y)
            return (y, last), None

        scan(step, (y[1], y[0]), y[2:])

    return Everyday(model, (y,))


@everyday
def global_trend() -> Everyday:
    """Shape of ``time_series_forecasting``: the SGT model of 80 counts with a season of 38.

    Level and seasonality are smoothed exponentially, the trend is a power of the level, and the
    noise is Student-t with a scale that grows with the level.
    """
    rng = np.random.default_rng(0)
    phase = 2 * np.pi * np.arange(80) / 38
    y = single(
        np.exp(7.0 + 1.2 * np.sin(phase) + 0.5 * np.sin(4 * phase) + 0.15 * rng.normal(size=80))
    )

    def model(y: Any, seasonality: int) -> None:
        cauchy_sd = float(np.max(y)) / 150
        nu = numpyro.sample("nu", dist.Uniform(2.0, 20.0))
        powx = numpyro.sample("powx", dist.Uniform(0.0, 1.0))
        sigma = numpyro.sample("sigma", dist.HalfCauchy(cauchy_sd))
        offset = dist.TruncatedCauchy(low=1e-10, loc=1e-10, scale=cauchy_sd)
        offset_sigma = numpyro.sample("offset_sigma", offset)
        level_sm = numpyro.sample("level_sm", dist.Beta(1.0, 2.0))
        s_sm = numpyro.sample("s_sm", dist.Uniform(0.0, 1.0))
        init_s = numpyro.sample("init_s", dist.Cauchy(0.0, y[:seasonality] * 0.3))
        pow_trend = numpyro.sample("pow_trend", dist.Beta(2.0, 2.0)) * 1.5 - 0.5
        coef_trend = numpyro.sample("coef_trend", dist.Cauchy(0.0, cauchy_sd))

        def step(carry: Any, y: Any) -> Any:
            level, season = carry
            expected = jnp.clip(level + coef_trend * level**pow_trend + season[0], 0.0)
            scale = sigma * expected**powx + offset_sigma
            numpyro.sample("y", dist.StudentT(nu, expected, scale), obs=y)
            new_level = jnp.clip(level_sm * (y - season[0]) + (1 - level_sm) * level, 0.0)
            new_season = s_sm * (y - new_level) + (1 - s_sm) * season[0]
            return (new_level, jnp.append(season[1:], new_season)), None

        scan(step, (y[0], init_s), y[1:])

    return Everyday(model, (y, 38))


@everyday
def predator_prey() -> Everyday:
    """Shape of ``ode.py``: Lotka-Volterra equations on two populations over 21 years."""
    rng = np.random.default_rng(0)
    times = single(np.arange(21))

    def slope(z: Any, t: Any, theta: Any) -> Any:
        prey, predator = z
        alpha, beta, gamma, delta = theta
        return jnp.stack([(alpha - beta * predator) * prey, (delta * prey - gamma) * predator])

    def solve(start: Any, theta: Any, **tolerances: float) -> Any:
        return odeint(slope, start, times, theta, **tolerances)

    truth = np.log(solve(jnp.array([33.0, 6.0]), jnp.array([0.55, 0.028, 0.8, 0.024])))
    y = single(truth + 0.2 * rng.normal(size=(21, 2)))

    def model(y: Any) -> None:
        start = numpyro.sample("z_init", dist.LogNormal(jnp.log(10.0), jnp.ones(2)))
        loc = jnp.array([1.0, 0.05, 1.0, 0.05])
        scale = jnp.array([0.5, 0.05, 0.5, 0.05])
        theta = numpyro.sample("theta", dist.TruncatedNormal(loc, scale, low=0.0))
        z = solve(start, theta, rtol=1e-6, atol=1e-5, mxstep=1000)
        sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, jnp.ones(2)))
        numpyro.sample("y", dist.Normal(jnp.log(z), sigma), obs=y)

    return Everyday(model, (y,))


@everyday
def hidden_markov() -> Everyday:
    """Shape of ``hmm.py``: three categories and ten words, 100 labeled and 200 unlabeled ones.

    The unlabeled categories are summed over by the forward algorithm.
    """
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(3), 3)
    emission = rng.dirichlet(np.full(10, 0.3), 3)
    category = [0]
    for _ in range(299):
        category.append(rng.choice(3, p=transition[category[-1]]))
    words = np.array([rng.choice(10, p=emission[c]) for c in category], np.int32)
    categories = np.array(category[:100], np.int32)

    def model(categories: Any, words: Any, unlabeled: Any) -> None:
        transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((3, 3))))
        emission = numpyro.sample("emission", dist.Dirichlet(jnp.full((3, 10), 0.1)))
        moves = dist.Categorical(transition[categories[:-1]])
        numpyro.sample("categories", moves, obs=categories[1:])
        numpyro.sample("words", dist.Categorical(emission[categories]), obs=words)
        log_transition, log_emission = jnp.log(transition), jnp.log(emission)

        def step(log_alpha: Any, word: Any) -> Any:
            moved = logsumexp(log_alpha[:, None] + log_transition, 0)
            return moved + log_emission[:, word], None

        last, _ = lax.scan(step, log_emission[:, unlabeled[0]], unlabeled[1:])
        numpyro.factor("unlabeled", logsumexp(last))

    return Everyday(model, (categories, words[:100], words[100:]))


@everyday
def capture_recapture() -> Everyday:
    """Shape of ``capture_recapture.py``: survival of 300 birds over seven years.

    Whether a bird that is not seen again is alive is summed over, by the chance of not being seen.
    """
    rng = np.random.default_rng(0)
    num_birds, num_years = 300, 7
    first = rng.integers(0, num_years - 1, num_birds)
    seen = np.zeros((num_birds, num_years), np.int32)
    for bird, year in enumerate(first):
        seen[bird, year] = 1
        while year + 1 < num_years and rng.random() < 0.6:
            year += 1
            seen[bird, year] = rng.random() < 0.5
    last = num_years - 1 - np.argmax(seen[:, ::-1], 1)
    year = np.arange(1, num_years)
    between = (year > first[:, None]) & (year <= last[:, None])
    counts = np.stack([(between & (seen[:, 1:] == s)).sum(0) for s in (0, 1)])
    lasts = np.bincount(last, minlength=num_years).astype(np.float32)

    def model(counts: Any, lasts: Any) -> None:
        phi = numpyro.sample("phi", dist.Uniform(jnp.zeros(num_years - 1), 1.0))
        rho = numpyro.sample("rho", dist.Uniform(0.0, 1.0))
        unseen = [jnp.ones(())]  # chance of not being seen after a year, from the last year back
        for t in reversed(range(num_years - 1)):
            unseen.append(1 - phi[t] + phi[t] * (1 - rho) * unseen[-1])
        survived = counts.sum(0) @ jnp.log(phi)
        watched = counts[0].sum() * jnp.log1p(-rho) + counts[1].sum() * jnp.log(rho)
        gone = lasts @ jnp.log(jnp.stack(unseen[::-1]))
        numpyro.factor("log_likelihood", survived + watched + gone)

    return Everyday(model, (counts.astype(np.float32), lasts))
