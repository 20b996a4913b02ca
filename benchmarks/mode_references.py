"""Shares of modes by long runs of parallel tempering, for targets that no sum over a grid reaches.

From the repository root::

    python -m benchmarks.mode_references [--targets NAME ...] [--states N]

Replicas of the tempered densities, from the posterior to one that is nearly flat, make random-walk
steps and exchange their places. Each of ``NUM_RUNS`` independent runs gives an estimate of each
share, and from these follow the mean and its standard error.

Reference: Earl and Deem (2005), Parallel tempering: theory, applications, and new perspectives,
Physical Chemistry Chemical Physics 7, 3910.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import initialize_model
from scipy.optimize import minimize

from benchmarks import mode_models
from benchmarks.mode_targets import REFERENCES

NUM_RUNS = 16
# Random-walk steps of all replicas between two exchanges, and exchanges between two kept states.
STEPS, THIN = 5, 4


class Reference(NamedTuple):
    """What to run for a target.

    Attributes:
        model: NumPyro model.
        position: positions (..., dim) from its samples.
        num_levels: number of tempered densities.
        hottest: inverse temperature of the hottest one.
    """

    model: Callable[[], None]
    position: Callable[[dict[str, np.ndarray]], np.ndarray]
    num_levels: int
    hottest: float


MODELS = {
    "sensors": Reference(mode_models.sensors, mode_models.sensor_position, 20, 0.002),
}
NAMES = [*MODELS, "Lotka-Volterra"]


def tempered(
    potential: Callable[[jax.Array], jax.Array],
    beta: jax.Array,
    starts: jax.Array,
    num_kept: int,
    rng_key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Draws of the posterior (num_kept, num_runs, dim), and the exchanges accepted at each level.

    Args:
        potential: of a position (dim,).
        beta: inverse temperatures from 1 down, (num_levels,).
        starts: (num_runs, num_levels, dim).
        num_kept: number of kept states. A third as many before them adapts the steps.
        rng_key: one key.
    """
    energy = jax.vmap(jax.vmap(potential))
    level = jnp.arange(len(beta))

    def walk(carry: Any, key: jax.Array) -> tuple[Any, None]:
        x, u, log_step, shape = carry
        key_noise, key_accept = random.split(key)
        noise = random.normal(key_noise, x.shape) * shape * jnp.exp(log_step)[:, None]
        new = x + noise
        v = energy(new)
        chance = jnp.nan_to_num(jnp.exp(jnp.minimum(beta * (u - v), 0.0)))
        taken = random.uniform(key_accept, u.shape) < chance
        return (
            jnp.where(taken[..., None], new, x),
            jnp.where(taken, v, u),
            log_step,
            shape,
        ), chance.mean(0)

    def exchange(x: jax.Array, u: jax.Array, key: jax.Array, odd: jax.Array) -> Any:
        # Pairs (0, 1), (2, 3), ... and (1, 2), (3, 4), ... take turns.
        partner = jnp.where((level + odd) % 2 == 0, level + 1, level - 1)
        is_pair = (partner >= 0) & (partner < len(beta))
        partner = jnp.where(is_pair, partner, level)
        gain = (beta - beta[partner]) * (u - u[:, partner])
        noise = random.uniform(key, u.shape)
        noise = noise[:, jnp.minimum(level, partner)]  # the same for both
        taken = is_pair & (jnp.log(noise) < gain)
        source = jnp.where(taken, partner, level)
        x = jnp.take_along_axis(x, source[..., None], axis=1)
        return x, jnp.take_along_axis(u, source, axis=1), taken.mean(0)

    def sweep(adapts: bool, carry: Any, key: jax.Array) -> tuple[Any, Any]:
        keys = random.split(key, THIN * (STEPS + 1)).reshape(THIN, STEPS + 1)
        swaps = jnp.zeros(len(beta))
        for k in range(THIN):
            (x, u, log_step, shape), chance = lax.scan(walk, carry, keys[k, :-1])
            if adapts:
                log_step = log_step + 0.1 * (chance.mean(0) - 0.25)
                shape = 0.99 * shape + 0.01 * jnp.sqrt(((x - x.mean(0)) ** 2).mean(0))
            x, u, taken = exchange(x, u, keys[k, -1], k % 2)
            swaps, carry = swaps + taken / THIN * 2, (x, u, log_step, shape)
        return carry, (carry[0][:, 0], swaps)

    key_first, key_kept = random.split(rng_key)
    shape = starts.std(0)
    carry = starts, energy(starts), jnp.full(len(beta), -1.0), shape
    carry, _ = lax.scan(partial(sweep, True), carry, random.split(key_first, num_kept // 3))
    _, (draws, swaps) = lax.scan(partial(sweep, False), carry, random.split(key_kept, num_kept))
    return draws, swaps.mean(0)


def run(reference: Reference, num_kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (num_kept, NUM_RUNS, dim) of the posterior, and the exchanges accepted."""
    info = initialize_model(random.key(0), reference.model)
    first, unravel = ravel_pytree(info.param_info.z)

    def potential(x: jax.Array) -> jax.Array:
        value = info.potential_fn(unravel(x))
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    def samples(x: jax.Array) -> Any:
        return info.postprocess_fn(unravel(x))

    beta = jnp.asarray(np.geomspace(1.0, reference.hottest, reference.num_levels))
    shape = (NUM_RUNS, reference.num_levels, len(first))
    starts = random.uniform(random.key(1), shape, minval=-2.0, maxval=2.0)
    draws, swaps = jax.jit(tempered, static_argnums=(0, 3))(
        potential, beta, starts, num_kept, random.key(2)
    )
    constrained = jax.jit(jax.vmap(jax.vmap(samples)))(draws)
    return reference.position(jax.tree.map(np.asarray, constrained)), np.asarray(swaps)


def shares_of(number: np.ndarray, num_modes: int) -> dict[str, list[float]]:
    """Shares and their standard errors, from modes (num_kept, NUM_RUNS)."""
    each = (number[..., None] == np.arange(num_modes)).mean(0)
    error = each.std(0, ddof=1) / np.sqrt(len(each))
    return {"shares": each.mean(0).tolist(), "errors": error.tolist()}


def lotka_volterra_shares(num_descents: int = 12) -> dict[str, list[float]]:
    """Shares of fits and of noise, by Laplace approximations of all optima that descents find.

    They differ by so many nats that an error of one or two does not matter.
    """
    info = initialize_model(random.key(0), mode_models.lotka_volterra)
    first, unravel = ravel_pytree(info.param_info.z)

    def potential(x: jax.Array) -> jax.Array:
        return info.potential_fn(unravel(x))

    value_and_grad, hessian = (
        jax.jit(jax.value_and_grad(potential)),
        jax.jit(jax.hessian(potential)),
    )
    starts = np.random.default_rng(0).uniform(-2, 2, size=(num_descents, len(first)))
    log_evidence = np.full(2, -np.inf)
    seen: list[float] = []
    for start in starts:
        found = minimize(value_and_grad, start, jac=True, method="BFGS")
        matrix = np.asarray(hessian(found.x), np.float64)
        if not (np.isfinite(found.fun) and np.isfinite(matrix).all()):
            continue
        curvature = np.linalg.eigvalsh(matrix)
        is_new = not any(abs(found.fun - height) < 0.05 for height in seen)
        if curvature.min() <= 0 or not is_new:
            continue
        seen.append(float(found.fun))
        sites = info.postprocess_fn(unravel(found.x))
        x = mode_models.lotka_volterra_position(jax.tree.map(np.asarray, sites))
        number = int(mode_models.is_noise(x))
        evidence = -found.fun - np.log(curvature).sum() / 2
        log_evidence[number] = np.logaddexp(log_evidence[number], evidence)
    share = np.exp(log_evidence - np.logaddexp(*log_evidence))
    nats = [float(x) for x in log_evidence]
    return {"shares": share.tolist(), "errors": [0.0, 0.0], "log_evidence": nats, "heights": seen}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--states", type=int, default=2_500)
    args = parser.parse_args()
    known = json.loads(REFERENCES.read_text()) if REFERENCES.exists() else {}
    for name in args.targets:
        if name == "Lotka-Volterra":
            known[name] = lotka_volterra_shares()
            print(name, known[name], flush=True)
            continue
        x, swaps = run(MODELS[name], args.states)
        places = mode_models.ambiguous_sensors(x[::10].reshape(-1, x.shape[-1]))
        number = mode_models.sensor_pattern(x, places)
        known[name] = places | shares_of(number, 2 ** len(places["sensors"]))
        print(name, known[name], "exchanges", swaps.round(2).tolist(), flush=True)
    REFERENCES.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
