"""Where ensembles get to before any randomness corrects them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax, random

from numpyro_rwpo import RWPO
from numpyro_rwpo.dynamics import placement
from numpyro_rwpo.dynamics.ensemble import evaluate, gradient
from numpyro_rwpo.dynamics.metric import ensemble_moments, fisher_preconditioner, without_outliers
from numpyro_rwpo.dynamics.pathfinder import (
    EVALUATIONS_PER_ROUND,
    NUM_ROUNDS,
    quasi_newton_start,
)
from numpyro_rwpo.dynamics.settings import Numbers, Settings
from numpyro_rwpo.dynamics.transport import initial_progress, transport_step
from numpyro_rwpo.heads.registry import BUILT_IN_HEADS, find_head
from numpyro_rwpo.model.target import Differentiation, pool_chains
from numpyro_rwpo.priors.laplace import LaplacePrior

DIM = 6


def gaussian(units):
    """A correlated Gaussian in the given units: potential, mean and covariance."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    covariance = (basis * np.geomspace(0.1, 1, DIM)) @ basis.T
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)
    mean = rng.normal(size=DIM) * 3

    def smooth(x, centering):
        z = x / jnp.asarray(units, jnp.float32) - jnp.asarray(mean, jnp.float32)
        return 0.5 * z @ precision @ z

    return smooth, mean * units, covariance * np.outer(units, units)


def starting_positions(num_particles=128):
    return random.uniform(random.key(0), (num_particles, DIM), jnp.float32, -2, 2)


def errors(particles, mean, covariance):
    sd = np.sqrt(np.diag(covariance))
    particles = np.asarray(particles, np.float64)
    return np.abs((particles.mean(0) - mean) / sd).max(), particles.std(0) / sd


@pytest.mark.parametrize("units", [np.ones(DIM), np.geomspace(1e-2, 1e2, DIM)])
def test_start_finds_a_gaussian(units):
    smooth, mean, covariance = gaussian(units)
    target = Differentiation(1.0, False).target(smooth, None)
    found = jax.jit(lambda x: quasi_newton_start(jax.random.key(1), x, target))(
        starting_positions()
    )
    cost = found.cost
    mean_error, sd_ratio = errors(found.draws, mean, covariance)
    assert mean_error < 0.5 and found.centering == 0
    if units[0] == 1:  # the paths then end before their last round
        assert 0 < cost.num_rows < NUM_ROUNDS * EVALUATIONS_PER_ROUND
    assert cost.num_gradients > cost.num_rows
    assert np.all((sd_ratio > 0.5) & (sd_ratio < 2.0)), sd_ratio


def test_start_prefers_the_typical_set_to_an_infinite_density():
    """A funnel's density is unbounded where its scale vanishes; no ensemble must go there."""
    target = Differentiation(1.0, False).target(funnel, None)
    found = jax.jit(lambda x: quasi_newton_start(jax.random.key(1), x, target))(
        starting_positions()
    )
    particles = found.ensemble.particles
    assert -6 < float(particles[:, 0].mean()) < 3
    assert float(particles[:, 0].std()) > 0.3


def test_start_survives_a_space_that_is_mostly_forbidden():
    def smooth(x, centering):
        return jnp.where(jnp.all(jnp.abs(x - 0.5) < 1.0), 0.5 * x @ x, jnp.inf)

    target = Differentiation(1.0, False).target(smooth, None)
    start = starting_positions().at[0].set(0.5)
    found = jax.jit(lambda x: quasi_newton_start(jax.random.key(1), x, target))(start)
    assert np.all(np.isfinite(found.ensemble.particles))


def test_evaluation_moves_particles_off_forbidden_ground():
    def smooth(x, centering):
        return jnp.where(x[0] > 0, jnp.nan, 0.5 * x @ x)

    target = Differentiation(1.0, False).target(smooth, None)
    ensemble = evaluate(starting_positions(), target)
    assert np.all(np.isfinite(ensemble.smooth)) and np.all(ensemble.particles[:, 0] <= 0)
    np.testing.assert_array_equal(ensemble.gradient, ensemble.particles)


def flow(target, particles, steps, attention="copula", dense=True):
    def body(_, carry):
        ensemble, progress = carry
        inner = without_outliers(ensemble.particles, gradient(ensemble, target))
        moments = ensemble_moments(*inner, dense)
        ensemble, progress = transport_step(
            ensemble,
            progress,
            fisher_preconditioner(moments),
            target,
            attention=find_head(attention),
            relative_time=0.1,
        )
        return evaluate(ensemble.particles, target), progress

    run = jax.jit(
        lambda x: lax.fori_loop(0, steps, body, (evaluate(x, target), initial_progress(x.dtype)))
    )
    return run(particles)


@pytest.mark.parametrize(("attention", "dense"), [("copula", True), ("marginal", False)])
def test_transport_reaches_a_product_target(attention, dense):
    """Laplace and Gaussian coordinates; 30 gradients from uniform(-2, 2)."""
    rate = jnp.asarray([2.0, 1.0, 4.0, 0.0, 0.0, 0.0])
    prior = LaplacePrior(jnp.zeros(DIM), rate, rate)

    def smooth(x, centering):
        return 0.5 * jnp.sum(((x[3:] - 1.0) * jnp.array([1.0, 3.0, 0.5])) ** 2)

    target = Differentiation(1.0, False).target(smooth, prior)
    ensemble, progress = flow(target, starting_positions(256), 30, attention, dense)
    mean = np.array([0, 0, 0, 1, 1, 1.0])
    sd = np.array([2**0.5 / 2, 2**0.5, 2**0.5 / 4, 1, 1 / 3, 2])
    mean_error, sd_ratio = errors(ensemble.particles, mean, np.diag(sd**2))
    assert mean_error < 0.25
    assert np.all((sd_ratio > 0.75) & (sd_ratio < 1.25)), sd_ratio
    assert float(progress.residual) < 0.5


@pytest.mark.parametrize("attention", list(BUILT_IN_HEADS))
def test_transport_survives_awful_ensembles(attention):
    smooth, _, _ = gaussian(np.ones(DIM))
    target = Differentiation(1.0, False).target(smooth, None)
    x = starting_positions(16)
    awful = [jnp.ones_like(x), x.at[:, 2].set(0.0), x.at[3].set(1e8), x[:4]]
    for particles in awful:
        ensemble, _ = flow(target, particles, 5, attention, dense=len(particles) >= 2 * DIM)
        assert np.all(np.isfinite(ensemble.particles))


def test_transport_is_deterministic_and_ignores_the_order_of_particles():
    smooth, _, _ = gaussian(np.ones(DIM))
    target = Differentiation(1.0, False).target(smooth, None)
    x = starting_positions(64)
    once, twice = (flow(target, x, 3)[0].particles for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    reverse = flow(target, x[::-1], 3)[0].particles[::-1]
    np.testing.assert_allclose(once, reverse, atol=2e-3)


def test_the_path_of_transport_leads_to_the_posterior():
    """From the plain start to an ensemble near the posterior; the kernel is not changed."""
    y, sd = np.array([3.0, -2.0], np.float32), 0.1

    def model(y):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(x, sd).to_event(1), obs=y)

    kernel = RWPO(model, num_particles=64)
    path = np.asarray(kernel.transport_path(jax.random.key(0), y, num_steps=30))
    assert path.shape == (31, 64, 2)
    assert np.abs(path[0]).max() <= 2  # NumPyro's radius
    mean, scale = y / (1 + sd**2), sd / np.sqrt(1 + sd**2)
    assert np.abs(path[-1].mean(0) - mean).max() < 0.2 * scale
    assert kernel._settings is None

    def potential_fn(x):
        return (x**2).sum()

    with pytest.raises(ValueError, match="needs a model"):
        RWPO(potential_fn=potential_fn).transport_path(jax.random.key(0))


def settings_of(target, corrected=True):
    return Settings(
        num_warmup=10,
        num_particles=64,
        num_states=4,
        radius=2.0,
        attention=find_head("copula"),
        corrected=corrected,
        dense=True,
        rank=0,
        flows=("harmonic",),
        inverse_temperature=1.0,
        placement=target.placement,
    )


def funnel(x, centering):
    return 0.5 * (x[0] / 3) ** 2 + 0.5 * jnp.exp(-x[0]) * (x[1:] @ x[1:]) + (DIM - 1) / 2 * x[0]


def test_transport_keeps_the_better_of_two_placements_and_adds_its_costs():
    target = pool_chains(Differentiation(1.0, False).target(funnel, None), "chain")
    settings, keys = settings_of(target), random.split(random.key(2), 4)
    numbers = Numbers(target_accept_prob=0.8, relative_prox_time=0.1)

    def one_chain(key):
        first = placement.place_by_descents(key, jnp.zeros(DIM), target, settings)
        return first, placement.place_by_transport(first, target, settings, numbers)

    first, after = jax.jit(jax.vmap(one_chain, axis_name="chain"))(keys)
    wide = first.placed.ensemble.particles
    assert (np.abs(wide - np.median(wide, 1)[:, None]).max(1) > 1.5 * first.first.std(1)).all()
    assert np.isneginf(first.evidence).all()
    evidence = np.asarray(after.evidence)
    assert np.isfinite(evidence).all()
    assert np.array_equal(after.is_descent, evidence[:, 0] >= evidence[:, 1])
    rows = np.asarray(after.num_rows - first.num_rows)
    assert (rows > 2).all()
    assert np.array_equal(after.num_gradients - first.num_gradients, settings.num_particles * rows)


@pytest.mark.parametrize(("corrected", "is_kept"), [(True, True), (False, False)])
def test_an_ensemble_that_transport_would_worsen_stays(monkeypatch, corrected, is_kept):
    """The noise-free flow of the papers is returned as it is."""

    def overshooting(ensemble, progress, *others, **options):
        moved = ensemble._replace(particles=1e3 * ensemble.particles)
        return moved, progress._replace(steps=progress.steps + 1)

    monkeypatch.setattr(placement, "transport_step", overshooting)
    target = Differentiation(1.0, False).target(lambda x, centering: (x**2).sum() / 2, None)
    settings = settings_of(target, corrected)
    start = random.normal(random.key(0), (64, 3))
    numbers = Numbers(target_accept_prob=0.8, relative_prox_time=0.1)
    placed = placement._transport(start, target.centering, target, settings, numbers, most=2)
    assert placed.progress.steps == 2  # they were taken, and are counted
    assert np.array_equal(placed.ensemble.particles, start) == is_kept
