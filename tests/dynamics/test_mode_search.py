"""The search for modes: gaps divide groups, descents keep their centering, hopeless jumps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import run_mcmc
from jax import random
from numpyro.diagnostics import split_gelman_rubin

from numpyro_rwpo import RWPO, diagnose
from numpyro_rwpo.dynamics import several_modes
from numpyro_rwpo.dynamics.exploration import descend_all
from numpyro_rwpo.dynamics.flows import HarmonicFlow
from numpyro_rwpo.dynamics.mode_fit import Fitted
from numpyro_rwpo.dynamics.mode_moves import ModeMove, Tally
from numpyro_rwpo.dynamics.mode_search import as_groups, find_groups, find_separated
from numpyro_rwpo.dynamics.modes import Modes
from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.target import Differentiation

Array = np.ndarray


def moon_energy(x: Array) -> Array:
    """Potential of two crescents on a ring, with saddles some four nats high."""
    ring = ((np.linalg.norm(x, axis=-1) - 2) / 0.4) ** 2 / 2
    sides = -(((x[..., :1] + np.array([-2.0, 2.0])) / 0.6) ** 2) / 2
    return np.asarray(ring - np.logaddexp(sides[..., 0], sides[..., 1]))


def moon_draws(number: int, rng: np.random.Generator) -> Array:
    """Exact draws, by rejection from a uniform density."""
    x = rng.uniform(-4, 4, size=(200 * number, 2))
    return x[rng.uniform(size=len(x)) < np.exp(-moon_energy(x))][:number]


def moon_gradient(x: Array) -> Array:
    step = 1e-5 * np.eye(2)
    return np.stack([(moon_energy(x + e) - moon_energy(x - e)) / 2e-5 for e in step], 1)


def test_two_moons_are_never_in_one_group() -> None:
    """A few particles on the saddles leave no wide gap between the moons, unless they are left out.

    A group may hold particles of both moons; the next test is about what divides them.
    """
    for seed in range(20):
        x = moon_draws(256, np.random.default_rng(seed))
        groups = find_groups(x, moon_gradient(x), moon_energy(x))
        assert len([group for group in groups if len(group) > 20]) > 1


def test_descents_divide_the_moons() -> None:
    """A particle is in the set of its own moon. One in a hundred, on the saddle, may not be."""

    def energy(x: Any, _: Any) -> Any:
        sides = -(((x[0] + jnp.array([-2.0, 2.0])) / 0.6) ** 2) / 2
        return ((jnp.linalg.norm(x) - 2) / 0.4) ** 2 / 2 - jnp.logaddexp(sides[0], sides[1])

    target = Differentiation(1.0, False).target(energy, None)
    for seed in range(20):
        x = moon_draws(256, np.random.default_rng(seed))
        ends = np.asarray(descend_all(jnp.asarray(x, jnp.float32), target), np.float64)
        separated = find_separated(as_groups(ends, x, moon_energy, are_at_rest=True), moon_energy)
        assert len(separated) == 2
        right = [(one.members[:, 0] * one.position[0] > 0).sum() for one in separated]
        assert sum(right) > 0.99 * len(x)


@pytest.mark.parametrize("shape", ["normal", "heavy tails", "ring", "banana"])
def test_one_mode_is_one_group(shape: str) -> None:
    """The gradients are those of a narrower density, so that all directions are looked at."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(256, 3))
        heights = (z**2).sum(1) / 2
        if shape == "heavy tails":
            z = rng.standard_t(3, size=(256, 3))
            heights = 2 * np.log1p(z**2 / 3).sum(1)
        if shape == "ring":
            radius = 2 + 0.25 * rng.normal(size=256)
            z[:, :2] *= (radius / np.linalg.norm(z[:, :2], axis=1))[:, None]
            heights = z[:, 2] ** 2 / 2 + 8 * (radius - 2) ** 2
        if shape == "banana":
            z = z + np.array([0, 2.0, 0]) * (z[:, :1] ** 2 - 1)
        sizes = [len(group) for group in find_groups(z, 3 * rng.normal(size=(256, 3)), heights)]
        # A few particles in the tails may be far from all others.
        assert [size for size in sizes if size > 16] == sizes[:1]


def hierarchy() -> None:
    """Values that are known so well that the centered coordinates are the better ones."""
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.5, scale).expand([4]).to_event(1))
    numpyro.sample("y", dist.Normal(b, 0.01).to_event(1), obs=jnp.linspace(-1.0, 2.0, 4))


def test_descents_arrive_in_the_coordinates_of_the_chains() -> None:
    """With latent scales centered, places are those of the sites, not of what stands for them."""
    source = ModelSource(
        hierarchy,
        (),
        {},
        init_strategy=numpyro.infer.init_to_uniform,
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    target = source.bind((), {}).target()._replace(centering=jnp.ones(()))
    starts = random.uniform(random.key(0), (16, 5), minval=-2, maxval=2)
    ends = np.asarray(descend_all(starts, target))
    has_arrived = np.isfinite(ends).all(1)
    assert has_arrived.sum() > 8
    expected = np.broadcast_to(np.linspace(-1.0, 2.0, 4), ends[has_arrived, :4].shape)
    np.testing.assert_allclose(ends[has_arrived, :4], expected, atol=0.02)


def settled(occupied: int, accepted: float) -> Any:
    """What becomes of two modes, of which so many are occupied, if so many jumps are accepted."""
    centers = jnp.array([[-9.0, 0.0], [9.0, 0.0]])
    unit = jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
    modes = Modes(centers, unit, unit, jnp.zeros(2), jnp.log(jnp.full(2, 0.5)))
    flow = HarmonicFlow(centers, unit, unit, jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    one = jnp.ones(2, int)
    half = jnp.full(2, 0.5)
    move = ModeMove(
        modes, flow, half, one, one, one, half, jnp.zeros((2, 2)), jnp.ones((2, 2), bool)
    )
    particles = centers[jnp.arange(8) % occupied][None] + jnp.zeros((2, 8, 2))
    number = jnp.full((2, 2, 2), 1000.0)
    tally = Tally(number, accepted * number)
    programs = SimpleNamespace(
        layout=None,
        settle=lambda constants, inputs, args, kwargs: (inputs[1], jnp.zeros((2, 8)), tally),
    )
    report = SimpleNamespace(
        is_settled=jnp.ones(2, bool), num_updates=0, num_gradients=0, num_rows=0
    )
    report._replace = lambda **new: SimpleNamespace(**{**vars(report), **new})
    ready = several_modes.Ready(
        SimpleNamespace(particles=particles), jnp.zeros((2, 8)), jnp.zeros(2), move, report
    )
    explored = SimpleNamespace(
        adaptation=SimpleNamespace(is_settled=jnp.ones(2, bool), total_updates=jnp.ones(2))
    )
    fitted = Fitted(modes, np.arange(2), modes, np.ones(2, bool))
    keys = random.split(random.key(0))
    call = SimpleNamespace(programs=programs, settings=None, inputs=(keys,), args=(), kwargs={})
    return several_modes._settled(ready, move, explored, fitted, call, several_modes.Cost())


def test_hopeless_jumps_are_given_up_only_if_all_particles_are_in_one_mode() -> None:
    """Networks whose units can be exchanged have many such modes."""
    assert settled(occupied=1, accepted=1e-6) is None
    assert settled(occupied=2, accepted=1e-6) is not None
    assert settled(occupied=1, accepted=0.3) is not None


def two_modes() -> None:
    """Normal densities of shares 0.7 and 0.3."""
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
    low, high = (-((x - c) ** 2).sum() / 2 for c in (-8.0, 8.0))
    numpyro.factor("modes", jnp.logaddexp(low + np.log(0.7), high + np.log(0.3)))


@pytest.mark.slow
def test_chains_one_after_another_do_not_hide_that_they_disagree() -> None:
    """They have no list of modes, and particles stay where descents placed them."""
    mcmc = run_mcmc(
        RWPO(two_modes), num_warmup=100, num_samples=512, num_chains=4, chain_method="sequential"
    )
    assert not isinstance(mcmc.last_state.move, ModeMove)
    x = np.asarray(mcmc.get_samples(group_by_chain=True)["x"])
    shares = (x[..., 0] > 0).mean(1)
    assert np.ptp(shares) > 0.05
    assert split_gelman_rubin(x).max() > 1.01
    assert "R-hat" in {finding.about for finding in diagnose(mcmc).findings}
