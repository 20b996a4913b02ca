"""Models with several modes, and the modes of their draws.

The sensors are those of Ahn, Korattikara and Welling (2013), Distributed and adaptive darting
Monte Carlo through regenerations, AISTATS, sec. 5, with simulated data. Hares and lynxes are the
model of Carpenter (2018), Predator-prey population dynamics, a case study of Stan, which is
``hudson_lynx_hare-lotka_volterra`` of posteriordb, solved by a Runge-Kutta method with fixed steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

Array = np.ndarray
Samples = dict[str, Array]

# The gallery's example: a frequency that is observed near integer times.
_rng = np.random.default_rng(1)
TIMES = np.arange(1, 7) + 0.05 * _rng.normal(size=6)
WAVE = np.cos(2.5 * TIMES) + 0.5 * _rng.normal(size=6)

_rng = np.random.default_rng(4)
MIXED = np.concatenate([_rng.normal(0.0, 1.0, size=95), _rng.normal(5.0, 0.3, size=5)])

NUM_UNKNOWN, RANGE, NOISE = 8, 0.3, 0.02
_rng = np.random.default_rng(5)
PLACES = _rng.uniform(size=(NUM_UNKNOWN + 3, 2))
_FIRST, _SECOND = np.triu_indices(NUM_UNKNOWN + 3, 1)
_with_unknown = _FIRST < NUM_UNKNOWN  # Distances between known places say nothing.
_FIRST, _SECOND = _FIRST[_with_unknown], _SECOND[_with_unknown]
_true = np.linalg.norm(PLACES[_FIRST] - PLACES[_SECOND], axis=1)
IS_OBSERVED = _rng.uniform(size=len(_true)) < np.exp(-(_true**2) / (2 * RANGE**2))
DISTANCES = np.where(IS_OBSERVED, _true + NOISE * _rng.normal(size=len(_true)), 0.0)

# Thousands of pelts of hares and lynxes from 1900 to 1920 (Hudson's Bay Company).
PELTS = np.array(
    [
        [30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22.0, 25.4, 27.1]
        + [40.3, 57.0, 76.6, 52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7],
        [4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0, 8.3, 9.1, 7.4]
        + [8.0, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6],
    ]
).T
STEPS_PER_YEAR = 20


def frequency() -> None:
    """The gallery's frequency, with a Laplace prior."""
    omega = numpyro.sample("frequency", dist.Laplace(0.0, 3.0))
    numpyro.sample("y", dist.Normal(jnp.cos(omega * TIMES), 0.5).to_event(1), obs=WAVE)


def small_component() -> None:
    """Two components with exchangeable priors, marginalized over the labels."""
    weight = numpyro.sample("weight", dist.Dirichlet(jnp.ones(2)))
    location = numpyro.sample("location", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    mixture = dist.MixtureSameFamily(dist.Categorical(probs=weight), dist.Normal(location, scale))
    numpyro.sample("y", mixture.expand([len(MIXED)]).to_event(1), obs=MIXED)


def mixture_position(samples: Samples) -> Array:
    """Weight of the first component, locations, and logs of the scales, (..., 5)."""
    weight = np.asarray(samples["weight"])[..., :1]
    return np.concatenate([weight, samples["location"], np.log(samples["scale"])], -1)


def labeling(x: Array) -> Array:
    """Which component is the one with the larger location."""
    return (x[..., 1] > x[..., 2]).astype(int)


def sensors() -> None:
    """Eight unknown places, and the distances between those of all sensors that were measured."""
    place = numpyro.sample("place", dist.Uniform(0.0, 1.0).expand([NUM_UNKNOWN, 2]).to_event(2))
    everywhere = jnp.concatenate([place, PLACES[NUM_UNKNOWN:]])
    step = everywhere[_FIRST] - everywhere[_SECOND]
    square = (step**2).sum(1)
    odds = -square / (2 * RANGE**2)
    # The log of 1 - exp(odds), which is minus infinity where two sensors are in the same place.
    missed = jnp.log(-jnp.expm1(jnp.minimum(odds, -1e-6)))
    error = (DISTANCES - jnp.sqrt(square + 1e-12)) / NOISE
    numpyro.factor("distances", jnp.where(IS_OBSERVED, odds - error**2 / 2, missed).sum())


def sensor_position(samples: Samples) -> Array:
    """Places of the unknown sensors, (..., 16)."""
    place = np.asarray(samples["place"])
    return place.reshape(*place.shape[:-2], 2 * NUM_UNKNOWN)


def sensor_pattern(x: Array, known: dict[str, Any]) -> Array:
    """Which of two places each ambiguous sensor is nearer to, as bits of a number.

    Args:
        x: positions, (..., 16).
        known: ``sensors``, the numbers of the ambiguous ones, and ``places``, (num, 2, 2).
    """
    place = x.reshape(*x.shape[:-1], NUM_UNKNOWN, 2)[..., known["sensors"], :]
    distance = np.linalg.norm(place[..., None, :] - np.asarray(known["places"]), axis=-1)
    bits = distance.argmin(-1)
    return (bits << np.arange(bits.shape[-1])).sum(-1)


def ambiguous_sensors(x: Array) -> dict[str, Any]:
    """The sensors that are at one of two places, and these, from draws (n, 16).

    Two places are eight times as far apart as the draws near either are wide.
    """
    sensors, places = [], []
    for k, draws in enumerate(x.reshape(-1, NUM_UNKNOWN, 2).swapaxes(0, 1)):
        along = (draws - draws.mean(0)) @ np.linalg.eigh(np.cov(draws.T))[1][:, -1]
        centers = draws[np.argsort(along)[[len(along) // 100, -len(along) // 100]]]
        for _ in range(20):
            label = np.linalg.norm(draws[:, None] - centers, axis=2).argmin(1)
            centers = np.stack([draws[label == i].mean(0) for i in range(2)])
        width = max(draws[label == i].std(0).max() for i in range(2))
        if np.linalg.norm(centers[1] - centers[0]) > 8 * width:
            sensors.append(k)
            places.append(centers.tolist())
    return {"sensors": sensors, "places": places}


def _rates(z: jax.Array, theta: jax.Array) -> jax.Array:
    prey, predator = z
    growth = theta[0] - theta[1] * predator, -theta[2] + theta[3] * prey
    return jnp.stack([growth[0] * prey, growth[1] * predator])


def populations(z: jax.Array, theta: jax.Array) -> jax.Array:
    """Populations (21, 2) each year from the first on."""
    h = 1.0 / STEPS_PER_YEAR

    def step(_: Any, z: jax.Array) -> jax.Array:
        k1 = _rates(z, theta)
        k2 = _rates(z + h / 2 * k1, theta)
        k3 = _rates(z + h / 2 * k2, theta)
        k4 = _rates(z + h * k3, theta)
        # Explicit steps may leave the positive numbers where the rates are absurd.
        return jnp.clip(z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), 1e-6, 1e6)

    def year(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        after, _ = jax.lax.scan(lambda z, _: (step(None, z), None), z, length=STEPS_PER_YEAR)
        return after, after

    _, path = jax.lax.scan(year, z, length=len(PELTS) - 1)
    return jnp.concatenate([z[None], path])


def lotka_volterra() -> None:
    """Hares and lynxes."""
    location, width = jnp.array([1.0, 0.05, 1.0, 0.05]), jnp.array([0.5, 0.05, 0.5, 0.05])
    theta = numpyro.sample("theta", dist.TruncatedNormal(location, width, low=0.0).to_event(1))
    first = numpyro.sample("first", dist.LogNormal(np.log(10.0), 1.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))
    path = populations(first, theta)
    numpyro.sample("y", dist.LogNormal(jnp.log(path), sigma).to_event(2), obs=PELTS)


def lotka_volterra_position(samples: Samples) -> Array:
    """Logs of all eight parameters, (..., 8)."""
    return np.log(np.concatenate([samples[name] for name in ("theta", "first", "sigma")], -1))


def is_noise(x: Array) -> Array:
    """Whether the noise is larger than a factor of two, so that it explains the cycles."""
    return (x[..., 6:].max(-1) > np.log(np.log(2.0))).astype(int)
