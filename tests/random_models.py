"""Random generalized linear models with Laplace priors, and what is true of their posteriors.

No sampler serves as the reference: for draws from the density exp(-U), Stein's identities say
E[dU/dx_k] = 0 and E[x_k dU/dx_k] = 1 in every coordinate, and the gradient of U is written out here
in double precision, apart from the package and from JAX. The first identity speaks of the draws'
place, the second of their spread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
from hypothesis import strategies as st

from numpyro_rwpo.diagnostics import convergence

FAMILIES = ("normal", "logistic", "poisson")


class Regression(NamedTuple):
    """A design, its response, and the rates of the Laplace priors.

    Attributes:
        family: one of ``FAMILIES``; the normal one has unit noise.
        X: (n, p).
        y: (n,).
        rate: of each coefficient, (p,).
    """

    family: str
    X: np.ndarray
    y: np.ndarray
    rate: np.ndarray

    @property
    def args(self) -> tuple[np.ndarray, ...]:
        """What `model` takes, in single precision."""
        return tuple(a.astype(np.float32) for a in (self.X, self.y, self.rate))

    def model(self, X: Any, y: Any, rate: Any) -> None:
        """The regression without an intercept, as a user would write it."""
        with numpyro.plate("coefficients", X.shape[1]):
            beta = numpyro.sample("beta", dist.Laplace(0.0, 1 / rate))
        eta = X @ beta
        likelihood = {
            "normal": lambda: dist.Normal(eta, 1.0),
            "logistic": lambda: dist.Bernoulli(logits=eta),
            "poisson": lambda: dist.Poisson(jnp.exp(eta)),
        }[self.family]()
        with numpyro.plate("rows", X.shape[0]):
            numpyro.sample("y", likelihood, obs=y)

    def potential(self, beta: np.ndarray) -> np.ndarray:
        """U in double precision up to a constant, (..., p) -> (...)."""
        eta = beta @ self.X.T
        log_likelihood = {
            "normal": lambda: -0.5 * (self.y - eta) ** 2,
            "logistic": lambda: self.y * eta - np.logaddexp(0, eta),
            "poisson": lambda: self.y * eta - np.exp(eta),
        }[self.family]()
        return (self.rate * np.abs(beta)).sum(-1) - log_likelihood.sum(-1)

    def gradient(self, beta: np.ndarray) -> np.ndarray:
        """Of U in double precision, (..., p) -> (..., p)."""
        eta = beta @ self.X.T
        mean = {"normal": lambda: eta, "logistic": lambda: scipy.special.expit(eta)}.get(
            self.family, lambda: np.exp(eta)
        )()
        return self.rate * np.sign(beta) + (mean - self.y) @ self.X


def make_regression(
    seed: int,
    family: str,
    n: int,
    p: int,
    correlation: float,
    log_scale: float,
    log_rate: float,
    flaws: frozenset[str],
) -> Regression:
    """Simulate one.

    Args:
        seed: of the random numbers.
        family: one of ``FAMILIES``.
        n: rows.
        p: columns.
        correlation: between any two columns.
        log_scale: columns have standard deviations 10^u, u uniform between 0 and this.
        log_rate: the rate of a coefficient is this power of 10, times its column's scale.
        flaws: any of ``"missing"`` (a column of zeros), ``"constant"`` (a column of ones) and
            ``"repeated"`` (every row of the first half comes again).
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 1))
    X = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.normal(size=(n, p))
    if "repeated" in flaws:
        X[n // 2 :] = X[: n - n // 2]
    if "missing" in flaws:
        X[:, 0] = 0
    if "constant" in flaws:
        X[:, -1] = 1
    truth = np.where(rng.random(p) < 0.3, rng.normal(size=p), 0) / np.sqrt(p)
    eta = np.clip(X @ truth, -5, 5)
    y = {
        "normal": lambda: eta + rng.normal(size=n),
        "logistic": lambda: (rng.random(n) < scipy.special.expit(eta)).astype(float),
        "poisson": lambda: rng.poisson(np.exp(eta)).astype(float),
    }[family]()
    scale = 10 ** (log_scale * rng.random(p))
    # The model sees these numbers in single precision; so must the truth.
    X, y, rate = (a.astype(np.float32).astype(float) for a in (X * scale, y, 10**log_rate * scale))
    return Regression(family, X, y, rate)


def regressions() -> st.SearchStrategy[Regression]:
    """Designs with few and many rows, close to collinear, badly scaled, and flawed."""
    return st.builds(
        make_regression,
        seed=st.integers(0, 2**32 - 1),
        family=st.sampled_from(FAMILIES),
        n=st.sampled_from([2, 20, 200]),
        p=st.sampled_from([1, 3, 30]),
        correlation=st.sampled_from([0.0, 0.9, 0.999]),
        log_scale=st.sampled_from([0.0, 3.0, -3.0]),
        log_rate=st.floats(-0.5, 1.5),
        flaws=st.frozensets(st.sampled_from(["missing", "constant", "repeated"])),
    )


class SteinScores(NamedTuple):
    """Largest |z| over all identities of all coordinates, their number, and the smallest ESS."""

    max_z: float
    number: int
    ess: float


def stein_scores(regression: Regression, draws: np.ndarray) -> SteinScores:
    """Both identities for draws (chains, draws, p), in Monte-Carlo standard errors by ArviZ."""
    draws = np.asarray(draws, np.float64)
    gradients = regression.gradient(draws)
    z = []
    for values, truth in ((gradients, 0.0), (draws * gradients, 1.0)):
        z.append((values.mean((0, 1)) - truth) / convergence.mcse(values))
    return SteinScores(float(np.abs(z).max()), np.size(z), float(convergence.ess(draws).min()))
