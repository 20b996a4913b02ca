"""`init` and `step` in the style of BlackJAX: the draws, inside JAX's loops, and the errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import (
    Moments,
    assert_moments,
    gaussian_moments,
    gaussian_potential,
    shrunken_means_moments,
)

from numpyro_rwpo import RWPO
from numpyro_rwpo.blackjax_style import EnsembleState, SamplingAlgorithm, rwpo

# Half the time of the default settings to compile, and enough particles for a posterior.
LIGHT: dict[str, Any] = {"num_particles": 64, "attention": "joint", "dense_mass": False}


def log_gaussian(x: dict[str, jax.Array]) -> jax.Array:
    """Two correlated normal coordinates in a pytree."""
    return -gaussian_potential(jnp.stack([x["a"], x["b"][0]]))


def start(num_chains: int | None) -> dict[str, np.ndarray]:
    """A starting position of `log_gaussian`."""
    axis = () if num_chains is None else (num_chains,)
    return {"a": np.zeros(axis, np.float32), "b": np.ones((*axis, 1), np.float32)}


def draw(algorithm: SamplingAlgorithm, state: EnsembleState, number: int) -> tuple[Any, ...]:
    """Steps inside `scan` and `jit`: the last state, all positions, log densities and infos."""

    @jax.jit
    def loop(state: EnsembleState, keys: jax.Array) -> tuple[Any, Any]:
        def one_step(state: EnsembleState, rng_key: jax.Array) -> tuple[Any, Any]:
            state, info = algorithm.step(rng_key, state)
            return state, (state.position, state.logdensity, info)

        return jax.lax.scan(one_step, state, keys)

    last, collected = loop(state, jax.random.split(jax.random.key(1), number))
    return last, *collected


@pytest.mark.parametrize("num_chains", [None, 4])
def test_moments_in_a_compiled_loop(num_chains: int | None) -> None:
    """One chain and several; z-scores up to 4.5 Monte Carlo standard errors are allowed."""
    algorithm = rwpo(log_gaussian, num_chains=num_chains, num_warmup=100, **LIGHT)
    state = algorithm.init(start(num_chains), jax.random.key(0))
    last, draws, logdensity, info = draw(algorithm, state, 2000 if num_chains is None else 600)

    axes = (logdensity.shape[0],) if num_chains is None else (logdensity.shape[0], num_chains)
    assert draws["a"].shape == axes
    assert draws["b"].shape == (*axes, 1)
    assert all(np.shape(field) == axes for field in info)
    assert np.all((info.acceptance_rate >= 0) & (info.acceptance_rate <= 1))
    assert not np.any(info.is_divergent)
    assert np.all(info.num_integration_steps > 0)
    assert np.all(info.energy >= -logdensity - 1e-4)  # Kinetic energy is not negative.

    def by_chain(x: jax.Array) -> np.ndarray:
        return np.asarray(x)[None] if num_chains is None else np.swapaxes(np.asarray(x), 0, 1)

    chains = jax.tree.map(by_chain, draws)
    x = np.stack([chains["a"], chains["b"][..., 0]], axis=-1)
    assert_moments({"x": x}, {"x": gaussian_moments()})
    of_draws = jax.vmap(gaussian_potential)(jnp.asarray(x.reshape(-1, 2)))
    np.testing.assert_allclose(by_chain(-logdensity).ravel(), of_draws, rtol=1e-4, atol=1e-4)
    for leaf in jax.tree.leaves(last.position):
        assert np.isfinite(leaf).all()


@pytest.fixture(scope="module")
def small() -> tuple[SamplingAlgorithm, EnsembleState]:
    """A warmed-up algorithm with so few states that a short loop refreshes them several times."""
    options = {**LIGHT, "num_particles": 4}
    algorithm = rwpo(log_gaussian, num_chains=2, num_warmup=10, **options)
    return algorithm, algorithm.init(start(2), jax.random.key(0))


def test_start(small: tuple[SamplingAlgorithm, EnsembleState]) -> None:
    """The state after `init` is that of the starting position, as it is in BlackJAX."""
    _, state = small
    jax.tree.map(np.testing.assert_array_equal, state.position, start(2))
    expected = jax.vmap(log_gaussian)(jax.tree.map(jnp.asarray, start(2)))
    np.testing.assert_array_equal(state.logdensity, expected)
    assert int(state.ensemble.iteration) == 0


def test_step_is_a_function_of_key_and_state(
    small: tuple[SamplingAlgorithm, EnsembleState],
) -> None:
    """The same key gives the same draw and another key another, old-style keys included."""
    algorithm, state = small
    step = jax.jit(algorithm.step)
    first, _ = step(jax.random.key(3), state)
    again, _ = step(jax.random.key(3), state)
    other, _ = step(jax.random.key(4), state)
    old_style, _ = step(jax.random.PRNGKey(3), state)
    np.testing.assert_array_equal(first.position["a"], again.position["a"])
    np.testing.assert_array_equal(first.position["a"], old_style.position["a"])
    assert np.all(first.position["a"] != other.position["a"])
    # Keys of both kinds leave the type of the state as it is, so that a loop can carry it.
    assert jax.tree.structure(old_style) == jax.tree.structure(state)
    assert old_style.ensemble.rng_key.dtype == state.ensemble.rng_key.dtype
    # The next state of the particle is there already: its step does not depend on the key.
    second, _ = step(jax.random.key(5), first)
    same, _ = step(jax.random.key(6), first)
    np.testing.assert_array_equal(second.position["a"], same.position["a"])


def test_scan_takes_the_steps_of_a_python_loop(
    small: tuple[SamplingAlgorithm, EnsembleState],
) -> None:
    algorithm, state = small
    num_steps = state.ensemble.buffer.potential[0].size + 3
    _, draws, _, _ = draw(algorithm, state, num_steps)
    step = jax.jit(algorithm.step)
    for number, key in enumerate(jax.random.split(jax.random.key(1), num_steps)):
        state, _ = step(key, state)
        np.testing.assert_allclose(state.position["a"], draws["a"][number], rtol=1e-4, atol=1e-4)


def test_warm_up_in_a_compiled_program() -> None:
    """`init` may be inside `jit`, together with the steps."""
    algorithm = rwpo(log_gaussian, num_warmup=10, **{**LIGHT, "num_particles": 4})

    @jax.jit
    def run(position: Any, rng_key: jax.Array) -> Any:
        state = algorithm.init(position, rng_key)
        return algorithm.step(rng_key, state)

    state, info = run(start(None), jax.random.key(0))
    assert np.isfinite(state.logdensity)
    assert info.acceptance_rate.shape == ()


def test_laplace_prior() -> None:
    """`laplace_sites` reaches the kernel, and the posterior is that of the whole density."""
    y, scale = np.array([0.3, 1.2, -2.5], np.float32), 0.5

    def logdensity_fn(z: dict[str, jax.Array]) -> jax.Array:
        misfit = 0.5 * jnp.sum((z["theta"] - y) ** 2) + 0.5 * z["other"] ** 2
        return -misfit - jnp.sum(jnp.abs(z["theta"])) / scale

    laplace_sites = {"theta": dist.Laplace(0.0, scale), "other": None}
    algorithm = rwpo(
        logdensity_fn, num_chains=4, num_warmup=100, laplace_sites=laplace_sites, **LIGHT
    )
    position = {"theta": jnp.zeros((4, 3)), "other": jnp.zeros(4)}
    state = algorithm.init(position, jax.random.key(0))
    _, draws, _, _ = draw(algorithm, state, 600)
    moments = shrunken_means_moments(y, scale)
    moments["other"] = Moments(np.asarray(0.0), np.asarray(1.0))
    assert_moments(jax.tree.map(lambda x: np.swapaxes(x, 0, 1), draws), moments)


def test_options_reach_the_kernel() -> None:
    with pytest.raises(ValueError, match="`laplace_sites` must be a pytree like"):
        rwpo(log_gaussian, laplace_sites=["a"], **LIGHT).init(start(None), jax.random.key(0))
    with pytest.raises(ValueError, match="`num_particles` must be at least 4"):
        rwpo(log_gaussian, num_particles=3)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"logdensity_fn": 3.0}, TypeError, r"`logdensity_fn` must be callable; got 3\.0"),
        ({"num_chains": 0}, ValueError, "`num_chains` must be a positive integer or None; got 0"),
        ({"num_chains": 2.0}, ValueError, "`num_chains` .* got 2.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        rwpo(**{"logdensity_fn": log_gaussian, **arguments})


def no_scalar(x: Any) -> jax.Array:
    return -(x["b"] ** 2)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"position": {"a": 1, "b": 2}}, TypeError, r"`position` .* float32 or float64; got .* 1"),
        ({"position": {"a": np.zeros(2, int)}}, TypeError, "`position` .* float32 or float64"),
        ({"position": np.zeros(2, np.float16)}, TypeError, "`position` .* float32 or float64"),
        ({"position": ["a"]}, TypeError, "`position` .* float32 or float64"),
        ({"position": start(3)}, ValueError, r"`position` .* size 2.* got shape \(3,\)"),
        ({"position": start(None)}, ValueError, r"`position` .* size 2.* got shape \(\)"),
        ({"rng_key": 0}, TypeError, "`rng_key` must be one key .* got 0"),
        ({"rng_key": jax.random.split(jax.random.key(0))}, TypeError, "`rng_key` must be one key"),
        ({"logdensity_fn": no_scalar}, ValueError, r"`logdensity_fn` .* scalar.*\(1,\)"),
        ({"logdensity_fn": lambda x: None}, ValueError, "`logdensity_fn` .* scalar.*None"),
    ],
)
def test_bad_start(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    good = {
        "logdensity_fn": log_gaussian,
        "position": start(2),
        "rng_key": jax.random.key(0),
    }
    given = {**good, **changes}
    algorithm = rwpo(given["logdensity_fn"], num_chains=2)
    with pytest.raises(error, match=f"(?s){match}"):
        algorithm.init(given["position"], given["rng_key"])


def test_step_before_init(small: tuple[SamplingAlgorithm, EnsembleState]) -> None:
    _, state = small
    with pytest.raises(RuntimeError, match="`init` must be called before `sample`"):
        rwpo(log_gaussian, num_chains=2).step(jax.random.key(0), state)


def test_step_needs_one_key(small: tuple[SamplingAlgorithm, EnsembleState]) -> None:
    algorithm, state = small
    with pytest.raises(TypeError, match="`rng_key` must be one key"):
        algorithm.step(jax.random.split(jax.random.key(0)), state)


def test_warm_up_is_that_of_the_kernel(small: tuple[SamplingAlgorithm, EnsembleState]) -> None:
    """`init` makes the ensemble that `RWPO.init` makes with the keys of the chains."""
    _, state = small
    kernel = RWPO(potential_fn=lambda x: -log_gaussian(x), **{**LIGHT, "num_particles": 4})
    keys = jax.random.split(jax.random.key(0), 2)
    expected = kernel.init(keys, 10, start(2), (), {})
    np.testing.assert_array_equal(state.ensemble.ensemble.particles, expected.ensemble.particles)
