"""Whether chains agree with each other, and with themselves some updates ago."""

from __future__ import annotations

from collections.abc import Callable

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_rwpo.dynamics.ensemble import Ensemble, evaluate, potential
from numpyro_rwpo.dynamics.stationarity import (
    MAX_DISAGREEMENT,
    Past,
    disagreement,
    drift,
    largest_allowed_drift,
    no_past,
    remember,
)
from numpyro_rwpo.model.target import Differentiation, Target, pool_chains

NORMAL = Differentiation(1.0, False).target(lambda x, centering: 0.5 * x @ x, None)
NUM_CHAINS, NUM_PARTICLES, DIM = 4, 64, 30


def of_chains(function: Callable[..., jax.Array], *arrays: np.ndarray) -> np.ndarray:
    """A function of each chain's particles and of the target with pooled chains."""
    target = pool_chains(NORMAL, "chain")
    vectorized = jax.vmap(lambda *x: function(*x, target), axis_name="chain")
    return np.asarray(jax.jit(vectorized)(*map(jnp.float32, arrays)))


def disagreements(particles: np.ndarray) -> np.ndarray:
    """Of standard normal ensembles (chains, particles, dim), one for each chain."""

    def one_chain(x: jax.Array, target: Target) -> jax.Array:
        ensemble = evaluate(x, target)
        return disagreement(ensemble, potential(ensemble, target), x.mean(0), target)

    return of_chains(one_chain, particles)


def test_ensembles_that_differ_in_location_or_scale_disagree() -> None:
    normal = np.random.default_rng(0).normal(size=(NUM_CHAINS, NUM_PARTICLES, DIM))
    shifted, wide = normal.copy(), normal.copy()
    shifted[0, :, 7] += 2
    wide[0, :, 7] *= 6
    assert np.all(disagreements(normal) < MAX_DISAGREEMENT)
    assert np.all(disagreements(shifted) > MAX_DISAGREEMENT)
    assert np.all(disagreements(wide) > MAX_DISAGREEMENT)
    # A single chain has no other to disagree with.
    assert disagreements(shifted[:1]) == 0


def test_disagreement_is_the_square_of_r_hat() -> None:
    """But for one: R-hat squared is (n - 1) / n plus variance between over variance within."""
    positions = np.random.default_rng(1).normal(size=(4, 64, 1)) + np.arange(4)[:, None, None]
    found = disagreements(positions)
    r_hat = az.rhat(positions[..., 0], method="identity")
    np.testing.assert_allclose(found, r_hat**2 - 63 / 64, rtol=1e-4)


def drifts(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Of ensembles (chains, particles, dim) since a past; each chain has the same drift."""

    def one_chain(x: jax.Array, y: jax.Array, target: Target) -> jax.Array:
        ensemble, earlier = evaluate(x, target), evaluate(y, target)
        past = Past(y, potential(earlier, target), jnp.asarray(8))
        return drift(ensemble, potential(ensemble, target), past, x.mean(0), target)

    return of_chains(one_chain, now, before)


def correlated_pair(seed: int, kept: float) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal ensembles, and the same with new noise, correlation ``kept``."""
    rng = np.random.default_rng(seed)
    before, noise = rng.normal(size=(2, NUM_CHAINS, NUM_PARTICLES, DIM))
    return kept * before + np.sqrt(1 - kept**2) * noise, before


def test_ensembles_at_rest_have_no_drift() -> None:
    """Drifts of pairs at rest are below the limit about as often as not, and never far above."""
    found = np.array([drifts(*correlated_pair(seed, 0.7))[0] for seed in range(20)])
    limit = largest_allowed_drift(2 * DIM + 1)
    # The share of 20 looks has a standard error of 0.11; its mean is between 0.6 and 0.8.
    assert np.mean(found < limit) > 0.3
    assert found.max() < limit + 2


def test_all_chains_that_move_the_same_way_drift() -> None:
    """They agree with each other, and each pair of ensembles alone would hardly be told apart."""
    limit = largest_allowed_drift(2 * DIM + 1)
    now, before = correlated_pair(0, 0.95)
    moved, wider = now.copy(), now.copy()
    moved[..., 7] += 0.15  # the Monte Carlo error of the mean of one ensemble is 0.125
    wider[..., 7] *= 1.2
    assert np.all(disagreements(moved) < MAX_DISAGREEMENT)
    assert np.all(drifts(moved, before) > limit + 2)
    assert np.all(drifts(wider, before) > limit + 2)


def test_one_straggler_is_no_drift() -> None:
    """Wherever it comes from, it counts for no more than three standard deviations."""
    limit = largest_allowed_drift(2 * DIM + 1)
    now, before = correlated_pair(3, 0.7)
    assert np.all(drifts(now, before) < limit)
    before[0, 5] = 1e6
    assert np.all(drifts(now, before) < limit)


def test_a_particle_that_is_undefined_does_not_rest() -> None:
    now, before = correlated_pair(0, 0.7)
    now[0, 5, 3] = np.nan
    assert np.all(np.isinf(drifts(now, before)))


def test_the_past_is_the_last_update_whose_number_is_a_power_of_two() -> None:
    ensemble: Ensemble = evaluate(jnp.zeros((8, 2)), NORMAL)
    height = potential(ensemble, NORMAL)
    past = no_past(8, 2, jnp.float32)
    seen = []
    for k in range(1, 18):
        past = remember(past, ensemble._replace(particles=jnp.full((8, 2), k)), height, k)
        assert past.particles[0, 0] == past.updates
        seen.append(int(past.updates))
    assert seen == [1, 2, 2, 4, 4, 4, 4] + [8] * 8 + [16, 16]
