"""Samplers of BlackJAX that are made for posteriors with modes, for comparison.

Adaptive tempered sequential Monte Carlo, and nested slice sampling. Both begin with draws of a wide
normal density, and so know the region of the modes, which the other samplers have to find. Their
particles are independent draws only as far as resampling leaves them so; chains for the table are
independent runs.
"""

from typing import Any

import blackjax
import blackjax.ns.utils as nested
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
# Particles that nested sampling replaces at a time, and log of the part of the evidence that the
# remaining ones may hold at the end.
NUM_REPLACED, REST = 100, -5.0


def _log_prior(x: jax.Array) -> jax.Array:
    return norm.logpdf(x, 0.0, WIDTH).sum()


def draw_tempered(rng_key: jax.Array, target: ModeTarget) -> tuple[np.ndarray, int]:
    """Draws (NUM_RUNS, NUM_PARTICLES, dim), and the number of gradients of all runs."""
    log_density = target.log_density
    assert log_density is not None

    algorithm = blackjax.adaptive_tempered_smc(
        _log_prior,
        lambda x: log_density(x) - _log_prior(x),
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


def draw_nested(rng_key: jax.Array, target: ModeTarget) -> tuple[np.ndarray, int]:
    """Draws (NUM_RUNS, NUM_PARTICLES, dim), and the number of evaluations of all runs.

    Of slice steps, as many as BlackJAX recommends: twice the dimension, at least five.
    """
    log_density = target.log_density
    assert log_density is not None
    algorithm = blackjax.nss(
        logprior_fn=_log_prior,
        loglikelihood_fn=lambda x: log_density(x) - _log_prior(x),
        num_inner_steps=max(5, 2 * target.dim),
        num_delete=NUM_REPLACED,
    )
    step = jax.jit(algorithm.step)
    draws, number = [], 0
    for key in random.split(rng_key, NUM_RUNS):
        key_first, key_state, key_draw, key = random.split(key, 4)
        first = WIDTH * random.normal(key_first, (NUM_PARTICLES, target.dim))
        state = jax.jit(algorithm.init)(first, rng_key=key_state)
        number += NUM_PARTICLES
        dead = []
        while state.integrator.logZ_live - state.integrator.logZ > REST or not dead:
            key, key_step = random.split(key)
            state, info = step(key_step, state)
            dead.append(info)
            slices = info.update_info
            number += int(slices.num_expansions.sum() + slices.num_shrink.sum())
        found = nested.sample(key_draw, nested.finalise(state, dead), NUM_PARTICLES)
        draws.append(np.asarray(found.position, np.float64))
    return np.stack(draws), number
