"""The learned flows: densities, layers, derivatives, and the baseline's change of variables."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_rwpo import fit_copula, fit_joint, fit_marginal, laplace_prior, splitting_step
from numpyro_rwpo.flow import NeuralODEFlow, SparseTransformerFlow, pathwise_sample
from numpyro_rwpo.flow.potential import Potential, divergence, drift, velocity

# Compiled as a whole: operation by operation every one of them would be on its own.
log_prob = eqx.filter_jit(lambda flow, x: flow.log_prob(x))
transport = eqx.filter_jit(lambda flow, noise: flow.transport(noise))
gradient_of_log_prob = eqx.filter_jit(eqx.filter_grad(lambda flow, x: flow.log_prob(x).sum()))
sample = eqx.filter_jit(lambda flow, rng_key, number: flow.sample(rng_key, number))
HEADS = {"joint": fit_joint, "marginal": fit_marginal, "copula": fit_copula}


def slow(case: Any) -> Any:
    """A case of a test for the slow group."""
    return pytest.param(case, marks=pytest.mark.slow)


def bent(flow: Any, scale: float = 0.5) -> Any:
    """The flow with a network that is no longer zero."""
    rng, network = np.random.default_rng(7), flow.potential
    old = (network.readout, network.right, network.linear)
    sizes = scale / 3, scale, scale
    new = tuple(
        jnp.asarray(size * rng.normal(size=x.shape), x.dtype)
        for size, x in zip(sizes, old, strict=True)
    )
    return eqx.tree_at(
        lambda f: (f.potential.readout, f.potential.right, f.potential.linear), flow, new
    )


def small_flow(dim: int, attention: str = "joint", **options: Any) -> SparseTransformerFlow:
    options = {"rate": 1.5, "prox_time": 0.1, "num_particles": 24} | options
    return bent(
        SparseTransformerFlow(dim, 2, 8, attention=attention, rng_key=jax.random.key(0), **options)
    )


SIDE = np.linspace(-10, 10, 201, dtype=np.float32)
PLANE = np.stack(np.meshgrid(SIDE, SIDE), -1).reshape(-1, 2)  # cells of 0.1 squared


@pytest.mark.parametrize("attention", ["joint", *(slow(a) for a in ("marginal", "copula"))])
def test_density_integrates_to_one_and_is_that_of_the_draws(attention: str) -> None:
    """By quadrature; the mean log density of draws is minus the entropy, which quadrature knows."""
    flow = small_flow(2, attention, rate=np.array([2.0, 0.0]), prox_time=np.array([0.3, 0.1]))
    log_density = np.asarray(log_prob(flow, PLANE), np.float64)
    density = np.exp(log_density) * 0.1**2
    assert density.sum() == pytest.approx(1, abs=5e-3)
    values = np.asarray(log_prob(flow, sample(flow, jax.random.key(3), len(PLANE))), np.float64)
    standard_error = values.std() / np.sqrt(values.size)
    # The second term is for quadrature, as above.
    assert abs(values.mean() - density @ log_density) < 4.5 * standard_error + 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["joint", "copula"])
def test_last_layer_is_the_attention_head(attention: str) -> None:
    """Without drift and with one layer the keys are the base points."""
    flow = SparseTransformerFlow(
        3, 1, 4, 2.0, 0.2, attention, num_particles=32, location=1.0, scale=0.7,
        rng_key=jax.random.key(1),
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(2), (10, 3))

    @jax.jit
    def expected(noise: jax.Array) -> jax.Array:
        density = HEADS[attention](1.0 + 0.7 * noise, laplace_prior(jnp.full(3, 2.0)), 0.2)
        return density.log_prob(x)

    np.testing.assert_allclose(log_prob(flow, x), expected(flow.noise), rtol=1e-4, atol=1e-4)


def test_layer_is_the_published_update() -> None:
    """A drift step of a known gradient, then the joint head: BRWP-splitting at T = h."""
    flow = eqx.tree_at(
        lambda f: f.potential.linear,
        SparseTransformerFlow(2, 1, 4, 1.5, 1.0, rng_key=jax.random.key(1)),
        jnp.array([0.3, -0.2, 0.0]),
    )
    particles = jax.random.normal(jax.random.key(2), (40, 2))
    gradient = jnp.broadcast_to(jnp.array([0.3, -0.2]), particles.shape)
    expected = splitting_step(particles, lambda x: gradient, 1.5, 1.0)
    np.testing.assert_allclose(transport(flow, particles), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_jit_and_vmap_change_nothing() -> None:
    flow = small_flow(2)
    noise = jax.random.normal(jax.random.key(4), (2, 30, 2))
    each = jnp.stack([transport(flow, part) for part in noise])
    together = eqx.filter_jit(lambda f, z: jax.vmap(f.transport)(z))(flow, noise)
    np.testing.assert_allclose(together, each, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(flow.transport(noise[0]), each[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_particles_in_another_order_move_alike() -> None:
    flow = small_flow(2)
    noise = jax.random.normal(jax.random.key(4), (30, 2))
    np.testing.assert_allclose(
        transport(flow, noise[::-1]), transport(flow, noise)[::-1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["joint", "copula", "marginal"])
def test_gradients_are_finite_and_reach_everything_learned(attention: str) -> None:
    learn = ("rate", "prox_time", "step_size", "base")
    flow = small_flow(2, attention, rate=np.array([1.5, 0.0]), learn=learn)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(flow: SparseTransformerFlow) -> jax.Array:
        log_prob, costs = flow.log_prob_and_costs(jax.random.key(5), jnp.ones((6, 2)))
        x, own, _ = flow.sample_and_costs(jax.random.key(6), 6)
        return log_prob.sum() + own.sum() + (x**2).sum() + costs.kinetic + costs.hjb

    found = gradient(flow)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        assert (np.abs(leaf).max() > 0) == (name not in (".noise", "._center")), name
    assert found._log_rate[1] == 0  # a flat coordinate stays flat


@pytest.mark.slow
def test_what_is_not_learned_has_no_gradient() -> None:
    flow = small_flow(1, learn=())
    found = gradient_of_log_prob(flow, jnp.ones((3, 1)))
    for leaf in (found._log_rate, found._log_prox_time, found._log_step_size, found._location):
        assert not np.any(leaf)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["joint", "marginal"])
def test_pathwise_derivative_is_that_of_the_expectation(attention: str) -> None:
    """Against the derivative of quadrature of x^2 under the density, as the keys spread."""
    particles = jax.random.normal(jax.random.key(0), (20, 1)) + 0.3
    nodes = jnp.linspace(-9, 9, 3601)[:, None]

    def density(spread: jax.Array) -> Any:
        prior = laplace_prior(1.5 * jnp.ones(1))
        return HEADS[attention](spread * particles, prior, 0.1 * spread)

    def moment(spread: jax.Array) -> jax.Array:
        return jnp.sum(nodes[:, 0] ** 2 * jnp.exp(density(spread).log_prob(nodes))) * 0.005

    def draws(spread: jax.Array) -> jax.Array:
        return pathwise_sample(jax.random.key(2), density(spread), 4000)[:, 0] ** 2

    expected = jax.jit(jax.grad(moment))(jnp.ones(()))
    each = np.asarray(jax.jit(jax.jacfwd(draws))(jnp.ones(())), np.float64)
    # Half a per cent for the density's own fit on a grid, of which quadrature sees the steps.
    tolerance = 4.5 * each.std() / np.sqrt(each.size) + 0.005 * abs(expected)
    assert abs(each.mean() - expected) < tolerance


@pytest.mark.slow
def test_pathwise_derivative_of_a_correlation() -> None:
    """The mean product of two coordinates, as the particles turn toward each other."""
    base = jax.random.normal(jax.random.key(0), (200, 2))

    def draws(mixing: jax.Array) -> jax.Array:
        particles = base @ jnp.array([[1.0, 0.0], [0.0, 0.0]]) + jnp.stack(
            [jnp.zeros(200), mixing * base[:, 0] + base[:, 1]], 1
        )
        density = fit_copula(particles, laplace_prior(jnp.zeros(2)), 0.05)
        return pathwise_sample(jax.random.key(1), density, 4000).prod(1)

    values, slopes = jax.jit(lambda m: jax.jvp(draws, (m,), (jnp.ones(()),)))(jnp.array(0.8))
    above, below = jax.jit(jax.vmap(draws))(jnp.array([0.9, 0.7]))
    # Common random numbers: the difference's own error is that of the draws' ranks.
    difference = (np.asarray(above) - np.asarray(below)) / 0.2
    error = np.std(difference - np.asarray(slopes)) / np.sqrt(slopes.size)
    assert np.mean(slopes) > 0.5
    assert abs(np.mean(difference) - np.mean(slopes)) < 4.5 * error + 0.02


# ------------------------------------------------------------------------- the network


def test_drift_is_minus_the_gradient_and_divergence_its_trace() -> None:
    network = Potential(3, 8, 2, rng_key=jax.random.key(0))
    network = eqx.tree_at(lambda n: (n.readout, n.right), network, (jnp.ones(8), network.left))
    x, time = jax.random.normal(jax.random.key(1), (5, 3)), 0.4
    moves = jax.jit(lambda x: drift(network, x, time))(x)
    gradient = jax.jit(jax.vmap(jax.grad(lambda v: network(v, time))))(x)
    np.testing.assert_allclose(moves.velocity, -gradient, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(lambda x: velocity(network, x, time))(x), -gradient, rtol=1e-5
    )
    hessian = jax.jit(jax.vmap(jax.hessian(lambda v: network(v, time))))(x)
    trace = -np.trace(hessian, axis1=1, axis2=2)
    exact = jax.jit(lambda x: divergence(network, x, time, None))(x)
    np.testing.assert_allclose(exact, trace, rtol=1e-4)
    probes = jax.random.rademacher(jax.random.key(2), (2000, *x.shape), x.dtype)
    estimates = jax.jit(jax.vmap(lambda p: divergence(network, x, time, p)))(probes)
    error = np.std(estimates, axis=0) / np.sqrt(len(estimates))
    assert np.all(np.abs(np.mean(estimates, 0) - trace) < 4.5 * error)


def test_a_new_flow_does_not_drift() -> None:
    network = Potential(3, 8, 1, rng_key=jax.random.key(0))
    assert not np.any(drift(network, jnp.ones((4, 3)), 0.5).velocity)


@pytest.mark.slow
def test_ode_density_integrates_to_one_and_agrees_with_its_draws() -> None:
    flow = bent(NeuralODEFlow(1, 16, 8, location=0.5, scale=1.5, rng_key=jax.random.key(0)))
    side = np.linspace(-15, 15, 3001, dtype=np.float32)
    log_density = np.asarray(log_prob(flow, side[:, None]), np.float64)
    assert np.trapezoid(np.exp(log_density), dx=0.01) == pytest.approx(1, abs=2e-3)
    x, own, _ = eqx.filter_jit(flow.sample_and_costs)(jax.random.key(1), 3001)  # as many as above
    np.testing.assert_allclose(log_prob(flow, x), own, atol=5e-3)


def test_ode_trace_needs_a_key_where_it_is_random() -> None:
    flow = NeuralODEFlow(2, 2, 4, trace="hutchinson", rng_key=jax.random.key(0))
    with pytest.raises(ValueError, match="rng_key"):
        flow.log_prob(jnp.ones((3, 2)))
    exact = flow.with_solver(num_steps=4)
    assert (exact.trace, exact.num_steps) == ("exact", 4)
    assert (flow.trace, flow.num_steps) == ("hutchinson", 2)


# -------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 0}, ValueError, "`dim` must be at least 1; got 0"),
        ({"num_layers": 2.5}, TypeError, "`num_layers` must be an integer; got 2.5"),
        ({"rate": -1.0}, ValueError, "`rate` must be >= 0"),
        ({"rate": np.ones(3)}, ValueError, r"`rate` must be a scalar or have shape \(dim,\)"),
        ({"prox_time": 0.0}, ValueError, "`prox_time` must be positive and finite; got 0.0"),
        ({"prox_time": "long"}, TypeError, "`prox_time` must be a real number"),
        ({"scale": np.nan}, ValueError, "`scale` must be positive and finite"),
        ({"attention": "sparse"}, ValueError, "`attention` must be one of 'joint'"),
        ({"learn": "rate"}, ValueError, "`learn` must be a tuple of names"),
        ({"learn": ("rates",)}, ValueError, "`learn` must be a tuple of names"),
        ({"num_particles": True}, TypeError, "`num_particles` must be an integer"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SparseTransformerFlow(**({"dim": 2, "rng_key": jax.random.key(0)} | options))


def test_wrong_shapes() -> None:
    flow = small_flow(2)
    ode = NeuralODEFlow(2, 2, 4, rng_key=jax.random.key(0))
    for either in (flow, ode):  # before anything is computed
        with pytest.raises(ValueError, match=r"`x` must have shape \(..., 2\); got \(4, 3\)"):
            either.log_prob(jnp.ones((4, 3)))
        with pytest.raises(ValueError, match=r"`particles` must have shape \(num_particles, 2\)"):
            either.transport(jnp.ones(2))
    with pytest.raises(TypeError, match="`density` must be a JointDensity"):
        pathwise_sample(jax.random.key(0), object(), 3)


def test_the_package_itself_does_without_the_extra() -> None:
    extra = "{'diffrax', 'equinox', 'optax'}"
    program = f"import sys, numpyro_rwpo; assert not {extra} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
