"""Densities whose scale or curvature varies, all of which can be sampled exactly."""

from typing import Any

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


@everyday
def dual_moon() -> Everyday:
    """The two half-moons of ``neutra.py``, side by side: two modes of equal shares.

    The density is a ring of radius 2 and thickness 0.4 times normals at +- 2 of sd 0.6 on the first
    coordinate. Exact draws come from a fine grid, jittered within its cells.
    """

    def potential(x: Any) -> Any:
        ring = 0.5 * ((jnp.sqrt(jnp.sum(x**2, -1)) - 2.0) / 0.4) ** 2
        left, right = (-0.5 * ((x[..., 0] + side) / 0.6) ** 2 for side in (2.0, -2.0))
        return ring - jnp.logaddexp(left, right)

    def model() -> None:
        flat = dist.ImproperUniform(dist.constraints.real_vector, (), (2,))
        numpyro.factor("density", -potential(numpyro.sample("x", flat)))

    def exact(rng: np.random.Generator, number: int) -> Draws:
        edges = np.linspace(-5.0, 5.0, 1001)
        middles = (edges[1:] + edges[:-1]) / 2
        grid = np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2)
        weight = np.exp(-np.asarray(potential(grid), np.float64))
        chosen = grid[rng.choice(len(grid), number, p=weight / weight.sum())]
        return {"x": chosen + rng.uniform(-0.005, 0.005, (number, 2))}

    return Everyday(model, exact=exact)
