"""BlackJAX's adaptive tempered sequential Monte Carlo, for comparison on posteriors with modes.

It begins with draws of a wide normal density, and so knows the region of the modes, which the
other samplers have to find. Its particles are independent draws only as far as resampling leaves
them so; chains for the table are independent runs.
"""

from typing import Any

import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.scipy.stats import norm

from benchmarks.mode_targets import ModeTarget

# Standard deviation of the first density, in all coordinates; the modes of the targets are within
# 2 of it around the origin.
WIDTH = 10.0
# Particles of each of four runs, which make 4 x 1000 draws; share that resampling aims at.
NUM_RUNS, NUM_PARTICLES, TARGET_ESS = 4, 1000, 0.7
# Hamiltonian moves of each particle at each temperature.
NUM_MOVES, NUM_STEPS, STEP_SIZE = 5, 10, 0.3


def draw(rng_key: jax.Array, target: ModeTarget) -> tuple[np.ndarray, int]:
    """Draws (NUM_RUNS, NUM_PARTICLES, dim), and the number of gradients of all runs."""
    log_density = target.log_density
    assert log_density is not None

    def log_prior(x: jax.Array) -> jax.Array:
        return norm.logpdf(x, 0.0, WIDTH).sum()

    algorithm = blackjax.adaptive_tempered_smc(
        log_prior,
        lambda x: log_density(x) - log_prior(x),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        {
            "step_size": jnp.full(1, STEP_SIZE),
            "inverse_mass_matrix": jnp.ones((1, target.dim)),
            "num_integration_steps": jnp.full(1, NUM_STEPS),
        },
        resampling.systematic,
        TARGET_ESS,
        num_mcmc_steps=NUM_MOVES,
    )

    def one_run(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_first, key_steps = random.split(key)
        first = WIDTH * random.normal(key_first, (NUM_PARTICLES, target.dim))

        def step(carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            state, number = carry
            state, _ = algorithm.step(random.fold_in(key_steps, number), state)
            return state, number + 1

        start = algorithm.init(first), jnp.zeros((), int)
        state, number = lax.while_loop(lambda carry: carry[0].tempering_param < 1, step, start)
        return state.particles, number

    particles, number = jax.jit(lambda keys: lax.map(one_run, keys))(
        random.split(rng_key, NUM_RUNS)
    )
    per_temperature = NUM_PARTICLES * NUM_MOVES * (NUM_STEPS + 1)
    return np.asarray(particles, np.float64), int(number.sum()) * per_temperature
