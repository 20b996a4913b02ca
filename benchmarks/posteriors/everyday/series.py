"""Time series."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

from benchmarks.posteriors.everyday.registry import Draws, Everyday, everyday, single


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

    return Everyday(model, (returns,))


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
