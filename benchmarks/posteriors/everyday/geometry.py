"""Densities whose scale or curvature varies, all of which can be sampled exactly."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from benchmarks.posteriors.everyday.registry import Draws, Everyday, everyday


def funnel_model(dim: int = 10) -> None:
    """Neal's funnel, centered: a log variance and the ``dim - 1`` normals that have it."""
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    x = numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([dim - 1]).to_event(1))
    numpyro.deterministic("standardized", x * jnp.exp(-v / 2))


def funnel_noncentered_model(dim: int = 10) -> None:
    """Neal's funnel, non-centered."""
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([dim - 1]).to_event(1))
    numpyro.deterministic("x", z * jnp.exp(v / 2))


def banana_model(pairs: int, sd: float) -> None:
    """Pairs with x ~ N(1, 1) and y ~ N(x^2, sd^2): Rosenbrock's function as minus a log density."""
    x = numpyro.sample("x", dist.Normal(1.0, 1.0).expand([pairs]).to_event(1))
    y = numpyro.sample("y", dist.Normal(x**2, sd).to_event(1))
    numpyro.deterministic("across", (y - x**2) / sd)


@everyday
def funnel_centered() -> Everyday:
    """Neal's funnel in ten dimensions, centered."""

    def exact(rng: np.random.Generator, number: int) -> Draws:
        v, z = rng.normal(0.0, 3.0, number), rng.normal(size=(number, 9))
        return {"v": v, "x": z * np.exp(v / 2)[:, None], "standardized": z}

    return Everyday(funnel_model, exact=exact)


@everyday
def funnel_noncentered() -> Everyday:
    """Neal's funnel in ten dimensions, non-centered."""

    def exact(rng: np.random.Generator, number: int) -> Draws:
        v, z = rng.normal(0.0, 3.0, number), rng.normal(size=(number, 9))
        return {"v": v, "z": z, "x": z * np.exp(v / 2)[:, None]}

    return Everyday(funnel_noncentered_model, exact=exact)


def banana(pairs: int, sd: float) -> Everyday:
    """A number of independent bananas of some thickness."""

    def exact(rng: np.random.Generator, number: int) -> Draws:
        x, across = rng.normal(1.0, 1.0, (number, pairs)), rng.normal(size=(number, pairs))
        return {"x": x, "y": x**2 + sd * across, "across": across}

    return Everyday(banana_model, (pairs, sd), exact=exact)


@everyday
def banana_thin() -> Everyday:
    """One banana that is a tenth of a standard deviation thick."""
    return banana(1, 0.1)


@everyday
def bananas_thin() -> Everyday:
    """Ten bananas that are a tenth of a standard deviation thick."""
    return banana(10, 0.1)
