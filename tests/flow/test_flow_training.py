"""Training of the learned flows, and the guide that brings one to SVI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC, SVI, Trace_ELBO

from numpyro_rwpo import RWPO
from numpyro_rwpo.flow import (
    AutoSparseTransformer,
    EnergyDistance,
    ForwardKL,
    MaximumLikelihood,
    NeuralODEFlow,
    ReverseKL,
    SparseTransformerFlow,
    energy_distance,
    load_flow,
    save_flow,
    train,
)
from tests.helpers import Moments, assert_moments, run_mcmc

LAPLACE_MEAN, LAPLACE_SCALE = np.array([0.0, 1.0]), 0.5


def laplace_data(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (LAPLACE_MEAN + rng.laplace(scale=LAPLACE_SCALE, size=(n, 2))).astype(np.float32)


def new_flow(**options: Any) -> SparseTransformerFlow:
    options = {"num_particles": 32, "rate": 2.0, "prox_time": 0.5} | options
    return SparseTransformerFlow(2, 1, 4, rng_key=jax.random.key(0), **options)


def test_energy_distance_is_zero_for_equals_and_known_for_points() -> None:
    x = jnp.zeros((4, 1))
    assert energy_distance(x, x + 2.0) == pytest.approx(4.0)
    draws = jax.random.normal(jax.random.key(0), (200, 2, 30, 2))
    each = np.asarray(jax.jit(jax.vmap(lambda pair: energy_distance(*pair)))(draws))
    assert abs(each.mean()) < 4.5 * each.std() / np.sqrt(each.size)
    with pytest.raises(ValueError, match="2 points or more"):
        energy_distance(jnp.zeros((1, 2)), jnp.zeros((5, 2)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A run of three pieces, and the checkpoint of its first."""
    path = tmp_path_factory.mktemp("flow") / "run.npz"
    arguments = (jax.random.key(1), new_flow(), MaximumLikelihood(), laplace_data(500))
    result = train(*arguments, num_steps=130, batch_size=64, learning_rate=0.03)

    class Kill(Exception):
        pass

    import numpyro_rwpo.flow.training as training

    def write_and_die(*args: Any) -> None:
        write(*args)
        raise Kill

    write = training._write
    training._write = write_and_die
    try:
        train(*arguments, num_steps=130, batch_size=64, learning_rate=0.03, checkpoint=path)
    except Kill:
        pass
    finally:
        training._write = write
    return result, path


@pytest.mark.xdist_group("trained flow")
def test_training_approaches_the_entropy(trained: tuple[Any, Path]) -> None:
    """Held-out loss against the entropy of the data's distribution, known in closed form."""
    result, _ = trained
    entropy = 2 * (1 + np.log(2 * LAPLACE_SCALE))
    held_out = laplace_data(4000, seed=1)
    flow = result.flow.with_particles(jax.random.key(5), 512)
    start = -np.asarray(eqx.filter_jit(new_flow().log_prob)(held_out))
    loss = -np.asarray(eqx.filter_jit(flow.log_prob)(held_out))
    error = loss.std() / np.sqrt(loss.size)
    assert loss.mean() > entropy - 4.5 * error
    assert loss.mean() - entropy < 0.3 * (start.mean() - entropy) + 4.5 * error
    assert result.losses.shape == (130,)
    assert result.monitored.shape == result.seconds.shape == (3,)


@pytest.mark.xdist_group("trained flow")
def test_a_killed_run_goes_on_as_if_undisturbed(trained: tuple[Any, Path]) -> None:
    result, path = trained
    arguments = (new_flow(), MaximumLikelihood(), laplace_data(500))
    options: dict[str, Any] = {"batch_size": 64, "learning_rate": 0.03, "checkpoint": path}
    with pytest.raises(ValueError, match="written with rng_key = "):
        train(jax.random.key(2), *arguments, num_steps=130, **options)
    with pytest.raises(ValueError, match="written with num_steps = 130; now it is 200"):
        train(jax.random.key(1), *arguments, num_steps=200, **options)
    with pytest.raises(ValueError, match="written with learning_rate = 0.03; now it is 0.01"):
        train(jax.random.key(1), *arguments, num_steps=130, **options | {"learning_rate": 0.01})
    again = train(jax.random.key(1), *arguments, num_steps=130, **options)
    assert again.seconds.shape == (2,)
    np.testing.assert_array_equal(again.losses, result.losses)
    for one, other in zip(jax.tree.leaves(again.flow), jax.tree.leaves(result.flow), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_early_stopping_keeps_the_best_flow() -> None:
    """A loss that gets worse: the first piece's flow is kept, and no more than patience follows."""

    def loss(flow: Any, rng_key: jax.Array, data: jax.Array | None) -> jax.Array:
        return -jnp.sum(flow.location**2) + 0.0 * data.sum()

    def ascent(flow: Any, rng_key: jax.Array, data: jax.Array | None) -> jax.Array:
        size = jnp.sum(flow.location**2)
        return size - 2 * jax.lax.stop_gradient(size) + 0.0 * data.sum()

    data = laplace_data(10)
    flow = new_flow(location=1.0)
    falling = train(jax.random.key(0), flow, loss, data, validation=data, num_steps=150, patience=1)
    assert falling.losses.size == 150
    rising = train(
        jax.random.key(0), flow, ascent, data, validation=data, num_steps=300, patience=2
    )
    assert rising.losses.size == 150
    assert rising.monitored[0] == rising.monitored.min()


@pytest.mark.parametrize("kind", ["sparse", "ode"])
@pytest.mark.slow
def test_flows_learn_a_correlated_normal_from_its_density(kind: str) -> None:
    """Reverse KL of a normal density ends near its constant, 0, from a start that is far off."""
    covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    log_density = jax.vmap(dist.MultivariateNormal(jnp.array([1.0, -1.0]), covariance).log_prob)
    key = jax.random.key(0)
    flow: Any = (
        SparseTransformerFlow(2, 4, 16, 0.0, attention="copula", rng_key=key)
        if kind == "sparse"
        else NeuralODEFlow(2, 8, 16, rng_key=key)
    )
    result = train(
        jax.random.key(1), flow, ReverseKL(log_density), num_steps=600, learning_rate=0.02
    )
    assert result.losses[0] > 1  # before any step
    assert abs(result.monitored[-1]) < 0.05


@pytest.mark.parametrize("kind", ["sparse", "ode"])
@pytest.mark.slow
def test_forward_kl_covers_what_a_flow_cannot_be(kind: str) -> None:
    """Two modes too close to be missed: the best single normal has the moments of both."""
    means = jnp.array([-1.0, 1.0])

    def log_density(x: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(-0.5 * ((x - means[None]) / 0.5) ** 2, axis=1)

    key = jax.random.key(0)
    options = {"location": 0.3, "rng_key": key}
    flow: Any = (
        SparseTransformerFlow(
            1, 1, 1, 0.0, 1.0, num_particles=1, learn=("prox_time", "base"), **options
        )
        if kind == "sparse"
        else NeuralODEFlow(1, 4, 1, scale=1.2, **options)
    )
    loss = ForwardKL(log_density, num_samples=512)
    flow = train(jax.random.key(1), flow, loss, num_steps=400, learning_rate=0.02).flow
    draws = np.asarray(flow.sample(jax.random.key(2), 10_000))
    # Standard errors 0.011 and 0.008; the rest is for the last steps' noise.
    assert draws.mean() == pytest.approx(0.0, abs=0.1)
    assert draws.std() == pytest.approx(np.sqrt(1.25), abs=0.1)


@pytest.mark.slow
def test_energy_distance_trains_as_well() -> None:
    data = laplace_data(2000)
    result = train(jax.random.key(1), new_flow(), EnergyDistance(), data, num_steps=300)
    draws = result.flow.sample(jax.random.key(2), 2000)
    before = energy_distance(new_flow().sample(jax.random.key(2), 2000), jnp.asarray(data))
    assert energy_distance(draws, jnp.asarray(data)) < 0.2 * before


def test_flows_are_saved_and_loaded(tmp_path: Path) -> None:
    flow, like = new_flow(), new_flow(rate=1.0)
    save_flow(tmp_path / "flow.npz", flow)
    loaded = load_flow(tmp_path / "flow.npz", like)
    np.testing.assert_array_equal(loaded.prior.rate_right, flow.prior.rate_right)
    with pytest.raises(ValueError, match="written with attention = 'joint'; now it is 'copula'"):
        load_flow(tmp_path / "flow.npz", new_flow(attention="copula"))
    with pytest.raises(ValueError, match="sizes or kinds"):
        load_flow(tmp_path / "flow.npz", new_flow(num_particles=33))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data": np.ones((5, 3))}, ValueError, r"`data` must have shape \(n, 2\); got \(5, 3\)"),
        ({"data": np.full((5, 2), np.nan)}, ValueError, "`data` must be finite"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be at least 1"),
        ({"learning_rate": -1.0}, ValueError, "`learning_rate` must lie strictly between"),
        ({"patience": 0.5}, TypeError, "`patience` must be an integer"),
        ({"rng_key": 0}, TypeError, "`rng_key` must be a key"),
        ({}, ValueError, r"This loss needs `data` of shape \(n, dim\); got None"),
    ],
)
def test_wrong_training_arguments(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"rng_key": jax.random.key(0), "flow": new_flow()} | options
    with pytest.raises(error, match=message):
        train(loss=MaximumLikelihood(), **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MaximumLikelihood(kinetic=-1), ValueError, "`kinetic` must be >= 0 and finite"),
        (lambda: EnergyDistance(hjb=np.nan), ValueError, "`hjb` must be >= 0 and finite; got nan"),
        (lambda: ReverseKL(jnp.sum, kinetic=None), TypeError, "`kinetic` must be a number"),
        (lambda: ReverseKL(jnp.sum, num_samples=0), ValueError, "`num_samples` must be at least 1"),
    ],
)
def test_wrong_losses(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_density_of_one_point_is_an_error() -> None:
    """It would broadcast to the mean of all pairs."""
    for density in (jnp.sum, lambda x: jnp.sum(x, 1, keepdims=True)):
        with pytest.raises(ValueError, match=r"values \(256,\); got shape .* jax.vmap"):
            jax.eval_shape(ReverseKL(density), new_flow(), jax.random.key(0), None)
        with pytest.raises(ValueError, match=r"values \(256,\); got shape .* jax.vmap"):
            jax.eval_shape(ForwardKL(density), new_flow(), jax.random.key(0), None)


def test_a_loss_that_is_never_finite_is_an_error() -> None:
    def loss(flow: Any, rng_key: jax.Array, data: jax.Array | None) -> jax.Array:
        return jnp.log(-jnp.exp(flow.location.sum()))

    with pytest.raises(FloatingPointError, match="The loss after 10 steps is nan"):
        train(jax.random.key(0), new_flow(), loss, num_steps=10)


# ------------------------------------------------------------------------------- the guide


def model(y: Any = None) -> None:
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    weights = numpyro.sample("weights", dist.Laplace(0.5, 0.25).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(weights, scale), obs=y)


@pytest.mark.slow
def test_guide_takes_its_rates_from_laplace_sites() -> None:
    y = jnp.array([1.0, -0.5])
    guide = AutoSparseTransformer(model, 1, 4, attention="joint", num_particles=16)
    with pytest.raises(RuntimeError, match="must have been run"):
        guide.flow({})
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO(num_particles=4))
    result = svi.run(jax.random.key(0), 2, y, progress_bar=False)
    assert np.isfinite(result.losses).all()
    prior = guide.flow(result.params).prior
    # `scale` comes before `weights`.
    np.testing.assert_allclose(prior.rate_right, [0.0, 4.0, 4.0], rtol=0.2)
    np.testing.assert_allclose(prior.location, [0.0, 0.5, 0.5])
    draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(5,))
    assert draws["weights"].shape == (5, 2)
    assert (draws["scale"] > 0).all()
    assert guide.init_params(jax.random.key(2), result.params, 2)["weights"].shape == (2, 2)


def conjugate(y: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(mu, 1.0).to_event(1), obs=y)


def test_wrong_guide_arguments() -> None:
    with pytest.raises(ValueError, match="`attention` must be one of"):
        AutoSparseTransformer(model, attention="none")
    with pytest.raises(ValueError, match="`init_scale` must lie strictly between"):
        AutoSparseTransformer(model, init_scale=0.0)


@pytest.mark.slow
def test_guide_finds_a_conjugate_posterior() -> None:
    """Moments within a tenth of a posterior standard deviation of the closed form."""

    y = jnp.array([2.0, 0.0, -1.0])
    guide = AutoSparseTransformer(conjugate, num_particles=128)
    svi = SVI(
        conjugate,
        guide,
        numpyro.optim.Adam(optax.cosine_decay_schedule(0.01, 1500)),
        Trace_ELBO(num_particles=64),
    )
    result = svi.run(jax.random.key(0), 1500, y, progress_bar=False)
    draws = guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(4000,))["mu"]
    sd = np.sqrt(1 / (1 / 4 + 1))
    np.testing.assert_allclose(draws.mean(0), sd**2 * y, atol=0.1 * sd)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)


@pytest.mark.slow
def test_a_trained_guide_starts_a_correct_run() -> None:
    y = jnp.array([1.0, -0.5])
    guide = AutoSparseTransformer(model, 2, 8, num_particles=64)
    svi = SVI(model, guide, numpyro.optim.Adam(0.02), Trace_ELBO(num_particles=32))
    result = svi.run(jax.random.key(0), 300, y, progress_bar=False)
    start = guide.init_params(jax.random.key(2), result.params, 2)
    mcmc = MCMC(RWPO(model), num_warmup=100, num_samples=100, num_chains=2,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.run(jax.random.key(3), y, init_params=start)
    assert np.isfinite(mcmc.get_samples()["weights"]).all()
    state = RWPO(model).init(jax.random.split(jax.random.key(0), 2), 100, start, (y,), {})
    np.testing.assert_allclose(state.z["weights"], start["weights"], rtol=1e-5)


@pytest.mark.slow
def test_a_trained_guide_is_a_proposal() -> None:
    """Draws of a guide are where particles start and jump to, if only on trial; all stays exact."""

    y = jnp.array([2.0, 0.0, -1.0])
    guide = AutoSparseTransformer(conjugate, 2, 8, num_particles=64)
    optimizer = numpyro.optim.Adam(optax.cosine_decay_schedule(0.02, 400))
    svi = SVI(conjugate, guide, optimizer, Trace_ELBO(num_particles=32))
    result = svi.run(jax.random.key(0), 400, y, progress_bar=False)
    kernel = RWPO(conjugate, proposal=guide.get_posterior(result.params))
    mcmc = run_mcmc(kernel, y, num_warmup=200, num_samples=1000, num_chains=4)
    variance = 1 / (1 / 4 + 1)
    moments = Moments(variance * np.asarray(y), np.full(3, variance))
    assert_moments(mcmc.get_samples(group_by_chain=True), {"mu": moments})
    # Nine in ten particles jump at least once between two draws: with so few jumps only if more
    # than a fifth of these are accepted.
    assert mcmc.last_state.move.num_jumps.max() <= 10
