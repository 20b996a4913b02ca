"""Regressions with plain priors, networks and Gaussian processes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.posteriors.everyday.registry import Everyday, everyday, single


@everyday
def bayesian_network() -> Everyday:
    """Shape of ``bnn.py``: a network 3-5-5-1 with normal weights and 100 rows.

    Hidden units can be exchanged and change signs, so it is the network's values that are compared.
    """
    rng = np.random.default_rng(0)
    x = np.linspace(-1.0, 1.0, 100)
    X = np.power(x[:, None], np.arange(3))
    y = X @ (0.5 * rng.normal(size=3)) + 0.5 * (0.5 + x) ** 2 * np.sin(4.0 * x)
    y += 0.05 * rng.normal(size=100)
    y = (y - y.mean()) / y.std()

    def model(X: Any, y: Any, num_hidden: int) -> None:
        def weights(name: str, *shape: int) -> Any:
            return numpyro.sample(name, dist.Normal(jnp.zeros(shape), jnp.ones(shape)))

        hidden = jnp.tanh(X @ weights("w1", X.shape[1], num_hidden))
        hidden = jnp.tanh(hidden @ weights("w2", num_hidden, num_hidden))
        mean = hidden @ weights("w3", num_hidden, 1)
        numpyro.deterministic("mean", mean[::11, 0])
        prec_obs = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Normal(mean, 1.0 / jnp.sqrt(prec_obs)), obs=y)

    return Everyday(model, (single(X), single(y[:, None]), 5), sites=("mean", "prec_obs"))


@everyday
def gaussian_process() -> Everyday:
    """Shape of ``gp.py``: the three parameters of a squared-exponential kernel on 25 points."""
    x = np.linspace(-1.0, 1.0, 25)
    y = x + 0.2 * x**3 + 0.5 * (0.5 + x) ** 2 * np.sin(4.0 * x)
    y += 0.15 * np.random.default_rng(0).normal(size=25)
    y = (y - y.mean()) / y.std()

    def model(x: Any, y: Any) -> None:
        variance = numpyro.sample("kernel_var", dist.LogNormal(0.0, 10.0))
        noise = numpyro.sample("kernel_noise", dist.LogNormal(0.0, 10.0))
        length = numpyro.sample("kernel_length", dist.LogNormal(0.0, 10.0))
        kernel = variance * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
        covariance = kernel + (noise + 1e-6) * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(0.0, covariance_matrix=covariance), obs=y)

    return Everyday(model, (single(x), single(y)))


@everyday
def hilbert_space_process() -> Everyday:
    """Shape of ``hsgp_example``: a Gaussian process by 20 basis functions, 100 points."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1.0, 1.0, 100)
    y = single(np.sin(4.0 * x) + 0.3 * rng.normal(size=100))
    frequency = single(np.arange(1, 21) * np.pi / 3.0)  # of functions that vanish at +- 1.5
    basis = single(np.sin(frequency * (x[:, None] + 1.5)) / np.sqrt(1.5))

    def model(frequency: Any, basis: Any, y: Any) -> None:
        alpha = numpyro.sample("alpha", dist.HalfNormal(1.0))
        length = numpyro.sample("length", dist.InverseGamma(5.0, 2.0))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        density = jnp.sqrt(2 * jnp.pi) * length * jnp.exp(-0.5 * (length * frequency) ** 2)
        with numpyro.plate("basis", len(frequency)):
            beta = numpyro.sample("beta", dist.Normal(0.0, 1.0))
        f = basis @ (alpha * jnp.sqrt(density) * beta)
        numpyro.sample("y", dist.Normal(f, noise), obs=y)

    return Everyday(model, (frequency, basis, y))


@everyday
def linear_regression() -> Everyday:
    """Shape of ``bayesian_regression``: 50 divorce rates on two standardized covariates."""
    rng = np.random.default_rng(0)
    age = rng.normal(size=50)
    marriage = -0.7 * age + 0.7 * rng.normal(size=50)
    divorce = single(-0.6 * age + 0.8 * rng.normal(size=50))

    def model(marriage: Any, age: Any, divorce: Any) -> None:
        a = numpyro.sample("a", dist.Normal(0.0, 0.2))
        slope_marriage = numpyro.sample("bM", dist.Normal(0.0, 0.5))
        slope_age = numpyro.sample("bA", dist.Normal(0.0, 0.5))
        sigma = numpyro.sample("sigma", dist.Exponential(1.0))
        mean = a + slope_marriage * marriage + slope_age * age
        numpyro.sample("divorce", dist.Normal(mean, sigma), obs=divorce)

    return Everyday(model, (single(marriage), single(age), divorce))


@everyday
def logistic_regression() -> Everyday:
    """Shape of ``covtype.py``, small: 2,000 rows, 54 columns, most of them rare indicators."""
    rng = np.random.default_rng(0)
    indicators = rng.random((2000, 44)) < rng.uniform(0.01, 0.2, 44)
    X = np.concatenate([rng.normal(size=(2000, 10)), indicators], 1)
    X = (X - X.mean(0)) / X.std(0)
    logits = X @ (0.5 * rng.normal(size=54))
    y = rng.binomial(1, 1 / (1 + np.exp(-logits))).astype(np.int32)

    def model(X: Any, y: Any) -> None:
        coefs = numpyro.sample("coefs", dist.Normal(jnp.zeros(X.shape[1]), 1.0))
        numpyro.sample("y", dist.Bernoulli(logits=X @ coefs), obs=y)

    return Everyday(model, (single(X), y))


@everyday
def proportion_test() -> Everyday:
    """Shape of ``proportion_test.py``: conversions of 2,000 visitors in two groups."""
    rng = np.random.default_rng(0)
    design = single(np.stack([np.ones(2000), np.arange(2000) % 2, rng.normal(size=2000)], 1))
    logits = design @ [-1.5, 0.3, 0.5]
    y = rng.binomial(1, 1 / (1 + np.exp(-logits))).astype(np.int32)

    def model(design: Any, y: Any) -> None:
        prior = dist.Normal(0.0, jnp.array([2.0, 1.0, 1.0]))
        coefs = numpyro.sample("coefs", prior)
        numpyro.sample("y", dist.Bernoulli(logits=design @ coefs), obs=y)

    return Everyday(model, (design, y))


@everyday
def zero_inflated_poisson() -> Everyday:
    """Counts of 250 groups of visitors who caught fish, or did not fish at all."""
    rng = np.random.default_rng(0)
    X = np.concatenate([np.ones((250, 1)), rng.normal(size=(250, 3))], 1)
    gate = 1 / (1 + np.exp(-X @ [-0.3, 0.5, 0.0, -0.5]))
    rate = np.exp(X @ [1.0, 0.4, -0.3, 0.2])
    y = np.where(rng.random(250) < gate, 0, rng.poisson(rate)).astype(np.int32)

    def model(X: Any, y: Any) -> None:
        b1 = numpyro.sample("b1", dist.Normal(jnp.zeros(X.shape[1]), 1.0))
        b2 = numpyro.sample("b2", dist.Normal(jnp.zeros(X.shape[1]), 1.0))
        counts = dist.Poisson(jnp.exp(X @ b1))
        zero_inflated = dist.ZeroInflatedDistribution(counts, gate_logits=X @ b2)
        numpyro.sample("y", zero_inflated, obs=y)

    return Everyday(model, (single(X), y))


@everyday
def ordinal_regression() -> Everyday:
    """Shape of ``ordinal_regression``: 50 responses in three ordered classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    latent = 1.5 * x + rng.logistic(size=50)
    y = np.digitize(latent, [-1.0, 1.2]).astype(np.int32)

    def model(x: Any, y: Any) -> None:
        slope = numpyro.sample("b", dist.Normal(0.0, 2.0))
        to_ordered = dist.transforms.SimplexToOrderedTransform(0.0)
        cutpoints = dist.TransformedDistribution(dist.Dirichlet(jnp.ones(3)), to_ordered)
        c = numpyro.sample("c", cutpoints)
        numpyro.sample("y", dist.OrderedLogistic(slope * x, c), obs=y)

    return Everyday(model, (single(x), y))


@everyday
def censored_times() -> Everyday:
    """Shape of ``censoring``: times until 100 cases are done, half of them still running."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2))
    time = rng.exponential(np.exp(1.0 + x @ [0.5, -0.3]))
    limit = rng.uniform(1.0, 5.0, 100)
    is_censored = time > limit
    time = np.minimum(time, limit)

    def model(x: Any, time: Any, is_censored: Any) -> None:
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
        slopes = numpyro.sample("slopes", dist.Normal(jnp.zeros(2), 1.0))
        shape = numpyro.sample("shape", dist.LogNormal(0.0, 0.5))
        times = dist.Weibull(jnp.exp(intercept + x @ slopes), shape)
        survival = -((time / times.scale) ** shape)
        log_likelihood = jnp.where(is_censored, survival, times.log_prob(time))
        numpyro.factor("log_likelihood", log_likelihood.sum())

    return Everyday(model, (single(x), single(time), is_censored))


@everyday
def truncated_data() -> Everyday:
    """Shape of ``truncated_distributions``: 200 normal values of which only high ones are seen."""
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 2.0, 2000)
    y = single(values[values > 0.5][:200])

    def model(y: Any) -> None:
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        numpyro.sample("y", dist.TruncatedNormal(loc, scale, low=0.5), obs=y)

    return Everyday(model, (y,))


@everyday
def imputation() -> Everyday:
    """Shape of ``bayesian_imputation``: survival of 300 passengers, 60 of unknown age."""
    rng = np.random.default_rng(0)
    title, is_female = rng.integers(0, 4, 300), rng.integers(0, 2, 300)
    age = np.array([0.2, -0.5, 0.6, -1.2])[title] + 0.7 * rng.normal(size=300)
    logits = -0.8 + 2.0 * is_female - 0.4 * age
    survived = rng.binomial(1, 1 / (1 + np.exp(-logits))).astype(np.int32)
    missing = np.sort(rng.choice(300, 60, replace=False)).astype(np.int32)
    age[missing] = 0.0

    def model(title: Any, is_female: Any, age: Any, survived: Any) -> None:
        mu = numpyro.sample("age_mu", dist.Normal(jnp.zeros(4), 1.0))[title]
        sigma = numpyro.sample("age_sigma", dist.HalfNormal(jnp.ones(4)))[title]
        imputed = numpyro.sample("age_missing", dist.Normal(mu[missing], sigma[missing]))
        whole = jnp.asarray(age).at[missing].set(imputed)
        known = jnp.ones(len(age), bool).at[missing].set(False)
        numpyro.sample("age", dist.Normal(mu, sigma).mask(known), obs=age)
        intercept = numpyro.sample("a", dist.Normal(0.0, 1.0))
        female = numpyro.sample("b_female", dist.Normal(0.0, 1.0))
        slope = numpyro.sample("b_age", dist.Normal(0.0, 1.0))
        logits = intercept + female * is_female + slope * whole
        numpyro.sample("survived", dist.Bernoulli(logits=logits), obs=survived)

    data = (title.astype(np.int32), is_female.astype(np.int32), single(age), survived)
    return Everyday(model, data)
