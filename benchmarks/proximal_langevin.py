r"""Langevin algorithms without an acceptance step, on a posterior with the prior's Moreau envelope.

- MYULA: Durmus, Moulines and Pereyra (2018), *Efficient Bayesian computation by proximal Markov
  chain Monte Carlo: when Langevin meets Moreau*, eq. 9, with :math:`\lambda = 1 / L` and a step of
  :math:`1 / (4 L)`.
- SK-ROCK: Pereyra, Vargas Mieles and Zygalakis (2020), *Accelerating proximal Markov chain Monte
  Carlo by using an explicit stabilized method*, SIAM Journal on Imaging Sciences 13(2), sec. 3.2, a
  Runge-Kutta-Chebyshev step of ``NUM_STAGES`` gradients with the same :math:`\lambda`, and
  ``STEP_SHARE`` of the largest stable step.

L is the largest curvature of the smooth part, by power iterations, over positions of a short first
run with an L that is ten times that of the start.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer import init_to_uniform

from numpyro_rwpo.model.model_source import ModelSource
from numpyro_rwpo.model.target import Differentiation, Target

# Gradients of each chain: of the run, of its warm-up, and from one kept position to the next.
NUM_GRADIENTS, NUM_WARMUP, THINNING = 200_000, 20_000, 200
# Of SK-ROCK, the paper's: stages, damping, and share of the largest stable step.
NUM_STAGES, DAMPING, STEP_SHARE = 10, 0.05, 0.8

Pull = Callable[[jax.Array], jax.Array]
Step = Callable[[jax.Array, jax.Array, Pull, jax.Array], jax.Array]


def myula_step(rng_key: jax.Array, x: jax.Array, pull: Pull, lipschitz: jax.Array) -> jax.Array:
    """One step of all chains.

    Args:
        rng_key: Key of the noise.
        x: Positions, (chains, dim).
        pull: Gradient of the smoothed potential.
        lipschitz: L, scalar.
    """
    step = 0.25 / lipschitz
    return x - step * pull(x) + jnp.sqrt(2 * step) * jax.random.normal(rng_key, x.shape)


def sk_rock_step(rng_key: jax.Array, x: jax.Array, pull: Pull, lipschitz: jax.Array) -> jax.Array:
    """One step of all chains, ``NUM_STAGES`` gradients; arguments as above."""
    s = NUM_STAGES
    w0 = 1 + DAMPING / s**2
    angle = np.arccosh(w0)
    chebyshev = np.cosh(np.arange(s + 1) * angle)  # T_j(w0)
    w1 = chebyshev[s] / (s * np.sinh(s * angle) / np.sqrt(w0**2 - 1))
    largest = ((s - 0.5) ** 2 * (2 - 4 * DAMPING / 3) - 1.5) / (2 * lipschitz)  # L + 1 / lambda
    step = STEP_SHARE * largest
    noise = jnp.sqrt(2 * step) * jax.random.normal(rng_key, x.shape)
    before = x
    here = x - w1 / w0 * step * pull(x + s * w1 / 2 * noise) + s * w1 / w0 * noise
    for j in range(2, s + 1):
        mu = 2 * w1 * chebyshev[j - 1] / chebyshev[j]
        nu = 2 * w0 * chebyshev[j - 1] / chebyshev[j]
        before, here = here, nu * here + (1 - nu) * before - mu * step * pull(here)
    return here


STEPS: dict[str, tuple[Step, int]] = {  # with the gradients of each
    "myula": (myula_step, 1),
    "sk_rock": (sk_rock_step, NUM_STAGES),
}


def curvature(x: jax.Array, target: Target) -> jax.Array:
    """Largest eigenvalue of the smooth part's Hessian in size, over positions (chains, dim)."""

    def product(v: jax.Array) -> jax.Array:
        return jax.jvp(lambda x: target.value_and_grad(x)[1], (x,), (v,))[1]

    def power(_: int, v: jax.Array) -> jax.Array:
        longer = product(v)
        return longer / jnp.linalg.norm(longer, axis=1, keepdims=True)

    v = jax.lax.fori_loop(0, 30, power, jnp.ones_like(x) / x.shape[1] ** 0.5)
    return jnp.abs((v * product(v)).sum(1)).max()


def run(
    model: Callable[..., None], arguments: tuple[Any, ...], sampler: str, num_chains: int
) -> tuple[dict[str, np.ndarray], int, int]:
    """Draws by site, (chains, draws, ...), and gradients of the whole run and of its draws.

    Args:
        model: Its priors with closed forms are split off, with RWPO's coordinates.
        arguments: Of the model.
        sampler: Key of :data:`STEPS`.
        num_chains: Number of chains.
    """
    source = ModelSource(
        model,
        arguments,
        {},
        init_strategy=init_to_uniform(radius=0.5),
        laplace_sites="auto",
        differentiation=Differentiation(1.0, False),
    )
    bound = source.bind(arguments, {})
    target = bound.target()
    prior = target.prior
    assert prior is not None
    step, num_gradients = STEPS[sampler]

    def walk(key: jax.Array, x: jax.Array, lipschitz: jax.Array, number: int) -> Any:
        def pull(x: jax.Array) -> jax.Array:
            return prior.moreau_gradient(x, 1 / lipschitz) + target.value_and_grad(x)[1]

        def once(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            return step(key, x, pull, lipschitz), None

        def kept(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            x, _ = jax.lax.scan(once, x, jax.random.split(key, THINNING // num_gradients))
            return x, x

        return jax.lax.scan(kept, x, jax.random.split(key, number))

    keys = jax.random.split(jax.random.key(0), num_chains)
    x = bound.prepare(keys, None).start
    walk = jax.jit(walk, static_argnums=3)
    largest = jax.jit(lambda x: curvature(x, target))
    top = largest(x)
    for k in range(5):
        x, _ = walk(jax.random.key(k), x, 10 * top, NUM_WARMUP // (5 * THINNING))
        top = jnp.maximum(largest(x), 1e-3)
    _, path = walk(jax.random.key(9), x, top, NUM_GRADIENTS // THINNING)

    def constrained(x: jax.Array) -> Any:
        return bound.constrain(bound.emit(x, jnp.zeros(()))[0])

    values = jax.jit(jax.vmap(jax.vmap(constrained)))(jnp.moveaxis(path, 1, 0))
    draws = {name: np.asarray(v) for name, v in values.items()}
    sampling = NUM_GRADIENTS * num_chains
    return draws, sampling + NUM_WARMUP * num_chains, sampling
