"""Computes the evidence of the breast-cancer regression by annealed sequential Monte Carlo.

From the repository root::

    python -m benchmarks.posteriors.evidence.annealed

The computation is in double precision and independent of the package: particles are carried from a
distribution with a known constant to the posterior along powers of the density ratio, reweighted,
resampled, and moved by HMC (Del Moral, Doucet and Jasra 2006). A first, rough run starts from the
prior and gives a mean and a covariance. The main runs start from the normal distribution with these
moments, which is close to the posterior, so that only a few easy steps remain. The script writes
``breast_cancer_logistic.json``: the mean over runs, a standard error from their scatter, and the
run from the prior as a check.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.problems import breast_cancer_logistic

NUM_PARTICLES = 4000
NUM_RUNS = 8
MIN_ESS = 0.9  # share of the conditional effective size that each step along the path preserves
NUM_MOVES, NUM_LEAPFROG = 6, 5  # HMC trajectories per step, and leapfrog steps per trajectory
OUTPUT = Path(__file__).parent / "breast_cancer_logistic.json"

Density = Callable[[jax.Array], jax.Array]


def problem() -> tuple[Density, Density]:
    """Log prior and log likelihood of positions (n, 31): thirty coefficients, then the intercept.

    The model is written out again here, without NumPyro.
    """
    kwargs = breast_cancer_logistic().kwargs
    assert kwargs["scale"] == 1.0
    X, y = jnp.asarray(kwargs["X"], jnp.float64), jnp.asarray(kwargs["y"], jnp.float64)
    design = jnp.concatenate([X, jnp.ones((len(X), 1))], 1)

    def log_prior(x: jax.Array) -> jax.Array:
        laplace = -jnp.abs(x[:, :-1]).sum(1) - (x.shape[1] - 1) * jnp.log(2.0)
        normal = -0.5 * (x[:, -1] / 5) ** 2 - jnp.log(5 * jnp.sqrt(2 * jnp.pi))
        return laplace + normal

    def log_likelihood(x: jax.Array) -> jax.Array:
        logits = x @ design.T
        return (y * logits - jax.nn.softplus(logits)).sum(1)

    return log_prior, log_likelihood


@partial(jax.jit, static_argnames=("start", "end"))
def move(
    rng_key: jax.Array, x: jax.Array, power: Any, step: Any, factor: jax.Array, start: Any, end: Any
) -> tuple[jax.Array, jax.Array]:
    """HMC moves of all particles on ``start^(1-power) end^power``, and their mean acceptance."""

    def log_density(x: jax.Array) -> jax.Array:
        return (1 - power) * start(x) + power * end(x)

    gradient = jax.grad(lambda x: log_density(x).sum())

    def trajectory(x: jax.Array, rng_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_momentum, key_accept, key_step = jax.random.split(rng_key, 3)
        p = jax.random.normal(key_momentum, x.shape)
        size = step * jax.random.uniform(key_step, (len(x), 1), minval=0.6, maxval=1.2)
        before = log_density(x) - 0.5 * (p**2).sum(1)

        def leapfrog(_: Any, state: Any) -> Any:
            q, p = state
            p = p + 0.5 * size * (gradient(q) @ factor)
            q = q + size * (p @ factor.T)
            return q, p + 0.5 * size * (gradient(q) @ factor)

        q, p = lax.fori_loop(0, NUM_LEAPFROG, leapfrog, (x, p))
        accept = jnp.exp(jnp.minimum(log_density(q) - 0.5 * (p**2).sum(1) - before, 0.0))
        is_accepted = jax.random.uniform(key_accept, accept.shape) < accept
        return jnp.where(is_accepted[:, None], q, x), accept.mean()

    x, accept = lax.scan(trajectory, x, jax.random.split(rng_key, NUM_MOVES))
    return x, accept.mean()


def next_power(log_ratio: np.ndarray, power: float) -> float:
    """The largest power at which the weights preserve MIN_ESS of the particles, by bisection."""

    def share(step: float) -> float:
        weights = np.exp(step * (log_ratio - log_ratio.max()))
        return float(weights.sum() ** 2 / (weights**2).sum() / len(weights))

    low, high = 0.0, 1.0 - power
    if share(high) >= MIN_ESS:
        return 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > MIN_ESS else (low, middle)
    return power + low


def anneal(rng_key: jax.Array, x: jax.Array, start: Density, end: Density) -> tuple[float, Any]:
    """Log of the ratio of the constants of ``end`` and ``start``, and particles of ``end``."""
    log_ratio_fn = jax.jit(lambda x: end(x) - start(x))
    power, log_constant, step = 0.0, 0.0, 0.3
    while power < 1:
        log_ratio = np.asarray(log_ratio_fn(x))
        following = next_power(log_ratio, power)
        logs = (following - power) * log_ratio
        weights = np.exp(logs - logs.max())
        log_constant += float(logs.max() + np.log(weights.mean()))
        power = following
        rng_key, key_resample, key_move = jax.random.split(rng_key, 3)
        places = (jax.random.uniform(key_resample) + np.arange(len(x))) / len(x)
        index = np.searchsorted(np.cumsum(weights) / weights.sum(), np.asarray(places))
        x = x[np.minimum(index, len(x) - 1)]
        factor = jnp.linalg.cholesky(jnp.cov(x.T))
        x, accept = move(key_move, x, power, step, factor, start, end)
        step *= float(np.exp(0.5 * (accept - 0.8)))
    return log_constant, x


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    begin = time.perf_counter()
    log_prior, log_likelihood = problem()

    def posterior(x: jax.Array) -> jax.Array:
        return log_prior(x) + log_likelihood(x)

    key_prior, key_pilot, *keys = jax.random.split(jax.random.key(0), 2 + NUM_RUNS)
    first, second = jax.random.split(key_prior)
    beta = jax.random.laplace(first, (NUM_PARTICLES, 30))
    x = jnp.concatenate([beta, 5 * jax.random.normal(second, (NUM_PARTICLES, 1))], 1)
    from_prior, x = anneal(key_pilot, x, log_prior, posterior)
    print(f"from the prior: {from_prior:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    mean, covariance = x.mean(0), jnp.cov(x.T)
    factor = jnp.linalg.cholesky(covariance)

    def normal(x: jax.Array) -> jax.Array:
        return jax.scipy.stats.multivariate_normal.logpdf(x, mean, covariance)

    values = []
    for key in keys:
        key_start, key_path = jax.random.split(key)
        start = mean + jax.random.normal(key_start, x.shape) @ factor.T
        values.append(anneal(key_path, start, normal, posterior)[0])
        print(f"from the normal: {values[-1]:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
    result = {
        "log_evidence": float(np.mean(values)),
        "standard_error": float(np.std(values, ddof=1) / np.sqrt(len(values))),
        "runs": values,
        "from_the_prior": from_prior,
        "num_particles": NUM_PARTICLES,
        "jax": jax.__version__,
        "seconds": time.perf_counter() - begin,
    }
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")
    print(result)


if __name__ == "__main__":
    main()
