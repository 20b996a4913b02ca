"""Regressions with priors that shrink: horseshoes and lassos."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.special import expit

from benchmarks.posteriors.everyday.registry import Everyday, everyday, single
from benchmarks.problems import load_problem


def horseshoe_coefficients(num_columns: int) -> Any:
    """Coefficients under the horseshoe prior, non-centered, as NumPyro's example writes them."""
    lambdas = numpyro.sample("lambdas", dist.HalfCauchy(jnp.ones(num_columns)))
    tau = numpyro.sample("tau", dist.HalfCauchy(jnp.ones(1)))
    unscaled_betas = numpyro.sample("unscaled_betas", dist.Normal(0.0, jnp.ones(num_columns)))
    return numpyro.deterministic("betas", tau * lambdas * unscaled_betas)


def horseshoe_data(num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Covariates (rows, 32) and centered means (rows,) that depend on the first three columns."""
    X = np.random.default_rng(0).normal(size=(num_rows, 32))
    mean = X[:, :3] @ [2.0, -1.0, 0.5]
    return single(X), mean - mean.mean()


@everyday
def horseshoe_regression() -> Everyday:
    """Shape of ``horseshoe_regression.py``: normal likelihood, 100 rows, 32 columns."""
    X, mean = horseshoe_data(100)
    y = single(mean + 0.05 * np.random.default_rng(1).normal(size=100))

    def model(X: Any, y: Any) -> None:
        betas = horseshoe_coefficients(X.shape[1])
        prec_obs = numpyro.sample("prec_obs", dist.Gamma(3.0, 1.0))
        numpyro.sample("y", dist.Normal(X @ betas, 1.0 / jnp.sqrt(prec_obs)), obs=y)

    return Everyday(model, (X, y))


@everyday
def horseshoe_binary() -> Everyday:
    """Shape of ``horseshoe_regression.py``: Bernoulli likelihood, 400 rows, 32 columns."""
    X, mean = horseshoe_data(400)
    y = np.random.default_rng(1).binomial(1, expit(mean)).astype(np.int32)

    def model(X: Any, y: Any) -> None:
        numpyro.sample("y", dist.Bernoulli(logits=X @ horseshoe_coefficients(X.shape[1])), obs=y)

    return Everyday(model, (X, y))


@everyday
def horseshoe_logistic() -> Everyday:
    """The benchmark's regularized horseshoe on the breast-cancer data, 569 rows, 465 columns."""
    problem = load_problem("horseshoe_logistic")
    return Everyday(problem.model, (), problem.kwargs)


@everyday
def hierarchical_lasso() -> Everyday:
    """Lasso with latent scales, 150 rows, 100 columns in which neighbors have correlation 0.9."""
    rng = np.random.default_rng(0)
    num_rows, num_columns, correlation = 150, 100, 0.9
    X = rng.normal(size=(num_rows, num_columns))
    for k in range(1, num_columns):
        X[:, k] = correlation * X[:, k - 1] + np.sqrt(1 - correlation**2) * X[:, k]
    beta = np.zeros(num_columns)
    beta[::20] = [2.0, -1.5, 1.0, 1.5, -1.0]
    y = X @ beta + rng.normal(size=num_rows)

    def model(X: Any, y: Any) -> None:
        tau = numpyro.sample("tau", dist.HalfCauchy(0.5))
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
        beta = numpyro.sample("beta", dist.Laplace(0.0, tau).expand([X.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)

    return Everyday(model, (single(X), single(y)))


@everyday
def poisson_lasso() -> Everyday:
    """Counts of 200 rows on an intercept and 20 columns with Laplace coefficients."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 20))
    beta = np.r_[0.6, -0.4, 0.3, np.zeros(17)]
    y = rng.poisson(np.exp(0.5 + X @ beta)).astype(np.int32)

    def model(X: Any, y: Any) -> None:
        intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
        beta = numpyro.sample("beta", dist.Laplace(0.0, 0.2).expand([X.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(intercept + X @ beta)), obs=y)

    return Everyday(model, (single(X), y))


@everyday
def pairwise_interactions() -> Everyday:
    """Shape of ``sparse_regression.py``, small: 50 rows, 12 columns, interactions integrated out.

    References:
        Agrawal, Huggins, Trippe and Broderick (2019), arXiv:1905.06501.
    """
    rng = np.random.default_rng(0)
    num_rows, num_columns = 50, 12
    X = rng.normal(size=(num_rows, num_columns))
    y = X[:, :3] @ [2.0, 1.5, 1.0] + X[:, 0] * X[:, 1] + 0.05 * rng.normal(size=num_rows)
    y = (y - y.mean()) / y.std()

    def covariance(X: Any, eta1: Any, eta2: Any) -> Any:
        inner, squares = X @ X.T, X**2 @ (X**2).T
        quadratic = 0.5 * eta2**2 * ((1.0 + inner) ** 2 - squares)
        return quadratic + (eta1**2 - eta2**2) * inner + 1.0 - 0.5 * eta2**2

    def model(X: Any, y: Any) -> None:
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        num_rows, num_columns = X.shape
        phi = sigma * (1.2 / jnp.sqrt(num_rows)) / (num_columns - 1.2)
        eta1 = numpyro.sample("eta1", dist.HalfCauchy(phi))
        msq = numpyro.sample("msq", dist.InverseGamma(3.0, 1.0))
        xisq = numpyro.sample("xisq", dist.InverseGamma(3.0, 1.0))
        eta2 = eta1**2 * jnp.sqrt(xisq) / msq
        lam = numpyro.sample("lambda", dist.HalfCauchy(jnp.ones(num_columns)))
        kappa = jnp.sqrt(msq) * lam / jnp.sqrt(msq + (eta1 * lam) ** 2)
        whole = covariance(kappa * X, eta1, eta2) + (sigma**2 + 1e-4) * jnp.eye(num_rows)
        numpyro.sample("y", dist.MultivariateNormal(0.0, covariance_matrix=whole), obs=y)

    return Everyday(model, (single(X), single(y)))
