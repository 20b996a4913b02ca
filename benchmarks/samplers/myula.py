r"""MYULA: the unadjusted Langevin algorithm on a potential with a smoothed nonsmooth part.

The algorithm is defined in Durmus, Moulines and Pereyra (2018), *Efficient Bayesian computation by
proximal Markov chain Monte Carlo: when Langevin meets Moreau*, equation 9. For a target
exp(-f - g), with g replaced by its Moreau envelope with parameter :math:`\lambda`,

.. math:: x^+ = x - \gamma \nabla f(x)
    - \frac{\gamma}{\lambda} \bigl(x - \mathrm{prox}_{\lambda g}(x)\bigr) + \sqrt{2\gamma}\, \xi.

There is no acceptance step, so because of the smoothing and the discretization the stationary
distribution is not the posterior. The settings are those of the paper (section 4):
:math:`\lambda = 1 / L_f`, with :math:`L_f` the Lipschitz constant of :math:`\nabla f`, and
:math:`\gamma` at most :math:`\lambda / (2 (\lambda L_f + 1)) = 1 / (4 L_f)`. A potential that is
not quadratic has no global :math:`L_f`. It is estimated at the positions of the chains at the
beginning of every stage of warm-up, and then frozen.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import Problem
from benchmarks.samplers.protocol import (
    POWER_ITERATIONS,
    FlatTarget,
    Segment,
    Settings,
    compiled_loop,
    flat_target,
    paced,
    top_curvature,
)

WARMUP_STAGES = 20
SEGMENT_SIZE = 50  # in kept draws


def soft_threshold(x: jax.Array, threshold: jax.Array) -> jax.Array:
    """Proximal map of ``threshold * |x|``."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0.0)


def myula_step(
    rng_key: jax.Array, x: jax.Array, target: FlatTarget, smoothing: jax.Array, step_size: jax.Array
) -> jax.Array:
    """One step of one chain, by the formula above.

    Args:
        rng_key: Key of the noise.
        x: Position, (dim,).
        target: The problem.
        smoothing: :math:`\\lambda`, scalar.
        step_size: :math:`\\gamma`, scalar.

    Returns:
        The next position, (dim,).
    """
    gradient = jax.grad(target.smooth_potential)(x)
    pull = (x - soft_threshold(x, smoothing * target.rates)) / smoothing
    noise = jax.random.normal(rng_key, x.shape)
    return x - step_size * (gradient + pull) + jnp.sqrt(2.0 * step_size) * noise


class Myula:
    """MYULA bound to a problem; see :class:`benchmarks.samplers.protocol.Program`."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self._settings = settings
        self._target = target = flat_target(problem)

        def step(state: tuple[jax.Array, jax.Array], curvature: jax.Array):
            rng_key, x = state

            def once(_: int, carry: tuple[jax.Array, jax.Array]):
                rng_key, x = carry
                rng_key, key_noise = jax.random.split(rng_key)
                keys = jax.random.split(key_noise, len(x))
                move = jax.vmap(myula_step, (0, 0, None, None, None))
                return rng_key, move(keys, x, target, 1.0 / curvature, 0.25 / curvature)

            return jax.lax.fori_loop(0, settings.thinning, once, (rng_key, x))

        self._loop = compiled_loop(step, lambda state: state[1], SEGMENT_SIZE)
        self._curvature = jax.jit(lambda x, key: top_curvature(target, x, key))
        self._constrain = jax.jit(jax.vmap(jax.vmap(target.constrain)))

    def run(self, rng_key: jax.Array) -> Iterator[Segment]:
        """Yield stages of warm-up, each with its own step size, then draws with the last one."""
        num_chains, num_warmup, num_samples, thinning = self._settings
        key_start, key_power, key_noise = jax.random.split(rng_key, 3)
        state = key_noise, self._target.start(key_start, num_chains)
        jax.block_until_ready(state[1])
        yield Segment("start")
        curvature = jnp.ones(())
        stages = np.array_split(np.arange(num_warmup), min(WARMUP_STAGES, num_warmup))
        for i, stage in enumerate(stages):
            curvature = self._curvature(state[1], jax.random.fold_in(key_power, i))
            products = 2 * POWER_ITERATIONS * num_chains  # one costs about two gradients
            for chunk, last in paced(self._loop, state, curvature, len(stage), SEGMENT_SIZE):
                state = last
                num_gradients = chunk.num_iterations * thinning * num_chains + products
                products = 0
                yield Segment("warmup", chunk.num_iterations * thinning, num_gradients)
        for chunk, _ in paced(self._loop, state, curvature, num_samples, SEGMENT_SIZE):
            draws = chunk.by_chain(self._constrain(chunk.outputs))
            count = chunk.num_iterations * thinning
            yield Segment("sampling", count, count * num_chains, draws)
