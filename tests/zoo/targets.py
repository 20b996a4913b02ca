"""Targets that samplers get wrong, each with moments that are known by construction.

A target is a NumPyro model and the mean and variance of some of its sites, from closed forms or
from quadrature in double precision. Where a site has no moments (Cauchy) or its moments are not
informative (the leaves of a funnel), a bounded or standardized deterministic site is used instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.experimental.ode import odeint
from numpyro.distributions import constraints

from benchmarks.posteriors.everyday.geometry import (
    banana_model,
    funnel_model,
    funnel_noncentered_model,
)
from tests.helpers import (
    Moments,
    log_laplace,
    log_normal,
    quadrature,
    scalar_moments,
    scan_model,
    scan_moments,
    stack_moments,
)


class ZooTarget(NamedTuple):
    """A model and its known moments.

    Attributes:
        model: NumPyro model.
        args: its arguments.
        truth: moments by site, deterministic sites included; empty where the posterior is improper.
    """

    model: Callable[..., None]
    args: tuple[Any, ...]
    truth: dict[str, Moments]


TARGETS: dict[str, Callable[[], ZooTarget]] = {}


def target(name: str) -> Callable[[Callable[[], ZooTarget]], Callable[[], ZooTarget]]:
    """Register a function that makes a target under a name."""

    def enter(make: Callable[[], ZooTarget]) -> Callable[[], ZooTarget]:
        TARGETS[name] = make
        return make

    return enter


def standard(*shape: int) -> Moments:
    """Moments of standard normals."""
    return Moments(np.zeros(shape), np.ones(shape))


def uniform(*shape: int) -> Moments:
    """Moments of uniforms on (-1, 1)."""
    return Moments(np.zeros(shape), np.full(shape, 1 / 3))


def flat_site(name: str, *shape: int) -> jax.Array:
    """A site without a prior."""
    return numpyro.sample(name, dist.ImproperUniform(constraints.real, (), shape))


# ------------------------------------------------------------------------------- funnels


@target("funnel, centered, d = 10")
def funnel_centered() -> ZooTarget:
    truth = {"v": scalar_moments(0.0, 9.0), "standardized": standard(9)}
    return ZooTarget(funnel_model, (), truth)


@target("funnel, non-centered, d = 10")
def funnel_noncentered() -> ZooTarget:
    truth = {"v": scalar_moments(0.0, 9.0), "z": standard(9)}
    return ZooTarget(funnel_noncentered_model, (), truth)


@target("horseshoe, non-centered, d = 61")
def horseshoe() -> ZooTarget:
    """Thirty normal means of which three are far from 0; given tau they are independent."""
    rng = np.random.default_rng(1)
    y = (np.r_[5.0, -4.0, 6.0, np.zeros(27)] + rng.normal(size=30)).astype(np.float32)

    def model(y: Any) -> None:
        tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
        numpyro.deterministic("tau_rank", 2 / jnp.pi * jnp.arctan(tau))
        with numpyro.plate("features", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            lam = numpyro.sample("lam", dist.HalfCauchy(1.0))
            beta = numpyro.deterministic("beta", tau * lam * z)
            numpyro.sample("y", dist.Normal(beta, 1.0), obs=y)

    # tan(pi u / 2) of a uniform u is half-Cauchy.
    u = (np.arange(1000) + 0.5) / 1000
    variance = (np.tan(np.pi * u / 2)[:, None] * np.tan(np.pi * u / 2)) ** 2  # (tau, lam)
    share = variance / (1 + variance)
    log_evidence, first, second = np.zeros(1000), [], []
    for value in y.astype(float):
        density = np.exp(-0.5 * value**2 / (1 + variance)) / np.sqrt(1 + variance)
        evidence = density.mean(1)
        log_evidence += np.log(evidence)
        first.append((density * share * value).mean(1) / evidence)
        second.append((density * (share + (share * value) ** 2)).mean(1) / evidence)
    weight = np.exp(log_evidence - log_evidence.max())
    weight /= weight.sum()
    mean, square = np.array(first) @ weight, np.array(second) @ weight
    rank = weight @ u
    return ZooTarget(
        model,
        (y,),
        {
            "beta": Moments(mean, square - mean**2),
            "tau_rank": scalar_moments(rank, weight @ u**2 - rank**2),
        },
    )


# --------------------------------------------------------------------- curvature and scale


def banana(pairs: int, sd: float) -> ZooTarget:
    one = np.ones(pairs)
    truth = {"x": Moments(one, one), "y": Moments(2 * one, (6 + sd**2) * one)}
    return ZooTarget(banana_model, (pairs, sd), {**truth, "across": standard(pairs)})


@target("banana, d = 2, sd 0.5")
def banana_2() -> ZooTarget:
    return banana(1, 0.5)


@target("banana, d = 2, sd 0.1")
def banana_2_thin() -> ZooTarget:
    return banana(1, 0.1)


@target("banana, d = 20, sd 0.5")
def banana_20() -> ZooTarget:
    return banana(10, 0.5)


@target("banana, d = 20, sd 0.1")
def banana_20_thin() -> ZooTarget:
    return banana(10, 0.1)


@target("correlation 0.999, d = 50")
def correlated() -> ZooTarget:
    dim, correlation = 50, 0.999

    def model() -> None:
        x = flat_site("x", dim)
        mean = x.mean()
        within = jnp.sum((x - mean) ** 2) / (1 - correlation)
        between = dim * mean**2 / (1 - correlation + dim * correlation)
        numpyro.factor("normal", -0.5 * (within + between))
        numpyro.deterministic("difference", (x[1:] - x[:-1]) / np.sqrt(2 * (1 - correlation)))

    return ZooTarget(model, (), {"x": standard(dim), "difference": standard(dim - 1)})


@target("scales from 1e-6 to 1e6")
def scales() -> ZooTarget:
    scale = np.logspace(-6, 6, 13).astype(np.float32)

    def model(scale: Any) -> None:
        x = numpyro.sample("x", dist.Normal(0.0, scale).to_event(1))
        numpyro.deterministic("standardized", x / scale)

    return ZooTarget(model, (scale,), {"standardized": standard(13)})


@target("ring")
def ring() -> ZooTarget:
    """Radius N(10, 0.5^2), any angle."""

    def model() -> None:
        x = flat_site("x", 2)
        radius = numpyro.deterministic("radius", jnp.sqrt(jnp.sum(x**2)))
        numpyro.factor("ring", dist.Normal(10.0, 0.5).log_prob(radius) - jnp.log(radius))
        numpyro.deterministic("direction", x / radius)

    direction = Moments(np.zeros(2), np.full(2, 0.5))
    return ZooTarget(model, (), {"radius": scalar_moments(10, 0.25), "direction": direction})


@target("iid normal, d = 1000")
def iid() -> ZooTarget:
    def model() -> None:
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([1000]).to_event(1))

    return ZooTarget(model, (), {"x": standard(1000)})


@target("one dimension, normal")
def one_normal() -> ZooTarget:
    def model() -> None:
        numpyro.sample("x", dist.Normal(3.0, 2.0))

    return ZooTarget(model, (), {"x": scalar_moments(3.0, 4.0)})


@target("one dimension, Laplace prior")
def one_laplace() -> ZooTarget:
    def model() -> None:
        x = numpyro.sample("x", dist.Laplace(0.0, 0.5))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=1.0)

    truth = quadrature(lambda x: log_laplace(x, 0, 0.5) + log_normal(1.0, x, 1), -12, 12)
    return ZooTarget(model, (), {"x": truth})


@target("p >> n, normal prior, n = 40, d = 200")
def many_coefficients() -> ZooTarget:
    rng = np.random.default_rng(2)
    X = rng.normal(size=(40, 200)).astype(np.float32)
    y = (X[:, :5].sum(1) + 0.5 * rng.normal(size=40)).astype(np.float32)

    def model(X: Any, y: Any) -> None:
        beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
        numpyro.sample("y", dist.Normal(X @ beta, 0.5).to_event(1), obs=y)

    X64 = X.astype(float)
    covariance = np.linalg.inv(np.eye(200) + X64.T @ X64 / 0.25)
    mean = covariance @ X64.T @ y / 0.25
    return ZooTarget(model, (X, y), {"beta": Moments(mean, np.diag(covariance))})


# --------------------------------------------------------------------------------- tails


@target("Cauchy, d = 5")
def cauchy() -> ZooTarget:
    def model() -> None:
        x = numpyro.sample("x", dist.Cauchy(0.0, 1.0).expand([5]).to_event(1))
        numpyro.deterministic("rank", 2 / jnp.pi * jnp.arctan(x))

    return ZooTarget(model, (), {"rank": uniform(5)})


@target("Student-t, 2 degrees, d = 5")
def student() -> ZooTarget:
    def model() -> None:
        x = numpyro.sample("x", dist.StudentT(2.0).expand([5]).to_event(1))
        numpyro.deterministic("rank", x / jnp.sqrt(2 + x**2))

    return ZooTarget(model, (), {"rank": uniform(5)})


# --------------------------------------------------------------------------- edges, jumps


@target("discontinuous density")
def jump() -> ZooTarget:
    """Normals whose density is five times as high to the right of 0."""

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.factor("jump", jnp.where(x > 0, jnp.log(5.0), 0.0).sum())

    mean = (5 - 1) / (5 + 1) * np.sqrt(2 / np.pi)
    return ZooTarget(model, (), {"x": Moments(np.full(2, mean), np.full(2, 1 - mean**2))})


@target("hard bounds, transformed")
def bounds() -> ZooTarget:
    def model() -> None:
        numpyro.sample("flat", dist.Uniform(0.0, 1.0).expand([3]).to_event(1))
        numpyro.sample("u_shaped", dist.Beta(0.5, 0.5))

    flat = Moments(np.full(3, 0.5), np.full(3, 1 / 12))
    return ZooTarget(model, (), {"flat": flat, "u_shaped": scalar_moments(0.5, 1 / 8)})


@target("hard bounds, walls")
def walls() -> ZooTarget:
    """Normals cut off at -0.5 by a bound that the model does not declare."""

    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.factor("wall", jnp.where((x > -0.5).all(), 0.0, -jnp.inf))

    one = quadrature(lambda x: -0.5 * x**2, -0.5, 12)
    return ZooTarget(model, (), {"x": stack_moments([one] * 3)})


@target("simplex of 100")
def simplex() -> ZooTarget:
    def model() -> None:
        numpyro.sample("p", dist.Dirichlet(jnp.ones(100)))

    return ZooTarget(model, (), {"p": Moments(np.full(100, 0.01), np.full(100, 0.01 * 0.99 / 101))})


@target("LKJ, 10 x 10")
def lkj() -> ZooTarget:
    def model() -> None:
        factor = numpyro.sample("factor", dist.LKJCholesky(10, concentration=1.0))
        numpyro.deterministic("correlation", (factor @ factor.T)[jnp.tril_indices(10, -1)])

    # Each correlation is 2 Beta(5, 5) - 1.
    return ZooTarget(model, (), {"correlation": Moments(np.zeros(45), np.full(45, 1 / 11))})


# --------------------------------------------------------------------------------- modes


def two_modes(distance: float) -> ZooTarget:
    """Unit normals with weights 0.3 and 0.7 at +- distance / 2, in two dimensions."""
    low, high = -distance / 2, distance / 2

    def model() -> None:
        x = flat_site("x", 2)
        left = jnp.log(0.3) + dist.Normal(low, 1.0).log_prob(x[0])
        right = jnp.log(0.7) + dist.Normal(high, 1.0).log_prob(x[0])
        numpyro.factor("modes", jnp.logaddexp(left, right))
        numpyro.factor("other", dist.Normal(0.0, 1.0).log_prob(x[1]))

    mean = 0.3 * low + 0.7 * high
    variance = 1 + high**2 - mean**2
    return ZooTarget(model, (), {"x": Moments(np.array([mean, 0.0]), np.array([variance, 1.0]))})


@target("two modes, 5 sd apart")
def near_modes() -> ZooTarget:
    return two_modes(5.0)


@target("two modes, 40 sd apart")
def far_modes() -> ZooTarget:
    return two_modes(40.0)


@target("improper: nothing depends on one site")
def improper() -> ZooTarget:
    def model() -> None:
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        flat_site("free")

    return ZooTarget(model, (), {})


@target("improper: only a sum is known")
def improper_sum() -> ZooTarget:
    def model() -> None:
        x = flat_site("x", 2)
        numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=1.0)

    return ZooTarget(model, (), {})


# ------------------------------------------------------------------------ loops in gradients


@target("scan")
def scan() -> ZooTarget:
    """A normal autoregression of six steps and a Laplace random walk of two."""
    y = np.random.default_rng(0).normal(size=6).astype(np.float32)
    jumps = np.array([0.5, 2.0], np.float32)
    return ZooTarget(scan_model, (y, jumps), scan_moments(y.astype(float), jumps.astype(float)))


@target("ODE: logistic growth")
def ode() -> ZooTarget:
    """Rate and start of dx/dt = r x (1 - x), solved numerically; its solution is known."""
    times = np.linspace(0.0, 4.0, 9).astype(np.float32)

    def solution(rate: Any, start: Any, times: Any) -> Any:
        growth = start * np.exp(rate * times)
        return growth / (1 - start + growth)

    y = solution(1.2, 0.1, times.astype(float))
    y = (y + 0.05 * np.random.default_rng(3).normal(size=9)).astype(np.float32)

    def model(times: Any, y: Any) -> None:
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 0.5))
        start = numpyro.sample("start", dist.Beta(1.0, 5.0))

        def slope(x: Any, _: Any, rate: Any) -> Any:
            return rate * x * (1 - x)

        x = odeint(slope, start, times, rate, rtol=1e-5, atol=1e-6, mxstep=1000)
        numpyro.sample("y", dist.Normal(x, 0.05).to_event(1), obs=y)

    rate = np.linspace(0.2, 4.0, 1501)[:, None]
    start = (np.linspace(0.0, 0.6, 1501)[:-1] + 0.0002)[None, :]
    log = -0.5 * (np.log(rate) / 0.5) ** 2 - np.log(rate) + 4 * np.log1p(-start)
    for t, value in zip(times.astype(float), y.astype(float), strict=True):
        log = log + log_normal(value, solution(rate, start, t), 0.05)
    density = np.exp(log - log.max())
    density /= density.sum()
    assert max(density[[0, -1]].sum(), density[:, -1].sum()) < 1e-6  # the grid covers the mass

    def moments(x: np.ndarray) -> Moments:
        mean = (density * x).sum()
        return scalar_moments(mean, (density * x**2).sum() - mean**2)

    return ZooTarget(model, (times, y), {"rate": moments(rate), "start": moments(start)})
